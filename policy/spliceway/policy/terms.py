"""What policies say about one endpoint, flattened into terms of equal shape.

A term is one thing that one rule says: for these peers, on these ports, this. Terms of all policies that select the
endpoint stand side by side; the best `Rank` decides, and among equals the rule that comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum

import msgspec

from spliceway.policy.entity import Reserved
from spliceway.policy.model import HttpMatch, NetworkPolicy, PortRange, Spec
from spliceway.policy.peers import PeerIndex
from spliceway.policy.table import RuleRef
from spliceway.policy.verdict import Direction


class Rank(IntEnum):
    """Which term wins. A plain allow beats HTTP rules (Cilium: the L7 part then has no effect)."""

    DENY = 0
    HOST = 1  # the node itself may always reach its pods, unless denied
    ALLOW = 2
    HTTP = 3
    DEFAULT_ALLOW = 4  # policies apply, but none asks for default deny


class Term(msgspec.Struct, frozen=True):
    """One thing a rule says.

    `peers`: a set of identities as of PeerIndex, None for every peer. `ports` empty: every protocol and port. `order`
    counts through all policies. `ref` is None for what no rule says.
    """

    rank: Rank
    order: int
    peers: int | None
    ports: tuple[PortRange, ...] = ()
    ref: RuleRef | None = None
    http: tuple[HttpMatch, ...] = ()


class SpecTerms(msgspec.Struct, frozen=True):
    """A specification and its terms by Direction."""

    spec: Spec
    terms: tuple[tuple[Term, ...], tuple[Term, ...]]


def spec_terms(policies: Iterable[NetworkPolicy], index: PeerIndex) -> list[SpecTerms]:
    """Terms of every specification, in the order of the policies."""
    found: list[SpecTerms] = []
    order = 0
    for policy in policies:
        for spec in policy.specs:
            terms = list(_terms(policy, spec, index, order))
            order += len(terms)
            by_direction = [tuple(term for direction, term in terms if direction is wanted) for wanted in Direction]
            found.append(SpecTerms(spec, (by_direction[0], by_direction[1])))
    return found


def _terms(policy: NetworkPolicy, spec: Spec, index: PeerIndex, order: int) -> Iterator[tuple[Direction, Term]]:
    for rule in spec.rules:
        if rule.void:
            continue
        peers = None if rule.peers is None else index.peers(rule.peers)
        plain = Rank.DENY if rule.deny else Rank.ALLOW
        if not rule.to_ports:
            yield rule.direction, Term(plain, order, peers, (), policy.ref(rule.path))
            order += 1
        for entry in rule.to_ports:
            rank = plain if entry.http is None else Rank.HTTP
            ref = policy.ref(entry.path)
            yield rule.direction, Term(rank, order, peers, entry.ports, ref, entry.http or ())
            order += 1


class Subjects:
    """Which specifications are about which endpoints."""

    def __init__(self, specs: Iterable[SpecTerms], index: PeerIndex) -> None:
        self._index = index
        self._specs = [(index.selector(entry.spec.subject), entry) for entry in specs]

    def of(self, identity: int) -> list[SpecTerms]:
        """Specifications that select the endpoints of this identity."""
        bit = self._index.only(identity)
        return [entry for selected, entry in self._specs if selected & bit]

    def terms(self, specs: Iterable[SpecTerms], direction: Direction) -> list[Term] | None:
        """Terms for one direction, or None when no policy applies in it."""
        applying = [entry for entry in specs if entry.spec.applies[direction]]
        if not applying:
            return None
        terms = [term for entry in applying for term in entry.terms[direction]]
        if direction is Direction.INGRESS:
            terms.append(Term(Rank.HOST, -1, self._index.only(Reserved.HOST)))
        if not any(entry.spec.default_deny[direction] for entry in applying):
            terms.append(Term(Rank.DEFAULT_ALLOW, -1, None))
        return terms
