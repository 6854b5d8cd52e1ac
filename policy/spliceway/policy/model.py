"""Everything the compiler and the interpreter see, as frozen values: a `Cluster` and the policies in it.

A policy here is already validated; every rule knows the field path it was written at, so that it can be named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

import msgspec

from spliceway.policy.entity import Entity
from spliceway.policy.labels import Selector, pod_labels
from spliceway.policy.servicemodel import EndpointSlice as EndpointSlice
from spliceway.policy.servicemodel import Service as Service
from spliceway.policy.table import IPAddress as IPAddress
from spliceway.policy.table import IPNetwork, Mismatch, RuleRef
from spliceway.policy.verdict import Direction, Protocol

#: What «ANY» means beside a port: the protocols that have ports.
PORT_PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class Namespace(msgspec.Struct, frozen=True):
    """A Kubernetes namespace and its labels."""

    name: str
    labels: Mapping[str, str] = {}
    file: str = ""


class ContainerPort(msgspec.Struct, frozen=True, gc=False):
    """A port that a pod's container names."""

    name: str
    protocol: Protocol
    port: int


class Pod(msgspec.Struct, frozen=True, gc=False):
    """A pod. Without addresses it is not reachable yet (or not any more) and has no part in the tables.

    `ports`: named container ports, sorted by name, protocol and number; one name may stand for several numbers.
    `name` may also be the whole `key` (a name has no slash): of each of a hundred thousand pods there is one text then.
    """

    namespace: str
    name: str
    labels: Mapping[str, str] = {}
    addresses: tuple[IPAddress, ...] = ()
    node: str = ""
    host_network: bool = False
    service_account: str = ""
    file: str = ""
    ports: tuple[ContainerPort, ...] = ()

    @property
    def key(self) -> str:
        """«namespace/name». Many tables have it, and a cluster has many pods: equal ones are the same."""
        return self.name if "/" in self.name else sys.intern(f"{self.namespace}/{self.name}")


class Node(msgspec.Struct, frozen=True):
    """A node: its own addresses, the prefixes its pods have addresses from, its labels.

    `further`: addresses that it has by annotations or by convention; a pod that claims one of them comes first.
    """

    name: str
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    file: str = ""
    labels: Mapping[str, str] = {}
    further: tuple[IPAddress, ...] = ()


class CidrGroup(msgspec.Struct, frozen=True):
    """A CiliumCIDRGroup: prefixes that CIDR rules name together."""

    name: str
    cidrs: tuple[IPNetwork, ...] = ()
    labels: Mapping[str, str] = {}
    file: str = ""


class Secret(msgspec.Struct, frozen=True):
    """A Secret (v1) as header matches read it. Its values are never shown: not in logs, dumps or `repr`."""

    namespace: str
    name: str
    data: Mapping[str, bytes] = {}
    file: str = ""

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"

    def __repr__(self) -> str:
        return f"Secret({self.key}, keys={sorted(self.data)})"


class CidrPeer(msgspec.Struct, frozen=True):
    """Addresses in a prefix that are in none of `excepts`.

    The prefix is `cidr`, or all those of the CidrGroup named `group`, or of the groups that `groups` selects (exactly
    one of the three is set). `inside` False (Cilium): outside the cluster only, never pods, nodes or pod ranges. True
    (`ipBlock` of NetworkPolicy, `networks` of ClusterNetworkPolicy): whoever has the address.
    """

    cidr: IPNetwork | None = None
    excepts: tuple[IPNetwork, ...] = ()
    group: str = ""
    groups: Selector | None = None
    inside: bool = False


class ServicePeer(msgspec.Struct, frozen=True):
    """The endpoints of the Service `name`, or of all that `selector` (on labels of Services) selects, in `namespace`.

    `namespace` empty: in every namespace. Of a Service with a selector these are the pods it selects; of one without,
    the addresses of its EndpointSlices, which then are outside the cluster as a CIDR is.
    """

    namespace: str
    name: str = ""
    selector: Selector | None = None


class Peers(msgspec.Struct, frozen=True):
    """The peers a rule names: any of the members. With all of them empty it names nobody (an empty list in YAML).

    `nodes`: selectors on the labels of nodes other than the endpoint's own (`fromNodes`, `toNodes`) or of all nodes
    (ClusterNetworkPolicy: `all_nodes`).
    """

    endpoints: tuple[Selector, ...] = ()
    cidrs: tuple[CidrPeer, ...] = ()
    entities: tuple[Entity, ...] = ()
    nodes: tuple[Selector, ...] = ()
    all_nodes: tuple[Selector, ...] = ()
    services: tuple[ServicePeer, ...] = ()


class PortRange(msgspec.Struct, frozen=True):
    """Ports `first` to `last`, both included. Protocol.ANY means every one of PORT_PROTOCOLS.

    `name`: a named port instead (first and last are then 0): the number that the server pod's containers give it for
    this protocol, of every container that does; nothing where the server is no pod. ICMP and ICMPV6: `type << 8` to
    `type << 8 | 255`, since policies name types only.
    """

    protocol: Protocol
    first: int
    last: int
    name: str = ""

    def covers(self, protocol: int, port: int) -> bool:
        """Whether this protocol and destination port are in the range."""
        protocols = PORT_PROTOCOLS if self.protocol is Protocol.ANY else (self.protocol,)
        return protocol in protocols and self.first <= port <= self.last


class HeaderCondition(msgspec.Struct, frozen=True):
    """A condition on a header as written. `value` None: the header is present.

    `secret`: «namespace/name» and key of the Secret that has the value; while that is missing nothing matches. The key
    is empty in the policy when the Secret is meant to have only one.
    """

    name: str
    value: str | None = None
    secret: tuple[str, str] | None = None
    mismatch: Mismatch = Mismatch.DENY


class HttpMatch(msgspec.Struct, frozen=True):
    """One HTTP rule, written at field `path`. Empty expressions match everything; all are RE2, whole, ASCII.

    `unless_…`: what must not match, empty: nothing is excepted (AuthorizationPolicy, `notPaths` and its like).
    """

    path: str
    method_regex: str = ""
    path_regex: str = ""
    host_regex: str = ""
    headers: tuple[HeaderCondition, ...] = ()
    unless_method: str = ""
    unless_path: str = ""
    unless_host: str = ""


class PortRule(msgspec.Struct, frozen=True):
    """One entry of toPorts, written at field `path`. `http` is None when it has no HTTP rules, and never empty.

    HTTP rules of a rule that denies (of Tier.AUTHORIZATION alone) are the requests that it denies.
    """

    path: str
    ports: tuple[PortRange, ...]
    http: tuple[HttpMatch, ...] | None = None


class Action(IntEnum):
    """What a rule does. PASS (admin tiers): the rest of its tier has no say, the next tier decides."""

    ALLOW = 0
    DENY = 1
    PASS = 2


class Tier(IntEnum):
    """In which order policies are asked. NORMAL: Cilium's and NetworkPolicy, together, without order among them.

    AUTHORIZATION is none of that order: it judges TCP of its own, and what it lets pass the others must let pass, too.
    """

    ADMIN = 0
    NORMAL = 1
    BASELINE = 2
    AUTHORIZATION = 3


class Rule(msgspec.Struct, frozen=True):
    """One rule of a policy in one direction, written at field `path`.

    `peers` None: every peer. `to_ports` empty: every protocol and port. `void`: it matches nothing and denies nothing,
    but counts as a rule (Cilium's `ingress: [{}]`, which only turns on default deny). In NetworkPolicy `{}` is a rule
    about everything, and not void.
    """

    path: str
    direction: Direction
    action: Action
    peers: Peers | None
    to_ports: tuple[PortRule, ...] = ()
    void: bool = False

    @property
    def deny(self) -> bool:
        """Whether it is a deny rule."""
        return self.action is Action.DENY


class Spec(msgspec.Struct, frozen=True):
    """One rule specification: the endpoints it is about and what holds for them.

    `default_deny` and `applies` are indexed by Direction: whether what no rule allows is denied, and whether the
    specification says anything about that direction at all. In the admin tiers rules are asked in order: policies by
    `priority` (lower first), then by name, and the first rule that matches decides; default deny is of NORMAL and
    AUTHORIZATION only (of the latter for TCP).
    """

    path: str
    subject: Selector
    rules: tuple[Rule, ...]
    default_deny: tuple[bool, bool]
    applies: tuple[bool, bool]
    description: str = ""
    tier: Tier = Tier.NORMAL
    priority: int = 0


class NetworkPolicy(msgspec.Struct, frozen=True):
    """A policy object of any kind, with one or more specifications. `namespace` is empty for clusterwide kinds.

    `audit`: annotation `spliceway.io/enforcement: audit`: verdicts that it would change are reported, and not changed.
    `left_to_istio`: annotation `spliceway.io/http-rules: istio`, see `istio.left`.
    """

    kind: str
    namespace: str
    name: str
    specs: tuple[Spec, ...]
    file: str = ""
    audit: bool = False
    left_to_istio: bool = False

    @property
    def key(self) -> str:
        """«namespace/name», or «name» of a clusterwide policy."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def title(self) -> str:
        """«CiliumNetworkPolicy namespace/name», as rules and errors name it."""
        return f"{self.kind} {self.key}"

    def ref(self, path: str) -> RuleRef:
        """Name of the rule that this policy has at a field path."""
        return RuleRef(self.title, path)


Object = Namespace | Pod | Node | NetworkPolicy | Service | EndpointSlice | CidrGroup | Secret


def object_key(item: Object) -> tuple[str, str]:
    """Kind and name of an object: what it replaces when it comes again."""
    match item:
        case Namespace() | Node():
            return type(item).__name__, item.name
        case CidrGroup():
            return "CiliumCIDRGroup", item.name
        case Pod() | Service() | EndpointSlice() | Secret():
            return type(item).__name__, item.key
        case NetworkPolicy():
            return item.kind, item.key


class Cluster(msgspec.Struct, frozen=True):
    """Immutable snapshot of everything that verdicts depend on.

    Namespaces, nodes and CIDR groups are keyed by name, pods, Services, EndpointSlices and Secrets by
    «namespace/name», policies by kind and key. `pod_cidrs` are prefixes of pod addresses beyond those that the nodes
    name. `audit`: every policy is in audit mode.
    """

    namespaces: Mapping[str, Namespace] = {}
    pods: Mapping[str, Pod] = {}
    nodes: Mapping[str, Node] = {}
    policies: Mapping[tuple[str, str], NetworkPolicy] = {}
    pod_cidrs: tuple[IPNetwork, ...] = ()
    services: Mapping[str, Service] = {}
    slices: Mapping[str, EndpointSlice] = {}
    cidr_groups: Mapping[str, CidrGroup] = {}
    secrets: Mapping[str, Secret] = {}
    audit: bool = False

    def with_objects(self, items: Iterable[Object]) -> Cluster:
        """A snapshot in which these objects are new, or replace those of the same kind and name."""
        parts: dict[str, dict[Any, Any]] = {}
        for item in items:
            field, key = place_of(*object_key(item))
            if field not in parts:
                parts[field] = dict(getattr(self, field))
            parts[field][key] = item
        return msgspec.structs.replace(self, **parts)

    def without(self, kind: str, name: str) -> Cluster:
        """A snapshot without the object of this kind and name (see `object_key`); unknown names change nothing."""
        field, key = place_of(kind, name)
        rest = dict(getattr(self, field))
        if rest.pop(key, None) is None:
            return self
        return msgspec.structs.replace(self, **{field: rest})

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


_FIELDS = {
    "Namespace": "namespaces",
    "Pod": "pods",
    "Node": "nodes",
    "Service": "services",
    "EndpointSlice": "slices",
    "CiliumCIDRGroup": "cidr_groups",
    "Secret": "secrets",
}


def place_of(kind: str, name: str) -> tuple[str, str | tuple[str, str]]:
    """Field of Cluster and key in it. Every other kind is a policy."""
    field = _FIELDS.get(kind)
    return (field, name) if field else ("policies", (kind, name))
