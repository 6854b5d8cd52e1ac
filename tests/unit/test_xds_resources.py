"""From rule sets to resources: versions, refusals, and the holes that `consistent()` must find."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import re2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.message import Message

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.errors import InconsistentSnapshotError, ResourceError
from spliceway.xds.names import CLUSTER_ORIGINAL, FILTER_POLICY, listener_name, policy_name, rule_of, rule_set_of
from spliceway.xds.packing import packed, serialized
from spliceway.xds.rbac import WELL_FORMED_HOST, WELL_FORMED_PATH, allow_rules
from spliceway.xds.resources import build_snapshot
from spliceway.xds.settings import ResourceSettings
from spliceway.xds.snapshot import Snapshot
from spliceway.xds.typeurls import CLUSTER, LISTENER, ROUTE, TYPES

SETTINGS = ResourceSettings()
GET = HttpRule(11, "GET", "/articles/[0-9]+")


def rule_set(key: int, *rules: HttpRule) -> RuleSet:
    return RuleSet(key, f"set {key}", rules or (GET,))


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
    policies = sorted(allow_rules(rule_set(5, *rules)).policies)
    assert [rule_of(name) for name in policies] == [90, 9, 100, 1]
    assert rule_of(policy_name(3, 12)) == 12
    assert [rule_of(name) for name in ("", "ambiguous-path", "1/", "/x", "1/²")] == [0] * 5


def test_names_tell_their_rule_set() -> None:
    assert rule_set_of(listener_name(12)) == 12
    assert [rule_set_of(name) for name in ("", "rule-set-", "rule-set-x", "12", "x-rule-set-1")] == [0] * 5


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
    ],
)
def test_what_cannot_be_served_is_refused_with_its_place(
    sets: dict[int, RuleSet], ports: dict[int, int], message: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        build_snapshot(sets, ports, SETTINGS, "1")
    assert str(caught.value).startswith(message)


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


# What follows breaks a good snapshot, one thing at a time.

Edit = Callable[[listener_pb2.Listener, route_pb2.RouteConfiguration, dict[str, dict[str, bytes]]], None]


def override(routes: route_pb2.RouteConfiguration, message: Message) -> None:
    routes.virtual_hosts[0].routes[0].typed_per_filter_config[FILTER_POLICY].CopyFrom(packed(message))


def edit_manager(listener: listener_pb2.Listener, change: Callable[[HttpConnectionManager], object]) -> None:
    config = listener.filter_chains[0].filters[-1].typed_config
    manager = HttpConnectionManager()
    config.Unpack(manager)
    change(manager)
    config.Pack(manager)


def set_filter(manager: HttpConnectionManager, index: int, message: Message) -> None:
    manager.http_filters[index].typed_config.CopyFrom(packed(message))


def drop_route(listener: Message, routes: Message, all_of_them: dict[str, dict[str, bytes]]) -> None:
    del all_of_them[ROUTE]


def drop_cluster(listener: Message, routes: Message, all_of_them: dict[str, dict[str, bytes]]) -> None:
    all_of_them[CLUSTER] = {"other": serialized(cluster_pb2.Cluster(name="other"))}


ALLOW_ALL = {"rules": {"policies": {"x": {"permissions": [{"any": True}], "principals": [{"any": True}]}}}}
DENY_LIST = {"rules": {**ALLOW_ALL["rules"], "action": 1}}

BROKEN: dict[str, tuple[Edit, str]] = {
    "no override": (
        lambda li, r, _: r.virtual_hosts[0].routes[0].ClearField("typed_per_filter_config"),
        "no RBAC rules",
    ),
    "RBACPerRoute{}": (lambda li, r, _: override(r, rbac_pb2.RBACPerRoute()), "no RBAC rules"),
    "{rbac: {}}": (lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(rbac={})), "no RBAC rules"),
    "shadow only": (
        lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(rbac={"shadow_rules": ALLOW_ALL["rules"]})),
        "no RBAC rules",
    ),
    "empty rules": (lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(rbac={"rules": {}})), "has no policies"),
    "deny list": (lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(rbac=DENY_LIST)), "is not an allow list"),
    "another type": (lambda li, r, _: override(r, cluster_pb2.Cluster()), "no RBAC rules"),
    "ambiguous switched off": (
        lambda li, r, _: r.virtual_hosts[0].routes[0].typed_per_filter_config["spliceway.deny-ambiguous"].CopyFrom(
            packed(rbac_pb2.RBACPerRoute())
        ),
        "overrides spliceway.deny-ambiguous",
    ),
    "no route": (lambda li, r, _: r.ClearField("virtual_hosts"), "has no route"),
    "direct response": (
        lambda li, r, _: r.virtual_hosts[0].routes[0].direct_response.CopyFrom(
            type(r.virtual_hosts[0].routes[0].direct_response)(status=200)
        ),
        "does not route to a cluster",
    ),
    "routes missing": (drop_route, "route configuration 'rule-set-5' is missing"),
    "cluster missing": (drop_cluster, "cluster 'original-destination' of route '5' is missing"),
    "static routes": (
        lambda li, r, _: edit_manager(li, lambda m: m.route_config.CopyFrom(r)),
        "does not take its routes from RDS",
    ),
    "router only": (
        lambda li, r, _: edit_manager(li, lambda m: m.http_filters.__delitem__(slice(0, 2))),
        "HTTP filters",
    ),
    "policy filter absent": (
        lambda li, r, _: edit_manager(li, lambda m: m.http_filters.__delitem__(1)),
        "HTTP filters",
    ),
    "base allows": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 1, rbac_pb2.RBAC(**ALLOW_ALL))),
        "allows requests without a route",
    ),
    "base without rules": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 1, rbac_pb2.RBAC())),
        "is not the RBAC that it should be",
    ),
    "ambiguous without rules": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 0, rbac_pb2.RBAC())),
        "is not the RBAC that it should be",
    ),
    "filter disabled": (
        lambda li, r, _: edit_manager(li, lambda m: setattr(m.http_filters[1], "disabled", True)),
        "may be left out",
    ),
    "no manager": (lambda li, r, _: li.filter_chains[0].ClearField("filters"), "doesn't end in an HTTP connection"),
    "no chain": (lambda li, r, _: li.ClearField("filter_chains"), "has no HTTP connection manager"),
    "default chain": (
        lambda li, r, _: li.default_filter_chain.CopyFrom(listener_pb2.Listener().default_filter_chain),
        "doesn't end in an HTTP connection manager",
    ),
    "name": (lambda li, r, _: setattr(li, "name", "x"), "calls itself 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_consistent_finds(what: str) -> None:
    edit, message = BROKEN[what]
    name = listener_name(5)
    bodies = build(rule_set(5)).bodies()
    listener = listener_pb2.Listener.FromString(bodies[LISTENER][name])
    routes = route_pb2.RouteConfiguration.FromString(bodies[ROUTE][name])
    edit(listener, routes, bodies)
    bodies[LISTENER][name] = serialized(listener)
    if ROUTE in bodies:
        bodies[ROUTE][name] = serialized(routes)
    with pytest.raises(InconsistentSnapshotError) as caught:
        Snapshot.of("1", bodies).consistent()
    assert message in str(caught.value)


def test_two_listeners_on_one_port_are_found() -> None:
    bodies = build(rule_set(5), rule_set(7)).bodies()
    listener = listener_pb2.Listener.FromString(bodies[LISTENER][listener_name(5)])
    listener.name = listener_name(7)
    edit_manager(listener, lambda m: setattr(m.rds, "route_config_name", listener_name(7)))
    bodies[LISTENER][listener_name(7)] = serialized(listener)
    with pytest.raises(InconsistentSnapshotError, match=r"127\.0\.0\.1 port 23005"):
        Snapshot.of("1", bodies).consistent()


def test_equal_input_is_equal_bytes() -> None:
    rules = tuple(HttpRule(number, "GET", f"/{number}") for number in range(1, 40))
    assert build(rule_set(5, *rules)).bodies() == build(rule_set(5, *rules)).bodies()
