"""Verdicts get their names: kernel records and access log entries become flows. Pure.

Names come from the table and cluster in force when the record arrived; a rule that went away a moment before keeps its
name.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

import msgspec

from spliceway.agent.addresses import AddressBook
from spliceway.agent.flowlog import Flow, FlowPeer, HttpPart
from spliceway.agent.verdicts import verdict_label
from spliceway.bpf.types import Hook, KernelFlow, Leg
from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.httpmatch import untrue
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.table import HttpRule, Mismatch, PolicyTable, RuleRef, RuleSet
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from spliceway.xds.accesslog.flow import HttpFlow

IPAddress = IPv4Address | IPv6Address

#: What a proxy says of a request that the server has answered.
_BY_THE_SERVER = "via_upstream"
#: Addresses whose identity is remembered: a lookup asks for every prefix length.
_CACHED_ADDRESSES = 65_536
_RULE_NUMBER = re.compile(r"\Arule (\d{1,10}):")
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


#: How long at least what went keeps its name, in seconds: tables may follow each other in milliseconds.
_BEFORE_SECONDS = 1.0

#: Names of the pods at both ends of a record, empty for what is no pod.
Ends = tuple[str, str]


def as_opened(record: KernelFlow) -> KernelFlow:
    """A record of a reply, read from client to server: a verdict is about the connection, whichever packet met it."""
    if not record.reply:
        return record
    return msgspec.structs.replace(
        record,
        source=record.destination,
        source_port=record.destination_port,
        source_identity=record.destination_identity,
        destination=record.source,
        destination_port=record.source_port,
        destination_identity=record.source_identity,
        reply=False,
    )


class Names:
    """The names of one moment. A flow that is read later still has those of its time, if its `ends` were taken then."""

    def __init__(
        self, table: PolicyTable | None = None, pods: AddressBook | None = None, last: Names | None = None
    ) -> None:
        """`pods` may change later; `last`: the names before these; its rules and rule sets stay known."""
        self._table = table
        self._pods = pods or AddressBook()
        self._before, self._before_since = last.known_before() if last else (None, 0.0)
        self._numbers: dict[IPAddress, int] = {}
        # KernelFlow counts from boot. The offset changes only when the clock is set, so one for each table will do.
        self._boot_ns = time.time_ns() - time.monotonic_ns()

    def __repr__(self) -> str:
        return f"Names(revision={self._table and self._table.revision}, {self._pods!r})"

    def known_before(self) -> tuple[PolicyTable | None, float]:
        """Whose rules and rule sets the next table may not have, and flows may still name."""
        mine, now = self._table, time.monotonic()
        if mine is None or (self._before is not None and now - self._before_since < _BEFORE_SECONDS):
            return self._before, self._before_since
        return mine, now

    def ends(self, record: KernelFlow | HttpFlow) -> Ends:
        """The pods that have source and destination now."""
        return self._pods.get(record.source), self._pods.get(record.destination)

    def kernel(self, record: KernelFlow, ends: Ends | None = None, services: tuple[str, ...] = ()) -> Flow:
        """A kernel verdict with names. `services`: of the server's end."""
        ends = source, destination = ends or self.ends(record)
        by_default = record.reason is Reason.DEFAULT_DENY and not record.reply
        return Flow(
            time=rfc3339(self._boot_ns + record.time),
            hook=record.hook.label,
            verdict=verdict_label(record.verdict, record.reason),
            reason=record.reason.label,
            source=self._peer(record.source, record.source_port, record.source_identity, source),
            destination=self._peer(
                record.destination, record.destination_port, record.destination_identity, destination
            ),
            protocol=_PROTOCOLS.get(record.protocol, str(record.protocol)),
            leg=record.leg.label,
            reply=record.reply,
            rule=self.rule(record.rule),
            rule_set=self.rule_set(record.rule_set),
            length=record.length,
            direction=self.direction(record, ends) if by_default else "",
            services=services,
        )

    def http(self, record: HttpFlow, ends: Ends | None = None, services: tuple[str, ...] = ()) -> Flow:
        """An HTTP verdict with names; a denied one also says what the nearest rule lacked."""
        source, destination = ends or self.ends(record)
        return Flow(
            time=rfc3339(record.time),
            hook="proxy",
            verdict=verdict_label(record.verdict, record.reason),
            reason=record.reason.label,
            source=self._peer(record.source, record.source_port, self._identity(record.source), source),
            destination=self._peer(
                record.destination, record.destination_port, self._identity(record.destination), destination
            ),
            protocol=record.protocol,
            leg=Leg.DOWNSTREAM.label,
            reply=False,
            rule=self.rule(record.rule),
            rule_set=self.rule_set(record.rule_set),
            http=HttpPart(
                method=record.method,
                path=record.path,
                host=record.authority,
                status=record.status,
                duration=round(record.duration_ns / 1e6, 3),
                flags=",".join(record.flags),
                details="" if record.details == _BY_THE_SERVER else record.details,
            ),
            nearest_miss=self._nearest_miss(record),
            client_rule=self.rule(record.client_rule),
            mismatches=record.mismatches,
            services=services,
        )

    def rule(self, number: int) -> str:
        """Name of a rule: «CiliumNetworkPolicy default/api spec.ingress[0]…»; empty for none."""
        if not number:
            return ""
        ref = self._rule(number)
        return str(ref) if ref else f"rule {number} (gone)"

    def rule_set(self, number: int) -> str:
        """Name of a rule set; empty for none."""
        if not number:
            return ""
        found = self._rule_set(number)
        return found.name if found else f"rule set {number} (gone)"

    def pod(self, address: IPAddress) -> str:
        """«namespace/name» of the pod with this address; empty for none."""
        return self._pods.get(address)

    def told_before(self, record: KernelFlow, ends: Ends) -> bool:
        """Whether the same verdict was in another record: between two pods of this node both ends' hooks have it."""
        return record.hook is Hook.TO_POD and self._table is not None and ends[0] in self._table.endpoints

    def direction(self, record: KernelFlow, ends: Ends) -> str:
        """Whose policy gave a connection this reason: `egress` of its client, `ingress` of its server, or unknown."""
        table = self._table
        port = record.destination_port
        if record.protocol in (Protocol.ICMP, Protocol.ICMPV6):
            port <<= 8  # of ICMP a record has the type
        peers = (record.destination_identity, record.source_identity)
        for pod, peer, direction in zip(ends, peers, (Direction.EGRESS, Direction.INGRESS), strict=True):
            endpoint = table.endpoints.get(pod) if table else None
            if table is None or endpoint is None:
                continue
            found = lookup(table, endpoint, direction, peer, record.protocol, port)
            if (found.reason, found.rule) == (record.reason, record.rule):
                return direction.label
        return ""

    def _peer(self, address: IPAddress, port: int, identity: int, pod: str) -> FlowPeer:
        number = identity or self._identity(address)  # what was dropped at once has not been looked at
        labels = self._table.identities.get(number, ()) if self._table else ()
        return FlowPeer(str(address), port, number, pod, labels)

    def _rule(self, number: int) -> RuleRef | None:
        for table in (self._table, self._before):
            if table is not None and (found := table.rules.get(number)) is not None:
                return found
        return None

    def _rule_set(self, number: int) -> RuleSet | None:
        for table in (self._table, self._before):
            if table is not None and (found := table.rule_sets.get(number)) is not None:
                return found
        return None

    def _identity(self, address: IPAddress) -> int:
        if self._table is None:
            return 0
        found = self._numbers.get(address)
        if found is None:
            if len(self._numbers) >= _CACHED_ADDRESSES:
                self._numbers.clear()
            found = self._numbers[address] = identify(self._table.ipcache, address)
        return found

    def _nearest_miss(self, record: HttpFlow) -> str:
        if record.nearest_miss:
            # The proxy has seen the headers, and knows rules by number only.
            told = _RULE_NUMBER.sub(lambda found: f"{self._called(int(found[1]))}:", record.nearest_miss, count=1)
            return self._tests_named(told, record)
        rule_set = self._rule_set(record.rule_set)
        if record.reason is not Reason.HTTP_DENIED or rule_set is None:
            return ""
        request = HttpRequest.of(record.method, record.path, (("host", record.authority),))
        ends = _asked(rule_set, enforced=record.verdict is Verdict.DENY)
        misses = [miss for rules in ends if (miss := self._miss(request, rules))]
        # What is sure comes first, and then the client's end.
        return min(misses, key=lambda miss: miss[0])[1] if misses else ""

    def _tests_named(self, told: str, record: HttpFlow) -> str:
        """What the proxy told, with the names of the rules that tests are of: it does not know them."""
        rule_set, found = self._rule_set(record.rule_set), _RULE_NUMBER.match(record.nearest_miss)
        if rule_set is None or found is None:
            return told
        ends = [rule_set, *([rule_set.also] if rule_set.also else [])]
        every = [rule for end in ends for rule in (*(end.rules or ()), *(end.audit or ()))]
        rule = next((one for one in every if one.rule == int(found[1]) and one.tests), None)
        if rule is None:
            return told
        request = HttpRequest.of(record.method, record.path, (("host", record.authority),))
        names = {number: ref for number in rule.numbers if (ref := self._rule(number)) is not None}
        try:
            path = normalise(request.path)
        except TargetError:
            return told
        for unnamed, named in zip(untrue(rule, request, path, None), untrue(rule, request, path, names), strict=True):
            told = told.replace(unnamed, named, 1)
        return told

    def _called(self, number: int) -> str:
        ref = self._rule(number)
        return f"rule {ref if ref else f'{number} (gone)'}"

    def _miss(self, request: HttpRequest, rules: tuple[HttpRule, ...]) -> tuple[bool, str] | None:
        """Whether headers are concerned, and why none of these matched; None when one may have: they may have changed.

        The access log has no headers. So the rules are asked without their conditions on headers: where none matches
        that is why, and otherwise it must have been the headers.
        """
        numbers = {number for rule in rules for number in rule.numbers}
        names = {number: ref for number in numbers if (ref := self._rule(number)) is not None}
        bare = [msgspec.structs.replace(rule, headers=()) for rule in rules]
        found = decide(request, RuleSet(0, "", tuple(bare)), names)
        if found.reason is not Reason.HTTP_ALLOWED:
            return (False, found.nearest_miss) if found.reason is Reason.HTTP_DENIED else None
        needed = {rule.rule: _needed(rule) for rule in rules}
        free = tuple(rule for rule in bare if not needed[rule.rule])
        if not needed[found.rule] or decide(request, RuleSet(0, "", free)).reason is Reason.HTTP_ALLOWED:
            return None
        name = names.get(found.rule, found.rule)
        return True, f"rule {name}: all but its conditions on headers matches ({', '.join(needed[found.rule])})"


def _asked(rule_set: RuleSet, *, enforced: bool) -> list[tuple[HttpRule, ...]]:
    """The rules of each end, the client's first: those that can have denied, or those that would in audit."""
    ends = [rule_set, *([rule_set.also] if rule_set.also else [])]
    asked = [end.rules if enforced else end.audit for end in ends]
    return [rules for rules in asked if rules is not None]


def _needed(rule: HttpRule) -> list[str]:
    """Names of the headers without which the rule does not match."""
    return [header.name for header in rule.headers if header.mismatch is Mismatch.DENY]


def rfc3339(nanoseconds: int) -> str:
    """A time since 1970, in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"
