"""Small random clusters of every kind of object, and random changes to them, from a seed."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

from spliceway.policy.entity import Entity
from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import (
    Action,
    CidrGroup,
    CidrPeer,
    Cluster,
    ContainerPort,
    EndpointSlice,
    HeaderCondition,
    HttpMatch,
    IPAddress,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Peers,
    Pod,
    PortRange,
    PortRule,
    Rule,
    Secret,
    Service,
    ServicePeer,
    Spec,
    Tier,
    object_key,
)
from spliceway.policy.verdict import Direction, Protocol
from support.slices import ready

NAMESPACES = ("one", "two", "default")
NODES = ("node1", "node2", "node3")
POD_CIDRS = (ip_network("10.240.1.0/24"), ip_network("10.240.2.0/24"), ip_network("fd00:240:1::/64"))
PREFIXES = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.128/25",
        "10.240.0.0/12",
        "10.240.1.0/24",
        "10.240.1.0/29",
        "10.240.1.4/32",
        "172.30.0.0/24",
        "172.30.0.2/32",
        "203.0.113.9/32",
        "fd00::/8",
        "fd00:99::/32",
        "fd00:240:1::/64",
        "fd00:240:1::4/126",
    )
)
OTHERS = tuple(
    ip_address(text)
    for text in (
        "10.1.2.3",
        "10.1.2.200",
        "10.9.9.9",
        "203.0.113.9",
        "172.30.0.77",
        "10.240.1.200",
        "10.240.1.5",
        "10.240.3.1",
        "fd00:99::1",
        "fd00:240:1::200",
        "2001:db8::1",
    )
)
#: What nodes may have by annotations: a pod's, another node's, one in a pod range, one outside.
FURTHER = (*OTHERS[3:8], *map(ip_address, ("10.240.1.2", "10.240.1.3", "fd00:240:1::2", "172.30.0.1", "172.30.0.2")))
PORTS = (0, 1, 53, 79, 80, 81, 85, 90, 443, 8080, 65535)
KEYS = ("role", "zone", "io.kubernetes.pod.namespace", "pod-template-hash", "io.cilium.k8s.namespace.labels.team")
VALUES = ("a", "b", "one", "two", "x")
KINDS = (
    "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy",
    "NetworkPolicy",
    "AdminNetworkPolicy",
    "ClusterNetworkPolicy",
)


class World:
    """A cluster that changes at random. `objects` is what there is, by kind and key.

    `audit`: every policy is in audit mode; `http`: policies are mostly about HTTP, at both ends.
    """

    def __init__(self, seed: int, *, audit: bool = False, http: bool = False) -> None:
        """With nodes, namespaces and a few pods and policies."""
        self.random = Random(seed)
        self.audit = audit
        self.http = http
        self.objects: dict[tuple[str, str], Object] = {}
        items: list[Object] = [self._node(name) for name in NODES]
        items += [self._namespace(name) for name in NAMESPACES]
        items += [self._pod() for _ in range(5)]
        items += [self._policy() for _ in range(3)]
        self.objects.update((object_key(item), item) for item in items)

    @property
    def cluster(self) -> Cluster:
        """All of it."""
        return Cluster(pod_cidrs=POD_CIDRS, audit=self.audit).with_objects(self.objects.values())

    def change(self) -> tuple[list[Object], list[tuple[str, str]]]:
        """A few random changes: objects that are new or different, and what is removed."""
        changed: dict[tuple[str, str], Object] = {}
        removed: list[tuple[str, str]] = []
        for _ in range(self.random.choice((1, 1, 1, 2, 4))):
            if self.objects and self.random.random() < 0.3:
                key = self.random.choice(sorted(self.objects))
                del self.objects[key]
                changed.pop(key, None)
                removed.append(key)
                continue
            item = self._any()
            key = object_key(item)
            self.objects[key] = changed[key] = item
            removed = [other for other in removed if other != key]
        return list(changed.values()), removed

    def addresses(self) -> list[IPAddress]:
        """Addresses worth asking about."""
        found: dict[IPAddress, None] = dict.fromkeys(OTHERS)
        for item in self.objects.values():
            if isinstance(item, Pod | Node | EndpointSlice):
                found.update(dict.fromkeys(item.addresses))
        return list(found)

    def _any(self) -> Object:
        pick = self.random.random()
        if pick < 0.45:
            return self._pod()
        if pick < 0.7:
            return self._policy()
        maker = self.random.choice((self._node, self._namespace, self._service, self._slice, self._group, self._secret))
        return maker()

    def _labels(self) -> dict[str, str]:
        labels = {"role": self.random.choice("abc")}
        if self.random.random() < 0.4:
            labels["zone"] = self.random.choice(VALUES)
        if self.random.random() < 0.5:
            labels["pod-template-hash"] = self.random.choice(VALUES)
        return labels

    def _pod(self) -> Pod:
        number = self.random.randrange(8)
        node = self.random.choice(("node1", "node1", "node2"))
        host = self.random.random() < 0.08
        if host:
            addresses: tuple[IPAddress, ...] = (ip_address(f"172.30.0.{NODES.index(node) + 1}"),)
        else:
            claimed = number if self.random.random() < 0.9 else 3  # sometimes another pod's address
            addresses = (ip_address(f"10.240.1.{claimed + 1}"), ip_address(f"fd00:240:1::{claimed + 1}"))
            addresses = self.random.choice((addresses, addresses, addresses[:1], ()))
        ports = [
            ContainerPort(name, protocol, self.random.choice(PORTS[1:]))
            for name, protocol in (("http", Protocol.TCP), ("http", Protocol.TCP), ("dns", Protocol.UDP))
            if self.random.random() < 0.4
        ]
        return Pod(
            self.random.choice(NAMESPACES[:2]),
            f"pod{number}",
            self._labels(),
            addresses,
            node,
            host_network=host,
            service_account=self.random.choice(("", "", "bot")),
            ports=tuple(sorted(set(ports), key=lambda port: (port.name, port.protocol, port.port))),
        )

    def _node(self, name: str = "") -> Node:
        name = name or self.random.choice(NODES)
        number = NODES.index(name) + 1
        own = number if self.random.random() < 0.9 else 4
        return Node(
            name,
            (ip_address(f"172.30.0.{own}"), ip_address(f"fd00:30::{own}")),
            (ip_network("10.240.3.0/24"),) if self.random.random() < 0.2 else (),
            labels={"role": self.random.choice("ab")} if self.random.random() < 0.7 else {},
            further=tuple(self.random.sample(FURTHER, self.random.randrange(3))),
        )

    def _namespace(self, name: str = "") -> Namespace:
        name = name or self.random.choice(NAMESPACES)
        return Namespace(name, {"team": self.random.choice("xy")} if self.random.random() < 0.7 else {})

    def _service(self) -> Service:
        name = self.random.choice(("web", "legacy"))
        selector = {"role": self.random.choice("ab")} if self.random.random() < 0.6 else None
        return Service(self.random.choice(NAMESPACES[:2]), name, selector, {"role": self.random.choice("ab")})

    def _slice(self) -> EndpointSlice:
        namespace, service = self.random.choice((("default", "kubernetes"), ("one", "legacy"), ("two", "web")))
        addresses = tuple(self.random.sample(sorted(self.addresses(), key=str), 2))
        return EndpointSlice(namespace, f"{service}-{self.random.randrange(2)}", service, ready(*addresses))

    def _group(self) -> CidrGroup:
        name = self.random.choice(("office", "partner"))
        return CidrGroup(name, tuple(self.random.sample(PREFIXES, 2)), {"role": self.random.choice("ab")})

    def _secret(self) -> Secret:
        return Secret("one", "key", {"v": self.random.choice((b"1", b"2"))})

    def _selector(self) -> Selector:
        found = []
        for _ in range(self.random.choice((0, 1, 1, 2))):
            operator = self.random.choice(list(Operator))
            values = tuple(sorted(self.random.sample(VALUES, 2)))
            if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST):
                values = ()
            found.append(Requirement(self.random.choice(("any", "k8s")), self.random.choice(KEYS), operator, values))
        if self.random.random() < 0.1:
            found.append(Requirement("reserved", self.random.choice(("host", "world-ipv4")), Operator.EXISTS))
        return Selector(tuple(found))

    def _cidr(self, *, inside: bool) -> CidrPeer:
        outer = self.random.choice(PREFIXES)
        holes = [
            prefix
            for prefix in PREFIXES
            if prefix.version == outer.version and prefix.subnet_of(outer)  # type: ignore[arg-type]
        ]
        excepts = tuple(self.random.sample(holes, min(len(holes), self.random.choice((0, 0, 1, 2)))))
        if not inside and self.random.random() < 0.3:
            if self.random.random() < 0.5:
                return CidrPeer(group=self.random.choice(("office", "partner")), excepts=excepts)
            return CidrPeer(groups=self._object_selector(), excepts=excepts)
        return CidrPeer(outer, excepts, inside=inside)

    def _object_selector(self) -> Selector:
        return self.random.choice(
            (
                Selector(),
                Selector((Requirement("any", "role", Operator.IN, ("a",)),)),
                Selector((Requirement("any", "role", Operator.DOES_NOT_EXIST),)),
            )
        )

    def _peers(self, kind: str) -> Peers | None:
        pick = self.random.randrange(9)
        if pick == 0 or (self.http and pick > 4):
            return None
        if pick <= 3:
            return Peers(endpoints=tuple(self._selector() for _ in range(self.random.choice((0, 1, 1, 2)))))
        if pick == 4:
            return Peers(entities=tuple(self.random.sample(list(Entity), 2)))
        if pick == 5:
            return Peers(nodes=(self._object_selector(),))
        if pick == 6 and not kind.startswith("Cilium"):
            return Peers(all_nodes=(self._object_selector(),))
        if pick == 7:
            chosen = self.random.choice(("web", "legacy", ""))
            selector = None if chosen else self._object_selector()
            return Peers(services=(ServicePeer(self.random.choice(("one", "two", "")), chosen, selector),))
        return Peers(cidrs=tuple(self._cidr(inside=not kind.startswith("Cilium")) for _ in range(2)))

    def _ports(self, *, http: bool) -> tuple[PortRange, ...]:
        found = []
        for _ in range(self.random.choice((1, 1, 2))):
            protocol = self.random.choice((Protocol.TCP, Protocol.TCP, Protocol.UDP, Protocol.ANY))
            protocol = Protocol.TCP if http else protocol
            if self.random.random() < 0.3:
                found.append(PortRange(protocol, 0, 0, self.random.choice(("http", "dns"))))
            elif self.random.random() < 0.1 and not http:
                kind = self.random.choice((0, 8))
                found.append(PortRange(Protocol.ICMP, kind << 8, kind << 8 | 255))
            else:
                first = self.random.choice((80, 81, 85) if self.http else PORTS[1:])
                found.append(PortRange(protocol, first, min(65535, first + self.random.choice((0, 0, 5, 20)))))
        return tuple(found)

    def _rule(self, path: str, direction: Direction, tier: Tier, kind: str) -> Rule:
        actions = (Action.ALLOW, Action.ALLOW, Action.DENY) if tier is Tier.NORMAL else tuple(Action)
        action = self.random.choice(actions) if not self.http or self.random.random() < 0.1 else Action.ALLOW
        entries = []
        for number in range(self.random.choice((1, 1, 2) if self.http else (0, 0, 1, 2))):
            http = kind.startswith("Cilium") and action is Action.ALLOW and self.random.random() < 0.6 + 0.3 * self.http
            entry = f"{path}.toPorts[{number}]"
            matches = [HttpMatch(f"{entry}.rules.http[0]", path_regex=self.random.choice(("/a", "/b")))]
            if self.random.random() < 0.3:
                header = HeaderCondition("x-key", None, ("one/key", "v"))
                matches.append(HttpMatch(f"{entry}.rules.http[1]", headers=(header,)))
            entries.append(PortRule(entry, self._ports(http=http), tuple(matches) if http else None))
        return Rule(path, direction, action, self._peers(kind), tuple(entries), void=self.random.random() < 0.05)

    def _authorization(self) -> NetworkPolicy:
        """One that allows, or denies, of TCP alone, by connections and requests."""
        action = self.random.choice((Action.ALLOW, Action.DENY))
        rules = []
        for place in range(self.random.choice((0, 1, 1, 2))):
            entries = []
            for number in range(self.random.choice((1, 1, 2))):
                entry = f"spec.rules[{place}].to[{number}]"
                except_path = self.random.choice(("", "", "/a"))
                match = HttpMatch(entry, path_regex=self.random.choice(("/a", "/.*")), unless_path=except_path)
                ports = tuple(one for one in self._ports(http=True) if not one.name)
                http = (match,) if self.random.random() < 0.4 + 0.3 * self.http else None
                entries.append(PortRule(entry, ports or (PortRange(Protocol.TCP, 0, 65535),), http))
            peers = self._peers("NetworkPolicy")
            rules.append(Rule(f"spec.rules[{place}]", Direction.INGRESS, action, peers, tuple(entries)))
        closed = (action is Action.ALLOW, False)
        subject = self.random.choice((Selector(), self._selector()))
        spec = Spec("spec", subject, tuple(rules), closed, (True, False), tier=Tier.AUTHORIZATION)
        name = f"p{self.random.randrange(3)}"
        audit = self.random.random() < 0.2
        return NetworkPolicy("AuthorizationPolicy", self.random.choice(NAMESPACES[:2]), name, (spec,), audit=audit)

    def _policy(self) -> NetworkPolicy:
        if self.random.random() < 0.2:
            return self._authorization()
        kind = self.random.choice(KINDS[:2] if self.http and self.random.random() < 0.9 else KINDS)
        tier = self.random.choice((Tier.ADMIN, Tier.BASELINE)) if kind.endswith(("nNetworkPolicy",)) else Tier.NORMAL
        tier = self.random.choice((Tier.ADMIN, Tier.BASELINE)) if kind == "ClusterNetworkPolicy" else tier
        clusterwide = kind in ("CiliumClusterwideNetworkPolicy", "AdminNetworkPolicy", "ClusterNetworkPolicy")
        specs = []
        for number in range(self.random.choice((1, 1, 2))):
            where = f"specs[{number}]"
            rules = [
                self._rule(f"{where}.{direction.label}[{place}]", direction, tier, kind)
                for direction in Direction
                for place in range(self.random.choice((0, 1, 1, 2)))
            ]
            applies = tuple(any(rule.direction is direction for rule in rules) for direction in Direction)
            deny = tuple(tier is Tier.NORMAL and one and self.random.random() < 0.8 for one in applies)
            subject = self.random.choice(
                (
                    Selector(),
                    Selector((Requirement("any", "role", Operator.IN, ("a",)),)),
                    Selector((Requirement("k8s", "io.kubernetes.pod.namespace", Operator.IN, ("one",)),)),
                    self._selector(),
                )
            )
            specs.append(
                Spec(
                    where,
                    subject,
                    tuple(rules),
                    (deny[0], deny[1]),
                    (applies[0], applies[1]),
                    tier=tier,
                    priority=self.random.choice((0, 10)) if tier is Tier.ADMIN else 0,
                )
            )
        namespace = "" if clusterwide else self.random.choice(NAMESPACES[:2])
        name = f"p{self.random.randrange(3)}"
        return NetworkPolicy(kind, namespace, name, tuple(specs), audit=self.random.random() < 0.15)
