"""Terms that hold for one class of peers, resolved into rows: deny has won, ranges are disjoint prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    base = _best(everywhere)
    if base is not None:
        found[Protocol.ANY, 0, 0] = base
    for protocol, ranges in sorted(by_protocol.items()):
        for first, last, outcome in _intervals(ranges, everywhere):
            if outcome != base:
                for port, bits in prefixes(first, last):
                    found[protocol, port, bits] = outcome
    return found


def _intervals(ranges: list[tuple[int, int, Term]], everywhere: list[Term]) -> Iterator[tuple[int, int, Outcome]]:
    """Longest runs of ports with one outcome. Ports that no range covers are left out."""
    events: dict[int, tuple[list[Term], list[Term]]] = {}
    for first, last, term in ranges:
        events.setdefault(first, ([], []))[0].append(term)
        events.setdefault(last + 1, ([], []))[1].append(term)
    active: list[Term] = []
    run: tuple[int, Outcome] | None = None  # where the current run began, and its outcome
    for port in sorted(events):
        begins, ends = events[port]
        for term in ends:
            active.remove(term)
        active.extend(begins)
        outcome = _best([*active, *everywhere]) if active and port <= LAST_PORT else None
        if run is not None and run[1] != outcome:
            yield run[0], port - 1, run[1]
            run = None
        if run is None and outcome is not None:
            run = (port, outcome)


def _best(terms: list[Term]) -> Outcome | None:
    if not terms:
        return None
    first = min(terms, key=lambda term: (term.rank, term.order))
    if first.rank is not Rank.HTTP:
        return Outcome(first.rank, first.ref)
    return Outcome(Rank.HTTP, first.ref, frozenset(term.ref for term in terms if term.rank is Rank.HTTP and term.ref))
