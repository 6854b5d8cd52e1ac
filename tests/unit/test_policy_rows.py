"""Rows of one class of peers: every step of the order of tiers, every line of audit, and a brute-force oracle.

The oracle reads rules port by port, straight from what docs/policy.md says («Which rule wins», «Tiers», «Audit»); it
knows nothing of terms, runs and prefixes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spliceway.policy.entity import Entity
from spliceway.policy.labels import Operator, Requirement, Selector
from spliceway.policy.model import Action, HttpMatch, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.outcome import Outcome
from spliceway.policy.ports import LAST_PORT, covers
from spliceway.policy.rows import Slot, resolve
from spliceway.policy.table import RuleRef
from spliceway.policy.terms import HOST_PEERS, direction_terms, policy_terms
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


# Reading the rows as the kernel does.


def answer(rows: Mapping[Slot, Outcome], protocol: int, port: int) -> Answer:
    """What the rows say about a protocol and port."""
    hits = [rows[slot] for slot in rows if slot[0] == protocol != 0 and covers(port, slot[1], slot[2])]
    assert len(hits) <= 1, "prefixes overlap"
    outcome = hits[0] if hits else rows.get((Protocol.ANY, 0, 0))
    if outcome is None:
        return Answer(Verdict.DENY, Reason.DEFAULT_DENY)
    refs = frozenset(map(_name, outcome.contributors))
    return Answer(outcome.verdict, outcome.reason, _name(outcome.ref), refs, outcome.audited)


def _name(ref: RuleRef | None) -> str:
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


# The oracle.


def oracle(
    policies: Sequence[NetworkPolicy],
    direction: Direction,
    peer: frozenset[Peers],
    protocol: int,
    port: int,
    named: Mapping[tuple[str, Protocol], Sequence[int]] = NAMED,
) -> Answer:
    """The verdict by the words of the documentation."""
    enforced = _half([policy for policy in policies if not policy.audit], direction, peer, protocol, port, named)
    whole = _half(policies, direction, peer, protocol, port, named)
    match enforced.verdict, whole.verdict:
        case Verdict.DENY, _:
            return enforced
        case Verdict.ALLOW, Verdict.ALLOW:
            return whole
        case Verdict.ALLOW, Verdict.DENY:
            return Answer(Verdict.ALLOW, whole.reason, whole.rule)
        case Verdict.ALLOW, Verdict.REDIRECT:
            return Answer(Verdict.REDIRECT, Reason.REDIRECTED, whole.rule, whole.http, audited=True)
        case Verdict.REDIRECT, Verdict.DENY:
            return Answer(Verdict.REDIRECT, whole.reason, whole.rule, enforced.http)
        case _:
            return enforced


def _half(
    policies: Sequence[NetworkPolicy],
    direction: Direction,
    peer: frozenset[Peers],
    protocol: int,
    port: int,
    named: Mapping[tuple[str, Protocol], Sequence[int]],
) -> Answer:
    ordered = sorted(policies, key=lambda policy: (policy.kind, policy.namespace, policy.name))
    specs = [(policy, spec) for policy in ordered for spec in policy.specs if spec.applies[direction]]
    if not specs:
        return Answer(Verdict.ALLOW, Reason.NO_POLICY)
    hits: dict[Tier, list[tuple[int, Action, str, bool]]] = {tier: [] for tier in Tier}
    for policy, spec in specs:
        for rule in spec.rules:
            if rule.direction is direction and not rule.void and (rule.peers is None or rule.peers in peer):
                if not rule.to_ports:
                    hits[spec.tier].append((spec.priority, rule.action, f"{policy.name}:{rule.path}", False))
                for entry in rule.to_ports:
                    if any(_port_fits(ports, protocol, port, named) for ports in entry.ports):
                        name = f"{policy.name}:{entry.path}"
                        hits[spec.tier].append((spec.priority, rule.action, name, entry.http is not None))

    def first(tier: Tier) -> Answer | None:
        for _, action, name, _ in sorted(hits[tier], key=lambda hit: hit[0]):  # stable: then by name and place
            if action is Action.ALLOW:
                return Answer(Verdict.ALLOW, Reason.POLICY_ALLOWED, name)
            return None if action is Action.PASS else Answer(Verdict.DENY, Reason.POLICY_DENIED, name)
        return None

    def normal() -> Answer | None:
        for _, action, name, _ in hits[Tier.NORMAL]:
            if action is Action.DENY:
                return Answer(Verdict.DENY, Reason.POLICY_DENIED, name)
        if direction is IN and HOST_PEERS in peer:
            return Answer(Verdict.ALLOW, Reason.HOST_ALLOWED)
        for _, _, name, http in hits[Tier.NORMAL]:
            if not http:
                return Answer(Verdict.ALLOW, Reason.POLICY_ALLOWED, name)
        names = [name for _, _, name, _ in hits[Tier.NORMAL]]
        if names:
            return Answer(Verdict.REDIRECT, Reason.REDIRECTED, names[0], frozenset(names))
        if any(spec.default_deny[direction] for _, spec in specs):
            return Answer(Verdict.DENY, Reason.DEFAULT_DENY)
        return None

    return first(Tier.ADMIN) or normal() or first(Tier.BASELINE) or Answer(Verdict.ALLOW, Reason.NO_POLICY)


def _port_fits(ports: PortRange, protocol: int, port: int, named: Mapping[tuple[str, Protocol], Sequence[int]]) -> bool:
    if protocol not in ((TCP, UDP, SCTP) if ports.protocol is Protocol.ANY else (ports.protocol,)):
        return False
    if ports.name:
        return port in named.get((ports.name, Protocol(protocol)), ())
    return ports.first <= port <= ports.last


# Policies by hand.


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


ALLOW, DENY, PASS = Action.ALLOW, Action.DENY, Action.PASS
ADMIN, BASELINE = Tier.ADMIN, Tier.BASELINE
ALLOWED = (Verdict.ALLOW, Reason.POLICY_ALLOWED)
DENIED = (Verdict.DENY, Reason.POLICY_DENIED)
DEFAULT = Answer(Verdict.DENY, Reason.DEFAULT_DENY)
FREE = Answer(Verdict.ALLOW, Reason.NO_POLICY)


def test_no_policy_about_the_direction() -> None:
    assert compiled([policy("a", rule())], direction=Direction.EGRESS) is None


# Order of one half, step by step.


def test_admin_rules_come_in_order_of_priority_then_name_then_place() -> None:
    late = policy("a", rule(DENY), tier=ADMIN, priority=20)
    early = policy("z", rule(ALLOW), tier=ADMIN, priority=10)
    assert ask(late, early) == Answer(*ALLOWED, "z:ingress[0]")
    same = policy("m", rule(DENY), tier=ADMIN, priority=10)
    assert ask(late, early, same) == Answer(*DENIED, "m:ingressDeny[0]")
    # A later rule of one policy has no say, be it a denial.
    ordered = policy("a", rule(ALLOW, tcp(80)), rule(DENY, place=1), tier=ADMIN)
    assert ask(ordered) == Answer(*ALLOWED, "a:ingress[0].toPorts[0]")
    assert ask(ordered, port=81) == Answer(*DENIED, "a:ingressDeny[1]")
    # Ties of priority are settled by kind first.
    assert ask(policy("a", rule(DENY), tier=ADMIN, kind="Z"), policy("z", rule(), tier=ADMIN))[:2] == ALLOWED


def test_admin_decides_over_normal_and_baseline() -> None:
    normal = policy("n", rule(DENY))
    assert ask(policy("a", rule(ALLOW), tier=ADMIN), normal)[:2] == ALLOWED
    allows = policy("n", rule(ALLOW))
    assert ask(policy("a", rule(DENY), tier=ADMIN), allows)[:2] == DENIED
    # It also voids HTTP rules: the tier below is not asked.
    assert ask(policy("a", rule(ALLOW), tier=ADMIN), policy("n", rule(ALLOW, tcp(80), http=True)))[:2] == ALLOWED


def test_tiers_are_asked_one_after_the_other_on_some_ports_too() -> None:
    web = policy("a", rule(ALLOW, tcp(80)), tier=ADMIN, priority=10)
    assert ask(web, policy("n", rule(DENY))) == Answer(*ALLOWED, "a:ingress[0].toPorts[0]")
    assert ask(web, policy("n", rule(DENY)), port=81)[:2] == DENIED
    base = policy("b", rule(DENY, tcp(80)), tier=BASELINE)
    assert ask(base, policy("z", rule(ALLOW), tier=BASELINE, priority=1))[:2] == DENIED
    assert ask(base, policy("n", rule(ALLOW)))[:2] == ALLOWED


def test_pass_ends_the_admin_tier_only() -> None:
    admin = policy("a", rule(PASS, tcp(80)), rule(DENY, place=1), tier=ADMIN)
    assert ask(admin) == FREE
    assert ask(admin, port=81) == Answer(*DENIED, "a:ingressDeny[1]")
    assert ask(admin, policy("n", rule(ALLOW, tcp(80)))) == Answer(*ALLOWED, "n:ingress[0].toPorts[0]")
    assert ask(admin, policy("b", rule(DENY), tier=BASELINE)) == Answer(*DENIED, "b:ingressDeny[0]")
    # Passed, and then nobody allows it: default deny must be said, since protocols in general are let in.
    opened = policy("a", rule(PASS, tcp(80)), rule(ALLOW, place=1), tier=ADMIN)
    assert ask(opened, policy("n", rule(ALLOW, tcp(443)))) == DEFAULT
    assert ask(opened, policy("n", rule(ALLOW, tcp(443))), port=81)[:2] == ALLOWED


def test_normal_denials_come_first_then_the_host() -> None:
    allow, deny = policy("a", rule(ALLOW)), policy("z", rule(DENY, tcp(80)))
    assert ask(allow, deny) == Answer(*DENIED, "z:ingressDeny[0].toPorts[0]")
    assert ask(allow, deny, peer=[HOST_PEERS])[:2] == DENIED
    http = policy("h", rule(ALLOW, tcp(80), http=True))
    assert ask(http, peer=[HOST_PEERS]) == Answer(Verdict.ALLOW, Reason.HOST_ALLOWED)
    assert ask(policy("n", rule(void=True)), peer=[HOST_PEERS]) == Answer(Verdict.ALLOW, Reason.HOST_ALLOWED)
    # It is the way in only, and it is of the NORMAL tier: what ADMIN denies is denied.
    assert ask(policy("x", rule(DENY), tier=ADMIN), peer=[HOST_PEERS])[:2] == DENIED
    assert ask(policy("x", rule(DENY), tier=BASELINE), peer=[HOST_PEERS])[1] is Reason.HOST_ALLOWED


def test_a_plain_allow_voids_http_rules() -> None:
    http = policy("h", rule(ALLOW, tcp(80), http=True, peers=FRONT))
    assert ask(http) == Answer(
        Verdict.REDIRECT,
        Reason.REDIRECTED,
        "h:ingress[0].toPorts[0]",
        frozenset({"h:ingress[0].toPorts[0]"}),
    )
    for ports in ((), (tcp(79, 81),), (PortRange(Protocol.ANY, 80, 80),), (PortRange(TCP, 0, 0, "web"),)):
        assert ask(http, policy("p", rule(ALLOW, *ports)))[:2] == ALLOWED
    assert ask(http, policy("p", rule(ALLOW, tcp(81))))[0] is Verdict.REDIRECT
    assert ask(http, policy("p", rule(ALLOW, peers=BACK)))[0] is Verdict.REDIRECT


def test_http_rules_of_all_policies_add_up() -> None:
    first, second = policy("a", rule(ALLOW, tcp(80), http=True)), policy("b", rule(ALLOW, tcp(70, 90), http=True))
    both = frozenset({"a:ingress[0].toPorts[0]", "b:ingress[0].toPorts[0]"})
    assert ask(second, first) == Answer(Verdict.REDIRECT, Reason.REDIRECTED, "a:ingress[0].toPorts[0]", both)
    assert ask(second, first, port=81).http == {"b:ingress[0].toPorts[0]"}


def test_default_deny_is_on_when_any_specification_asks() -> None:
    assert ask(policy("a", rule(void=True))) == DEFAULT
    assert ask(policy("a", rule(void=True), deny=False)) == FREE
    assert ask(policy("a", rule(void=True), deny=False), policy("b", deny=True)) == DEFAULT
    # HTTP rules hold without it.
    assert ask(policy("a", rule(ALLOW, tcp(80), http=True), deny=False))[0] is Verdict.REDIRECT
    assert ask(policy("a", rule(ALLOW, tcp(80), http=True), deny=False), port=81) == FREE


def test_baseline_is_asked_only_when_normal_says_nothing() -> None:
    base = policy("b", rule(ALLOW, tcp(80)), rule(DENY, place=1), tier=BASELINE)
    assert ask(base) == Answer(*ALLOWED, "b:ingress[0].toPorts[0]")
    assert ask(base, port=81) == Answer(*DENIED, "b:ingressDeny[1]")
    assert ask(base, policy("n", rule(ALLOW, tcp(443)))) == DEFAULT
    assert ask(base, policy("n", rule(ALLOW, tcp(443)), deny=False), port=443)[2] == "n:ingress[0].toPorts[0]"
    assert ask(base, policy("n", rule(ALLOW, tcp(443)), deny=False), port=81)[:2] == DENIED
    passing = policy("b", rule(PASS, tcp(80)), rule(DENY, place=1), tier=BASELINE)
    assert ask(passing) == FREE


# Ports.


def test_any_is_every_protocol_with_ports_and_no_other() -> None:
    found = policy("a", rule(ALLOW, PortRange(Protocol.ANY, 80, 80)))
    for protocol in (TCP, UDP, SCTP):
        assert ask(found, protocol=protocol)[:2] == ALLOWED
    for protocol in (ICMP, Protocol.ICMPV6, 47):
        assert ask(found, protocol=protocol) == DEFAULT
    assert ask(policy("a", rule(ALLOW)), protocol=47)[:2] == ALLOWED


def test_icmp_types_are_prefixes_of_eight_bits() -> None:
    echo = PortRange(ICMP, 8 << 8, 8 << 8 | 255)
    rows = compiled([policy("a", rule(ALLOW, echo))])
    assert rows is not None
    assert set(rows) == {(ICMP, 8 << 8, 8)}
    assert ask(policy("a", rule(ALLOW, echo)), protocol=ICMP, port=8 << 8 | 3)[:2] == ALLOWED
    assert ask(policy("a", rule(ALLOW, echo)), protocol=ICMP, port=9 << 8) == DEFAULT
    assert ask(policy("a", rule(ALLOW, echo)), protocol=Protocol.ICMPV6, port=8 << 8) == DEFAULT


def test_named_ports_are_all_the_numbers_of_that_name_and_protocol() -> None:
    web = policy("a", rule(ALLOW, PortRange(TCP, 0, 0, "web")))
    assert [port for port in (0, 79, 80, 81, 8080) if ask(web, port=port)[0] is Verdict.ALLOW] == [80, 8080]
    assert ask(web, protocol=UDP) == DEFAULT
    anything = policy("a", rule(ALLOW, PortRange(Protocol.ANY, 0, 0, "dns")))
    assert ask(anything, port=53)[:2] == ask(anything, port=53, protocol=UDP)[:2] == ALLOWED
    assert ask(anything, port=53, protocol=SCTP) == DEFAULT
    assert compiled([web], {}) == {}
    # A denial of a name that stands for nothing denies nothing, in particular not port 0.
    denied = policy("a", rule(ALLOW), rule(DENY, PortRange(TCP, 0, 0, "web"), place=1))
    assert ask(denied, port=0)[:2] == ALLOWED
    assert ask(denied, port=8080)[:2] == DENIED


def test_an_entry_without_ports_is_about_nothing() -> None:
    empty = Rule("ingress[0]", IN, ALLOW, None, (PortRule("ingress[0].toPorts[0]", ()),))
    assert compiled([policy("a", empty)]) == {}


def test_rows_say_nothing_twice() -> None:
    rows = compiled([policy("a", rule(ALLOW), rule(ALLOW, tcp(80), place=1), rule(DENY, tcp(443), place=2))])
    assert rows is not None
    assert set(rows) == {(Protocol.ANY, 0, 0), (TCP, 443, 16)}
    assert compiled([policy("a", rule(DENY, tcp(80), peers=BACK))]) == {}


# Audit, line by line: what is enforced, what all policies say, what comes of it.

ENFORCED = {
    "deny": policy("e", rule(DENY)),
    "allow": policy("e", rule(ALLOW)),
    "http": policy("e", rule(ALLOW, tcp(80), http=True), deny=False),
    "none": policy("e", rule(void=True), deny=False),
}
AUDITED = {
    "deny": policy("a", rule(DENY), audit=True),
    "allow": policy("a", rule(ALLOW), audit=True),
    "http": policy("a", rule(ALLOW, tcp(80), http=True), audit=True),
    "nothing": policy("a", rule(void=True), audit=True),
}
E, A = "e:ingress[0].toPorts[0]", "a:ingress[0].toPorts[0]"


@pytest.mark.parametrize(
    ("enforced", "audited", "expected"),
    [
        ("deny", "deny", Answer(*DENIED, "e:ingressDeny[0]")),
        ("deny", "allow", Answer(*DENIED, "e:ingressDeny[0]")),
        ("deny", "http", Answer(*DENIED, "e:ingressDeny[0]")),
        ("allow", "allow", Answer(*ALLOWED, "a:ingress[0]")),
        ("allow", "http", Answer(*ALLOWED, "e:ingress[0]")),
        ("none", "allow", Answer(*ALLOWED, "a:ingress[0]")),
        ("allow", "deny", Answer(Verdict.ALLOW, Reason.POLICY_DENIED, "a:ingressDeny[0]")),
        ("none", "nothing", Answer(Verdict.ALLOW, Reason.DEFAULT_DENY)),
        ("none", "http", Answer(Verdict.REDIRECT, Reason.REDIRECTED, A, frozenset({A}), audited=True)),
        ("http", "deny", Answer(Verdict.REDIRECT, Reason.POLICY_DENIED, "a:ingressDeny[0]", frozenset({E}))),
        ("http", "http", Answer(Verdict.REDIRECT, Reason.REDIRECTED, E, frozenset({E}))),
        ("http", "allow", Answer(Verdict.REDIRECT, Reason.REDIRECTED, E, frozenset({E}))),
    ],
)
def test_audit(enforced: str, audited: str, expected: Answer) -> None:
    assert ask(ENFORCED[enforced], AUDITED[audited]) == expected
    assert ask(AUDITED[audited], ENFORCED[enforced]) == expected


def test_with_audit_alone_everything_passes_and_nothing_is_lost() -> None:
    assert ask(AUDITED["nothing"]) == Answer(Verdict.ALLOW, Reason.DEFAULT_DENY)
    assert ask(AUDITED["deny"]) == Answer(Verdict.ALLOW, Reason.POLICY_DENIED, "a:ingressDeny[0]")
    assert ask(AUDITED["http"]).audited
    assert ask(AUDITED["http"], port=81) == Answer(Verdict.ALLOW, Reason.DEFAULT_DENY)
    assert ask(AUDITED["nothing"], peer=[HOST_PEERS]) == Answer(Verdict.ALLOW, Reason.HOST_ALLOWED)
    # Cluster.audit is audit of every policy.
    assert ask(ENFORCED["deny"], audit=True) == Answer(Verdict.ALLOW, Reason.POLICY_DENIED, "e:ingressDeny[0]")


def test_http_rules_in_audit_are_never_among_enforced_ones() -> None:
    wide = policy("e", rule(ALLOW, tcp(70, 90), http=True))
    narrow = policy("a", rule(ALLOW, tcp(80, 81), http=True), audit=True)
    assert [ask(wide, narrow, port=port).http for port in (75, 80, 85)] == [{E}] * 3


def test_default_deny_of_audit_alone_is_not_enforced() -> None:
    enforced = policy("e", rule(ALLOW, tcp(443)), deny=False)
    assert ask(enforced, AUDITED["nothing"]) == Answer(Verdict.ALLOW, Reason.DEFAULT_DENY)
    assert ask(enforced, AUDITED["nothing"], port=443)[:2] == ALLOWED
    assert ask(policy("e", rule(ALLOW, tcp(443))), AUDITED["allow"]) == DEFAULT


def test_audit_holds_in_every_tier() -> None:
    admin = policy("a", rule(DENY), tier=ADMIN, audit=True)
    assert ask(admin, policy("n", rule(ALLOW))) == Answer(Verdict.ALLOW, Reason.POLICY_DENIED, "a:ingressDeny[0]")
    base = policy("b", rule(DENY), tier=BASELINE, audit=True)
    assert ask(base) == Answer(Verdict.ALLOW, Reason.POLICY_DENIED, "b:ingressDeny[0]")
    # What an admin policy in audit would allow stays denied.
    assert ask(policy("a", rule(ALLOW), tier=ADMIN, audit=True), policy("n", rule(DENY)))[:2] == DENIED


# Everything together, against the oracle.

EDGES = (0, 1, 53, 79, 80, 81, 84, 8080, 8081, 32768, 65534, 65535)
PROTOCOLS = (TCP, UDP, SCTP, ICMP, Protocol.ICMPV6, 47)


def _range(protocol: Protocol, one: int, other: int) -> PortRange:
    return PortRange(protocol, min(one, other), max(one, other))


ports = st.one_of(
    st.builds(_range, st.sampled_from((TCP, TCP, UDP, Protocol.ANY)), st.sampled_from(EDGES), st.sampled_from(EDGES)),
    st.builds(
        lambda protocol, port: PortRange(protocol, port, port),
        st.sampled_from((TCP, UDP, Protocol.ANY)),
        st.sampled_from(EDGES),
    ),
    st.builds(lambda protocol: PortRange(protocol, 0, LAST_PORT), st.sampled_from((TCP, UDP, Protocol.ANY))),
    st.builds(
        lambda protocol, kind: PortRange(protocol, kind << 8, kind << 8 | 255),
        st.sampled_from((ICMP, Protocol.ICMPV6)),
        st.sampled_from((0, 8, 128)),
    ),
    st.builds(
        lambda protocol, name: PortRange(protocol, 0, 0, name),
        st.sampled_from((TCP, UDP, Protocol.ANY)),
        st.sampled_from(("web", "dns", "back", "gone")),
    ),
)
peers = st.sampled_from((None, None, FRONT, FRONT, BACK, NOBODY, HOST_PEERS, Peers(entities=(Entity.WORLD,))))
entries = st.lists(st.tuples(st.lists(ports, max_size=3), st.booleans()), max_size=2)


@st.composite
def policies(draw: st.DrawFn, index: int) -> NetworkPolicy:
    tier = draw(st.sampled_from((Tier.NORMAL, Tier.NORMAL, ADMIN, BASELINE)))
    actions = (ALLOW, ALLOW, DENY) if tier is Tier.NORMAL else (ALLOW, DENY, PASS)
    specs = []
    for number in range(draw(st.integers(1, 2))):
        rules = []
        for place, (direction, action, who, written) in enumerate(
            draw(st.lists(st.tuples(st.sampled_from(Direction), st.sampled_from(actions), peers, entries), max_size=4))
        ):
            path = f"specs[{number}].rule[{place}]"
            to_ports = []
            for position, (named, http) in enumerate(written):
                where = f"{path}.toPorts[{position}]"
                matches = (HttpMatch(f"{where}.http[0]"),) if http and action is ALLOW and tier is Tier.NORMAL else None
                to_ports.append(PortRule(where, tuple(named), matches))
            void = draw(st.sampled_from((False,) * 6 + (True,)))
            rules.append(Rule(path, direction, action, who, tuple(to_ports), void))
        deny = draw(st.tuples(st.booleans(), st.booleans())) if tier is Tier.NORMAL else (False, False)
        applies = draw(st.sampled_from(((True, True), (True, True), (True, False), (False, True))))
        deny = (deny[0] and applies[0], deny[1] and applies[1])
        held = tuple(found for found in rules if applies[found.direction])
        priority = 0 if tier is Tier.NORMAL else draw(st.integers(0, 2))
        specs.append(Spec(f"specs[{number}]", Selector(), held, deny, applies, tier=tier, priority=priority))
    kind, audit = draw(st.sampled_from(("A", "B"))), draw(st.sampled_from((False, False, True)))
    return NetworkPolicy(kind, draw(st.sampled_from(("", "one"))), f"p{index}", tuple(specs), audit=audit)


clusters = st.integers(1, 4).flatmap(lambda size: st.tuples(*(policies(index) for index in range(size))))
memberships = st.frozensets(st.sampled_from((FRONT, BACK, HOST_PEERS)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters, memberships, st.sampled_from(Direction))
def test_rows_equal_the_oracle(found: tuple[NetworkPolicy, ...], peer: frozenset[Peers], direction: Direction) -> None:
    rows = compiled(found, peer=peer, direction=direction)
    interesting = {min(max(port + step, 0), LAST_PORT) for port in (*EDGES, 2048, 32768) for step in (-1, 0, 1)}
    interesting |= {kind << 8 | code for kind in (0, 1, 7, 8, 9, 128, 129) for code in (0, 255)}
    for protocol in PROTOCOLS:
        for port in sorted(interesting) if protocol != 47 else (0,):
            got = Answer(Verdict.ALLOW, Reason.NO_POLICY) if rows is None else answer(rows, protocol, port)
            assert got == oracle(found, direction, peer, protocol, port)
    for (protocol, prefix, bits), outcome in (rows or {}).items():
        assert prefix & (LAST_PORT >> bits) == 0
        assert (protocol, prefix, bits) == (Protocol.ANY, 0, 0) or protocol is not Protocol.ANY
        assert bool(outcome.contributors) == (outcome.verdict is Verdict.REDIRECT)


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(clusters)
def test_every_port_equals_the_oracle(found: tuple[NetworkPolicy, ...]) -> None:
    rows = compiled(found)
    by_port: list[Answer | None] = [None] * (LAST_PORT + 1)
    for slot in rows or {}:
        if slot[0] is TCP:
            for port in range(slot[1], slot[1] + (1 << (16 - slot[2]))):
                assert by_port[port] is None
                by_port[port] = answer(rows or {}, TCP, slot[1])
    base = FREE if rows is None else answer(rows, 47, 0)
    for port, got in enumerate(by_port):
        assert (got or base) == oracle(found, IN, frozenset({FRONT}), TCP, port)
