"""One identity and the peers of one rule, taken apart, and whether the one is among the others."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from spliceway.policy.entity import Entity, Reserved
from spliceway.policy.labels import Selector
from spliceway.policy.labelsets import PortName, ports_of
from spliceway.policy.model import Peers
from spliceway.policy.prefixsets import within
from spliceway.policy.selectors import Facts, facts_of, matcher
from spliceway.policy.table import IPNetwork

#: A prefix, its exceptions, and whether it means pods and nodes too.
CidrAtom = tuple[IPNetwork, tuple[IPNetwork, ...], bool]

_WORLD = {
    Reserved.WORLD_IPV4.label: ip_network("0.0.0.0/0"),
    Reserved.WORLD_IPV6.label: ip_network("::/0"),
}


class Member:
    """An identity, taken apart.

    `facts`: labels that selectors see; `nodes`: the labels of each node that it is; `prefix`: what it stands for
    outside the cluster; `block`: the longest block of policies around it inside; `ports`: named ports that it serves.
    `sets`: the peers that it belongs to.
    """

    __slots__ = ("_group", "block", "facts", "host", "nodes", "number", "ports", "prefix", "sets")

    def __init__(self, number: int, labels: tuple[str, ...]) -> None:
        self.number = number
        self.sets: dict[PeerSet, None] = {}
        self._group: Group | None = None
        seen = [label for label in labels if label.startswith(("k8s:", "reserved:"))]
        self.facts: Facts = facts_of(seen)
        self.prefix: IPNetwork | None = None
        self.block: IPNetwork | None = None
        self.ports: dict[PortName, tuple[int, ...]] = {}
        self.host = Reserved.HOST.label in self.facts
        self.nodes: list[Facts] = []
        if len(seen) < len(labels):
            self._take(label for label in labels if not label.startswith(("k8s:", "reserved:")))
        if self.host or Reserved.REMOTE_NODE.label in self.facts:
            self.nodes = _nodes(labels)
        elif self.prefix is None:
            self.prefix = next((prefix for label, prefix in _WORLD.items() if label in self.facts), None)

    def join(self, found: PeerSet) -> None:
        """It belongs to these peers."""
        self.sets[found] = None
        self._group = None

    def quit(self, found: PeerSet) -> None:
        """It belongs to these peers no more."""
        self.sets.pop(found, None)
        self._group = None

    def group(self, known: dict[Group, Group]) -> Group:
        """The peers that it belongs to; `known` has those of others."""
        if self._group is None:
            found = frozenset(self.sets)
            self._group = known.setdefault(found, found)
        return self._group

    def _take(self, labels: Iterable[str]) -> None:
        ports = []
        for label in labels:
            source, _, rest = label.partition(":")
            if source == "cidr":
                self.prefix = ip_network(rest)
            elif source == "block":
                self.block = ip_network(rest)
            elif source == "port":
                ports.append(label)
        self.ports = ports_of(ports)


def _nodes(labels: Iterable[str]) -> list[Facts]:
    """The labels of each node that an address is: «node:key=value», of a second one «node:1:key=value»."""
    found: dict[str, dict[str, str]] = {"": {}}
    for label in labels:
        if label.startswith("node:"):
            position, separator, text = label.removeprefix("node:").rpartition(":")
            own = found.setdefault(position if separator else "", {})
            if text:
                key, _, value = text.partition("=")
                own[f"k8s:{key}"] = value
    return list(found.values())


class PeerSet:
    """A distinct `Peers` in use. `users` is how often."""

    __slots__ = ("cidrs", "members", "nodes", "peers", "selectors", "serial", "users")

    def __init__(self, peers: Peers, serial: int) -> None:
        self.peers = peers
        self.serial = serial
        self.users = 0
        self.members: set[int] = set()
        self.selectors: dict[Selector, None] = {}
        self.cidrs: dict[CidrAtom, None] = {}
        self.nodes = [(selector, False) for selector in peers.nodes] + [
            (selector, True) for selector in peers.all_nodes
        ]

    def __repr__(self) -> str:
        return f"PeerSet({self.peers}, {len(self.members)} members)"


#: Peers that somebody belongs to.
Group = frozenset[PeerSet]


def holds(atom: CidrAtom, member: Member) -> bool:
    """Whether an identity is among the addresses of a CIDR atom."""
    prefix, excepts, inside = atom
    if member.prefix is not None:
        place = member.prefix
    elif inside and member.block is not None:
        place = member.block
    else:
        return False
    return within(place, prefix) and not any(within(place, hole) for hole in excepts)


def node_keys(found: PeerSet) -> list[str]:
    """Labels of nodes that the selectors of these peers name."""
    return [requirement.key for selector, _ in found.nodes for requirement in selector.requirements]


def is_node(found: PeerSet, member: Member) -> bool:
    """Whether an identity is a node that these peers select."""
    return any(
        matcher(selector).matches(facts)
        for selector, host_too in found.nodes
        if host_too or not member.host
        for facts in member.nodes
    )


def everyone(peers: Peers | None) -> bool:
    """Whether these peers are every identity."""
    return peers is None or Entity.ALL in peers.entities or any(not s.requirements for s in peers.endpoints)
