"""What policies in audit mode would deny, summed by rule and pair, in bounded memory.

Flows are remembered for a moment only; a team that wants to know what switching on would break needs all of them since
it began to look. So every record that is an audit is counted here as it comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from spliceway.agent.flowlog import Flow, FlowPeer

#: Most (direction, reason, rule, source identity, destination identity). What is new beyond that is only counted.
MAX_PAIRS = 2048
#: Most (port, protocol, method, path) of one pair. What is new beyond that is summed without them.
MAX_DETAILS = 64
#: Most of these of all pairs together.
MAX_ENTRIES = 16_384
#: Longest path and nearest miss that is kept, in characters: a request may have some 60 KiB of them.
MAX_TEXT = 256


class AuditEnd(msgspec.Struct, frozen=True, rename="camel"):
    """One end: everything with these labels. `pod` and `address` are those of the latest record."""

    identity: int
    labels: tuple[str, ...]
    pod: str
    address: str


class AuditEntry(msgspec.Struct, frozen=True, rename="camel"):
    """Records with one rule, pair and destination. `first` and `last` are RFC 3339 in UTC.

    `rule` is empty where no rule made it (default deny). `protocol` empty: the rest of a pair with many different
    destinations, with port 0. `method` and `path` (without query) of HTTP, as is `nearest_miss`, the latest one.
    `policies`: whose rule it is, or those that would deny by default, or the rule set's; as they are now, none where it
    is no policy's (spoofed sources).
    """

    direction: str
    reason: str
    rule: str
    rule_set: str
    source: AuditEnd
    destination: AuditEnd
    protocol: str
    port: int
    method: str
    path: str
    count: int
    first: str
    last: str
    nearest_miss: str = ""
    policies: tuple[str, ...] = ()


#: Titles of the policies that an entry is due to.
Blame = Callable[[AuditEntry], tuple[str, ...]]


class AuditSummary(msgspec.Struct, frozen=True, rename="camel"):
    """All of it, most frequent first. `since` is RFC 3339; `records` were counted in entries.

    `uncounted`: records of further pairs, beyond the limit; `lost`: records that never arrived, by where they got lost.
    Of those nobody can say whether they were audits.
    """

    since: str
    records: int
    uncounted: int
    lost: dict[str, int]
    entries: list[AuditEntry]


_Pair = tuple[str, str, str, str, int, int]
_Detail = tuple[str, int, str, str]
_REST: _Detail = ("", 0, "", "")


class _Sum:
    __slots__ = ("count", "destination", "first", "last", "nearest_miss", "source")

    def __init__(self, flow: Flow) -> None:
        self.count = 0
        self.first = self.last = flow.time
        self._see(flow)

    def add(self, flow: Flow) -> None:
        self.count += 1
        self.first = min(self.first, flow.time)
        if flow.time >= self.last:
            self.last = flow.time
            self._see(flow)

    def _see(self, flow: Flow) -> None:
        self.source, self.destination = _end(flow.source), _end(flow.destination)
        self.nearest_miss = _short(flow.nearest_miss)


class AuditLog:
    """Sums of what would be denied, since the start or the last `reset`."""

    def __init__(
        self, *, max_pairs: int = MAX_PAIRS, max_details: int = MAX_DETAILS, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._max_pairs = max_pairs
        self._max_entries = max_entries
        self._entries = 0
        self._max_details = max_details
        self._pairs: dict[_Pair, dict[_Detail, _Sum]] = {}
        self._since = _now()
        self._records = 0
        self._uncounted = 0
        self._lost_before: dict[str, int] = {}
        self.total = 0

    def __repr__(self) -> str:
        return f"AuditLog(pairs={len(self._pairs)}, records={self._records}, uncounted={self._uncounted})"

    def add(self, flow: Flow, direction: str) -> None:
        """Count a flow whose verdict is `audit`. `direction`: of the policy that would deny, empty when unknown."""
        self.total += 1
        pair = (direction, flow.reason, flow.rule, flow.rule_set, flow.source.identity, flow.destination.identity)
        details = self._pairs.get(pair)
        if details is None:
            if len(self._pairs) >= self._max_pairs:
                self._uncounted += 1
                return
            details = self._pairs[pair] = {}
        detail = _detail(flow)
        full = len(details) >= self._max_details or self._entries >= self._max_entries
        if full and detail not in details:
            detail = _REST
        if detail not in details:
            details[detail] = _Sum(flow)
            self._entries += 1
        details[detail].add(flow)
        self._records += 1

    def summary(self, lost: dict[str, int], blame: Blame = lambda _entry: ()) -> AuditSummary:
        """What there is. `lost`: records lost since the start of the agent, by place; `blame`: whose each is."""
        found = [_entry(pair, detail, one) for pair, details in self._pairs.items() for detail, one in details.items()]
        entries = [msgspec.structs.replace(entry, policies=blame(entry)) for entry in found]
        return AuditSummary(
            since=self._since,
            records=self._records,
            uncounted=self._uncounted,
            lost={place: max(0, count - self._lost_before.get(place, 0)) for place, count in lost.items()},
            entries=sorted(entries, key=lambda entry: (-entry.count, entry.first, entry.rule)),
        )

    def reset(self, lost: dict[str, int], blame: Blame = lambda _entry: ()) -> AuditSummary:
        """Begin anew; returns what there was."""
        told = self.summary(lost, blame)
        self._pairs.clear()
        self._entries = 0
        self._since = _now()
        self._records = self._uncounted = 0
        self._lost_before = dict(lost)
        return told


def _detail(flow: Flow) -> _Detail:
    if flow.http is None or not flow.protocol:
        # It came to no request: bytes that happen to look like one would make each connection another entry.
        return flow.protocol or "TCP", flow.destination.port, "", ""
    # A query is the client's own, often with secrets in it, and would make every request another entry.
    return flow.protocol, flow.destination.port, _short(flow.http.method), _short(flow.http.path.partition("?")[0])


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _entry(pair: _Pair, detail: _Detail, found: _Sum) -> AuditEntry:
    direction, reason, rule, rule_set, _source, _destination = pair
    protocol, port, method, path = detail
    return AuditEntry(
        direction=direction,
        reason=reason,
        rule=rule,
        rule_set=rule_set,
        source=found.source,
        destination=found.destination,
        protocol=protocol,
        port=port,
        method=method,
        path=path,
        count=found.count,
        first=found.first,
        last=found.last,
        nearest_miss=found.nearest_miss,
    )


def _end(peer: FlowPeer) -> AuditEnd:
    return AuditEnd(peer.identity, peer.labels, peer.pod, peer.address)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
