"""One request on its way: what was asked, what became of it, and its record."""

from __future__ import annotations

import time
from typing import NamedTuple

from spliceway.policy.httpmatch import text
from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.http.decision import Judged
from spliceway.proxy.http.head import Head
from spliceway.proxy.model import AccessRecord

#: Longest method, host and path in a record, in characters.
_LONGEST = 2048


class Ends(NamedTuple):
    """Who talks to whom: client, where it wanted to go, and the number of the connection."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    number: int


class Exchange:
    """A request that passed, until its answer has ended.

    `started`: CLOCK_REALTIME in nanoseconds. `wanted`: the server has said that it wants the body (100).
    """

    __slots__ = ("head", "judged", "received", "sent", "started", "status", "up_received", "up_sent", "wanted")

    def __init__(self, head: Head, judged: Judged) -> None:
        self.head = head
        self.judged = judged
        self.started = time.time_ns()
        self.status = 0
        self.wanted = False
        self.received = head.size
        self.sent = 0
        self.up_sent = 0
        self.up_received = 0

    def __repr__(self) -> str:
        return f"<Exchange {self.head!r} {self.status}>"

    def record(
        self,
        ends: Ends,
        rule_set: int,
        *,
        reason: Reason | None = None,
        details: str = "via_upstream",
        flags: tuple[str, ...] = (),
        upstream: tuple[str, int] = ("", 0),
    ) -> AccessRecord:
        """Its record now. `reason`: why the proxy ended it by itself, None when it was for its rules or not at all."""
        decision, request = self.judged.decision, self.head.request
        passed = reason is None
        return AccessRecord(
            time=self.started,
            duration_ns=max(0, time.time_ns() - self.started),
            source=ends.source,
            source_port=ends.source_port,
            destination=ends.destination,
            destination_port=ends.destination_port,
            protocol=f"HTTP/{request.version}",
            method=text(request.method),
            authority=shown(self.head.authority),
            path=shown(decision.path or self.head.request.path),
            status=self.status,
            verdict=decision.verdict if passed else Verdict.DENY,
            reason=decision.reason if reason is None else reason,
            rule_set=rule_set,
            rule=decision.rule if passed else 0,
            client_rule=decision.client_rule if passed else 0,
            nearest_miss=decision.nearest_miss if passed else details,
            mismatches=self.judged.mismatches,
            details=details,
            flags=flags,
            connection=ends.number,
            upstream_source=upstream[0],
            upstream_source_port=upstream[1],
            received_bytes=self.received,
            sent_bytes=self.sent,
            upstream_sent_bytes=self.up_sent,
            upstream_received_bytes=self.up_received,
        )


def refusal(
    ends: Ends, rule_set: int, reason: Reason, why: str, *, status: int = 0, raw: bytes = b"", sent: int = 0
) -> AccessRecord:
    """The record of what was refused before it was a request. `raw`: what came, as far as a first line can be seen."""
    line = raw[:_LONGEST].partition(b"\n")[0].rstrip(b"\r").split(b" ")
    # TLS begins with random bytes, of which some are blanks.
    words = [shown(word) for word in line] if len(line) == 3 and reason is not Reason.HTTP_TLS else []
    method, path, protocol = words or ("", "", "")
    return AccessRecord(
        time=time.time_ns(),
        duration_ns=0,
        source=ends.source,
        source_port=ends.source_port,
        destination=ends.destination,
        destination_port=ends.destination_port,
        protocol=protocol if protocol.startswith("HTTP/") else "",
        method=method,
        authority="",
        path=path,
        status=status,
        verdict=Verdict.DENY,
        reason=reason,
        rule_set=rule_set,
        nearest_miss=why,
        details=reason.label,
        connection=ends.number,
        received_bytes=len(raw),
        sent_bytes=sent,
    )


def shown(value: bytes) -> str:
    """Bytes as a record has them: Latin-1, cut."""
    return value[:_LONGEST].decode("latin-1")
