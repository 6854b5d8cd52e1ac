"""The shape that policy's own listeners, routes and cluster must have, so that they leave no hole. Pure.

The rules are written down apart from the builder on purpose: RBAC that is absent enforces nothing, and generating
nothing by mistake must be impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.rbac.v3 import rbac_pb2 as rbac_rules_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.resources.changes import SCRIPT, no_script
from spliceway.xds.resources.facts import Facts, Want, addresses_of, facts_of
from spliceway.xds.resources.names import (
    CLUSTER_ORIGINAL,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_POLICY,
    FILTERS,
    LISTENER_FILTERS,
    MAIN,
    OTHER,
    PASS,
    PREFIXES,
    ROUTE_METADATA,
    End,
    rule_set_of,
)
from spliceway.xds.resources.packing import packed
from spliceway.xds.resources.rbac import audit_ambiguous, deny_own_addresses, pass_all

_ALLOW = rbac_rules_pb2.RBAC.ALLOW
_DENY = rbac_rules_pb2.RBAC.DENY
#: Filters that run only where a route has a configuration for them.
_ON_DEMAND = frozenset(name for end in (MAIN, OTHER) for name in (end.first, end.matches, end.changes))
_PASS_ALL = pass_all()
_AUDIT_AMBIGUOUS = packed(audit_ambiguous())
_NO_SCRIPT = packed(no_script())
_OWN_ADDRESSES = deny_own_addresses()
_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class _End(Enum):
    """What a policy filter does with the requests of one end: ask rules, pass and note, or pass."""

    ENFORCES = "rules"
    AUDITS = "everything passes, and shadow rules say what would not"
    OPEN = "everything passes"


def policy_facts(url: str, name: str, body: bytes) -> Facts:
    """Check a resource that policy has made; what it has to do with others.

    Raises:
        InconsistentSnapshotError: it is not as policy makes them.
    """
    check = _SHAPES.get(url)
    return check(name, body) if check else facts_of(url, name, body)


def _fail(what: str, name: str, reason: str) -> InconsistentSnapshotError:
    return InconsistentSnapshotError(f"{what} {name!r}: {reason}")


# An edit changes one resource of many, and what was good once is good: results are kept by content.


@lru_cache(maxsize=64)
def _check_cluster(name: str, body: bytes) -> Facts:
    cluster = cluster_pb2.Cluster.FromString(body)
    if name != CLUSTER_ORIGINAL:
        return facts_of(CLUSTER, name, body)
    if cluster.type != cluster_pb2.Cluster.ORIGINAL_DST or cluster.HasField("original_dst_lb_config"):
        raise _fail("cluster", name, "does not connect to where the client wanted to go")
    if not cluster.connection_pool_per_downstream_connection:
        raise _fail("cluster", name, "shares its connections among clients")
    return Facts(cluster.name)


@lru_cache(maxsize=8192)
def _check_routes(name: str, body: bytes) -> Facts:
    config = route_pb2.RouteConfiguration.FromString(body)
    routes = [route for host in config.virtual_hosts for route in host.routes]
    if not routes:
        raise _fail("route configuration", name, "has no route")
    for route in routes:
        _check_route(name, route)
    if config.HasField("vhds"):
        raise _fail("route configuration", name, "takes virtual hosts from elsewhere")
    if config.typed_per_filter_config:
        raise _fail("route configuration", name, "overrides filters for all routes")
    for host in config.virtual_hosts:
        if host.HasField("matcher") or host.typed_per_filter_config:
            raise _fail("route configuration", name, f"virtual host {host.name!r} has more than routes")
    return Facts(config.name, tuple(Want(CLUSTER, each.route.cluster, f"route {each.name!r}") for each in routes))


def _check_route(name: str, route: route_components_pb2.Route) -> None:
    where = f"route {route.name!r}"
    if route.WhichOneof("action") != "route":
        raise _fail("route configuration", name, f"{where} does not route to a cluster")
    if route.route.cluster != CLUSTER_ORIGINAL:
        raise _fail("route configuration", name, f"{where} does not lead to {CLUSTER_ORIGINAL}")
    overrides = route.typed_per_filter_config
    if strange := overrides.keys() - set(FILTERS[:-1]):
        raise _fail("route configuration", name, f"{where} overrides {', '.join(sorted(strange))}")
    if route.HasField("metadata"):
        _check_metadata(name, route)
    for end in (MAIN, OTHER):
        _check_changes(name, route, end)
    ends = _end(name, route, FILTER_POLICY), _end(name, route, FILTER_ALSO)
    if ends[0] is _End.OPEN:
        raise _fail("route configuration", name, f"RBAC of {where} lets everything pass")
    # The filter in front may let the ambiguous pass only where nothing is enforced behind it.
    if FILTER_AMBIGUOUS in overrides:
        if _End.ENFORCES in ends:
            raise _fail("route configuration", name, f"{where} overrides {FILTER_AMBIGUOUS}")
        if overrides[FILTER_AMBIGUOUS] != _AUDIT_AMBIGUOUS:
            raise _fail("route configuration", name, f"{where} overrides {FILTER_AMBIGUOUS} with something else")


def _check_metadata(name: str, route: route_components_pb2.Route) -> None:
    """Nothing there has a meaning for Envoy: `volatile`, and mismatch actions of rules in audit."""
    held = route.metadata.filter_metadata
    facts = held[ROUTE_METADATA].fields if held.keys() == {ROUTE_METADATA} else {}
    volatile, audit = facts.get("volatile"), facts.get("audit")
    good = facts and facts.keys() <= {"volatile", "audit"} and not route.metadata.typed_filter_metadata
    if not good or (volatile is not None and not volatile.bool_value):
        raise _fail("route configuration", name, f"route {route.name!r} has metadata that is not policy's")
    if audit is not None and not audit.struct_value.fields.keys() <= {FILTER_POLICY, FILTER_ALSO}:
        raise _fail("route configuration", name, f"route {route.name!r} has metadata that is not policy's")


def _check_changes(name: str, route: route_components_pb2.Route, end: End) -> None:
    """The filters behind the rules let everything pass, and only the one script changes something."""
    matches, changes = (route.typed_per_filter_config.get(key) for key in (end.matches, end.changes))
    if matches is None and changes is None:
        return
    where = f"route {route.name!r}"
    rules, data = http_rbac_pb2.RBACPerRoute(), lua_pb2.LuaPerRoute()
    if matches is None or changes is None or not matches.Unpack(rules) or not changes.Unpack(data):
        raise _fail("route configuration", name, f"{where} has half of what {end.changes} needs")
    passes = rules.rbac.rules.policies.get(PASS) == _PASS_ALL.policies[PASS]
    if rules.rbac.rules.action != _ALLOW or rules.rbac.HasField("shadow_rules") or not passes:
        raise _fail("route configuration", name, f"{where}: {end.matches} does not let everything pass")
    if data.source_code.inline_string != SCRIPT or not data.HasField("filter_context"):
        raise _fail("route configuration", name, f"{where} has not the script for {end.changes}")


def _end(name: str, route: route_components_pb2.Route, filter_name: str) -> _End:
    """What one of the two policy filters does on this route."""
    where = f"RBAC of route {route.name!r}"
    override = http_rbac_pb2.RBACPerRoute()
    held = route.typed_per_filter_config.get(filter_name)
    # RBACPerRoute{}, {rbac: {}} and shadow rules alone allow everything (seen in Envoy 1.40).
    if held is None or not held.Unpack(override) or not override.rbac.HasField("rules"):
        raise _fail("route configuration", name, f"route {route.name!r} has no RBAC rules for {filter_name}")
    rbac = override.rbac
    if rbac.rules.action != _ALLOW or (rbac.HasField("shadow_rules") and rbac.shadow_rules.action != _ALLOW):
        raise _fail("route configuration", name, f"{where} is not an allow list")
    if not rbac.rules.policies:
        raise _fail("route configuration", name, f"{where} has no policies")
    if PASS not in rbac.rules.policies:
        return _End.ENFORCES
    if rbac.rules != _PASS_ALL:
        raise _fail("route configuration", name, f"{where} has a policy {PASS!r} among others")
    return _End.AUDITS if rbac.HasField("shadow_rules") else _End.OPEN


@lru_cache(maxsize=8192)
def _check_listener(name: str, body: bytes) -> Facts:
    listener = listener_pb2.Listener.FromString(body)
    managers = list(_managers(name, listener))
    if not managers:
        raise _fail("listener", name, "has no HTTP connection manager")
    for manager in managers:
        if manager.WhichOneof("route_specifier") != "rds":
            raise _fail("listener", name, "does not take its routes from RDS")
        if not rule_set_of(name) or manager.rds.route_config_name != name:
            raise _fail("listener", name, "has the routes of another name, or a name that is no rule set's")
        if manager.rds.config_source.WhichOneof("config_source_specifier") != "ads":
            raise _fail("listener", name, "takes its routes from somewhere else than the agent")
        _check_filters(name, manager)
    _check_frame(name, listener)
    wants = (Want(ROUTE, manager.rds.route_config_name, "rds") for manager in managers)
    return Facts(listener.name, tuple(wants), tuple(addresses_of(listener)))


def _check_frame(name: str, listener: listener_pb2.Listener) -> None:
    """What makes it a listener of steered connections: on loopback, both ends' addresses kept, never to itself."""
    hosts = {address.host for address in addresses_of(listener)}
    if not hosts or not hosts <= _LOOPBACK:
        raise _fail("listener", name, "is not on loopback")
    if not listener.transparent.value:
        raise _fail("listener", name, "is not transparent")
    if tuple(item.name for item in listener.listener_filters) != LISTENER_FILTERS:
        raise _fail("listener", name, f"listener filters are not {LISTENER_FILTERS}")
    if listener.HasField("default_filter_chain") or len(listener.filter_chains) != 1:
        raise _fail("listener", name, "has not exactly one filter chain")
    [chain] = listener.filter_chains
    rbac = network_rbac_pb2.RBAC()
    if len(chain.filters) != 2 or not chain.filters[0].typed_config.Unpack(rbac) or rbac.rules != _OWN_ADDRESSES:
        raise _fail("listener", name, "lets connections to its own addresses in")


def _check_filters(name: str, manager: HttpConnectionManager) -> None:
    chain = tuple(item.name for item in manager.http_filters)
    if chain != FILTERS:
        raise _fail("listener", name, f"HTTP filters are {chain}, not {FILTERS}")
    for item in manager.http_filters:
        if item.is_optional or item.disabled != (item.name in _ON_DEMAND):
            raise _fail("listener", name, f"filter {item.name!r} may be left out")
        if item.name in PREFIXES:
            _check_rbac(name, item)
        if item.name in (MAIN.changes, OTHER.changes) and item.typed_config != _NO_SCRIPT:
            raise _fail("listener", name, f"filter {item.name!r} has a script")


def _check_rbac(name: str, item: http_connection_manager_pb2.HttpFilter) -> None:
    rbac = http_rbac_pb2.RBAC()
    action = _DENY if item.name == FILTER_AMBIGUOUS else _ALLOW
    if not item.typed_config.Unpack(rbac) or not rbac.HasField("rules") or rbac.rules.action != action:
        raise _fail("listener", name, f"filter {item.name!r} is not the RBAC that it should be")
    if action == _ALLOW and rbac.rules.policies and item.name not in _ON_DEMAND:
        raise _fail("listener", name, f"filter {item.name!r} allows requests without a route")
    if {rbac.rules_stat_prefix, rbac.shadow_rules_stat_prefix} != {PREFIXES[item.name]}:
        raise _fail("listener", name, f"filter {item.name!r} writes its results under another name")


def _managers(name: str, listener: listener_pb2.Listener) -> Iterator[HttpConnectionManager]:
    chains = list(listener.filter_chains)
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    for chain in chains:
        manager = HttpConnectionManager()
        if not chain.filters or not chain.filters[-1].typed_config.Unpack(manager):
            raise _fail("listener", name, "has a filter chain that doesn't end in an HTTP connection manager")
        yield manager


_SHAPES: dict[str, Callable[[str, bytes], Facts]] = {
    CLUSTER: _check_cluster,
    ROUTE: _check_routes,
    LISTENER: _check_listener,
}
