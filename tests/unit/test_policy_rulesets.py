"""Rule sets: what they are made of, names and numbers that stay, headers with Secrets, pairs of both ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spliceway.policy.labels import Selector
from spliceway.policy.model import (
    Action,
    HeaderCondition,
    HttpMatch,
    NetworkPolicy,
    PortRange,
    PortRule,
    Rule,
    Secret,
    Spec,
)
from spliceway.policy.numbering import Numbering
from spliceway.policy.rulesets import NO_VALUE, RuleSets, header_match, rule_set_name
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleRef, RuleSet
from spliceway.policy.terms import policy_terms
from spliceway.policy.verdict import Direction, Protocol

KIND = "CiliumNetworkPolicy"


def _policy(name: str, *matches: HttpMatch, direction: Direction = Direction.INGRESS) -> NetworkPolicy:
    """A policy with one rule for each HTTP rule."""
    rules = tuple(
        Rule(
            f"spec.ingress[{index}]",
            direction,
            Action.ALLOW,
            None,
            (PortRule(f"spec.ingress[{index}].toPorts[0]", (PortRange(Protocol.TCP, 80, 80),), (match,)),),
        )
        for index, match in enumerate(matches)
    )
    return NetworkPolicy(KIND, "ns", name, (Spec("spec", Selector(), rules, (True, False), (True, False)),))


def _match(path: str, **fields: object) -> HttpMatch:
    return HttpMatch("http[0]", path_regex=path, **fields)  # type: ignore[arg-type]


def _ref(name: str, index: int = 0) -> RuleRef:
    return RuleRef(f"{KIND} ns/{name}", f"spec.ingress[{index}].toPorts[0]")


def _sets(*policies: NetworkPolicy, secrets: Mapping[str, Secret] | None = None, max_pairs: int = 100) -> RuleSets:
    found = RuleSets(Numbering(), secrets or {}, max_pairs=max_pairs)
    for policy in policies:
        found.set_policy(policy.title, policy_terms(policy))
    return found


def _paths(rule_set: RuleSet) -> list[str]:
    return [rule.path for rule in rule_set.rules or ()]


def test_rules_come_in_the_order_of_policies_whatever_was_read_first() -> None:
    written = [f"/{number}" for number in range(12)]  # «ingress[10]» comes after «ingress[9]»
    first, second = _policy("a", *map(_match, written)), _policy("b", _match("/last"))
    refs = frozenset({*(_ref("a", index) for index in range(12)), _ref("b")})
    for policies in ((first, second), (second, first)):
        sets = _sets(*policies)
        assert _paths(sets.rule_sets[sets.number(refs)]) == [*written, "/last"]


def test_every_condition_reaches_the_rule() -> None:
    header = HeaderCondition("X-Team", "blue", mismatch=Mismatch.LOG)
    sets = _sets(_policy("a", _match("/1", method_regex="GET", host_regex="a[.]b", headers=(header,))))
    rule_set = sets.rule_sets[sets.number(frozenset({_ref("a")}))]
    assert rule_set.rules == (
        HttpRule(1, "GET", "/1", "a[.]b", (HeaderMatch("x-team", "blue", mismatch=Mismatch.LOG),)),
    )
    assert sets.rules == {1: RuleRef(f"{KIND} ns/a", "http[0]")}


def test_audit_lets_everything_pass_and_has_a_number_of_its_own() -> None:
    sets = _sets(_policy("a", _match("/1")))
    refs = frozenset({_ref("a")})
    enforced, audited = sets.rule_sets[sets.number(refs)], sets.rule_sets[sets.number(refs, audited=True)]
    assert enforced.id != audited.id
    assert (enforced.name, enforced.audit) == ("ns/a:ingress[0].toPorts[0]", None)
    assert (audited.name, audited.rules) == ("audit:ns/a:ingress[0].toPorts[0]", None)
    assert audited.audit == enforced.rules
    assert sets.number(refs) == enforced.id


def test_an_edit_keeps_number_and_name_and_says_what_changed() -> None:
    sets = _sets(_policy("a", _match("/1")), _policy("b", _match("/2")))
    one, both = sets.number(frozenset({_ref("a")})), sets.number(frozenset({_ref("a"), _ref("b")}))
    other = sets.number(frozenset({_ref("b")}))
    pair = sets.pair(one, other)
    names = {number: rule_set.name for number, rule_set in sets.rule_sets.items()}
    edited = _policy("a", _match("/new"))
    assert sets.set_policy(edited.title, policy_terms(edited)) == {one, both, pair}
    assert {number: rule_set.name for number, rule_set in sets.rule_sets.items()} == names
    assert _paths(sets.rule_sets[one]) == _paths(sets.rule_sets[pair]) == ["/new"]
    assert _paths(sets.rule_sets[both]) == ["/new", "/2"]
    assert sets.set_policy(edited.title, policy_terms(edited)) == set()
    edited = _policy("b", _match("/newer"))
    assert sets.set_policy(edited.title, policy_terms(edited)) == {other, both, pair}
    assert _paths(sets.rule_sets[pair].also or RuleSet(0, "", None)) == ["/newer"]


def test_the_other_end_of_a_pair_follows_the_edit() -> None:
    sets = _sets(_policy("a", _match("/1")), _policy("b", _match("/2")))
    egress, ingress = sets.number(frozenset({_ref("a")})), sets.number(frozenset({_ref("b")}))
    pair = sets.rule_sets[sets.pair(egress, ingress)]
    assert _paths(pair) == ["/1"]
    assert pair.also == sets.rule_sets[ingress]
    assert pair.name == "ns/a:ingress[0].toPorts[0]&ns/b:ingress[0].toPorts[0]"
    back = sets.pair(ingress, egress)
    assert back not in (pair.id, egress, ingress)
    assert sets.pairs == {(egress, ingress): pair.id, (ingress, egress): back}
    assert sets.pair(egress, ingress) == pair.id
    # One end in audit: every request passes it, and the other one is still asked.
    audited = sets.number(frozenset({_ref("a")}), audited=True)
    mixed = sets.rule_sets[sets.pair(audited, ingress)]
    assert (mixed.rules, mixed.also) == (None, sets.rule_sets[ingress])
    assert [rule.path for rule in mixed.audit or ()] == ["/1"]
    assert len({rule_set.name for rule_set in sets.rule_sets.values()}) == len(sets.rule_sets) == 6


def test_pairs_are_bounded_and_counted() -> None:
    sets = _sets(_policy("a", _match("/1")), _policy("b", _match("/2")), max_pairs=1)
    one, other = sets.number(frozenset({_ref("a")})), sets.number(frozenset({_ref("b")}))
    assert sets.pair(one, other)
    assert sets.pair(other, one) == 0
    assert sets.refused_pairs == {(other, one)}
    assert sets.pairs.keys() == {(one, other)}
    # Room again: the pair is made, and no longer counted as refused.
    sets.keep({one, other}, {(other, one)})
    assert sets.refused_pairs == {(other, one)}
    assert sets.pair(other, one)
    assert sets.refused_pairs == set()


def test_what_is_not_kept_goes_with_its_rules_and_pairs() -> None:
    sets = _sets(_policy("a", _match("/1")), _policy("b", _match("/2")))
    one, other = sets.number(frozenset({_ref("a")})), sets.number(frozenset({_ref("b")}))
    pair = sets.pair(one, other)
    assert sets.keep({one, other}, {(one, other)}) == set()
    assert sets.keep({one}, {(one, other)}) == {other, pair}
    assert set(sets.rule_sets) == {one}
    assert (sets.pairs, set(sets.rules.values())) == ({}, {RuleRef(f"{KIND} ns/a", "http[0]")})
    # Asked again it has the number it had: the numbering remembers, until it is told to forget.
    assert sets.number(frozenset({_ref("b")})) == other
    assert _paths(sets.rule_sets[other]) == ["/2"]


def test_a_rule_that_is_gone_leaves_the_rule_set_to_be_dropped() -> None:
    before, after = _policy("a", _match("/1"), _match("/2")), _policy("a", _match("/1"))
    sets = _sets(before)
    refs = frozenset({_ref("a"), _ref("a", 1)})
    both = sets.number(refs)
    assert sets.set_policy(after.title, policy_terms(after)) == set()
    assert _paths(sets.rule_sets[both]) == ["/1", "/2"]
    # Back again, and different: it counts again.
    again = _policy("a", _match("/1"), _match("/3"))
    assert sets.set_policy(again.title, policy_terms(again)) == {both}
    assert _paths(sets.rule_sets[both]) == ["/1", "/3"]
    sets.set_policy(after.title)
    with pytest.raises(KeyError):
        sets.number(frozenset({_ref("a")}))


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "x" * 150
    first = rule_set_name([_ref(long), _ref(long, 1)])
    second = rule_set_name([_ref(long), _ref(long, 2)])
    assert first != second
    assert len(first) <= 200
    sets = _sets(_policy(long, _match("/1"), _match("/2")))
    one, other = sets.number(frozenset({_ref(long)})), sets.number(frozenset({_ref(long, 1)}))
    pairs = {sets.rule_sets[sets.pair(*ends)].name for ends in ((one, other), (other, one), (one, one))}
    assert len(pairs) == 3
    assert all(len(name) <= 200 for name in pairs)


# Headers and Secrets. Source: Cilium 1.20, pkg/policy/api/http.go, HeaderMatch: `secret`, `value`, `mismatch`.

SECRETS = {
    "ns/one": Secret("ns", "one", {"token": b"s3cret"}),
    "ns/two": Secret("ns", "two", {"a": b"first", "b": b"second"}),
    "ns/line": Secret("ns", "line", {"token": b"s3cret\n"}),
    "ns/blank": Secret("ns", "blank", {"token": b" s3cret"}),
    "ns/empty": Secret("ns", "empty", {"token": b""}),
    "ns/latin": Secret("ns", "latin", {"token": b"caf\xe9"}),
}


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        (("ns/one", ""), "s3cret"),
        (("ns/one", "token"), "s3cret"),
        (("ns/two", "b"), "second"),
        (("ns/latin", ""), "caf\xe9"),
        (("ns/one", "other"), NO_VALUE),
        (("ns/two", ""), NO_VALUE),
        (("ns/gone", ""), NO_VALUE),
        (("ns/line", ""), NO_VALUE),
        (("ns/blank", ""), NO_VALUE),
        (("ns/empty", ""), NO_VALUE),
    ],
)
def test_the_value_of_a_secret(secret: tuple[str, str], expected: str) -> None:
    found = header_match(HeaderCondition("X-Token", secret=secret, mismatch=Mismatch.REPLACE), SECRETS)
    # Without a value nothing matches: a mismatch action would let the rule match all the same.
    mismatch = Mismatch.DENY if expected == NO_VALUE else Mismatch.REPLACE
    assert found == HeaderMatch("x-token", expected, secret=True, mismatch=mismatch)


def test_secrets_are_not_shown() -> None:
    reading = _match("/1", headers=(HeaderCondition("x", secret=("ns/one", "")), HeaderCondition("y", "own")))
    sets = _sets(_policy("a", reading), secrets=SECRETS)
    number = sets.number(frozenset({_ref("a")}))
    shown = repr(sets.rule_sets[sets.pair(number, number)])
    assert "s3cret" not in shown
    assert "HeaderMatch('x', (secret), DENY)" in shown
    assert "HeaderMatch('y', 'own', DENY)" in shown


def test_the_own_value_counts_while_the_secret_is_missing() -> None:
    def match(secret: str) -> HeaderMatch:
        return header_match(HeaderCondition("x", "own", (secret, ""), Mismatch.ADD), SECRETS)

    assert match("ns/gone") == match("ns/two") == HeaderMatch("x", "own", secret=False, mismatch=Mismatch.ADD)
    assert match("ns/one") == HeaderMatch("x", "s3cret", secret=True, mismatch=Mismatch.ADD)
    assert match("ns/line") == HeaderMatch("x", NO_VALUE, secret=True)  # it is there, and can't be a header
    assert header_match(HeaderCondition("X"), {}) == HeaderMatch("x")


def test_a_secret_that_changes_changes_the_rule_sets_that_read_it() -> None:
    reading = _match("/1", headers=(HeaderCondition("x", secret=("ns/one", "")),))
    sets = _sets(_policy("a", reading), _policy("b", _match("/2")), secrets=SECRETS)
    one, other = sets.number(frozenset({_ref("a")})), sets.number(frozenset({_ref("b")}))
    pair = sets.pair(other, one)
    changed = {**SECRETS, "ns/one": Secret("ns", "one", {"token": b"new"})}
    assert sets.set_secrets(changed, {"ns/two"}) == set()
    assert sets.set_secrets(changed, {"ns/one"}) == {one, pair}
    rules = sets.rule_sets[one].rules
    assert rules is not None
    assert rules[0].headers[0].value == "new"
    assert (sets.rule_sets[pair].also or RuleSet(0, "", None)).rules == rules
    assert sets.set_secrets({}, {"ns/one"}) == {one, pair}
