"""Verdicts get their names: kernel records and access log entries become flows. Pure.

Names come from the table and cluster in force when the record arrived; a rule that went away a moment before keeps its
name for one more table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

from spliceway.agent.flowlog import Flow, FlowPeer, HttpPart
from spliceway.bpf.types import KernelFlow, Leg
from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.lookup import identify
from spliceway.policy.model import Cluster
from spliceway.policy.table import PolicyTable, RuleRef, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from spliceway.xds.flow import HttpFlow

IPAddress = IPv4Address | IPv6Address

#: Addresses whose identity is remembered: a lookup asks for every prefix length.
_CACHED_ADDRESSES = 65_536
_PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


class Names:
    """The names of one moment. Not changed after it is made: a flow that is read later still has those of its time."""

    def __init__(
        self, cluster: Cluster | None = None, table: PolicyTable | None = None, last: Names | None = None
    ) -> None:
        """`last`: the names before these; its rules and rule sets stay known."""
        self._table = table
        self._pods: dict[IPAddress, str] = {}
        if cluster is not None:
            self._pods = {address: pod.key for pod in cluster.pods.values() for address in pod.addresses}
        before = last._table if last else None
        self._rules: Mapping[int, RuleRef] = {**(before.rules if before else {}), **(table.rules if table else {})}
        self._rule_sets: Mapping[int, RuleSet] = {
            **(before.rule_sets if before else {}),
            **(table.rule_sets if table else {}),
        }
        self._numbers: dict[IPAddress, int] = {}
        # KernelFlow counts from boot. The offset changes only when the clock is set, so one for each table will do.
        self._boot_ns = time.time_ns() - time.monotonic_ns()

    def __repr__(self) -> str:
        return f"Names(pods={len(self._pods)}, rules={len(self._rules)})"

    def kernel(self, record: KernelFlow) -> Flow:
        """A kernel verdict with names."""
        return Flow(
            time=_rfc3339(self._boot_ns + record.time),
            hook=record.hook.label,
            verdict=record.verdict.label,
            reason=record.reason.label,
            source=self._peer(record.source, record.source_port, record.source_identity),
            destination=self._peer(record.destination, record.destination_port, record.destination_identity),
            protocol=_PROTOCOLS.get(record.protocol, str(record.protocol)),
            leg=record.leg.label,
            reply=record.reply,
            rule=self.rule(record.rule),
            rule_set=self.rule_set(record.rule_set),
            length=record.length,
        )

    def http(self, record: HttpFlow) -> Flow:
        """An HTTP verdict with names; a denied one also says what the nearest rule lacked."""
        return Flow(
            time=_rfc3339(record.time),
            hook="proxy",
            verdict=record.verdict.label,
            reason=record.reason.label,
            source=self._peer(record.source, record.source_port, self._identity(record.source)),
            destination=self._peer(record.destination, record.destination_port, self._identity(record.destination)),
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
            ),
            nearest_miss=self._nearest_miss(record),
        )

    def rule(self, number: int) -> str:
        """Name of a rule: «CiliumNetworkPolicy default/api spec.ingress[0]…»; empty for none."""
        if not number:
            return ""
        ref = self._rules.get(number)
        return str(ref) if ref else f"rule {number} (gone)"

    def rule_set(self, number: int) -> str:
        """Name of a rule set; empty for none."""
        if not number:
            return ""
        found = self._rule_sets.get(number)
        return found.name if found else f"rule set {number} (gone)"

    def pod(self, address: IPAddress) -> str:
        """«namespace/name» of the pod with this address; empty for none."""
        return self._pods.get(address, "")

    def _peer(self, address: IPAddress, port: int, identity: int) -> FlowPeer:
        labels = self._table.identities.get(identity, ()) if self._table else ()
        return FlowPeer(str(address), port, identity, self.pod(address), labels)

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
        rule_set = self._rule_sets.get(record.rule_set)
        if record.verdict is not Verdict.DENY or record.reason is not Reason.HTTP_DENIED or rule_set is None:
            return ""
        # The rules may have changed since the request: a decision that now allows explains nothing.
        decision = decide(HttpRequest.of(record.method, record.path), rule_set, self._rules)
        return decision.nearest_miss if decision.verdict is Verdict.DENY else ""


def _rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"
