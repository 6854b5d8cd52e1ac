"""Whom rules mean: for each distinct `Peers` in use the identities that belong to it, and the other way round.

What an identity belongs to is found through an index of what its labels and prefix can satisfy; what new peers mean is
found through an index of the identities. Neither asks everybody about everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from spliceway.policy.entity import ENTITY_SELECTORS
from spliceway.policy.labels import Selector
from spliceway.policy.labelsets import PortName
from spliceway.policy.members import CidrAtom, Group, Member, PeerSet, holds, is_node, node_keys
from spliceway.policy.model import Peers
from spliceway.policy.prefixsets import PrefixMap, place_of
from spliceway.policy.selectors import LabelIndex, SelectorIndex
from spliceway.policy.services import Directory, cidr_atoms, selector_atoms

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
            self.node_keys += [(key, 1) for key in node_keys(found)]
        if found.peers.services or any(peer.cidr is None for peer in found.peers.cidrs):
            self._named[found] = None
        members: set[int] = set()
        for selector in found.selectors:
            members |= self._labels.select(selector)
        if found.cidrs:
            members.update(
                number for number, member in self._prefixed.items() if any(holds(atom, member) for atom in found.cidrs)
            )
        if found.nodes:
            members.update(number for number, member in self._on_nodes.items() if is_node(found, member))
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
            self.node_keys += [(key, -1) for key in node_keys(found)]
        self._named.pop(found, None)

    def _sets_of(self, member: Member) -> Iterator[PeerSet]:
        found = self._selectors.owners(member.facts)
        for prefix in {member.prefix, member.block} - {None}:
            assert prefix is not None
            for _, entries in self._cidrs.holding(*place_of(prefix)):
                found.update((owner, None) for owner, atom in entries if holds(atom, member))
        if member.nodes:
            found.update((owner, None) for owner in self._by_node if is_node(owner, member))
        return iter(found)
