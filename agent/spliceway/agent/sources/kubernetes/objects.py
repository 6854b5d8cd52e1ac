"""From the server's JSON to what is needed of it: pods and nodes typed, so that the rest is never made. Pure.

A pod is some KiB, of which verdicts need some hundred bytes. Pods of other nodes are peers only: of them annotations
are left out, too, but for a few of Istio's, which stand apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from spliceway.agent.endpoints import INTERFACE, NETNS
from spliceway.agent.sources.events import ObjectChanged
from spliceway.policy.istio.sidecar import CONTAINER, VARIABLES, WRITERS

Json = dict[str, Any]
#: Annotations that repeat the whole object.
_ECHOES = ("kubectl.kubernetes.io/last-applied-configuration",)
#: Kinds whose status says something.
_WITH_STATUS = frozenset({"Service", "PolicyStatus", "ClusterPolicyStatus"})


class Metadata(msgspec.Struct, rename="camel"):
    """ObjectMeta, as far as it is needed."""

    name: str
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: msgspec.Raw = msgspec.Raw(b"null")
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    resource_version: str = ""
    uid: str | None = None


class _Port(msgspec.Struct, rename="camel", omit_defaults=True):
    container_port: int
    name: str | None = None
    protocol: str | None = None


class _SecurityContext(msgspec.Struct, rename="camel", omit_defaults=True):
    run_as_user: int | None = None


class _Variable(msgspec.Struct, omit_defaults=True):
    name: str
    value: str | None = None


class _Container(msgspec.Struct, rename="camel"):
    """`args` and `env` are of interest in two containers of Istio's only."""

    ports: list[_Port] | None = None
    restart_policy: str | None = None
    name: str | None = None
    security_context: _SecurityContext | None = None
    args: msgspec.Raw = msgspec.Raw(b"null")
    env: msgspec.Raw = msgspec.Raw(b"null")


class _Kept(msgspec.Struct, rename="camel", omit_defaults=True):
    """What stays of a container."""

    ports: list[_Port] | None = None
    restart_policy: str | None = None
    name: str | None = None
    security_context: _SecurityContext | None = None
    args: list[str] | None = None
    env: list[_Variable] | None = None


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None
    service_account_name: str | None = None
    containers: list[_Container] | None = None
    init_containers: list[_Container] | None = None
    host_users: bool | None = None
    security_context: _SecurityContext | None = None


class _Address(msgspec.Struct):
    ip: str | None = None


class _State(msgspec.Struct):
    terminated: Json | None = None
    running: Json | None = None


class _ContainerStatus(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


class _PodStatus(msgspec.Struct, rename="camel"):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[_Address] | None = msgspec.field(default=None, name="podIPs")
    container_statuses: list[_ContainerStatus] | None = None
    init_container_statuses: list[_ContainerStatus] | None = None


class _Pod(msgspec.Struct):
    metadata: Metadata
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _NodeSpec(msgspec.Struct):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")


class _NodeAddress(msgspec.Struct):
    type: str
    address: str


class _NodeStatus(msgspec.Struct):
    addresses: list[_NodeAddress] | None = None


class _Node(msgspec.Struct):
    metadata: Metadata
    spec: _NodeSpec = msgspec.field(default_factory=_NodeSpec)
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


class _Head(msgspec.Struct):
    metadata: Metadata


class Read(msgspec.Struct, frozen=True):
    """One object: what it is called here, its resourceVersion, and what it says; `mesh`: see `ObjectChanged`."""

    file: str
    version: str
    content: Json
    mesh: Mapping[str, str] = {}

    @property
    def event(self) -> ObjectChanged:
        """As the inventory takes it."""
        return ObjectChanged(self.file, self.content, self.mesh)


class WatchEvent(msgspec.Struct):
    """A line of a watch."""

    type: str
    object: msgspec.Raw = msgspec.Raw(b"{}")


class ListMeta(msgspec.Struct, rename="camel"):
    """ListMeta."""

    resource_version: str = ""
    # «continue» is a keyword
    rest: str = msgspec.field(default="", name="continue")


class Listed(msgspec.Struct):
    """A page of a list. Items are taken apart one by one: a bad one must not hide the others."""

    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class Status(msgspec.Struct, rename="camel"):
    """A refusal (meta/v1 Status)."""

    code: int = 0
    reason: str = ""
    message: str = ""


_POD, _NODE, _HEAD = msgspec.json.Decoder(_Pod), msgspec.json.Decoder(_Node), msgspec.json.Decoder(_Head)
_ANY, _ANNOTATIONS = msgspec.json.Decoder(Json), msgspec.json.Decoder(dict[str, str] | None)
_ARGS, _ENV = msgspec.json.Decoder(list[str] | None), msgspec.json.Decoder(list[_Variable] | None)


class Reader:
    """Reads objects of one kind. `node`: whose pods are read with their annotations.

    `wired`: others say how pods are wired, and no pod itself: whoever may make one could name any interface.
    """

    def __init__(self, kind: str, api_version: str, node: str, *, wired: bool = False) -> None:
        self._head: Json = {"apiVersion": api_version, "kind": kind}
        self._kind = kind
        self._node = node
        self._left_out = (*_ECHOES, INTERFACE, NETNS) if wired and kind == "Pod" else _ECHOES
        readers: dict[str, Callable[[bytes | msgspec.Raw], tuple[Metadata, Json]]] = {
            "Pod": self._pod,
            "Node": self._of_node,
        }
        self._read = readers.get(kind, self._other)

    def __repr__(self) -> str:
        return f"Reader({self._kind})"

    def read(self, raw: bytes | msgspec.Raw) -> Read:
        """An object. Raises msgspec.MsgspecError (or RecursionError) when it is none of this kind."""
        metadata, content = self._read(raw)
        mesh = _mesh(metadata) if self._kind == "Pod" else {}
        return Read(self._file(metadata), metadata.resource_version, {**self._head, **content}, mesh)

    def name(self, raw: bytes | msgspec.Raw) -> tuple[str, str]:
        """What an object is called, and its resourceVersion. Raises as `read` does."""
        metadata = _HEAD.decode(raw).metadata
        return self._file(metadata), metadata.resource_version

    def place(self, file: str) -> tuple[str, str]:
        """Namespace and name, by what an object is called here."""
        namespace, _, name = file.removeprefix(f"kubernetes:{self._kind}/").rpartition("/")
        return namespace, name

    def _file(self, metadata: Metadata) -> str:
        name = f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name
        return sys.intern(name) if self._kind == "Pod" else f"kubernetes:{self._kind}/{name}"

    def _pod(self, raw: bytes | msgspec.Raw) -> tuple[Metadata, Json]:
        pod = _POD.decode(raw)
        spec, status = pod.spec, pod.status
        own = spec.node_name == self._node
        content: Json = {
            "metadata": _metadata(pod.metadata, self._left_out, whole=own),
            "spec": _there(
                nodeName=spec.node_name,
                hostNetwork=spec.host_network,
                serviceAccountName=spec.service_account_name,
                containers=_containers(spec.containers, own=own),
                initContainers=_containers(spec.init_containers, own=own),
                hostUsers=spec.host_users if own else None,
                securityContext=msgspec.to_builtins(spec.security_context) if own else None,
            ),
        }
        addresses = [one.ip for one in status.pod_ips or () if one.ip] or ([status.pod_ip] if status.pod_ip else [])
        if addresses and not (pod.metadata.deletion_timestamp and _gone(status)):
            content["status"] = _there(phase=status.phase, podIPs=[{"ip": address} for address in addresses])
        return pod.metadata, content

    def _of_node(self, raw: bytes | msgspec.Raw) -> tuple[Metadata, Json]:
        node = _NODE.decode(raw)
        addresses = [{"type": one.type, "address": one.address} for one in node.status.addresses or ()]
        content: Json = {
            "metadata": _metadata(node.metadata, self._left_out, whole=True),
            "spec": _there(podCIDR=node.spec.pod_cidr, podCIDRs=node.spec.pod_cidrs),
            "status": {"addresses": addresses},
        }
        return node.metadata, content

    def _other(self, raw: bytes | msgspec.Raw) -> tuple[Metadata, Json]:
        content: Json = _ANY.decode(raw)
        metadata = msgspec.convert(content.get("metadata"), type=_Named)
        content["metadata"].pop("managedFields", None)
        if isinstance(annotations := content["metadata"].get("annotations"), dict):
            for echo in _ECHOES:
                annotations.pop(echo, None)
        if self._kind not in _WITH_STATUS:
            content.pop("status", None)
        return Metadata(metadata.name, metadata.namespace, resource_version=metadata.resource_version), content


class _Named(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    resource_version: str = ""


def is_told(revision: str, seen: str) -> bool:
    """Whether who has seen all up to `seen` has seen this resourceVersion; of what are no numbers nobody knows."""
    return revision.isdecimal() and seen.isdecimal() and int(revision) <= int(seen)


def bookmarked(raw: msgspec.Raw) -> tuple[str, bool]:
    """The resourceVersion of a bookmark, and whether it ends the first events of a watch."""
    metadata = _HEAD_OF_BOOKMARK.decode(raw).metadata
    annotations = _ANNOTATIONS.decode(metadata.annotations) or {}
    return metadata.resource_version, annotations.get("k8s.io/initial-events-end") == "true"


class _BookmarkMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    annotations: msgspec.Raw = msgspec.Raw(b"null")


class _Bookmark(msgspec.Struct):
    metadata: _BookmarkMeta


_HEAD_OF_BOOKMARK = msgspec.json.Decoder(_Bookmark)


def _metadata(metadata: Metadata, left_out: tuple[str, ...], *, whole: bool) -> Json:
    """`whole`: also what only matters on the object's own node, annotations but for those that are left out."""
    found = _there(
        name=metadata.name,
        namespace=metadata.namespace or None,
        labels=metadata.labels or None,
        creationTimestamp=metadata.creation_timestamp,
        deletionTimestamp=metadata.deletion_timestamp,
    )
    if whole and metadata.uid:
        found["uid"] = metadata.uid
    if whole and (told := _ANNOTATIONS.decode(metadata.annotations)):
        found["annotations"] = {key: value for key, value in told.items() if key not in left_out}
    return found


class _MeshAnnotations(msgspec.Struct, omit_defaults=True):
    """See `policy.istio.mesh`."""

    status: str | None = msgspec.field(default=None, name="sidecar.istio.io/status")
    inject: str | None = msgspec.field(default=None, name="sidecar.istio.io/inject")
    excluded: str | None = msgspec.field(default=None, name="traffic.sidecar.istio.io/excludeInboundPorts")
    included: str | None = msgspec.field(default=None, name="traffic.sidecar.istio.io/includeInboundPorts")
    mode: str | None = msgspec.field(default=None, name="sidecar.istio.io/interceptionMode")


_MESH = msgspec.json.Decoder(_MeshAnnotations)


def _mesh(metadata: Metadata) -> dict[str, str]:
    """Of a pod; mostly none: that it has a sidecar its label says."""
    if b"sidecar.istio.io" not in bytes(metadata.annotations):
        return {}
    found = _MESH.decode(metadata.annotations)
    shown = (metadata.labels or {}).get("security.istio.io/tlsMode") == "istio"
    # Of the first it counts only that it is there, and of the last one value.
    status = None if shown or found.status is None else "{}"
    mode = found.mode if found.mode == "NONE" else None
    told: dict[str, str] = msgspec.to_builtins(msgspec.structs.replace(found, status=status, mode=mode))
    return told


def _containers(containers: list[_Container] | None, *, own: bool) -> list[Json] | None:
    """Those that have named ports; of a pod of this node, also a sidecar, whose user it is, and what comes to it."""
    found = []
    for one in containers or ():
        named = [port for port in one.ports or () if port.name] or None
        if own and one.name in (CONTAINER, *WRITERS):
            args = _ARGS.decode(one.args) if one.name in WRITERS else None
            env = [each for each in _ENV.decode(one.env) or () if each.name in VARIABLES] or None
            kept = _Kept(named, one.restart_policy, one.name, one.security_context, args, env)
            found.append(msgspec.to_builtins(kept))
        elif named:
            found.append(msgspec.to_builtins(_Kept(named, one.restart_policy)))
    return found or None


def _gone(status: _PodStatus) -> bool:
    """Whether nothing of a pod that is being deleted runs any more: then its address may be another pod's."""
    containers = status.container_statuses or []
    states = [one.state for one in (*containers, *(status.init_container_statuses or ()))]
    ended = bool(containers) and all(one.state.terminated is not None for one in containers)
    return ended and not any(state.running is not None for state in states)


def _there(**values: Any) -> Json:
    return {key: value for key, value in values.items() if value is not None}
