"""Terms: one for each thing that a rule says, in an order that other policies do not change."""

from __future__ import annotations

from spliceway.policy.labels import Selector
from spliceway.policy.model import Action, HttpMatch, NetworkPolicy, Peers, PortRange, PortRule, Rule, Spec, Tier
from spliceway.policy.terms import HOST_PEERS, Effect, Term, direction_terms, policy_terms
from spliceway.policy.verdict import Direction, Protocol

IN, OUT = Direction.INGRESS, Direction.EGRESS
WEB = PortRange(Protocol.TCP, 0, 0, "web")
PEERS = Peers(endpoints=(Selector(),))


def _spec(*rules: Rule, tier: Tier = Tier.NORMAL, deny: bool = True, applies: bool = True, priority: int = 0) -> Spec:
    return Spec("spec", Selector(), rules, (deny, False), (applies, False), tier=tier, priority=priority)


def _policy(name: str, *specs: Spec, kind: str = "K", audit: bool = False) -> NetworkPolicy:
    return NetworkPolicy(kind, "ns", name, specs, audit=audit)


def _effects(terms: tuple[Term, ...] | None) -> list[tuple[Effect, bool]]:
    return [(term.effect, term.audit) for term in terms or ()]


def test_a_rule_is_one_term_or_one_for_each_entry() -> None:
    http = (HttpMatch("i0.p1.h0"),)
    rules = (
        Rule("i0", IN, Action.ALLOW, PEERS, (PortRule("i0.p0", (WEB,)), PortRule("i0.p1", (WEB,), http))),
        Rule("i1", IN, Action.DENY, None),
        Rule("e0", OUT, Action.PASS, None),
        Rule("i2", IN, Action.ALLOW, None, void=True),
        Rule("i3", IN, Action.ALLOW, None, (PortRule("i3.p0", ()),)),
    )
    policy = _policy(
        "a", _spec(*rules, tier=Tier.ADMIN, priority=7), _spec(Rule("i4", IN, Action.ALLOW, Peers()), priority=9)
    )
    first, second = policy_terms(policy)
    ref = policy.ref
    tier = Tier.ADMIN
    assert first.terms[IN] == (
        Term(tier, Effect.ALLOW, (7, "K", "ns", "a", 0), PEERS, (WEB,), ref("i0.p0")),
        Term(tier, Effect.HTTP, (7, "K", "ns", "a", 1), PEERS, (WEB,), ref("i0.p1"), http),
        Term(tier, Effect.DENY, (7, "K", "ns", "a", 2), None, (), ref("i1")),
    )
    assert first.terms[OUT] == (Term(tier, Effect.PASS, (7, "K", "ns", "a", 3), None, (), ref("e0")),)
    # The NORMAL tier has no order of policies but their names.
    assert second.terms[IN] == (Term(Tier.NORMAL, Effect.ALLOW, (0, "K", "ns", "a", 4), Peers(), (), ref("i4")),)


def test_a_denial_with_http_rules_is_a_denial() -> None:
    rule = Rule("i0", IN, Action.DENY, None, (PortRule("i0.p0", (WEB,), (HttpMatch("h"),)),))
    ((term,), _) = policy_terms(_policy("a", _spec(rule)))[0].terms
    assert term.effect is Effect.DENY


def test_precedence_is_by_effect_in_normal_and_by_order_elsewhere() -> None:
    allow, deny = ("a", Action.ALLOW), ("b", Action.DENY)

    def first(tier: Tier, *written: tuple[str, Action], priority: int = 0) -> str:
        terms = [
            policy_terms(_policy(name, _spec(Rule(name, IN, action, None), tier=tier, priority=index * priority)))
            for index, (name, action) in enumerate(written)
        ]
        found = min((term for (spec,) in terms for term in spec.terms[IN]), key=lambda term: term.precedence)
        assert found.ref is not None
        return found.ref.path

    assert first(Tier.NORMAL, allow, deny) == "b"
    for tier in (Tier.ADMIN, Tier.BASELINE):
        assert first(tier, allow, deny) == first(tier, deny, allow) == "a"
        assert first(tier, deny, allow, priority=1) == "b"


def test_what_no_rule_says() -> None:
    normal = policy_terms(_policy("a", _spec()))
    found = direction_terms(normal, IN)
    assert found == (
        Term(Tier.NORMAL, Effect.HOST, peers=HOST_PEERS),
        Term(Tier.NORMAL, Effect.DEFAULT_DENY),
    )
    assert direction_terms(normal, OUT) is None
    assert direction_terms(policy_terms(_policy("a", _spec(applies=False))), IN) is None
    assert direction_terms([], IN) is None
    # No default deny unless the NORMAL tier asks for it; the host has its way in all the same.
    for spec in (_spec(deny=False), _spec(tier=Tier.ADMIN), _spec(tier=Tier.BASELINE)):
        assert _effects(direction_terms(policy_terms(_policy("a", spec)), IN)) == [(Effect.HOST, False)]
    out = Spec("spec", Selector(), (), (False, True), (False, True))
    assert _effects(direction_terms(policy_terms(_policy("a", out)), OUT)) == [(Effect.DEFAULT_DENY, False)]


def test_what_only_audit_asks_for_is_in_audit() -> None:
    audited = policy_terms(_policy("a", _spec(Rule("i0", IN, Action.ALLOW, None)), audit=True))
    alone = [(Effect.ALLOW, True), (Effect.HOST, True), (Effect.DEFAULT_DENY, True)]
    assert _effects(direction_terms(audited, IN)) == alone
    assert _effects(direction_terms(policy_terms(_policy("b", _spec()), audit=True), IN)) == alone[1:]
    mild = policy_terms(_policy("b", _spec(deny=False)))
    assert _effects(direction_terms([*audited, *mild], IN))[1:] == [(Effect.HOST, False), (Effect.DEFAULT_DENY, True)]
    strict = policy_terms(_policy("b", _spec()))
    assert _effects(direction_terms([*audited, *strict], IN))[1:] == [
        (Effect.HOST, False),
        (Effect.DEFAULT_DENY, False),
    ]
