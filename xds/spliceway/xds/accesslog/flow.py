"""HttpFlow: one request as the proxy's access log tells it, and the count of those that were lost."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import msgspec

from spliceway.policy.verdict import Reason, Verdict

IPAddress = IPv4Address | IPv6Address


class HttpFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its verdict, written when it has ended.

    `time`: start, CLOCK_REALTIME in nanoseconds; `duration_ns`: to the last byte of the answer. `source` is the
    connection's peer, never what a header claims; `destination` is where it wanted to go. `path` is `:path` as it was
    matched, after normalisation. `rule_set` 0 when no route was reached, `rule` 0 unless a rule allowed the request.
    Where both ends have rules, `rule` is the server's and `client_rule` the client's; elsewhere that is 0. Verdict
    ALLOW with a reason that denies is audit: the request passed, and would not if policies in audit were enforced.
    `nearest_miss`: of a denied request, what the rule that came nearest lacked, where the proxy says so.
    `mismatches`: headers that were not as a rule with a mismatch action wants them; the request was changed or noted.
    `status` 0: no answer was sent. `flags` are Envoy's response flags by field name, `details` its response code
    details. `connection` is Envoy's id of the downstream connection, 0 when unknown. `upstream_source`: the address and
    port that the proxy used to reach `destination`, None when it did not connect. Bytes are those on the wire.
    """

    time: int
    duration_ns: int
    source: IPAddress
    source_port: int
    destination: IPAddress
    destination_port: int
    protocol: str
    method: str
    authority: str
    path: str
    status: int
    verdict: Verdict
    reason: Reason
    rule_set: int
    rule: int
    client_rule: int = 0
    nearest_miss: str = ""
    mismatches: tuple[str, ...] = ()
    details: str = ""
    flags: tuple[str, ...] = ()
    connection: int = 0
    upstream_source: tuple[IPAddress, int] | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    upstream_sent_bytes: int = 0
    upstream_received_bytes: int = 0


class LossCounter:
    """How many access log entries were written by Envoy and never arrived.

    Envoy's own `logs_dropped` does not see them, so both ends are counted: `logs_written` of its statistics, and
    what arrived. Entries under way look lost for a moment; the count is of the last observation and may fall.
    """

    def __init__(self) -> None:
        self._epoch: str | None = None
        self._written = 0
        self._received = 0
        self._seen = 0
        self._before = 0
        self.lost = 0

    def observe(self, epoch: str, written: int, received: int) -> int:
        """Take one observation and return the entries lost since the first one.

        `epoch` names the Envoy process: in another one `written` began again at 0. `received` counts all arrivals
        since this agent started. What Envoy wrote before the first observation is nobody's loss.
        """
        if self._epoch is None:
            self._written, self._received = written, received
        elif epoch != self._epoch:
            self._before, self._written, self._received = self.lost, 0, self._seen
        self._epoch, self._seen = epoch, received
        self.lost = self._before + max(0, (written - self._written) - (received - self._received))
        return self.lost


class FlowBudget:
    """How many flows may be made of access log entries: `rate` a second, and as many at once.

    An entry costs the agent some 20 microseconds of its one core; a busy node writes tens of thousands a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be made at `now`, in seconds of any clock that doesn't go back."""
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
