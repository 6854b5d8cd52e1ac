"""What must hold before a set of resources may be served. Pure: bytes in, an error or nothing out.

The rules are written down apart from the builder on purpose: RBAC that is absent enforces nothing, and generating
nothing by mistake must be impossible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

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

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.resources.changes import SCRIPT, no_script
from spliceway.xds.resources.names import (
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_POLICY,
    FILTERS,
    MAIN,
    OTHER,
    PASS,
    PREFIXES,
    End,
)
from spliceway.xds.resources.packing import packed
from spliceway.xds.resources.rbac import audit_ambiguous, pass_all

_ALLOW = rbac_rules_pb2.RBAC.ALLOW
_DENY = rbac_rules_pb2.RBAC.DENY
#: Filters that run only where a route has a configuration for them.
_ON_DEMAND = frozenset(name for end in (MAIN, OTHER) for name in (end.first, end.matches, end.changes))
_PASS_ALL = pass_all()
_AUDIT_AMBIGUOUS = packed(audit_ambiguous())
_NO_SCRIPT = packed(no_script())


class _End(Enum):
    """What a policy filter does with the requests of one end: ask rules, pass and note, or pass."""

    ENFORCES = "rules"
    AUDITS = "everything passes, and shadow rules say what would not"
    OPEN = "everything passes"


class _Listener(NamedTuple):
    """What other resources and listeners have to do with this one."""

    name: str
    addresses: tuple[tuple[str, int], ...]
    routes: tuple[str, ...]


class _Routes(NamedTuple):
    """What other resources have to do with this route configuration: route name and cluster of each route."""

    name: str
    clusters: tuple[tuple[str, str], ...]


def check_policy(snapshot: Snapshot) -> None:
    """Check a snapshot for holes in policy and dangling references.

    Raises:
        InconsistentSnapshotError: naming the resource and the reason.
    """
    bodies = snapshot.bodies()
    clusters = {name: _cluster_name(body) for name, body in bodies.get(CLUSTER, {}).items()}
    routes = {name: _check_routes(name, body) for name, body in bodies.get(ROUTE, {}).items()}
    listeners = {name: _check_listener(name, body) for name, body in bodies.get(LISTENER, {}).items()}
    _check_names("cluster", clusters)
    _check_names("route configuration", {name: found.name for name, found in routes.items()})
    _check_names("listener", {name: found.name for name, found in listeners.items()})
    _check_addresses(listeners)
    for name, config in routes.items():
        for route, cluster in config.clusters:
            if cluster not in clusters:
                raise _fail("route configuration", name, f"cluster {cluster!r} of route {route!r} is missing")
    for name, listener in listeners.items():
        for wanted in listener.routes:
            if wanted not in routes:
                raise _fail("listener", name, f"route configuration {wanted!r} is missing")


def _fail(what: str, name: str, reason: str) -> InconsistentSnapshotError:
    return InconsistentSnapshotError(f"{what} {name!r}: {reason}")


def _check_names(what: str, names: Mapping[str, str]) -> None:
    for key, name in names.items():
        if key != name:
            raise _fail(what, key, f"is stored under this name, but calls itself {name!r}")


def _check_addresses(listeners: Mapping[str, _Listener]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for name, listener in listeners.items():
        for address in listener.addresses:
            if address in seen:
                raise _fail("listener", name, f"has the address {address[0]} port {address[1]} of {seen[address]!r}")
            seen[address] = name


# An edit changes one resource of many, and what was good once is good: results are kept by content.


@lru_cache(maxsize=64)
def _cluster_name(body: bytes) -> str:
    return str(cluster_pb2.Cluster.FromString(body).name)


@lru_cache(maxsize=8192)
def _check_routes(name: str, body: bytes) -> _Routes:
    config = route_pb2.RouteConfiguration.FromString(body)
    routes = [route for host in config.virtual_hosts for route in host.routes]
    if not routes:
        raise _fail("route configuration", name, "has no route")
    for route in routes:
        _check_route(name, route)
    return _Routes(config.name, tuple((route.name, route.route.cluster) for route in routes))


def _check_route(name: str, route: route_components_pb2.Route) -> None:
    where = f"route {route.name!r}"
    if route.WhichOneof("action") != "route":
        raise _fail("route configuration", name, f"{where} does not route to a cluster")
    overrides = route.typed_per_filter_config
    if strange := overrides.keys() - set(FILTERS[:-1]):
        raise _fail("route configuration", name, f"{where} overrides {', '.join(sorted(strange))}")
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
def _check_listener(name: str, body: bytes) -> _Listener:
    listener = listener_pb2.Listener.FromString(body)
    managers = list(_managers(name, listener))
    if not managers:
        raise _fail("listener", name, "has no HTTP connection manager")
    for manager in managers:
        if manager.WhichOneof("route_specifier") != "rds":
            raise _fail("listener", name, "does not take its routes from RDS")
        _check_filters(name, manager)
    sockets = [listener.address.socket_address]
    sockets += [extra.address.socket_address for extra in listener.additional_addresses]
    return _Listener(
        listener.name,
        tuple((socket.address, socket.port_value) for socket in sockets),
        tuple(manager.rds.route_config_name for manager in managers),
    )


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
