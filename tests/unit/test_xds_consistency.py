"""The holes and dangling references that must be found: a good snapshot, broken one thing at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.message import Message

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.consistency import check_policy
from spliceway.xds.resources.names import (
    CLUSTER_ORIGINAL,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_POLICY,
    MAIN,
    ROUTE_METADATA,
    listener_name,
)
from spliceway.xds.resources.packing import packed, serialized
from spliceway.xds.resources.rbac import audit_ambiguous, deny_ambiguous
from spliceway.xds.resources.settings import ResourceSettings

SETTINGS = ResourceSettings()
GET = HttpRule(11, "GET", "/articles/[0-9]+")


def rule_set(key: int) -> RuleSet:
    return RuleSet(key, f"set {key}", (GET,))


def build(*sets: RuleSet) -> Snapshot:
    by_id = {each.id: each for each in sets}
    return build_snapshot(by_id, {key: 23000 + key for key in by_id}, SETTINGS, "1")


Edit = Callable[[listener_pb2.Listener, route_pb2.RouteConfiguration, dict[str, dict[str, bytes]]], None]


def override(routes: route_pb2.RouteConfiguration, message: Message, name: str = FILTER_POLICY) -> None:
    routes.virtual_hosts[0].routes[0].typed_per_filter_config[name].CopyFrom(packed(message))


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


ANY = {"permissions": [{"any": True}], "principals": [{"any": True}]}
ALLOW_ALL = {"rules": {"policies": {"x": ANY}}}
PASS_ALL = {"policies": {"pass": ANY}}
DENY_LIST = {"rules": {**ALLOW_ALL["rules"], "action": 1}}

SHARED = cluster_pb2.Cluster(name=CLUSTER_ORIGINAL, type="ORIGINAL_DST")
BY_HEADER = cluster_pb2.Cluster(
    name=CLUSTER_ORIGINAL,
    type="ORIGINAL_DST",
    connection_pool_per_downstream_connection=True,
    original_dst_lb_config={"use_http_header": True},
)

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
    "shadow deny list": (
        lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(rbac={**ALLOW_ALL, "shadow_rules": DENY_LIST["rules"]})),
        "is not an allow list",
    ),
    "everything passes": (
        lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(rbac={"rules": PASS_ALL})),
        "lets everything pass",
    ),
    "pass among others": (
        lambda li, r, _: override(
            r, rbac_pb2.RBACPerRoute(rbac={"rules": {"policies": {**PASS_ALL["policies"], "0/1": ANY}}})
        ),
        "has a policy 'pass' among others",
    ),
    "the other end without an override": (
        lambda li, r, _: r.virtual_hosts[0].routes[0].typed_per_filter_config.pop(FILTER_ALSO),
        "no RBAC rules for spliceway.policy-also",
    ),
    "RBACPerRoute{} at the other end": (
        lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(), FILTER_ALSO),
        "no RBAC rules for spliceway.policy-also",
    ),
    "the ambiguous pass though rules are enforced": (
        lambda li, r, _: override(r, audit_ambiguous(), FILTER_AMBIGUOUS),
        "overrides spliceway.deny-ambiguous",
    ),
    "an unknown override": (
        lambda li, r, _: override(r, rbac_pb2.RBACPerRoute(), "other"),
        "overrides other",
    ),
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
    "cluster missing": (drop_cluster, "cluster 'original-destination' is missing (route '5')"),
    "static routes": (
        lambda li, r, _: edit_manager(li, lambda m: m.route_config.CopyFrom(r)),
        "does not take its routes from RDS",
    ),
    "router only": (
        lambda li, r, _: edit_manager(li, lambda m: m.http_filters.__delitem__(slice(0, 9))),
        "HTTP filters",
    ),
    "policy filter absent": (
        lambda li, r, _: edit_manager(li, lambda m: m.http_filters.__delitem__(2)),
        "HTTP filters",
    ),
    "base allows": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 2, rbac_pb2.RBAC(**ALLOW_ALL))),
        "allows requests without a route",
    ),
    "base without rules": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 2, rbac_pb2.RBAC())),
        "is not the RBAC that it should be",
    ),
    "ambiguous without rules": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 0, rbac_pb2.RBAC())),
        "is not the RBAC that it should be",
    ),
    "the other end allows": (
        lambda li, r, _: edit_manager(li, lambda m: set_filter(m, 6, rbac_pb2.RBAC(**ALLOW_ALL))),
        "allows requests without a route",
    ),
    "results under one name": (
        lambda li, r, _: edit_manager(
            li, lambda m: set_filter(m, 6, rbac_pb2.RBAC(rules={}, rules_stat_prefix="policy_"))
        ),
        "writes its results under another name",
    ),
    "a script": (
        lambda li, r, _: edit_manager(
            li, lambda m: set_filter(m, 4, lua_pb2.Lua(default_source_code={"inline_string": "-- x"}))
        ),
        "has a script",
    ),
    "filter disabled": (
        lambda li, r, _: edit_manager(li, lambda m: setattr(m.http_filters[2], "disabled", True)),
        "may be left out",
    ),
    "no manager": (lambda li, r, _: li.filter_chains[0].ClearField("filters"), "doesn't end in an HTTP connection"),
    "no chain": (lambda li, r, _: li.ClearField("filter_chains"), "has no HTTP connection manager"),
    "default chain": (
        lambda li, r, _: li.default_filter_chain.CopyFrom(listener_pb2.Listener().default_filter_chain),
        "doesn't end in an HTTP connection manager",
    ),
    "name": (lambda li, r, _: setattr(li, "name", "x"), "calls itself 'x'"),
    "routes of another": (
        lambda li, r, _: edit_manager(li, lambda m: setattr(m.rds, "route_config_name", "rule-set-6")),
        "has the routes of another name",
    ),
    "routes from a file": (
        lambda li, r, _: edit_manager(li, lambda m: m.rds.config_source.path_config_source.SetInParent()),
        "takes its routes from somewhere else than the agent",
    ),
    "not on loopback": (
        lambda li, r, _: setattr(li.address.socket_address, "address", "0.0.0.0"),
        "is not on loopback",
    ),
    "not transparent": (lambda li, r, _: li.ClearField("transparent"), "is not transparent"),
    "its own addresses": (lambda li, r, _: li.listener_filters.pop(), "listener filters are not"),
    "connections to itself": (lambda li, r, _: li.filter_chains[0].filters.pop(0), "to its own addresses in"),
    "two chains": (lambda li, r, _: li.filter_chains.append(li.filter_chains[0]), "not exactly one filter chain"),
    "another cluster": (
        lambda li, r, _: setattr(r.virtual_hosts[0].routes[0].route, "cluster", "other"),
        "route '5' does not lead to original-destination",
    ),
    "virtual hosts from elsewhere": (lambda li, r, _: r.vhds.SetInParent(), "takes virtual hosts from elsewhere"),
    "a host that has routes in a matcher": (
        lambda li, r, _: r.virtual_hosts.add(name="other", domains=["other"]).matcher.SetInParent(),
        "virtual host 'other' has more than routes",
    ),
    "a filter that is off for a host": (
        lambda li, r, _: r.virtual_hosts[0].typed_per_filter_config[FILTER_AMBIGUOUS].SetInParent(),
        "virtual host 'any' has more than routes",
    ),
    "a filter that is off for all": (
        lambda li, r, _: r.typed_per_filter_config[FILTER_AMBIGUOUS].SetInParent(),
        "overrides filters for all routes",
    ),
    "a cluster that is none": (
        lambda li, r, all_of_them: all_of_them.update({CLUSTER: {CLUSTER_ORIGINAL: serialized(SHARED)}}),
        "shares its connections among clients",
    ),
    "a client says where": (
        lambda li, r, all_of_them: all_of_them.update({CLUSTER: {CLUSTER_ORIGINAL: serialized(BY_HEADER)}}),
        "does not connect to where the client wanted to go",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_hole_is_found(what: str) -> None:
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
        check_policy(Snapshot.of("1", bodies))
    assert message in str(caught.value)


CHANGING = RuleSet(5, "changing", (HttpRule(1, headers=(HeaderMatch("x-a", "1", mismatch=Mismatch.ADD),)),))
AUDIT = RuleSet(5, "audit", None, audit=(GET,))


@pytest.mark.parametrize(
    "good",
    [
        AUDIT,
        CHANGING,
        RuleSet(5, "nobody", None, audit=()),
        RuleSet(5, "both", (GET,), also=rule_set(6)),
        RuleSet(5, "rules and audit", (GET,), audit=(), also=RuleSet(6, "x", (GET,), audit=(GET,))),
        RuleSet(5, "one end in audit", (GET,), also=RuleSet(6, "x", None, audit=(GET,))),
        RuleSet(5, "the other end in audit", None, audit=(GET,), also=rule_set(6)),
        RuleSet(5, "both in audit", None, audit=(GET,), also=RuleSet(6, "x", None, audit=(GET,))),
    ],
    ids=lambda each: each.name,
)
def test_every_shape_of_a_rule_set_is_consistent(good: RuleSet) -> None:
    build(good)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: override(r, rbac_pb2.RBACPerRoute(rbac={"rules": PASS_ALL})), "lets everything pass"),
        (lambda r: override(r, rbac_pb2.RBACPerRoute(rbac={"shadow_rules": PASS_ALL})), "no RBAC rules"),
        (lambda r: override(r, rbac_pb2.RBACPerRoute(), FILTER_AMBIGUOUS), "with something else"),
        (lambda r: override(r, rbac_pb2.RBACPerRoute(rbac={"rules": deny_ambiguous()}), FILTER_AMBIGUOUS), "else"),
    ],
)
def test_a_hole_is_found_in_an_audit_set(edit: Callable[[route_pb2.RouteConfiguration], None], message: str) -> None:
    bodies = build(AUDIT).bodies()
    routes = route_pb2.RouteConfiguration.FromString(bodies[ROUTE][listener_name(5)])
    edit(routes)
    bodies[ROUTE][listener_name(5)] = serialized(routes)
    with pytest.raises(InconsistentSnapshotError, match=message):
        check_policy(Snapshot.of("1", bodies))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: override(r, rbac_pb2.RBACPerRoute(), MAIN.matches), "does not let everything pass"),
        (lambda r: override(r, rbac_pb2.RBACPerRoute(rbac=ALLOW_ALL), MAIN.matches), "does not let everything pass"),
        (lambda r: override(r, lua_pb2.LuaPerRoute(), MAIN.changes), "has not the script"),
        (lambda r: override(r, lua_pb2.LuaPerRoute(disabled=True), MAIN.changes), "has not the script"),
        (
            lambda r: override(
                r, lua_pb2.LuaPerRoute(source_code={"inline_string": ""}, filter_context={}), MAIN.changes
            ),
            "has not the script",
        ),
        (
            lambda r: r.virtual_hosts[0].routes[0].typed_per_filter_config.pop(MAIN.changes),
            "half of what spliceway.changes needs",
        ),
        (lambda r: override(r, rbac_pb2.RBACPerRoute(), MAIN.changes), "half of what spliceway.changes needs"),
    ],
)
def test_a_hole_is_found_where_headers_are_changed(
    edit: Callable[[route_pb2.RouteConfiguration], None], message: str
) -> None:
    bodies = build(CHANGING).bodies()
    routes = route_pb2.RouteConfiguration.FromString(bodies[ROUTE][listener_name(5)])
    edit(routes)
    bodies[ROUTE][listener_name(5)] = serialized(routes)
    with pytest.raises(InconsistentSnapshotError, match=message):
        check_policy(Snapshot.of("1", bodies))


def metadata(held: dict[str, object], namespace: str = ROUTE_METADATA) -> base_pb2.Metadata:
    made = base_pb2.Metadata()
    made.filter_metadata[namespace].update(held)
    return made


def check_with_metadata(held: base_pb2.Metadata) -> None:
    bodies = build(rule_set(5)).bodies()
    routes = route_pb2.RouteConfiguration.FromString(bodies[ROUTE][listener_name(5)])
    routes.virtual_hosts[0].routes[0].metadata.CopyFrom(held)
    bodies[ROUTE][listener_name(5)] = serialized(routes)
    check_policy(Snapshot.of("1", bodies))


@pytest.mark.parametrize(
    "held", [{"volatile": True}, {"audit": {FILTER_POLICY: []}}, {"volatile": True, "audit": {FILTER_ALSO: []}}]
)
def test_a_route_may_have_policys_metadata(held: dict[str, object]) -> None:
    check_with_metadata(metadata(held))


@pytest.mark.parametrize(
    "held",
    [
        base_pb2.Metadata(),
        metadata({}),
        metadata({"volatile": False}),
        metadata({"volatile": "true"}),
        metadata({"volatile": True, "other": True}),
        metadata({"audit": {"other": []}}),
        metadata({"volatile": True}, "other"),
        base_pb2.Metadata(
            filter_metadata=metadata({"volatile": True}).filter_metadata,
            typed_filter_metadata={"other": packed(base_pb2.Metadata())},
        ),
    ],
)
def test_a_route_may_have_no_other_metadata(held: base_pb2.Metadata) -> None:
    with pytest.raises(InconsistentSnapshotError, match="has metadata that is not policy's"):
        check_with_metadata(held)


def test_two_listeners_on_one_port_are_found() -> None:
    bodies = build(rule_set(5), rule_set(7)).bodies()
    listener = listener_pb2.Listener.FromString(bodies[LISTENER][listener_name(5)])
    listener.name = listener_name(7)
    edit_manager(listener, lambda m: setattr(m.rds, "route_config_name", listener_name(7)))
    bodies[LISTENER][listener_name(7)] = serialized(listener)
    with pytest.raises(InconsistentSnapshotError, match=r"127\.0\.0\.1 port 23005"):
        check_policy(Snapshot.of("1", bodies))
