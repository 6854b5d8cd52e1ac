"""From rule sets to resources: versions and refusals."""

from __future__ import annotations

import msgspec
import pytest
import re2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, EncodeError

from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleSet
from spliceway.policy.wellformed import WELL_FORMED_HOST, WELL_FORMED_PATH
from spliceway.xds.errors import InconsistentSnapshotError, ResourceError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE, TYPES
from spliceway.xds.resources.build import build_snapshot, unfit
from spliceway.xds.resources.changes import combination_rules, combined_tests
from spliceway.xds.resources.facts import Facts
from spliceway.xds.resources.names import (
    CLUSTER_ORIGINAL,
    FILTER_ALSO,
    FILTER_POLICY,
    ROUTE_METADATA,
    listener_name,
    policy_name,
    rule_of,
    rule_set_of,
)
from spliceway.xds.resources.rules import allow_rules
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.resources.shape import policy_facts

SETTINGS = ResourceSettings()
GET = HttpRule(11, "GET", "/articles/[0-9]+")


def rule_set(key: int, *rules: HttpRule) -> RuleSet:
    return RuleSet(key, f"set {key}", rules or (GET,))


def changing(number: int, path: str) -> HttpRule:
    return HttpRule(number, path=path, headers=(HeaderMatch("x", "1", mismatch=Mismatch.ADD),))


def build(*sets: RuleSet, version: str = "1", previous: Snapshot | None = None) -> Snapshot:
    by_id = {each.id: each for each in sets}
    return build_snapshot(by_id, {key: 23000 + key for key in by_id}, SETTINGS, version, previous)


def test_one_listener_and_one_route_configuration_for_each_rule_set() -> None:
    snapshot = build(rule_set(5), rule_set(7))
    assert list(snapshot.types) == list(TYPES)
    assert list(snapshot.types[CLUSTER].resources) == [CLUSTER_ORIGINAL]
    assert list(snapshot.types[LISTENER].resources) == list(snapshot.types[ROUTE].resources)
    assert list(snapshot.types[LISTENER].resources) == [listener_name(5), listener_name(7)]


def test_no_rule_sets_is_a_snapshot_too() -> None:
    snapshot = build()
    assert not snapshot.types[LISTENER].resources
    assert not snapshot.types[ROUTE].resources


@pytest.mark.parametrize("ipv6", [True, False])
def test_a_listener_is_on_loopback_of_both_families(ipv6: bool) -> None:
    snapshot = build_snapshot({5: rule_set(5)}, {5: 23005}, ResourceSettings(ipv6=ipv6), "1")
    listener = listener_pb2.Listener.FromString(snapshot.types[LISTENER].resources[listener_name(5)].body)
    extra = [item.address.socket_address for item in listener.additional_addresses]
    addresses = [(a.address, a.port_value) for a in (listener.address.socket_address, *extra)]
    assert addresses == [("127.0.0.1", 23005), ("::1", 23005)][: 1 + ipv6]
    assert listener.transparent.value


def test_what_is_equal_keeps_its_version_and_rolling_back_gets_a_new_one() -> None:
    first = build(rule_set(5), rule_set(7), version="1")
    same = build(rule_set(5), rule_set(7), version="2", previous=first)
    assert same.types == first.types
    edited = build(rule_set(5, HttpRule(11, "POST")), rule_set(7), version="3", previous=same)
    assert edited.types[LISTENER] == first.types[LISTENER]
    assert {r.name: r.version for r in edited.types[ROUTE].resources.values()} == {
        listener_name(5): "3",
        listener_name(7): "1",
    }
    back = build(rule_set(5), rule_set(7), version="4", previous=edited)
    assert back.types[ROUTE].resources[listener_name(5)].version == "4"
    fewer = build(rule_set(7), version="5", previous=back)
    assert (fewer.types[LISTENER].version, fewer.types[CLUSTER].version) == ("5", "1")


def test_rules_are_policies_in_their_order() -> None:
    rules = tuple(HttpRule(number, "GET", f"/{number}") for number in (90, 9, 100, 1))
    policies = sorted(allow_rules(rules).policies)
    assert [rule_of(name) for name in policies] == [90, 9, 100, 1]
    assert rule_of(policy_name(3, 12)) == 12
    assert [rule_of(name) for name in ("", "ambiguous-path", "1/", "/x", "1/²")] == [0] * 5


def test_names_tell_their_rule_set() -> None:
    assert rule_set_of(listener_name(12)) == 12
    assert [rule_set_of(name) for name in ("", "rule-set-", "rule-set-x", "12", "x-rule-set-1")] == [0] * 5


MANY_TESTS = ((HttpTest(path="/a", negated=True),),) * 1000


def with_tests(rule: HttpRule) -> HttpRule:
    return msgspec.structs.replace(rule, tests=MANY_TESTS)


def test_tests_in_combinations_are_counted() -> None:
    rules = [with_tests(changing(number, f"/{number}")) for number in range(3)]
    made = combination_rules(rules)
    there = [len(one.permissions[0].and_rules.rules) for one in made.policies.values()]
    assert combined_tests(rules) == 12_000 < sum(there) < 12_100


@pytest.mark.parametrize(
    ("sets", "ports", "message"),
    [
        ({5: RuleSet(5, "web", ())}, {5: 1}, "rule set 5 (web): no rules"),
        ({5: rule_set(5)}, {}, "rule set 5 (set 5): no listener port"),
        ({5: rule_set(5)}, {5: 70000}, "rule set 5 (set 5): listener port 70000 is not a port"),
        ({5: rule_set(5)}, {5: 0}, "rule set 5 (set 5): listener port 0 is not a port"),
        ({5: rule_set(5), 7: rule_set(7)}, {5: 1, 7: 1}, "rule set 7 (set 7): listener port 1 is that of rule set 5"),
        ({6: rule_set(5)}, {6: 1}, "rule set 6 (set 5): has the id 5"),
        ({0: rule_set(0)}, {0: 1}, "rule set 0 (set 0): has the id 0"),
        (
            {5: rule_set(5, HttpRule(3, path="/(a"))},
            {5: 1},
            "rule set 5 (set 5), rule 3, path: '/(a': not an RE2 expression: missing ): /(a",
        ),
        (
            {5: rule_set(5, HttpRule(3, method="[A-Z]{900}.{900}"))},
            {5: 1},
            "rule set 5 (set 5), rule 3, method: '[A-Z]{900}.{900}': too large: RE2 program size",
        ),
        (
            {5: rule_set(5, HttpRule(3, host="a(b"))},
            {5: 1},
            "rule set 5 (set 5), rule 3, host: 'a(b': not an RE2 expression",
        ),
        ({5: RuleSet(5, "web", None)}, {5: 1}, "rule set 5 (web): no rules"),
        ({5: RuleSet(5, "web", None, also=rule_set(6))}, {5: 1}, "rule set 5 (web): no rules"),
        ({5: RuleSet(5, "web", (GET,), also=RuleSet(6, "x", ()))}, {5: 1}, "rule set 5 (web): no rules of the other"),
        ({5: RuleSet(5, "web", (GET,), also=RuleSet(6, "x", None))}, {5: 1}, "rule set 5 (web): no rules of the other"),
        (
            {5: RuleSet(5, "web", (GET,), also=RuleSet(6, "x", (GET,), also=rule_set(7)))},
            {5: 1},
            "rule set 5 (web): rules of more than two ends",
        ),
        (
            {5: RuleSet(5, "web", (GET,), audit=(HttpRule(3, path="/(a"),))},
            {5: 1},
            "rule set 5 (web), rule 3, path: '/(a': not an RE2 expression",
        ),
        (
            {5: rule_set(5, HttpRule(3, tests=((HttpTest(unless_path="/(a"),),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3, test of path: '/(a': not an RE2 expression",
        ),
        (
            {5: rule_set(5, HttpRule(3, tests=((HttpTest(negated=True),),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3: a test that asks for nothing",
        ),
        (
            {5: rule_set(5, HttpRule(3, tests=((),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3: a test that asks for nothing",
        ),
        (
            {5: rule_set(5, HttpRule(3, headers=(HeaderMatch("x-forwarded-proto", "https"),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3, header x-forwarded-proto: Envoy sets it",
        ),
        (
            {5: rule_set(5, HttpRule(3, headers=(HeaderMatch(":authority", "a"),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3, header ':authority': no header has such a name",
        ),
        (
            {5: rule_set(5, HttpRule(3, headers=(HeaderMatch("a%b"),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3, header a%b: its presence can't be asked for",
        ),
        (
            {5: rule_set(5, HttpRule(3, headers=(HeaderMatch("host", "a", mismatch=Mismatch.REPLACE),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3, header host: mismatch action REPLACE can't be done to this header",
        ),
        (
            {5: rule_set(5, HttpRule(3, headers=(HeaderMatch("x", "a\r\nb: c", mismatch=Mismatch.ADD),)))},
            {5: 1},
            "rule set 5 (set 5), rule 3, header x: its value has characters that no header may have",
        ),
        (
            {5: rule_set(5, *(changing(number, f"/{number}") for number in range(7)))},
            {5: 1},
            "rule set 5 (set 5): 7 different rules with mismatch actions, and no more than 6 can be served",
        ),
        (
            {5: rule_set(5, *(HttpRule(number, tests=MANY_TESTS) for number in range(1, 52)))},
            {5: 1},
            "rule set 5 (set 5): 51000 tests of AuthorizationPolicies beside its rules, and no more than 50000 can",
        ),
        (
            {5: rule_set(5, *(with_tests(changing(number, f"/{number}")) for number in range(6)))},
            {5: 1},
            "rule set 5 (set 5): 198000 tests of AuthorizationPolicies beside its rules, and no more than 50000 can",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_place(
    sets: dict[int, RuleSet], ports: dict[int, int], message: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        build_snapshot(sets, ports, SETTINGS, "1")
    assert str(caught.value).startswith(message)


def test_a_refusal_does_not_tell_the_value_of_a_secret() -> None:
    bad = rule_set(5, HttpRule(3, headers=(HeaderMatch("x-token", "geheim\u20ac", secret=True),)))
    with pytest.raises(ResourceError, match="header x-token: its value has characters beyond Latin-1") as caught:
        build(bad)
    assert "geheim" not in f"{caught.value} {bad!r}"


def test_what_would_be_refused_is_told_beforehand() -> None:
    bad = rule_set(6, HttpRule(3, path="/(a"))
    assert unfit({5: rule_set(5)}) == {}
    found = unfit({5: rule_set(5), 6: bad})
    assert list(found) == [6]
    assert found[6].startswith("rule set 6 (set 6), rule 3, path")


def test_rules_with_one_condition_are_one_of_those_that_change_something() -> None:
    build(rule_set(5, *(changing(number, f"/{number % 6}") for number in range(60))))


def test_an_audit_set_has_the_listener_of_an_enforced_one() -> None:
    """A listener never changes with its rules: changing it would drain its connections."""
    plain = build(rule_set(5))
    sets = (
        RuleSet(5, "set 5", None, audit=(GET,)),
        RuleSet(5, "set 5", (GET,), also=rule_set(6)),
        rule_set(5, HttpRule(3, headers=(HeaderMatch("x-a"), HeaderMatch("x-b", "1")))),
        rule_set(5, changing(3, "/")),
    )
    for number, each in enumerate(sets, 2):
        changed = build(each, version=str(number), previous=plain)
        assert changed.types[LISTENER] == plain.types[LISTENER]
        assert changed.types[ROUTE] != plain.types[ROUTE]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/a/b.c-d_e~f",
        "/a?;=%zz/../%2e",
        "/%20",
        "/%3F%3a%23",
        "/a%60",
        "/%5b%5D",
        "/!$&'()*+,=:@",
        "/%7E%4a",
        "/a/../b",
    ],
)
def test_well_formed_paths(path: str) -> None:
    assert fits(WELL_FORMED_PATH, path.encode("latin-1"))


@pytest.mark.parametrize(
    "path",
    ["/;", "/a;b?x", "/..;/a", "/%2e%2E", "/%2f", "/%5c", "/%5C", "/%25", "/%3b", "/%3B",
     "/%", "/%2", "/%zz", "/%?x", "/%4?", "/%00", "/%0a", "/%1F", "/%7f", "/%80", "/%c0%ae", "/%FF", "/a b", "/a\tb",
     "/\\", "/a\x7f", "/\x80", "/\xff", "/\n"],
)  # fmt: skip
def test_ambiguous_paths(path: str) -> None:
    assert not fits(WELL_FORMED_PATH, path.encode("latin-1"))


@pytest.mark.parametrize("host", ["a", "a.b:80", "A_b-c.", "10.0.0.1", "[::1]:80", "x%20y"])
def test_well_formed_hosts(host: str) -> None:
    assert fits(WELL_FORMED_HOST, host.encode())


@pytest.mark.parametrize("host", ["", "a,b", "a@b", "a b", "a/b", "a?b", "a#b", "a\\b", "a\x80"])
def test_ambiguous_hosts(host: str) -> None:
    assert not fits(WELL_FORMED_HOST, host.encode("latin-1"))


def fits(pattern: str, value: bytes) -> bool:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(pattern.encode(), options).fullmatch(value) is not None


def test_equal_input_is_equal_bytes() -> None:
    rules = tuple(HttpRule(number, "GET", f"/{number}") for number in range(1, 40))
    assert build(rule_set(5, *rules)).bodies() == build(rule_set(5, *rules)).bodies()


CONDITIONS = tuple(HeaderMatch(f"x-{index}", "v") for index in range(1000))
MANY = {
    "45 conditions": (HttpRule(1, headers=CONDITIONS[:45]),),
    "1,000 conditions": (HttpRule(1, headers=CONDITIONS),),
    "6 rules that change something, 8 conditions each": tuple(
        HttpRule(key, path=f"/{key}", headers=(*CONDITIONS[:7], HeaderMatch("y", "1", mismatch=Mismatch.ADD)))
        for key in range(1, 7)
    ),
}


@pytest.mark.parametrize("what", MANY)
def test_many_conditions_on_headers_are_served_or_refused_but_never_in_the_way(what: str) -> None:
    sets = {5: rule_set(5), 6: RuleSet(6, what, MANY[what])}
    reasons = unfit(sets)
    assert 5 not in reasons
    build(*(each for key, each in sets.items() if key not in reasons))


@pytest.mark.parametrize("error", [DecodeError, EncodeError, RecursionError, ValueError, InconsistentSnapshotError])
def test_a_rule_set_that_fails_in_any_way_is_unfit_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong with one is a reason, without the foreign error's text, and no exception."""
    real = policy_facts

    def failing(url: str, name: str, body: bytes) -> Facts:
        if name == listener_name(77):
            raise error("hunter2")
        return real(url, name, body)

    monkeypatch.setattr("spliceway.xds.resources.build.policy_facts", failing)
    bad = RuleSet(77, f"fails with {error.__name__}", (GET,))
    found = unfit({5: rule_set(5), 77: bad})
    assert list(found) == [77]
    assert found[77].startswith(f"rule set 77 (fails with {error.__name__}): ")
    assert ("hunter2" in found[77]) == (error is InconsistentSnapshotError)


@pytest.mark.parametrize("end", ["rules", "audit", "also"])
def test_routes_with_values_of_secrets_say_so(end: str) -> None:
    secret = (HttpRule(3, headers=(HeaderMatch("x-token", "s3cret", secret=True),)),)
    sets = {
        "rules": RuleSet(5, "web", secret),
        "audit": RuleSet(5, "web", (GET,), audit=secret),
        "also": RuleSet(5, "web", (GET,), also=RuleSet(6, "x", secret)),
    }
    assert metadata_of(sets[end]) == {"volatile": True}


def test_actions_of_rules_in_audit_are_in_the_metadata_of_the_route() -> None:
    audit = (GET, HttpRule(3, headers=(HeaderMatch("x-a"), HeaderMatch("x-b", "\xe9", mismatch=Mismatch.ADD))))
    assert metadata_of(RuleSet(5, "web", audit)) == {}
    item = {"rule": "1", "at": "1", "name": "x-b", "action": "ADD", "value": "e9"}
    assert metadata_of(RuleSet(5, "web", None, audit=audit)) == {"audit": {FILTER_POLICY: [item]}}
    also = RuleSet(6, "x", None, audit=audit)
    assert metadata_of(RuleSet(5, "web", (GET,), also=also)) == {"audit": {FILTER_ALSO: [item]}}


def metadata_of(held: RuleSet) -> dict[str, object]:
    body = build(held).types[ROUTE].resources[listener_name(held.id)].body
    metadata = route_pb2.RouteConfiguration.FromString(body).virtual_hosts[0].routes[0].metadata
    found: dict[str, object] = MessageToDict(metadata).get("filterMetadata", {}).get(ROUTE_METADATA, {})
    return found
