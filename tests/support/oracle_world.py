"""The world that the oracle's questions are about (see `oracle`): documents, addresses, label selectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Any, NamedTuple

Doc = dict[str, Any]


class Match(NamedTuple):
    """A rule that is about a connection. `action`: Accept, Deny, Pass. `http`: it asks for HTTP."""

    action: str
    rule: str
    http: bool = False


@dataclass(frozen=True)
class Who:
    """Who stands behind an address: a pod, a node, or neither; then `inside` says whether it is in a pod range."""

    address: Any
    pod: Doc | None = None
    node: Doc | None = None
    inside: bool = False

    @property
    def world(self) -> bool:
        """Outside the cluster."""
        return self.pod is None and self.node is None and not self.inside


class Ask(NamedTuple):
    """A connection as one of its ends sees it. `direction`: ingress or egress; `server`: who is dialled."""

    pod: Doc
    direction: str
    peer: Who
    server: Who
    protocol: str
    port: int


@dataclass
class World:
    """The documents by kind, and questions about them."""

    documents: list[Doc]
    pod_ranges: tuple[str, ...]
    by_kind: dict[str, list[Doc]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for document in self.documents:
            self.by_kind.setdefault(document["kind"], []).append(document)

    def of(self, kind: str) -> list[Doc]:
        """Documents of a kind, by namespace and name."""
        return sorted(self.by_kind.get(kind, []), key=lambda d: (namespace_of(d), name_of(d)))

    def who(self, text: str) -> Who:
        """Who stands behind an address. Pods in their host's network are the node; those that have ended are none."""
        address = ip_address(text)
        for node in self.by_kind.get("Node", []):
            entries = node["status"]["addresses"]
            if any(entry["type"] != "Hostname" and ip_address(entry["address"]) == address for entry in entries):
                return Who(address, node=node)
        for pod in self.by_kind.get("Pod", []):
            status = pod["status"]
            addresses = [entry["ip"] for entry in status.get("podIPs", [{"ip": status.get("podIP")}])]
            if text not in addresses or status.get("phase") in ("Succeeded", "Failed"):
                continue
            if pod["spec"].get("hostNetwork"):
                (node,) = (node for node in self.by_kind["Node"] if name_of(node) == pod["spec"]["nodeName"])
                return Who(address, node=node)
            return Who(address, pod=pod)
        for node in self.by_kind.get("Node", []):
            # What a CNI plugin gives a node: the first address of its pods' range (flannel) and the second (a bridge).
            if any(address in list(islice(ip_network(block), 2)) for block in _cidrs(node)):
                return Who(address, node=node)
            if str(address) in _noted(node):
                return Who(address, node=node)
        return Who(address, inside=any(address in ip_network(block) for block in self._pod_ranges()))

    def _pod_ranges(self) -> Iterator[str]:
        yield from self.pod_ranges
        for node in self.by_kind.get("Node", []):
            yield from _cidrs(node)

    def namespace_labels(self, namespace: str) -> dict[str, str]:
        """Labels of a namespace; its name is one of them."""
        labels = {"kubernetes.io/metadata.name": namespace}
        for document in self.by_kind.get("Namespace", []):
            if name_of(document) == namespace:
                labels.update(document["metadata"].get("labels", {}))
        return labels


def _cidrs(node: Doc) -> list[str]:
    spec = node.get("spec", {})
    found: list[str] = spec.get("podCIDRs", [spec["podCIDR"]] if "podCIDR" in spec else [])
    return found


def _noted(node: Doc) -> list[str]:
    """Addresses in the annotations of CNI plugins."""
    noted = (
        "/ipv4-cilium-host /ipv6-cilium-host /internal-ip /external-ip /public-ip /public-ipv6 TunnelAddr InterfaceAddr"
    )
    ends = (*noted.split(), "/IPv4Address", "/IPv6Address")
    found = node["metadata"].get("annotations", {}).items()
    return [one.split("/")[0] for name, value in found if name.endswith(ends) for one in value.split(",")]


def name_of(document: Doc) -> str:
    """Its metadata.name."""
    return str(document["metadata"]["name"])


def namespace_of(document: Doc) -> str:
    """Its metadata.namespace."""
    return str(document["metadata"].get("namespace", "default"))


def labels_of(document: Doc) -> dict[str, str]:
    """Its metadata.labels."""
    return dict(document["metadata"].get("labels", {}))


def selects(selector: Doc, labels: dict[str, str]) -> bool:
    """A LabelSelector: matchLabels and matchExpressions, all of them; NotIn and DoesNotExist hold without the key."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for entry in selector.get("matchExpressions", []):
        has, values = entry["key"] in labels, entry.get("values", [])
        held = {
            "In": has and labels.get(entry["key"]) in values,
            "NotIn": not has or labels[entry["key"]] not in values,
            "Exists": has,
            "DoesNotExist": not has,
        }
        if not held[entry["operator"]]:
            return False
    return True


def named_ports(who: Who) -> Iterator[tuple[str, str, int]]:
    """Name, protocol (TCP is the default) and number of the ports of a pod's containers that run beside each other."""
    spec = who.pod["spec"] if who.pod else {}
    sidecars = [one for one in spec.get("initContainers", []) if one.get("restartPolicy") == "Always"]
    for container in [*spec.get("containers", []), *sidecars]:
        for port in container.get("ports", []):
            if "name" in port:
                yield port["name"], port.get("protocol", "TCP"), port["containerPort"]


def title(document: Doc) -> str:
    """«kind namespace/name», or «kind name» of a clusterwide policy."""
    namespaced = document["kind"] in ("NetworkPolicy", "CiliumNetworkPolicy", "AuthorizationPolicy")
    key = f"{namespace_of(document)}/{name_of(document)}" if namespaced else name_of(document)
    return f"{document['kind']} {key}"
