"""What is served is what is read: rule sets, listeners and the cluster, there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from hypothesis import assume, given
from hypothesis import strategies as st

from spliceway.policy import wellformed
from spliceway.policy.compile import compile_table
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleSet
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.model import ClusterConfig, ListenerConfig
from spliceway.proxy.resources import filters, names, routes
from spliceway.proxy.resources.reading import read_cluster, read_listener, read_routes
from spliceway.xds.resources import names as served_names
from spliceway.xds.resources import rbac as served_rbac
from spliceway.xds.resources.build import unfit
from spliceway.xds.resources.changes import SCRIPT
from spliceway.xds.resources.clusters import original_cluster
from spliceway.xds.resources.listeners import rule_set_listener
from spliceway.xds.resources.packing import packed, serialized
from spliceway.xds.resources.routes import rule_set_routes
from spliceway.xds.resources.settings import ResourceSettings
from support.generated_http import generated_http
from support.tables import FILES, NODES, tables_of
from support.worlds import World

GET = HttpRule(11, "GET", "/a")


def plain(rule_set: RuleSet, *, hidden: bool) -> RuleSet:
    """Without what is not served: names, the id of the other end; all values are secret, or none."""

    def rules(held: tuple[HttpRule, ...] | None) -> tuple[HttpRule, ...] | None:
        if held is None:
            return None
        return tuple(
            msgspec.structs.replace(
                rule,
                headers=tuple(header(match) for match in rule.headers),
                tests=tuple(tuple(msgspec.structs.replace(test, rule=0) for test in group) for group in rule.tests),
            )
            for rule in held
        )

    def header(match: HeaderMatch) -> HeaderMatch:
        return msgspec.structs.replace(match, secret=hidden and match.value is not None)

    also = rule_set.also
    other = None if also is None else RuleSet(0, "", rules(also.rules), rules(also.audit))
    name = served_names.listener_name(rule_set.id)
    return RuleSet(rule_set.id, name, rules(rule_set.rules), rules(rule_set.audit), other)


def assert_comes_back(rule_set: RuleSet) -> None:
    ends = (rule_set, rule_set.also) if rule_set.also else (rule_set,)
    every = [rule for half in ends for rule in (*(half.rules or ()), *(half.audit or ()))]
    secret = any(match.secret for rule in every for match in rule.headers)
    found = read_routes(serialized(rule_set_routes(rule_set)))
    assert found.rule_set == plain(rule_set, hidden=secret)
    assert (found.name, found.volatile) == (found.rule_set.name, secret)


def served(sets: Iterable[RuleSet]) -> list[RuleSet]:
    """Those that the agent would serve."""
    return [each for each in sets if not unfit({each.id: each})]


def test_every_rule_set_of_the_cases_comes_back() -> None:
    files = (*FILES.values(), *generated_http(30, 5, 1))
    tables = [tables_of(file, audit=audit)[node] for file in files for audit in (False, True) for node in NODES]
    sets = served(rule_set for table in tables for rule_set in table.rule_sets.values())
    assert len(sets) > 100
    for rule_set in sets:
        assert_comes_back(rule_set)


@pytest.mark.parametrize("audit", [False, True])
def test_every_rule_set_of_random_clusters_comes_back(audit: bool) -> None:
    sets: list[RuleSet] = []
    for seed in range(15):
        cluster = World(seed, audit=audit, http=True).cluster
        for node in NODES:
            table = compile_table(cluster, node=node, numbering=Numbering(), revision=1)
            sets += served(table.rule_sets.values())
    assert len(sets) > 20
    for rule_set in sets:
        assert_comes_back(rule_set)


VALUES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=12)
HEADERS = st.builds(
    HeaderMatch,
    name=st.sampled_from(["x-a", "x-b", "cookie", "x!#$&'*+.^_`~-1", "accept"]),
    value=st.none() | VALUES,
    secret=st.booleans(),
    mismatch=st.just(Mismatch.DENY) | st.sampled_from(list(Mismatch)),
)
PATTERNS = st.sampled_from(["", "GET|PUT", "/a", r"/\x80"])
TESTS = st.builds(
    HttpTest,
    method=PATTERNS,
    path=PATTERNS,
    host=PATTERNS,
    unless_method=PATTERNS,
    unless_path=PATTERNS,
    unless_host=PATTERNS,
    negated=st.booleans(),
    rule=st.integers(0, 9),
).filter(lambda test: bool(test.wanted or test.unless))
RULES = st.lists(
    st.builds(
        HttpRule,
        rule=st.integers(1, 2**31),
        method=st.sampled_from(["", "GET", "GET|PUT"]),
        path=st.sampled_from(["", "/a", "/[0-9]+", r"/\x80"]),
        host=st.sampled_from(["", "api", "a.c(:80)?"]),
        headers=st.lists(HEADERS, max_size=5).map(tuple),
        tests=st.lists(st.lists(TESTS, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
    ),
    max_size=5,
).map(tuple)
HALVES = st.builds(
    RuleSet, id=st.integers(1, 2**31), name=st.just("x"), rules=st.none() | RULES, audit=st.none() | RULES
)


@given(HALVES, st.none() | HALVES)
def test_any_rule_set_comes_back(half: RuleSet, also: RuleSet | None) -> None:
    rule_set = msgspec.structs.replace(half, also=also)
    assume(served([rule_set]))
    assert_comes_back(rule_set)


def test_names_are_those_that_are_served() -> None:
    own = {key: value for key, value in vars(names).items() if key.isupper()}
    digest = own.pop("SCRIPT_DIGEST")
    assert digest == sha256(SCRIPT.encode()).hexdigest()
    for key, value in own.items():
        assert value == getattr(served_names, key), key
    assert (*(wellformed.WELL_FORMED_PATH, wellformed.ORIGIN_FORM, wellformed.WELL_FORMED_HOST),) == (
        filters.WELL_FORMED_PATH,
        filters.ORIGIN_FORM,
        filters.WELL_FORMED_HOST,
    )
    assert names.resource_name(7) == served_names.listener_name(7)
    assert names.first_value_key("x") == served_names.first_value_key("x")


def test_a_listener() -> None:
    settings = ResourceSettings(
        upstream_mark=0x77,
        idle_timeout=0.25,
        headers_timeout=1.5,
        buffer_limit=16384,
        max_head_kib=8,
        max_headers=7,
        denied_body="No d\xe9al",
    )
    assert read_listener(serialized(rule_set_listener(5, 23005, settings))) == ListenerConfig(
        name="rule-set-5",
        addresses=(("127.0.0.1", 23005), ("::1", 23005)),
        backlog=4096,
        buffer_limit=16384,
        upstream_mark=0x77,
        route="rule-set-5",
        headers_timeout=1.5,
        idle_timeout=0.25,
        max_head_bytes=8192,
        max_headers=7,
        denied_body="No d\xe9al".encode(),
    )
    ipv4 = msgspec.structs.replace(settings, ipv6=False, explain_denied=True)
    found = read_listener(serialized(rule_set_listener(5, 23005, ipv4)))
    assert found.addresses == (("127.0.0.1", 23005),)
    assert found.denied_body == "No d\xe9al".encode()
    assert found.denied == {
        "http-denied": "No d\xe9al: http-denied".encode(),
        "http-ambiguous": "No d\xe9al: http-ambiguous".encode(),
    }


def test_the_cluster() -> None:
    settings = ResourceSettings(connect_timeout=2.5, buffer_limit=16384)
    assert read_cluster(serialized(original_cluster(settings))) == ClusterConfig(
        name="original-destination", connect_timeout=2.5, buffer_limit=16384, max_headers=1000, max_head_bytes=1 << 20
    )


Edit = Callable[[Any], object]
ROUTE = "virtual_hosts[0].routes[0]"
OVERRIDES = f"{ROUTE}.typed_per_filter_config"
ANY = {"permissions": [{"any": True}], "principals": [{"any": True}]}


def override(config: route_pb2.RouteConfiguration, name: str, message: Any) -> None:
    config.virtual_hosts[0].routes[0].typed_per_filter_config[name].CopyFrom(packed(message))


def rules(policies: dict[str, Any], name: str = names.MAIN.policy) -> Edit:
    return lambda config: override(config, name, http_rbac_pb2.RBACPerRoute(rbac={"rules": {"policies": policies}}))


def regex_policy(pattern: str) -> dict[str, Any]:
    header = {"name": ":path", "string_match": {"safe_regex": {"regex": pattern}}}
    return ANY | {"permissions": [{"and_rules": {"rules": [{"header": header}]}}]}


MAIN_POLICY = f'{OVERRIDES}["spliceway.policy"]'
POLICIES = f"{MAIN_POLICY}.rbac.rules.policies"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rules({}), f"{POLICIES}: is required"),
        (rules({"pass": ANY}), f"{MAIN_POLICY}: lets every request pass"),
        (rules({"pass": ANY, "00000/1": ANY}), f'{POLICIES}["00000/1"]: can\'t be enforced'),
        (rules({"00001/1": ANY}), f'{POLICIES}["00001/1"]: is not the name of a rule at place 0'),
        (rules({"0/1": ANY}), f'{POLICIES}["0/1"]: is not the name'),
        (rules({"00000/0": ANY}), f'{POLICIES}["00000/0"]: is not the name'),
        (rules({"00000/01": ANY}), f'{POLICIES}["00000/01"]: is not the name'),
        (rules({'"\\': ANY}), f'{POLICIES}["\\"\\\\"]: is not the name'),
        (
            rules({"00000/1": regex_policy("/(a")}),
            f'{POLICIES}["00000/1"].permissions[0].and_rules.rules[0].header.string_match.safe_regex.regex: '
            "not an RE2 expression: missing ): /(a",
        ),
        (
            rules({"00000/1": ANY | {"permissions": [{"url_path": {"path": {"exact": "/"}}}]}}),
            f'{POLICIES}["00000/1"].permissions[0].url_path: can\'t be enforced by this proxy',
        ),
        (
            lambda config: override(config, names.MAIN.policy, http_rbac_pb2.RBACPerRoute()),
            f"{MAIN_POLICY}.rbac: is required",
        ),
        (
            lambda config: override(config, names.MAIN.policy, http_rbac_pb2.RBACPerRoute(rbac={})),
            f"{MAIN_POLICY}.rbac.rules: is required",
        ),
        (
            lambda config: override(config, names.MAIN.policy, rbac_pb2.RBAC()),
            f"{MAIN_POLICY}: must be envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        ),
        (
            lambda config: override(config, names.FILTER_AMBIGUOUS, served_rbac.audit_ambiguous()),
            f'{OVERRIDES}["spliceway.deny-ambiguous"]: can\'t be enforced by this proxy',
        ),
        (
            lambda config: override(config, names.OTHER.changes, lua_pb2.LuaPerRoute()),
            f'{OVERRIDES}["spliceway.changes-also"]: can\'t be enforced by this proxy',
        ),
        (lambda config: setattr(config, "name", "rule-set-6"), "name: is not that of rule set 5"),
        (
            lambda config: setattr(config.virtual_hosts[0].routes[0], "name", "5x"),
            f"{ROUTE}.name: is no id",
        ),
        (
            lambda config: config.virtual_hosts[0].routes[0].metadata.filter_metadata["spliceway"].update({"x": True}),
            f'{ROUTE}.metadata.filter_metadata["spliceway"].fields["x"]: can\'t be enforced by this proxy',
        ),
        (
            lambda config: (
                config.virtual_hosts[0].routes[0].metadata.filter_metadata["spliceway"].update({"volatile": False})
            ),
            f'{ROUTE}.metadata.filter_metadata["spliceway"].fields["volatile"].bool_value: must be true',
        ),
        (lambda config: config.vhds.SetInParent(), "vhds: can't be enforced by this proxy"),
    ],
)
def test_what_is_refused_of_routes(edit: Edit, message: str) -> None:
    config = rule_set_routes(RuleSet(5, "", (GET,)))
    edit(config)
    with pytest.raises(UnenforceableError) as caught:
        read_routes(serialized(config))
    assert str(caught.value).startswith(message)


CHANGES = f'{OVERRIDES}["spliceway.changes"].filter_context.fields["changes"].list_value.values'


@pytest.mark.parametrize(
    ("index", "item", "message"),
    [
        (0, {"name": "content-length"}, '[0].struct_value.fields["name"].string_value: is no header that may be'),
        (0, {"name": "x-envoy-a"}, '[0].struct_value.fields["name"].string_value: is no header that may be'),
        (0, {"name": "X-A"}, '[0].struct_value.fields["name"].string_value: is no header that may be'),
        (0, {"action": "DENY"}, '[0].struct_value.fields["action"].string_value: is none of LOG, ADD, DELETE, REPLACE'),
        (0, {"value": "0d0a"}, '[0].struct_value.fields["value"]: has characters that no header may have'),
        (0, {"value": "4A"}, '[0].struct_value.fields["value"].string_value: is not hexadecimal'),
        (0, {"rule": "9"}, "[1]: is not in the order of the rules"),
        (1, {"rule": "9"}, "[1]: belongs to no rule"),
        (1, {"at": "9"}, "[1]: belongs to no rule"),
        (1, {"at": "01"}, '[1].struct_value.fields["at"].string_value: is no place'),
        (1, {"rule": "0", "at": "0"}, "[1]: is not in the order of the rules"),
        (1, {"group": "7"}, '[1].struct_value.fields["group"]: is not that of its rule'),
    ],
)
def test_what_is_refused_of_changes(index: int, item: dict[str, str], message: str) -> None:
    changing = (
        HttpRule(1, "GET", headers=(HeaderMatch("x-a", "J", mismatch=Mismatch.ADD),)),
        HttpRule(2, "PUT", headers=(HeaderMatch("x-b", mismatch=Mismatch.DELETE),)),
    )
    config = rule_set_routes(RuleSet(5, "", changing))
    held = config.virtual_hosts[0].routes[0].typed_per_filter_config[names.MAIN.changes]
    script = lua_pb2.LuaPerRoute.FromString(held.value)
    script.filter_context["changes"][index].update(item)
    override(config, names.MAIN.changes, script)
    with pytest.raises(UnenforceableError) as caught:
        read_routes(serialized(config))
    assert str(caught.value).startswith(CHANGES + message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda li: setattr(li, "name", "web"), "name: is no rule set's name"),
        (
            lambda li: setattr(li.address.socket_address, "port_value", 70000),
            "address.socket_address.port_value: is not",
        ),
        (
            lambda li: setattr(li.address.socket_address, "address", "0.0.0.0"),
            "address.socket_address.address: must be",
        ),
        (lambda li: setattr(li.transparent, "value", False), "transparent: must be true"),
        (lambda li: setattr(li.tcp_backlog_size, "value", 2**31), "tcp_backlog_size: is not from 1 to 2147483647"),
        (
            lambda li: setattr(li.per_connection_buffer_limit_bytes, "value", 16383),
            "per_connection_buffer_limit_bytes: is not from 16384 to 2147483647",
        ),
        (lambda li: li.listener_filters.pop(), "listener_filters[1]: is required"),
        (lambda li: li.filter_chains.add(), "filter_chains[1]: can't be enforced by this proxy"),
        (
            lambda li: setattr(li, "name", "rule-set-6"),
            "filter_chains[0].filters[1].typed_config.rds.route_config_name: must be the listener's own name",
        ),
    ],
)
def test_what_is_refused_of_a_listener(edit: Edit, message: str) -> None:
    config: listener_pb2.Listener = rule_set_listener(5, 23005, ResourceSettings())
    edit(config)
    with pytest.raises(UnenforceableError) as caught:
        read_listener(serialized(config))
    assert str(caught.value).startswith(message)


def test_a_refusal_does_not_tell_values_of_headers() -> None:
    match = HeaderMatch("x-token", "geheim\xe9")
    config = rule_set_routes(RuleSet(5, "", (HttpRule(11, headers=(match, HeaderMatch("x", "auch"))),)))
    held = config.virtual_hosts[0].routes[0].typed_per_filter_config[names.MAIN.policy]
    rbac = http_rbac_pb2.RBACPerRoute.FromString(held.value)
    [policy] = rbac.rbac.rules.policies.values()
    policy.condition.call_expr.args[0].call_expr.args[1].const_expr.bytes_value = b"geheimer"
    override(config, names.MAIN.policy, rbac)
    with pytest.raises(UnenforceableError) as caught:
        read_routes(serialized(config))
    assert str(caught.value) == (
        f'{POLICIES}["00000/11"].condition.call_expr.args[0].call_expr.args[1].const_expr.bytes_value: '
        "does not go with the rest of the rules"
    )


def test_what_is_read_is_kept_for_what_is_shared() -> None:
    """Where everything passes at the other end, all routes have the same bytes: they are read once."""
    routes._policies.cache_clear()
    for key in range(1, 11):
        read_routes(serialized(rule_set_routes(RuleSet(key, "", (HttpRule(key),)))))
    assert routes._policies.cache_info().misses == 11
