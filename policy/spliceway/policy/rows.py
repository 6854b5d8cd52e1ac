"""Terms that hold for one class of peers, resolved into rows: tiers are settled, ranges are disjoint prefixes.

The tiers are asked in order, and in each of them one term speaks for it (`Term.precedence`). The first tier that says
anything but PASS decides; what no tier says anything about passes. AUTHORIZATION is asked apart: both must let pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import count

from spliceway.policy.model import PORT_PROTOCOLS, Tier
from spliceway.policy.outcome import Outcome, Requests, combine, combine_authorization, together
from spliceway.policy.ports import LAST_PORT, prefixes
from spliceway.policy.table import RuleRef
from spliceway.policy.terms import Effect, Order, Term
from spliceway.policy.verdict import Protocol, Reason, Verdict

#: Verdict and reason of each effect that decides.
VERDICTS = {
    Effect.DENY: (Verdict.DENY, Reason.POLICY_DENIED),
    Effect.HOST: (Verdict.ALLOW, Reason.HOST_ALLOWED),
    Effect.ALLOW: (Verdict.ALLOW, Reason.POLICY_ALLOWED),
    Effect.HTTP: (Verdict.REDIRECT, Reason.REDIRECTED),
    Effect.DEFAULT_DENY: (Verdict.DENY, Reason.DEFAULT_DENY),
}
#: The tiers of which the first decides.
_ORDERED = (Tier.ADMIN, Tier.NORMAL, Tier.BASELINE)
NO_POLICY = Outcome(Verdict.ALLOW, Reason.NO_POLICY)
#: What a missing row means.
MISSING = Outcome(Verdict.DENY, Reason.DEFAULT_DENY)

#: Protocol, port and prefix bits, as in RowKey.
Slot = tuple[Protocol, int, int]
#: The numbers that a named port stands for, by name and protocol (never ANY); a name that is missing matches nothing.
NamedPorts = Mapping[tuple[str, Protocol], Iterable[int]]

_Span = tuple[int, int, Term]
#: A term in force: its precedence, a number that no other one has (terms do not compare), its last port.
_Standing = tuple[tuple[int, Order], int, int, Term]


def resolve(terms: Iterable[Term], named: NamedPorts) -> dict[Slot, Outcome]:
    """Rows for peers for which exactly these terms hold, whatever their `peers` say.

    What is missing is `MISSING`. Rows of a named protocol are left out where Protocol.ANY, or no row, says the same.
    """
    terms = tuple(terms)
    leading = _leading(term for term in terms if not term.ports)
    everywhere = [(0, LAST_PORT, term) for term in leading.values()]
    by_protocol: dict[Protocol, list[_Span]] = {}
    for term in terms:
        enforced = leading.get((term.tier, False))
        if term.ports and (enforced is None or term.precedence < enforced.precedence):
            for protocol, first, last in _spans(term, named):
                by_protocol.setdefault(protocol, []).append((first, last, term))

    # A protocol that no term names: one run of ports.
    ((_, _, base),) = _runs(everywhere)
    found: dict[Slot, Outcome] = {} if base == MISSING else {(Protocol.ANY, 0, 0): base}
    for protocol, spans in sorted(by_protocol.items()):
        for first, last, outcome in _runs([*everywhere, *spans]):
            if outcome != base:
                for port, bits in prefixes(first, last):
                    found[protocol, port, bits] = outcome
    return found


def _leading(terms: Iterable[Term]) -> dict[tuple[Tier, bool], Term]:
    """Of terms about every port, those that can decide: the first in each tier, enforced and in audit."""
    found: dict[tuple[Tier, bool], Term] = {}
    for term in terms:
        key = term.tier, term.audit
        if key not in found or term.precedence < found[key].precedence:
            found[key] = term
    return found


def _spans(term: Term, named: NamedPorts) -> Iterator[tuple[Protocol, int, int]]:
    for ports in term.ports:
        for protocol in PORT_PROTOCOLS if ports.protocol is Protocol.ANY else (ports.protocol,):
            if ports.name:
                for number in named.get((ports.name, protocol), ()):
                    yield protocol, number, number
            else:
                yield protocol, ports.first, ports.last


def _runs(spans: list[_Span]) -> Iterator[tuple[int, int, Outcome]]:
    """Longest runs of ports with one outcome; together they are all ports."""
    begins: dict[int, list[tuple[int, Term]]] = {0: []}
    ends: dict[int, list[Term]] = {}
    for first, last, term in spans:
        begins.setdefault(first, []).append((last, term))
        ends.setdefault(last + 1, []).append(term)
    everything = _Ladder()
    enforced = _Ladder() if any(term.audit for _, _, term in spans) else None
    start, current = 0, NO_POLICY
    for port in sorted({*begins, *ends}):
        if port > LAST_PORT:
            break
        for term in ends.get(port, ()):
            everything.end(term)
            if enforced and not term.audit:
                enforced.end(term)
        for last, term in begins.get(port, ()):
            everything.begin(last, term)
            if enforced and not term.audit:
                enforced.begin(last, term)
        outcome, authorization = everything.outcome(port), everything.authorization(port)
        if enforced:
            outcome = combine(enforced.outcome(port), outcome)
            authorization = combine_authorization(enforced.authorization(port), authorization)
        if authorization != NO_POLICY:
            outcome = together(authorization, outcome)
        if port == 0:
            current = outcome
        elif outcome != current:
            yield start, port - 1, current
            start, current = port, outcome
    yield start, LAST_PORT, current


class _Ladder:
    """The terms in force at a port that only moves up."""

    def __init__(self) -> None:
        # Each tier's best term is on top; what has ended stays below until it would be.
        self._tiers: tuple[list[_Standing], ...] = tuple([] for _ in Tier)
        self._serial = count()
        self._asked: dict[tuple[bool, Effect], Counter[RuleRef]] = {}

    def begin(self, last: int, term: Term) -> None:
        """This term holds from here to port `last`."""
        heappush(self._tiers[term.tier], (term.precedence, next(self._serial), last, term))
        self._count(term, 1)

    def end(self, term: Term) -> None:
        """It ended at the port before; it may still hold by another range of its own."""
        self._count(term, -1)

    def outcome(self, port: int) -> Outcome:
        """What the terms in force make of a port, AUTHORIZATION apart."""
        for tier in _ORDERED:
            term = self._first(tier, port)
            if term is not None and term.effect is not Effect.PASS:
                verdict, reason = VERDICTS[term.effect]
                contributors = self._refs(term.tier, Effect.HTTP) if term.effect is Effect.HTTP else frozenset()
                return Outcome(verdict, reason, term.ref, contributors)
        return NO_POLICY

    def authorization(self, port: int) -> Outcome:
        """What those of AUTHORIZATION make of it."""
        term = self._first(Tier.AUTHORIZATION, port)
        if term is None:
            return NO_POLICY
        if term.effect in (Effect.DENY, Effect.HOST, Effect.DEFAULT_DENY):
            return Outcome(*VERDICTS[term.effect], term.ref)
        allows = self._refs(term.tier, Effect.HTTP) if term.effect is Effect.HTTP else frozenset()
        denies = self._refs(term.tier, Effect.DENY_HTTP)
        effect = Effect.HTTP if denies else term.effect
        return Outcome(*VERDICTS[effect], term.ref, requests=Requests.of(allows, denies))

    def _first(self, tier: Tier, port: int) -> Term | None:
        heap = self._tiers[tier]
        while heap and heap[0][2] < port:
            heappop(heap)
        return heap[0][-1] if heap else None

    def _count(self, term: Term, times: int) -> None:
        if term.effect in (Effect.HTTP, Effect.DENY_HTTP) and term.ref is not None:
            key = term.tier is Tier.AUTHORIZATION, term.effect
            self._asked.setdefault(key, Counter())[term.ref] += times

    def _refs(self, tier: Tier, effect: Effect) -> frozenset[RuleRef]:
        found = self._asked.get((tier is Tier.AUTHORIZATION, effect), Counter())
        return frozenset(ref for ref, spans in found.items() if spans)
