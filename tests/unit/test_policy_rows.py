"""Rows of one class of peers: every step of the order of tiers, ports, and every line of audit.

Expected values are those of docs/policy.md, «Which rule wins» and «Audit».
"""

from __future__ import annotations

import pytest

from spliceway.policy.model import Action, PortRange, PortRule, Rule, Tier
from spliceway.policy.terms import HOST_PEERS
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.rows import BACK, FRONT, ICMP, IN, SCTP, TCP, UDP, Answer, ask, compiled, policy, rule, tcp

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
