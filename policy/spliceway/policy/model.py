"""Everything the compiler and the interpreter see, as frozen values: a `Cluster` and the policies in it.

A policy here is already validated; every rule knows the field path it was written at, so that it can be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import msgspec

from spliceway.policy.entity import Entity
from spliceway.policy.labels import Selector, pod_labels
from spliceway.policy.table import IPNetwork, RuleRef
from spliceway.policy.verdict import Direction, Protocol

IPAddress = IPv4Address | IPv6Address
T = TypeVar("T")

#: What «ANY» means beside a port: the protocols that have ports.
PORT_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class Namespace(msgspec.Struct, frozen=True):
    """A Kubernetes namespace and its labels."""

    name: str
    labels: Mapping[str, str] = {}
    file: str = ""


class Pod(msgspec.Struct, frozen=True):
    """A pod. Without addresses it is not reachable yet (or not any more) and has no part in the tables."""

    namespace: str
    name: str
    labels: Mapping[str, str] = {}
    addresses: tuple[IPAddress, ...] = ()
    node: str = ""
    host_network: bool = False
    service_account: str = ""
    file: str = ""

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"


class Node(msgspec.Struct, frozen=True):
    """A node: its own addresses and the prefixes its pods have addresses from."""

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    file: str = ""


class CidrPeer(msgspec.Struct, frozen=True):
    """Addresses outside the cluster: those in `cidr` that are in none of `excepts`."""

    cidr: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()


class Peers(msgspec.Struct, frozen=True):
    """The peers a rule names: any of the members. With all three empty it names nobody (an empty list in YAML)."""

    endpoints: tuple[Selector, ...] = ()
    cidrs: tuple[CidrPeer, ...] = ()
    entities: tuple[Entity, ...] = ()


class PortRange(msgspec.Struct, frozen=True):
    """Ports `first` to `last`, both included. Protocol.ANY means every one of PORT_PROTOCOLS."""

    protocol: Protocol
    first: int
    last: int

    def covers(self, protocol: int, port: int) -> bool:
        """Whether this protocol and destination port are in the range."""
        protocols = PORT_PROTOCOLS if self.protocol is Protocol.ANY else (self.protocol,)
        return protocol in protocols and self.first <= port <= self.last


class HttpMatch(msgspec.Struct, frozen=True):
    """One HTTP rule, written at field `path`. Empty expressions match everything; both are RE2, whole, ASCII."""

    path: str
    method_regex: str = ""
    path_regex: str = ""


class PortRule(msgspec.Struct, frozen=True):
    """One entry of toPorts, written at field `path`. `http` is None when it has no HTTP rules, and never empty."""

    path: str
    ports: tuple[PortRange, ...]
    http: tuple[HttpMatch, ...] | None = None


class Rule(msgspec.Struct, frozen=True):
    """One entry of ingress, egress, ingressDeny or egressDeny, written at field `path`.

    `peers` None: every peer, if there are ports; an entry with neither peers nor ports matches nothing (as in Cilium:
    it only turns on default deny). `to_ports` empty: every protocol and port.
    """

    path: str
    direction: Direction
    deny: bool
    peers: Peers | None
    to_ports: tuple[PortRule, ...] = ()

    @property
    def is_empty(self) -> bool:
        """`{}`: matches nothing."""
        return self.peers is None and not self.to_ports


class Spec(msgspec.Struct, frozen=True):
    """One rule specification: the endpoints it is about and what holds for them.

    `default_deny` and `applies` are indexed by Direction: whether what no rule allows is denied, and whether the
    specification says anything about that direction at all.
    """

    path: str
    subject: Selector
    rules: tuple[Rule, ...]
    default_deny: tuple[bool, bool]
    applies: tuple[bool, bool]
    description: str = ""


class NetworkPolicy(msgspec.Struct, frozen=True):
    """A policy object with one or more specifications."""

    kind: str
    namespace: str
    name: str
    specs: tuple[Spec, ...]
    file: str = ""

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"

    @property
    def title(self) -> str:
        """«CiliumNetworkPolicy namespace/name», as rules and errors name it."""
        return f"{self.kind} {self.key}"

    def ref(self, path: str) -> RuleRef:
        """Name of the rule that this policy has at a field path."""
        return RuleRef(self.title, path)


Object = Namespace | Pod | Node | NetworkPolicy


def object_key(item: Object) -> tuple[str, str]:
    """Kind and name of an object: what it replaces when it comes again."""
    match item:
        case Namespace() | Node():
            return type(item).__name__, item.name
        case Pod():
            return "Pod", item.key
        case NetworkPolicy():
            return item.kind, item.key


class Cluster(msgspec.Struct, frozen=True):
    """Immutable snapshot of everything that verdicts depend on.

    Namespaces and nodes are keyed by name, pods and policies by «namespace/name». `pod_cidrs` are prefixes of pod
    addresses beyond those that the nodes name.
    """

    namespaces: Mapping[str, Namespace] = {}
    pods: Mapping[str, Pod] = {}
    nodes: Mapping[str, Node] = {}
    policies: Mapping[str, NetworkPolicy] = {}
    pod_cidrs: tuple[IPNetwork, ...] = ()

    def with_objects(self, items: Iterable[Object]) -> Cluster:
        """A snapshot in which these objects are new, or replace those of the same kind and name."""
        namespaces, pods = dict(self.namespaces), dict(self.pods)
        nodes, policies = dict(self.nodes), dict(self.policies)
        for item in items:
            match item:
                case Namespace():
                    namespaces[item.name] = item
                case Pod():
                    pods[item.key] = item
                case Node():
                    nodes[item.name] = item
                case NetworkPolicy():
                    policies[item.key] = item
        return Cluster(namespaces, pods, nodes, policies, self.pod_cidrs)

    def without(self, kind: str, name: str) -> Cluster:
        """A snapshot without the object of this kind and name (see `object_key`); unknown names change nothing."""

        def rest(items: Mapping[str, T], of: str) -> Mapping[str, T]:
            return {key: value for key, value in items.items() if kind != of or key != name}

        return Cluster(
            rest(self.namespaces, "Namespace"),
            rest(self.pods, "Pod"),
            rest(self.nodes, "Node"),
            rest(self.policies, "CiliumNetworkPolicy"),
            self.pod_cidrs,
        )

    def all_pod_cidrs(self) -> tuple[IPNetwork, ...]:
        """Every prefix of pod addresses, sorted, without duplicates."""
        found = {*self.pod_cidrs, *(cidr for node in self.nodes.values() for cidr in node.pod_cidrs)}
        return tuple(sorted(found, key=lambda cidr: (cidr.version, int(cidr.network_address), cidr.prefixlen)))

    def labels_of(self, pod: Pod) -> tuple[str, ...]:
        """Sorted identity labels of a pod."""
        namespace = self.namespaces.get(pod.namespace)
        return pod_labels(pod.namespace, pod.labels, namespace.labels if namespace else {}, pod.service_account)

    def ordered_policies(self) -> list[NetworkPolicy]:
        """Policies in the order in which their rules are named first: by kind, namespace and name."""
        return sorted(self.policies.values(), key=lambda policy: (policy.kind, policy.namespace, policy.name))
