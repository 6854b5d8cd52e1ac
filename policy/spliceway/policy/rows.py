"""Terms that hold for one class of peers, resolved into rows: deny has won, ranges are disjoint prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count

import msgspec

from spliceway.policy.model import PORT_PROTOCOLS
from spliceway.policy.ports import LAST_PORT, prefixes
from spliceway.policy.table import RuleRef
from spliceway.policy.terms import Rank, Term
from spliceway.policy.verdict import Protocol, Reason, Verdict

#: Verdict and reason of each rank.
VERDICTS = {
    Rank.DENY: (Verdict.DENY, Reason.POLICY_DENIED),
    Rank.HOST: (Verdict.ALLOW, Reason.HOST_ALLOWED),
    Rank.ALLOW: (Verdict.ALLOW, Reason.POLICY_ALLOWED),
    Rank.HTTP: (Verdict.REDIRECT, Reason.REDIRECTED),
    Rank.DEFAULT_ALLOW: (Verdict.ALLOW, Reason.NO_POLICY),
}


class Outcome(msgspec.Struct, frozen=True):
    """What holds for a class on some ports. `contributors` are the rules whose HTTP rules apply, for Rank.HTTP."""

    rank: Rank
    ref: RuleRef | None
    contributors: frozenset[RuleRef] = frozenset()


#: Protocol, port and prefix bits, as in RowKey.
Slot = tuple[Protocol, int, int]


def resolve(terms: Iterable[Term]) -> dict[Slot, Outcome]:
    """Rows for peers for which exactly these terms hold, whatever their `peers` say.

    What is missing is denied by default. Rows of a named protocol are left out where Protocol.ANY says the same.
    """
    everywhere: list[Term] = []
    by_protocol: dict[Protocol, list[tuple[int, int, Term]]] = {}
    for term in terms:
        if not term.ports:
            everywhere.append(term)
        for ports in term.ports:
            named = PORT_PROTOCOLS if ports.protocol is Protocol.ANY else (ports.protocol,)
            for protocol in named:
                by_protocol.setdefault(protocol, []).append((ports.first, ports.last, term))

    found: dict[Slot, Outcome] = {}
    base = None
    if everywhere:
        first_term = min(everywhere, key=lambda term: (term.rank, term.order))
        base = found[Protocol.ANY, 0, 0] = Outcome(first_term.rank, first_term.ref)
    for protocol, ranges in sorted(by_protocol.items()):
        for first, last, outcome in _intervals(ranges, everywhere):
            if outcome != base:
                for port, bits in prefixes(first, last):
                    found[protocol, port, bits] = outcome
    return found


def _intervals(ranges: list[tuple[int, int, Term]], everywhere: list[Term]) -> Iterator[tuple[int, int, Outcome]]:
    """Longest runs of ports with one outcome. Ports that no range covers are left out."""
    begins: dict[int, list[tuple[int, Term]]] = {}
    ends: dict[int, list[Term]] = {}
    for first, last, term in ranges:
        begins.setdefault(first, []).append((last, term))
        ends.setdefault(last + 1, []).append(term)
    # The best term is on top; what has ended stays below until it would be.
    serial = count()  # terms do not compare
    heap = [(term.rank, term.order, LAST_PORT, next(serial), term) for term in everywhere]
    heapify(heap)
    covered = 0
    http: Counter[RuleRef | None] = Counter()
    run: tuple[int, Outcome] | None = None  # where the current run began, and its outcome
    for port in sorted({*begins, *ends}):
        for term in ends.get(port, ()):
            covered -= 1
            if term.rank is Rank.HTTP:
                http[term.ref] -= 1
        for last, term in begins.get(port, ()):
            covered += 1
            heappush(heap, (term.rank, term.order, last, next(serial), term))
            if term.rank is Rank.HTTP:
                http[term.ref] += 1
        while heap and heap[0][2] < port:
            heappop(heap)
        outcome = _outcome(heap[0][-1], http) if covered else None
        if run is not None and run[1] != outcome:
            yield run[0], port - 1, run[1]
            run = None
        if run is None and outcome is not None:
            run = (port, outcome)


def _outcome(best: Term, http: Counter[RuleRef | None]) -> Outcome:
    if best.rank is not Rank.HTTP:
        return Outcome(best.rank, best.ref)
    return Outcome(Rank.HTTP, best.ref, frozenset(ref for ref, ranges in http.items() if ref and ranges))
