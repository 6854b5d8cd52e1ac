"""Which veth is whose: local endpoints from the annotations of this node's Pods. Pure.

A directory source can't ask a container runtime, so whoever wires a pod writes down where it is: the host side of its
veth in `spliceway.io/interface`, its network namespace in `spliceway.io/netns`. A pod without them makes a claim: by
what it is known when its runtime wires it (`cni`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.istiopods import mesh_of, sidecar_of
from spliceway.agent.optout import OptOut, opt_out
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.errors import PolicyError
from spliceway.policy.istio.hbone import AMBIENT
from spliceway.policy.labels import HBONE_KEY
from spliceway.policy.model import Pod

INTERFACE = "spliceway.io/interface"
NETNS = "spliceway.io/netns"
#: The kubelet's, both alike, at the object that stands for a static pod: the uid that runtimes know that pod by.
#: Anybody may write the first one at a pod that runs; what has the second one runs as a static pod or not at all.
_STATIC_UID, _MIRROR = "kubernetes.io/config.hash", "kubernetes.io/config.mirror"
#: dev_valid_name() of the kernel: no slash, colon or white space, at most 15 bytes, not «.» or «..».
_INTERFACE = re.compile(r"(?!\.{1,2}$)[!-.0-9;-~]{1,15}")


class Claim(msgspec.Struct, frozen=True):
    """A pod of this node that its runtime wires: the uids that it is known by, and what of it may be spliced.

    `sidecar`, `mesh`: as in `LocalEndpoint`.
    """

    uids: tuple[str, ...] = ()
    splice: bool = True
    unspliced_ports: frozenset[int] = frozenset()
    sidecar: int | None = None
    mesh: str = ""


class Wired(msgspec.Struct, frozen=True):
    """The endpoint of a pod, or its claim to one, and what is wrong with annotations that it can do without."""

    endpoint: LocalEndpoint | None
    errors: tuple[PolicyError, ...] = ()
    claim: Claim | None = None


def local_endpoint(pod: Pod, document: Mapping[str, Any], node: str) -> Wired | None:
    """The endpoint of a pod, None when it is on another node, in the host's network, or has no address yet.

    `document` is the manifest of the pod, already parsed into `pod`. Raises PolicyError for a bad annotation that says
    where it is.
    """
    if pod.node != node or pod.host_network:
        return None
    annotations = document["metadata"].get("annotations") or {}
    if not isinstance(annotations, Mapping):
        raise PolicyError(pod.file, f"Pod {pod.key}", "metadata.annotations", "is not a mapping")
    interface, netns = annotations.get(INTERFACE), annotations.get(NETNS)
    if interface is None and netns is None:
        return _claimed(pod, document, annotations)
    if not pod.addresses:
        return None
    if not isinstance(interface, str) or not _INTERFACE.fullmatch(interface):
        raise _refused(pod, INTERFACE, f"{interface!r} is not an interface name")
    if not isinstance(netns, str) or not Path(netns).is_absolute():
        raise _refused(pod, NETNS, f"{netns!r} is not an absolute path")
    wish = _wish(pod, annotations)
    endpoint = LocalEndpoint(
        name=pod.key,
        interface=interface,
        netns=Path(netns),
        addresses=pod.addresses,
        splice=wish.splice,
        unspliced_ports=wish.ports,
        sidecar=sidecar_of(annotations, document.get("spec")),
        mesh=_mesh(annotations, document),
    )
    return Wired(endpoint, wish.errors)


def _claimed(pod: Pod, document: Mapping[str, Any], annotations: Mapping[str, Any]) -> Wired:
    wish, uid = _wish(pod, annotations), document["metadata"].get("uid")
    static = annotations.get(_STATIC_UID)
    static = static if static == annotations.get(_MIRROR) else None
    uids = tuple(one for one in (uid, static) if one and isinstance(one, str))
    sidecar = sidecar_of(annotations, document.get("spec"))
    return Wired(None, wish.errors, Claim(uids, wish.splice, wish.ports, sidecar, _mesh(annotations, document)))


def _mesh(annotations: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    return mesh_of(annotations, document["metadata"].get("labels"), document.get("spec"))


def _wish(pod: Pod, annotations: Mapping[str, Any]) -> OptOut:
    """What of a pod may be spliced. Of an ambient one nothing: sockets in its network namespace are ztunnel's, too."""
    wish = opt_out(pod, annotations)
    return msgspec.structs.replace(wish, splice=False) if pod.labels.get(HBONE_KEY) == AMBIENT else wish


def _refused(pod: Pod, annotation: str, reason: str) -> PolicyError:
    return PolicyError(pod.file, f"Pod {pod.key}", f"metadata.annotations[{annotation}]", reason)
