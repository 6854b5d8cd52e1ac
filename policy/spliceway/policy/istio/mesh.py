"""What of Istio's own objects the translation depends on: who is in the mesh, and where mTLS is asked of every client.

Sources: Istio, PeerAuthentication and «Label and annotation reference»; istio/istio, ComposePeerAuthentication.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import msgspec

from spliceway.policy.documents import Document
from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.istio.objects import MANAGED_BY, TRANSLATED_FROM
from spliceway.policy.istio.sidecar import INTERCEPTION, PORTS, STATUS, ports_told
from spliceway.policy.model import Cluster, Pod
from spliceway.policy.parse import parse_item
from spliceway.policy.parse_metadata import Metadata, parse_labels
from spliceway.policy.parse_port import parse_port_number

_VERSIONS = ("security.istio.io/v1", "security.istio.io/v1beta1")
_MODES = ("UNSET", "DISABLE", "PERMISSIVE", "STRICT")
STRICT = "STRICT"
#: The sidecar's own ports, which the injector excludes by itself: status, readiness, metrics.
_SIDECARS = frozenset({15020, 15021, 15090})
_INJECT = "sidecar.istio.io/inject"
#: The injector's label on pods that have a sidecar.
_TLS_MODE = "security.istio.io/tlsMode"
_DATAPLANE = "istio.io/dataplane-mode"
_USE_WAYPOINT, _WAYPOINT_NAMESPACE = "istio.io/use-waypoint", "istio.io/use-waypoint-namespace"


class Dataplane(Enum):
    """What stands in front of a pod."""

    NONE = "none"
    SIDECAR = "sidecar"
    AMBIENT = "ambient"


class PeerAuthentication(msgspec.Struct, frozen=True):
    """A PeerAuthentication. `ports`: modes of ports, by number; they count where there is a selector only."""

    namespace: str
    name: str
    match_labels: Mapping[str, str] = {}
    mode: str = "UNSET"
    ports: Mapping[int, str] = {}


class Foreign(msgspec.Struct, frozen=True):
    """An AuthorizationPolicy of somebody else's, as far as it matters whom it is about.

    `everybody`: all workloads with these labels; else what it targets, by `targets` (kind, name): waypoints judge it.
    """

    namespace: str
    name: str
    match_labels: Mapping[str, str] = {}
    everybody: bool = True
    targets: frozenset[tuple[str, str]] = frozenset()


class Mesh(msgspec.Struct, frozen=True):
    """Istio's side of a cluster. `annotations`: of pods, by «namespace/name»."""

    authentications: tuple[PeerAuthentication, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    annotations: Mapping[str, Mapping[str, Any]] = {}
    root_namespace: str = "istio-system"

    def dataplane(self, cluster: Cluster, pod: Pod) -> Dataplane:
        """What enforces an AuthorizationPolicy for a pod."""
        annotations = self.annotations.get(pod.key, {})
        namespace = cluster.namespaces.get(pod.namespace)
        labels = namespace.labels if namespace is not None else {}
        if pod.labels.get(_TLS_MODE) == "istio" or STATUS in annotations:
            return Dataplane.SIDECAR
        if pod.labels.get(_DATAPLANE, labels.get(_DATAPLANE)) == "ambient":
            return Dataplane.AMBIENT
        asked = pod.labels.get(_INJECT, annotations.get(_INJECT))
        if asked is not None:
            return Dataplane.SIDECAR if asked == "true" else Dataplane.NONE
        injected = labels.get("istio-injection") == "enabled" or (
            "istio-injection" not in labels and "istio.io/rev" in labels
        )
        return Dataplane.SIDECAR if injected else Dataplane.NONE

    def shows_none(self, pod: Pod) -> bool:
        """Whether a pod has no trace of an injected sidecar: it may be older than the label that asks for one."""
        return pod.labels.get(_TLS_MODE) != "istio" and STATUS not in self.annotations.get(pod.key, {})

    def hidden(self, pod: Pod, ports: Iterable[int] | None) -> str:
        """What of these ports (None: all) the pod's sidecar does not see, by the pod's annotations; empty: nothing.

        What can't be read hides all.
        """
        annotations = self.annotations.get(pod.key, {})
        if annotations.get(INTERCEPTION) == "NONE":
            return "any connection"
        told = ports_told(annotations)
        if ports is None:
            return "every port" if told is None or told.only is not None or told.excluded - _SIDECARS else ""
        return next((f"port {port}" for port in ports if told is None or not told.has(port)), "")

    def waypoint(self, cluster: Cluster, namespace: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """Namespace and name of the waypoint of a Service with these labels; None: it has none."""
        found = cluster.namespaces.get(namespace)
        for own in (labels, found.labels if found is not None else {}):
            name = own.get(_USE_WAYPOINT)
            if name is not None:
                return None if name == "none" else (own.get(_WAYPOINT_NAMESPACE, namespace), name)
        return None

    def not_strict(self, pods: Iterable[Pod], namespaces: Iterable[str], ports: Iterable[int] | None) -> str:
        """Why not every client of these ports has a certificate; empty: each has. `ports` None: of any port.

        `namespaces`: those that a policy is about, also where they have no pods yet.
        """
        for namespace in namespaces:
            if self._level(namespace) != STRICT:
                return f"mTLS in namespace {namespace} is not STRICT by a PeerAuthentication{self._seen()}"
        for pod in pods:
            if reason := self._pod_not_strict(pod, ports):
                return reason
        return ""

    def _pod_not_strict(self, pod: Pod, ports: Iterable[int] | None) -> str:
        inherited = self._level(pod.namespace)
        for one in self.authentications:
            if not one.match_labels or not one.match_labels.items() <= pod.labels.items():
                continue
            if one.namespace not in (pod.namespace, self.root_namespace):
                continue
            # Of several the oldest counts; none of them may take STRICT away.
            mode = inherited if one.mode == "UNSET" else one.mode
            if mode != STRICT and (ports is None or any(port not in one.ports for port in ports)):
                return f"PeerAuthentication {one.namespace}/{one.name} has {mode} for pod {pod.key}"
            for port, own in one.ports.items():
                if own not in (STRICT, "UNSET") and (ports is None or port in ports):
                    return f"PeerAuthentication {one.namespace}/{one.name} has {own} for port {port} of pod {pod.key}"
                if own == "UNSET" and mode != STRICT and (ports is None or port in ports):
                    return f"PeerAuthentication {one.namespace}/{one.name} has {mode} for pod {pod.key}"
        told = f"mTLS of pod {pod.key} is not STRICT by a PeerAuthentication{self._seen()}"
        return "" if inherited == STRICT else told

    def _seen(self) -> str:
        return "" if self.authentications else " (none is known)"

    def _level(self, namespace: str) -> str:
        """Mode of a namespace without regard to workloads; of several at one level all must be STRICT."""
        for level in (namespace, self.root_namespace):
            modes = {one.mode for one in self.authentications if one.namespace == level and not one.match_labels}
            if modes - {"UNSET"}:
                return STRICT if modes == {STRICT} else "PERMISSIVE"
        return "PERMISSIVE"


class Read(msgspec.Struct, frozen=True):
    """What documents hold for the translation. `earlier`: namespace, name and labels of what one before has made."""

    objects: tuple[Any, ...]
    authentications: tuple[PeerAuthentication, ...]
    foreign: tuple[Foreign, ...]
    annotations: Mapping[str, Mapping[str, Any]]
    earlier: tuple[tuple[str, str, Mapping[str, str]], ...] = ()


def read_document(document: Document) -> Read:
    """One document: an object of policy, a List, or one of Istio's. Raises PolicyError."""
    content = document.content
    where = Where(document.file, f"document {document.index} (line {document.line})")
    if not isinstance(content, dict) or content.get("kind") != "List":
        return _read(content, where)
    items = where.at("items")
    found = [_read(item, items.item(index)) for index, item in enumerate(items.typed(content.get("items"), list))]
    return Read(
        tuple(one for part in found for one in part.objects),
        tuple(one for part in found for one in part.authentications),
        tuple(one for part in found for one in part.foreign),
        {key: value for part in found for key, value in part.annotations.items()},
        tuple(one for part in found for one in part.earlier),
    )


def _read(content: Any, where: Where) -> Read:
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind in ("PeerAuthentication", "AuthorizationPolicy"):
        fields = Fields(content, where)
        fields.ignore("kind")
        if (version := fields.need("apiVersion", str)) not in _VERSIONS:
            where.at("apiVersion").refuse(
                f"unsupported version {shown(version)} of {kind} (supported: {', '.join(_VERSIONS)})"
            )
        if kind == "PeerAuthentication":
            return Read((), (_authentication(fields, where),), (), {})
        meta = Metadata(fields, where, kind)
        if MANAGED_BY in meta.labels.items() and TRANSLATED_FROM in (meta.annotations or {}):
            return Read((), (), (), {}, ((meta.namespace, meta.name, meta.labels),))
        foreign = _foreign(fields, meta)
        return Read((), (), () if foreign is None else (foreign,), {})
    if kind == "EnvoyFilter" and _is_ours(content):
        return Read((), (), (), {})
    objects = parse_item(content, where)
    annotations: dict[str, Mapping[str, Any]] = {}
    for item in objects:
        if isinstance(item, Pod) and isinstance(told := content["metadata"].get("annotations"), dict):
            fields = Fields(told, Where(where.file, f"Pod {item.key}", where.at("metadata.annotations").field))
            annotations[item.key] = told | {name: fields.take(name, str, default) for name, default in PORTS.items()}
    return Read(objects, (), (), annotations)


def _is_ours(content: dict[str, Any]) -> bool:
    metadata = content.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    return isinstance(labels, dict) and MANAGED_BY in labels.items()


def _authentication(fields: Fields, where: Where) -> PeerAuthentication:
    meta = Metadata(fields, where, "PeerAuthentication")
    spec = Fields(fields.take("spec", dict, {}), meta.where.at("spec"))
    labels = _selector(spec)
    mode = _mode(spec.take("mtls", dict, {}), spec.where.at("mtls"))
    ports = {}
    place = spec.where.at("portLevelMtls")
    for port, value in spec.take("portLevelMtls", dict, {}).items():
        number = parse_port_number(str(port))
        if number is None:
            place.refuse(f"{shown(port)} is not a port")
        ports[number] = _mode(value, place.at(shown(str(port))))
    spec.done()
    return PeerAuthentication(meta.namespace, meta.name, labels, mode, ports)


def _mode(value: Any, where: Where) -> str:
    fields = Fields(value, where)
    found: str = fields.take("mode", str, "UNSET")
    if found not in _MODES:
        where.at("mode").refuse(f"{shown(found)} is not a mode ({', '.join(_MODES)})")
    return found


def _selector(spec: Fields) -> dict[str, str]:
    selector = Fields(spec.take("selector", dict, {}), spec.where.at("selector"))
    labels = parse_labels(selector.take("matchLabels", dict, {}), selector.where.at("matchLabels"))
    selector.done()
    return labels


def _foreign(fields: Fields, meta: Metadata) -> Foreign | None:
    """None: it says nothing of what passes."""
    spec = Fields(fields.take("spec", dict, {}), meta.where.at("spec"))
    if spec.take("action", str, "ALLOW") == "AUDIT":
        return None
    targets = [*(spec.take("targetRefs", list, [])), *([one] if (one := spec.take("targetRef", dict, {})) else [])]
    told = frozenset(
        (str(one.get("kind")), str(one.get("name"))) if isinstance(one, dict) else ("", "") for one in targets
    )
    return Foreign(meta.namespace, meta.name, _selector(spec), everybody=not targets, targets=told)
