"""Whom rules mean: for each distinct `Peers` in use the identities that belong to it, and the other way round.

What an identity belongs to is found through an index of what its labels and prefix can satisfy; what new peers mean is
found through an index of the identities. Neither asks everybody about everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from ipaddress import ip_network

from spliceway.policy.entity import ENTITY_SELECTORS, Entity, Reserved
from spliceway.policy.labels import Selector
from spliceway.policy.labelsets import PortName, ports_of
from spliceway.policy.model import Peers
from spliceway.policy.prefixsets import PrefixMap, place_of
from spliceway.policy.selectors import Facts, LabelIndex, SelectorIndex, facts_of, matcher
from spliceway.policy.services import Directory, cidr_atoms, selector_atoms
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
#: Groups that nobody is in (any more) are remembered up to this number.
_IDLE_GROUPS = 4096


class PeerSets:
    """All peers in use and all identities.

    `moved` collects who came to belong to what, or no more; `atoms` the CIDR atoms that came (1) and went (-1), and
    `node_keys` the same of the labels of nodes that selectors name.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._sets: dict[Peers, PeerSet] = {}
        self._serial = 0
        self._selectors: SelectorIndex[PeerSet] = SelectorIndex()
        self._cidrs: PrefixMap[dict[tuple[PeerSet, CidrAtom], None]] = PrefixMap()
        self._by_node: dict[PeerSet, None] = {}
        self._named: dict[PeerSet, None] = {}
        self._labels = LabelIndex()
        self._members: dict[int, Member] = {}
        self._prefixed: dict[int, Member] = {}
        self._on_nodes: dict[int, Member] = {}
        self._serving: dict[PortName, set[int]] = {}
        self._groups: dict[Group, Group] = {}
        self.moved: dict[PeerSet, set[int]] = {}
        self.atoms: list[tuple[CidrAtom, int]] = []
        self.node_keys: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return len(self._sets)

    def member(self, number: int) -> Member | None:
        """An identity by its number."""
        return self._members.get(number)

    def group(self, member: Member) -> Group:
        """The peers that an identity belongs to, the same object for all that belong to the same."""
        if len(self._groups) > _IDLE_GROUPS + len(self._members):
            self._groups.clear()
        return member.group(self._groups)

    def add(self, number: int, labels: tuple[str, ...]) -> Member:
        """A new identity."""
        member = self._members[number] = Member(number, labels)
        self._labels.add(number, member.facts)
        if member.prefix is not None or member.block is not None:
            self._prefixed[number] = member
        if member.nodes:
            self._on_nodes[number] = member
        for name in member.ports:
            self._serving.setdefault(name, set()).add(number)
        for found in self._sets_of(member):
            found.members.add(number)
            member.join(found)
        return member

    def remove(self, number: int) -> Member:
        """An identity that is gone."""
        member = self._members.pop(number)
        self._labels.remove(number)
        self._prefixed.pop(number, None)
        self._on_nodes.pop(number, None)
        for name in member.ports:
            self._serving[name].discard(number)
            if not self._serving[name]:
                del self._serving[name]
        for found in member.sets:
            found.members.discard(number)
        return member

    def serving(self, name: PortName) -> Set[int]:
        """Identities whose pods have a port of this name."""
        return self._serving.get(name, frozenset())

    def use(self, peers: Peers) -> PeerSet:
        """The set of these peers; it stays as long as it is used."""
        found = self._sets.get(peers)
        if found is None:
            self._serial += 1
            found = self._sets[peers] = PeerSet(peers, self._serial)
            self._enter(found)
        found.users += 1
        return found

    def leave(self, found: PeerSet) -> None:
        """One use less."""
        found.users -= 1
        if found.users:
            return
        del self._sets[found.peers]
        self._exit(found)
        for number in found.members:
            self._members[number].quit(found)
        self.moved.pop(found, None)

    def of_names(self) -> list[PeerSet]:
        """Sets whose meaning depends on Services or CIDR groups."""
        return list(self._named)

    def renew(self, found: PeerSet) -> None:
        """Look up again what names stand for."""
        if self._atoms(found.peers) == (found.selectors, found.cidrs):
            return
        before = found.members
        self._exit(found)
        self._enter(found)
        for number in before - found.members:
            self._members[number].quit(found)
        changed = before ^ found.members
        if changed:
            self.moved.setdefault(found, set()).update(changed)

    def _atoms(self, peers: Peers) -> tuple[dict[Selector, None], dict[CidrAtom, None]]:
        selectors = dict.fromkeys(peers.endpoints)
        for entity in peers.entities:
            selectors.update(dict.fromkeys(ENTITY_SELECTORS[entity]))
        selectors.update(dict.fromkeys(selector_atoms(self._directory, peers)))
        return selectors, dict.fromkeys(cidr_atoms(self._directory, peers))

    def _enter(self, found: PeerSet) -> None:
        found.selectors, found.cidrs = self._atoms(found.peers)
        for selector in found.selectors:
            self._selectors.add(selector, found)
        for atom in found.cidrs:
            entries = self._cidrs.get(atom[0])
            if entries is None:
                entries = {}
                self._cidrs.set(atom[0], entries)
            entries[found, atom] = None
            self.atoms.append((atom, 1))
        if found.nodes:
            self._by_node[found] = None
            self.node_keys += [(key, 1) for key in _node_keys(found)]
        if found.peers.services or any(peer.cidr is None for peer in found.peers.cidrs):
            self._named[found] = None
        members: set[int] = set()
        for selector in found.selectors:
            members |= self._labels.select(selector)
        if found.cidrs:
            members.update(
                number for number, member in self._prefixed.items() if any(_holds(atom, member) for atom in found.cidrs)
            )
        if found.nodes:
            members.update(number for number, member in self._on_nodes.items() if _is_node(found, member))
        found.members = members
        for number in members:
            self._members[number].join(found)

    def _exit(self, found: PeerSet) -> None:
        for selector in found.selectors:
            self._selectors.remove(selector, found)
        for atom in found.cidrs:
            entries = self._cidrs.get(atom[0])
            assert entries is not None  # as it was entered
            del entries[found, atom]
            if not entries:
                self._cidrs.drop(atom[0])
            self.atoms.append((atom, -1))
        if found.nodes:
            del self._by_node[found]
            self.node_keys += [(key, -1) for key in _node_keys(found)]
        self._named.pop(found, None)

    def _sets_of(self, member: Member) -> Iterator[PeerSet]:
        found = self._selectors.owners(member.facts)
        for prefix in {member.prefix, member.block} - {None}:
            assert prefix is not None
            for _, entries in self._cidrs.holding(*place_of(prefix)):
                found.update((owner, None) for owner, atom in entries if _holds(atom, member))
        if member.nodes:
            found.update((owner, None) for owner in self._by_node if _is_node(owner, member))
        return iter(found)


def _holds(atom: CidrAtom, member: Member) -> bool:
    prefix, excepts, inside = atom
    if member.prefix is not None:
        place = member.prefix
    elif inside and member.block is not None:
        place = member.block
    else:
        return False
    return _within(place, prefix) and not any(_within(place, hole) for hole in excepts)


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    version, length, first = place_of(inner)
    outer_version, outer_length, outer_first = place_of(outer)
    if version != outer_version or length < outer_length:
        return False
    shift = outer.max_prefixlen - outer_length
    return first >> shift << shift == outer_first


def _node_keys(found: PeerSet) -> list[str]:
    return [requirement.key for selector, _ in found.nodes for requirement in selector.requirements]


def _is_node(found: PeerSet, member: Member) -> bool:
    return any(
        matcher(selector).matches(facts)
        for selector, host_too in found.nodes
        if host_too or not member.host
        for facts in member.nodes
    )


def everyone(peers: Peers | None) -> bool:
    """Whether these peers are every identity."""
    return peers is None or Entity.ALL in peers.entities or any(not s.requirements for s in peers.endpoints)
