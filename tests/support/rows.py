"""Rows of one class of peers, read as the kernel does, and policies by hand to make them of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import Action, HttpMatch, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.outcome import Outcome
from spliceway.policy.ports import covers
from spliceway.policy.rows import Slot, resolve
from spliceway.policy.table import RuleRef
from spliceway.policy.terms import direction_terms, policy_terms
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict

IN = Direction.INGRESS
TCP, UDP, SCTP, ICMP = Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP
FRONT = Peers(endpoints=(Selector((Requirement("any", "role", Operator.IN, ("front",)),)),))
BACK = Peers(endpoints=(Selector((Requirement("any", "role", Operator.IN, ("back",)),)),))
NOBODY = Peers()
NAMED = {("web", TCP): (80, 8080), ("dns", UDP): (53,), ("dns", TCP): (53,), ("back", SCTP): ()}


class Answer(NamedTuple):
    """What a row comes to; rules by name, HTTP rules by the names of what contributes them."""

    verdict: Verdict
    reason: Reason
    rule: str = ""
    http: frozenset[str] = frozenset()
    audited: bool = False


def answer(rows: Mapping[Slot, Outcome], protocol: int, port: int) -> Answer:
    """What the rows say about a protocol and port."""
    hits = [rows[slot] for slot in rows if slot[0] == protocol != 0 and covers(port, slot[1], slot[2])]
    assert len(hits) <= 1, "prefixes overlap"
    outcome = hits[0] if hits else rows.get((Protocol.ANY, 0, 0))
    if outcome is None:
        return Answer(Verdict.DENY, Reason.DEFAULT_DENY)
    refs = frozenset(map(rule_name, outcome.contributors))
    return Answer(outcome.verdict, outcome.reason, rule_name(outcome.ref), refs, outcome.audited)


def rule_name(ref: RuleRef | None) -> str:
    return "" if ref is None else f"{ref.policy.rpartition('/')[2].rpartition(' ')[2]}:{ref.path}"


def compiled(
    policies: Iterable[NetworkPolicy],
    named: Mapping[tuple[str, Protocol], Sequence[int]] = NAMED,
    *,
    peer: Iterable[Peers] = (FRONT,),
    direction: Direction = IN,
    audit: bool = False,
) -> dict[Slot, Outcome] | None:
    """Rows for a peer that belongs to `peer`."""
    specs = [entry for policy in policies for entry in policy_terms(policy, audit=audit)]
    terms = direction_terms(specs, direction)
    if terms is None:
        return None
    member_of = set(peer)
    return resolve((term for term in terms if term.peers is None or term.peers in member_of), named)


def ask(*policies: NetworkPolicy, port: int = 80, protocol: int = TCP, **options: object) -> Answer:
    """What a connection gets."""
    rows = compiled(policies, **options)  # type: ignore[arg-type]
    return Answer(Verdict.ALLOW, Reason.NO_POLICY) if rows is None else answer(rows, protocol, port)


def rule(
    action: Action = Action.ALLOW,
    *ports: PortRange,
    peers: Peers | None = None,
    http: bool = False,
    place: int = 0,
    direction: Direction = IN,
    void: bool = False,
) -> Rule:
    """A rule with one entry of toPorts, or with none."""
    path = f"{direction.label}{'Deny' if action is Action.DENY else ''}[{place}]"
    matches = (HttpMatch(f"{path}.toPorts[0].rules.http[0]", path_regex="/"),) if http else None
    entries = (PortRule(f"{path}.toPorts[0]", ports, matches),) if ports else ()
    return Rule(path, direction, action, peers, entries, void)


def policy(
    name: str,
    *rules: Rule,
    tier: Tier = Tier.NORMAL,
    priority: int = 0,
    deny: bool | None = None,
    audit: bool = False,
    kind: str = "K",
) -> NetworkPolicy:
    """A policy about ingress; `deny`: whether it asks for default deny (by itself in the NORMAL tier only)."""
    default_deny = (deny if deny is not None else tier is Tier.NORMAL, False)
    spec = Spec("spec", Selector(), rules, default_deny, (True, False), tier=tier, priority=priority)
    return NetworkPolicy(kind, "ns", name, (spec,), audit=audit)


def tcp(first: int, last: int | None = None) -> PortRange:
    """A range of TCP ports."""
    return PortRange(TCP, first, first if last is None else last)
