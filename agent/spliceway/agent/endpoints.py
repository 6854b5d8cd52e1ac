"""Which veth is whose: local endpoints from the annotations of this node's Pods. Pure.

A directory source can't ask a container runtime, so whoever wires a pod writes down where it is: the host side of its
veth in `spliceway.io/interface`, its network namespace in `spliceway.io/netns`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.optout import opt_out
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Pod

INTERFACE = "spliceway.io/interface"
NETNS = "spliceway.io/netns"
#: dev_valid_name() of the kernel: no slash, colon or white space, at most 15 bytes, not «.» or «..».
_INTERFACE = re.compile(r"(?!\.{1,2}$)[!-.0-9;-~]{1,15}")


class Wired(msgspec.Struct, frozen=True):
    """The endpoint of a pod, and what is wrong with annotations that it can do without."""

    endpoint: LocalEndpoint
    errors: tuple[PolicyError, ...] = ()


def local_endpoint(pod: Pod, document: Mapping[str, Any], node: str) -> Wired | None:
    """The endpoint of a pod, None when it is on another node, in the host's network, or not wired (yet).

    `document` is the manifest of the pod, already parsed into `pod`. Raises PolicyError for a bad annotation that says
    where it is.
    """
    if pod.node != node or pod.host_network or not pod.addresses:
        return None
    annotations = document["metadata"].get("annotations") or {}
    if not isinstance(annotations, Mapping):
        raise PolicyError(pod.file, f"Pod {pod.key}", "metadata.annotations", "is not a mapping")
    interface, netns = annotations.get(INTERFACE), annotations.get(NETNS)
    if interface is None and netns is None:
        return None
    if not isinstance(interface, str) or not _INTERFACE.fullmatch(interface):
        raise _refused(pod, INTERFACE, f"{interface!r} is not an interface name")
    if not isinstance(netns, str) or not Path(netns).is_absolute():
        raise _refused(pod, NETNS, f"{netns!r} is not an absolute path")
    wish = opt_out(pod, annotations)
    endpoint = LocalEndpoint(
        name=pod.key,
        interface=interface,
        netns=Path(netns),
        addresses=pod.addresses,
        splice=wish.splice,
        unspliced_ports=wish.ports,
    )
    return Wired(endpoint, wish.errors)


def _refused(pod: Pod, annotation: str, reason: str) -> PolicyError:
    return PolicyError(pod.file, f"Pod {pod.key}", f"metadata.annotations[{annotation}]", reason)
