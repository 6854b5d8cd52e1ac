"""What a list of specifications makes of every peer, in one direction: classes of identities and their rows.

All identities that belong to the same of the peers that rules name, and serve the same of the ports that rules name,
have one **signature**, which is resolved once. Signatures that come out alike are one class; those that come out like
everyone else are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

from spliceway.policy.labelsets import PortName, port_names
from spliceway.policy.members import Group, Member, PeerSet, everyone
from spliceway.policy.outcome import Outcome
from spliceway.policy.peersets import PeerSets
from spliceway.policy.rows import Slot, resolve
from spliceway.policy.table import Row
from spliceway.policy.terms import SpecTerms, Term
from spliceway.policy.verdict import Direction, Protocol

_Named = tuple[tuple[PortName, tuple[int, ...]], ...]
#: Serial numbers of peer sets, and the numbers of named ports.
Signature = tuple[tuple[int, ...], _Named]
#: The specifications in order, and the endpoint's own named ports.
ProgramKey = tuple[Direction, tuple[int, ...], _Named]

#: Groups and signatures that nobody has (any more) are remembered up to this number.
_IDLE_GROUPS = 4096


class Content:
    """What the peers of one class get. `members`: how many identities; `rows` has numbers once the class is in use."""

    __slots__ = ("members", "name", "outcomes", "rows")

    def __init__(self, name: str, outcomes: dict[Slot, Outcome]) -> None:
        self.name = name
        self.outcomes = outcomes
        self.members = 0
        self.rows: Mapping[Slot, Row] = {}

    @property
    def redirects(self) -> list[tuple[Protocol, int, int, int]]:
        """Protocol, port, prefix bits and rule set of each row that steers to a proxy."""
        return [(*slot, row.rule_set) for slot, row in self.rows.items() if row.rule_set]


class Half:
    """The policy of one policy id in one direction. `ids`: the classes in use."""

    __slots__ = ("direction", "ids", "policy_id", "program")

    def __init__(self, policy_id: int, direction: Direction) -> None:
        self.policy_id = policy_id
        self.direction = direction
        self.program: Program | None = None
        self.ids: dict[Content, int] = {}


class Program:
    """Classes of all identities under these terms. Policies with the same specifications share it: `halves`.

    `other` is what class 0 gets: the peers that nothing singles out; `assigned` has the content of all others.
    `steering`: how many of the contents in use have rows that steer to a proxy.
    """

    __slots__ = (
        "_alike",
        "_by_set",
        "_general",
        "_groups",
        "_own",
        "_peer_sets",
        "_signatures",
        "assigned",
        "halves",
        "key",
        "names",
        "other",
        "sets",
        "steering",
    )

    def __init__(self, key: ProgramKey, terms: Iterable[Term], peer_sets: PeerSets) -> None:
        self.key = key
        self.halves: dict[Half, None] = {}
        self.steering = 0
        self._peer_sets = peer_sets
        direction, _, own = key
        self._general: list[Term] = []
        self._by_set: dict[PeerSet, list[Term]] = {}
        for term in terms:
            if term.peers is None or everyone(term.peers):
                self._general.append(term)
                continue
            found = peer_sets.use(term.peers)
            if found in self._by_set:
                peer_sets.leave(found)  # one use for each program
            self._by_set.setdefault(found, []).append(term)
        self.sets = tuple(self._by_set)
        # In ingress the endpoint itself is the server, in egress the peer is.
        self._own = dict(own)
        self.names: frozenset[PortName] = frozenset()
        if direction is Direction.EGRESS:
            self.names = names_of([*self._general, *(term for found in self._by_set.values() for term in found)])
        self._signatures: dict[Signature, Content | None] = {}
        self._groups: dict[tuple[Group, _Named], Content | None] = {}
        self._alike: dict[frozenset[tuple[Slot, Outcome]], Content] = {}
        self.other = Content("", resolve(self._general, self._own))
        self.assigned: dict[int, Content] = {}

    def everybody(self) -> set[int]:
        """Every identity that anything here singles out."""
        found: set[int] = set()
        for peers in self.sets:
            found |= peers.members
        for name in self.names:
            found |= self._peer_sets.serving(name)
        return found

    def content(self, member: Member) -> Content | None:
        """What an identity gets; None when it is like everyone else."""
        group = self._peer_sets.group(member)
        ports = member.ports
        named = tuple((name, ports[name]) for name in sorted(self.names & ports.keys())) if ports and self.names else ()
        if (group, named) in self._groups:
            return self._groups[group, named]
        if len(self._groups) > _IDLE_GROUPS + len(self.assigned):
            self._groups.clear()
        serials = tuple(sorted(found.serial for found in self._by_set if found in group))
        found = self._groups[group, named] = self._resolve((serials, named)) if serials or named else None
        return found

    def _resolve(self, signature: Signature) -> Content | None:
        serials, named = signature
        wanted = set(serials)
        special = [term for found, terms in self._by_set.items() if found.serial in wanted for term in terms]
        if signature in self._signatures:
            return self._signatures[signature]
        if len(self._signatures) > _IDLE_GROUPS + len(self.assigned):
            self._signatures.clear()
        outcomes = resolve([*self._general, *special], dict(named) or self._own)
        content = None
        if outcomes != self.other.outcomes:
            key = frozenset(outcomes.items())
            content = self._alike.get(key)
            if content is None:
                content = self._alike[key] = Content(_class_name(special, named), outcomes)
        self._signatures[signature] = content
        return content

    def forget(self, content: Content) -> None:
        """Nobody is in this class any more."""
        del self._alike[frozenset(content.outcomes.items())]
        self._signatures = {key: found for key, found in self._signatures.items() if found is not content}
        self._groups = {key: found for key, found in self._groups.items() if found is not content}


def names_of(terms: Iterable[Term]) -> frozenset[PortName]:
    """The named ports of these terms."""
    return frozenset(name for term in terms for name in port_names(term.ports))


def names_of_specs(specs: Iterable[SpecTerms]) -> frozenset[PortName]:
    """The named ports of these specifications."""
    return names_of(term for spec in specs for terms in spec.terms for term in terms)


def _class_name(terms: Iterable[Term], named: Iterable[tuple[PortName, tuple[int, ...]]]) -> str:
    """What a class is called in the numbering: a digest of the rules that single its peers out."""
    names = sorted(str(term.ref) if term.ref else term.effect.name for term in terms)
    names += [f"{name}/{protocol.name}={numbers}" for (name, protocol), numbers in named]
    return sha256("\n".join(names).encode()).hexdigest()[:24]
