"""A state of the changing world as a snapshot: resources of policy, and listeners, clusters and endpoints beside."""

from __future__ import annotations

import msgspec
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.names import listener_name
from spliceway.xds.resources.packing import seconds, serialized, typed
from spliceway.xds.resources.settings import ResourceSettings
from support.churn import Pool, State
from support.envoy import port_of
from support.steered import SERVER

#: The node's own address on the client's side.
WEB_ADDRESS, WEB_PORT = "10.241.1.1", 15000
SERVER_PORT = 7000
_ROUTES = "web"
_ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": seconds(0)}


def snapshot_of(state: State, settings: ResourceSettings, version: str, previous: Snapshot | None) -> Snapshot:
    """The whole state as one snapshot. What isn't policy's is `extra`."""
    edited = msgspec.structs.replace(settings, connect_timeout=settings.connect_timeout + state.original / 100)
    ports = {number: port_of(number) for number in state.rule_sets}
    made = build_snapshot(state.rule_sets, ports, edited, version)
    bodies = made.bodies()
    for number, variant in state.listeners.items():
        name = listener_name(number)
        bodies[LISTENER][name] = _varied(bodies[LISTENER][name], variant)
    beside = {
        LISTENER: {f"web-{number}": serialized(_web(number, variant)) for number, variant in state.webs.items()},
        ROUTE: {_ROUTES: serialized(_routes(state))},
        CLUSTER: {_pool_name(number): serialized(_cluster(number, pool)) for number, pool in state.pools.items()},
        ENDPOINT: {_pool_name(number): serialized(_endpoints(number, pool)) for number, pool in state.pools.items()},
    }
    extra = frozenset((url, name) for url, named in beside.items() for name in named)
    bodies = {url: {**bodies.get(url, {}), **beside[url]} for url in beside}
    return Snapshot.of(version, bodies, previous, made.secrets, extra=extra)


def web_routes(state: State) -> dict[int, frozenset[str]]:
    """Path → the servers that may answer; empty for a direct answer."""
    return {
        path: frozenset(f"server-{server}" for number in targets for server in state.pools[number].endpoints)
        for path, targets in state.routes.items()
    }


def _pool_name(number: int) -> str:
    return f"pool-{number}"


def _varied(body: bytes, variant: int) -> bytes:
    """The same listener with something else about it: even variants change its filter chain, odd ones the rest."""
    if variant == 0:
        return body
    listener = listener_pb2.Listener.FromString(body)
    if variant % 2:
        listener.per_connection_buffer_limit_bytes.value += variant
        return serialized(listener)
    for chain in listener.filter_chains:
        manager = HttpConnectionManager()
        chain.filters[-1].typed_config.Unpack(manager)
        manager.max_request_headers_kb.value += variant
        chain.filters[-1].typed_config.Pack(manager)
    return serialized(listener)


def _web(number: int, variant: int) -> listener_pb2.Listener:
    manager = HttpConnectionManager(
        stat_prefix="web",
        rds={"route_config_name": _ROUTES, "config_source": _ADS},
        http_filters=[typed("envoy.filters.http.router", router_pb2.Router())],
        max_request_headers_kb={"value": 60 + variant // 2},
    )
    return listener_pb2.Listener(
        name=f"web-{number}",
        address={"socket_address": {"address": WEB_ADDRESS, "port_value": WEB_PORT + number}},
        per_connection_buffer_limit_bytes={"value": 65536 + variant},
        filter_chains=[{"filters": [typed("envoy.filters.network.http_connection_manager", manager)]}],
    )


def _routes(state: State) -> route_pb2.RouteConfiguration:
    routes = [_route(path, targets) for path, targets in state.routes.items()]
    return route_pb2.RouteConfiguration(
        name=_ROUTES, virtual_hosts=[{"name": "any", "domains": ["*"], "routes": routes}]
    )


def _route(path: int, targets: tuple[int, ...]) -> route_components_pb2.Route:
    route = route_components_pb2.Route(match={"prefix": f"/p{path}/"})
    if not targets:
        route.direct_response.status = 418
        route.direct_response.body.inline_string = f"direct {path}"
    elif len(targets) == 1:
        route.route.cluster = _pool_name(targets[0])
    else:
        for number in targets:
            route.route.weighted_clusters.clusters.add(name=_pool_name(number), weight={"value": 1})
    return route


def _cluster(number: int, pool: Pool) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=_pool_name(number),
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config={"eds_config": _ADS},
        connect_timeout=seconds(5 + pool.kind / 100),
        lb_policy=cluster_pb2.Cluster.LEAST_REQUEST if pool.kind % 2 else cluster_pb2.Cluster.ROUND_ROBIN,
    )


def _endpoints(number: int, pool: Pool) -> endpoint_pb2.ClusterLoadAssignment:
    sockets = [{"address": SERVER[4], "port_value": SERVER_PORT + server} for server in pool.endpoints]
    members = [{"endpoint": {"address": {"socket_address": one}}} for one in sockets]
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=_pool_name(number), endpoints=[{"lb_endpoints": members}])
