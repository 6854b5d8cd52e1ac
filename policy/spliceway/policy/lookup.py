"""Reading a PolicyTable as the kernel does. For `policy get`, traces and tests."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network

import msgspec

from spliceway.policy.model import IPAddress
from spliceway.policy.ports import PORT_BITS
from spliceway.policy.table import OTHER_PEERS, ClassKey, EndpointPolicy, IPNetwork, PolicyTable, RowKey
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict


class Judgement(msgspec.Struct, frozen=True):
    """What a table says about one direction of a connection. `row` is the key that matched, None for a default."""

    verdict: Verdict
    reason: Reason
    rule: int = 0
    rule_set: int = 0
    class_id: int = OTHER_PEERS
    row: RowKey | None = None

    @property
    def audit(self) -> bool:
        """Whether it passes and policies in audit mode would deny it."""
        return self.verdict is not Verdict.DENY and self.reason.denies


def identify(ipcache: Mapping[IPNetwork, int], address: IPAddress) -> int:
    """Identity of an address: that of the longest prefix. 0 when there is none."""
    for bits in range(address.max_prefixlen, -1, -1):
        found = ipcache.get(ip_network((address, bits), strict=False))
        if found is not None:
            return found
    return 0


def lookup(
    table: PolicyTable, endpoint: EndpointPolicy, direction: Direction, identity: int, protocol: int, port: int
) -> Judgement:
    """Verdict of an endpoint's policy for a peer's identity, an IP protocol number and a destination port.

    For ICMP, `port` is `type << 8 | code`. The longest port prefix of the named protocol counts, then Protocol.ANY.
    """
    if not (endpoint.ingress if direction is Direction.INGRESS else endpoint.egress):
        return Judgement(Verdict.ALLOW, Reason.NO_POLICY)
    if identity == 0:
        return Judgement(Verdict.DENY, Reason.NO_IDENTITY)
    policy = endpoint.policy_id
    class_id = table.classes.get(ClassKey(policy, direction, identity), OTHER_PEERS)
    candidates = []
    if protocol in _NAMED:
        for bits in range(PORT_BITS, -1, -1):
            prefix = port >> (PORT_BITS - bits) << (PORT_BITS - bits)
            candidates.append(RowKey(policy, direction, class_id, Protocol(protocol), prefix, bits))
    candidates.append(RowKey(policy, direction, class_id, Protocol.ANY, 0, 0))
    for key in candidates:
        row = table.rows.get(key)
        if row is not None:
            return Judgement(row.verdict, row.reason, row.rule, row.rule_set, class_id, key)
    return Judgement(Verdict.DENY, Reason.DEFAULT_DENY, class_id=class_id)


def lookup_pair(table: PolicyTable, egress: Judgement | None, ingress: Judgement | None) -> Judgement:
    """Verdict on a connection, of its client's egress and its server's ingress; None where no endpoint stands.

    A denial decides, the client's first; then a redirect, to the rule set of the pair if both ends redirect (denied,
    no-listener, when there is none); otherwise the half that a policy made, the server's first. If the connection
    passes and a half is in audit, its reason and rule are told, the client's first.
    """
    halves = [half for half in (egress, ingress) if half is not None]
    for half in halves:
        if half.verdict is Verdict.DENY:
            return half
    redirects = [half for half in halves if half.verdict is Verdict.REDIRECT]
    audits = [half for half in halves if half.audit]
    made = [half for half in reversed(halves) if half.reason is not Reason.NO_POLICY]
    told = (audits or redirects or made or [Judgement(Verdict.ALLOW, Reason.NO_POLICY)])[0]
    if not redirects:
        return told
    rule_set = redirects[0].rule_set
    if len(redirects) == 2:
        rule_set = table.pairs.get((redirects[0].rule_set, redirects[1].rule_set), 0)
        if not rule_set:
            return msgspec.structs.replace(redirects[0], verdict=Verdict.DENY, reason=Reason.NO_LISTENER, rule_set=0)
    return msgspec.structs.replace(told, verdict=Verdict.REDIRECT, rule_set=rule_set)


_NAMED = frozenset(protocol for protocol in Protocol if protocol is not Protocol.ANY)
