"""Whether what a checker noted is right: each answer must be that of a state that was in force, or on its way.

A state may show from the moment it is set until the next one has been acknowledged. What a listener that was changed or
taken away does to its connections is not judged, as ARCHITECTURE.md says: the kernel ends those.
"""

from __future__ import annotations

import bisect
from collections import Counter
from functools import lru_cache
from typing import Generic, TypeVar

from spliceway.policy.http import HttpDecision, HttpRequest, decide
from spliceway.policy.httpmatch import apply
from spliceway.policy.table import RuleSet
from spliceway.policy.verdict import Verdict
from support.churn import REQUESTS, State
from support.churnload import BROKEN, EOF, HANG, REFUSED, RESET, Record
from support.churnxds import web_routes

S = TypeVar("S")

#: Names of outcomes that are no status.
BROKEN_KINDS = {EOF: "eof", RESET: "reset", REFUSED: "refused", HANG: "hang", BROKEN: "broken"}


class Timeline(Generic[S]):
    """States in turn, each with the times (CLOCK_MONOTONIC, seconds) at which it was set and acknowledged."""

    def __init__(self) -> None:
        self.states: list[S] = []
        self._set: list[float] = []
        self._done: list[float] = []

    def begin(self, state: S, when: float) -> None:
        """It was set."""
        self.states.append(state)
        self._set.append(when)

    def done(self, when: float) -> None:
        """The last one is in force."""
        self._done.append(when)

    def window(self, begin: float, end: float) -> range:
        """The states that may have shown between the two times."""
        first = bisect.bisect_right(self._done, begin) - 1
        return range(max(0, first), bisect.bisect_right(self._set, end))

    def age(self, when: float) -> float:
        """Seconds since a state was last acknowledged at that time."""
        return when - self._done[max(0, bisect.bisect_right(self._done, when) - 1)]


class Judge:
    """Judges records.

    `counts`: what they were; `wrong`: those that no state explains; `late`: seconds after which answers of an earlier
    state still came when the new one was acknowledged.
    """

    def __init__(self, timeline: Timeline[State], tolerance: float) -> None:
        """`tolerance`: so many seconds late is not wrong, but in `late`."""
        self._timeline, self._tolerance = timeline, tolerance
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.late: list[float] = []

    def judge(self, record: Record) -> None:
        """Take one in."""
        name, _, number = record.target.partition("-")
        kind = BROKEN_KINDS.get(record.status, str(record.status))
        if record.request < 0:
            self._judge_refused(record, name, int(number), kind)
            return
        life = self._timeline.window(record.opened, record.end)
        variants = {_listener(self._timeline.states[index], name, int(number)) for index in life}
        if None in variants:
            # Before the listener is acknowledged nothing is steered to it, and afterwards the kernel ends what was.
            self.counts[f"{kind}, listener came or went"] += 1
            return
        if record.status <= 0:
            if len(variants) > 1 and record.status in (EOF, RESET):
                self.counts[f"{kind}, listener changed"] += 1
            else:
                self._note(record, kind)
            return
        if self._fits(record, name, int(number), 0.0):
            self.counts[kind] += 1
        elif self._fits(record, name, int(number), self._tolerance):
            self.counts[f"{kind}, late"] += 1
            self.late.append(self._timeline.age(record.begin))
        else:
            self._note(record, kind)

    def _judge_refused(self, record: Record, name: str, number: int, kind: str) -> None:
        states = self._timeline.window(record.begin, record.end)
        if record.status == REFUSED and any(_listener(self._timeline.states[i], name, number) is None for i in states):
            self.counts["refused, no listener"] += 1
        else:
            self._note(record, kind)

    def _fits(self, record: Record, name: str, number: int, tolerance: float) -> bool:
        states = [self._timeline.states[i] for i in self._timeline.window(record.begin - tolerance, record.end)]
        if name == "web":
            return any(_web_fits(record, state) for state in states)
        return any(_policy_fits(record, state.rule_sets[number]) for state in states if number in state.rule_sets)

    def _note(self, record: Record, kind: str) -> None:
        states = self._timeline.window(record.opened, record.end)
        self.counts[f"{kind}, WRONG"] += 1
        self.wrong.append(f"{record}, states {states.start} to {states.stop - 1}")


def _listener(state: State, name: str, number: int) -> int | None:
    return (state.webs if name == "web" else state.listeners).get(number)


def _web_fits(record: Record, state: State) -> bool:
    servers = web_routes(state).get(record.request)
    if servers is None:
        return record.status == 404
    if not servers:
        return (record.status, record.body) == (418, b"direct %d" % record.request)
    wanted = {f"{server} GET /p{record.request}/x x-team= x-role=\n".encode() for server in servers}
    return record.status == 200 and record.body in wanted


def _policy_fits(record: Record, rule_set: RuleSet) -> bool:
    request = REQUESTS[record.request]
    decision = _decide(request, rule_set)
    if decision.verdict is not Verdict.ALLOW:
        return (record.status, record.body) == (decision.status, b"Access denied")
    if record.status != 200:
        return False
    sent = apply(request, decision.changes)
    words = record.body.decode("latin-1").rstrip("\n").split(" ")
    path = decision.path or request.path
    if words[:3] != ["origin", request.method.decode(), path.decode()]:
        return False
    for word, header in zip(words[3:], ("x-team", "x-role"), strict=True):
        values = [value.decode() for value in sent.values(header.encode())]
        # nginx shows only one of several.
        if len(values) < 2 and word != f"{header}={values[0] if values else ''}":
            return False
    return True


@lru_cache(maxsize=65536)
def _decide(request: HttpRequest, rule_set: RuleSet) -> HttpDecision:
    return decide(request, rule_set)
