"""Which other resources a resource names, as far as the order of sending depends on it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from google.protobuf.message import DecodeError

from spliceway.xds.protocol.typeurls import LISTENER, ROUTE


def endpoints_of(cluster: bytes) -> tuple[str, ...]:
    """Names of the EDS resources that a serialized cluster waits for: one if it is of type EDS, else none."""
    try:
        found = cluster_pb2.Cluster.FromString(cluster)
    except DecodeError:
        return ()  # not a cluster; whoever gets it will say so
    if found.WhichOneof("cluster_discovery_type") != "type" or found.type != cluster_pb2.Cluster.EDS:
        return ()
    return (found.eds_cluster_config.service_name or found.name,)


def at_once(cluster: bytes) -> bool:
    """Whether a client can use a serialized cluster once it has read it and its endpoints.

    Not if there are names to resolve, health checks to wait for, or certificates.
    """
    try:
        found = cluster_pb2.Cluster.FromString(cluster)
    except DecodeError:
        return False
    if found.WhichOneof("cluster_discovery_type") != "type":
        return False
    known = found.type in (cluster_pb2.Cluster.STATIC, cluster_pb2.Cluster.ORIGINAL_DST, cluster_pb2.Cluster.EDS)
    return bool(known) and not found.health_checks and not found.HasField("transport_socket")


def no_endpoints(name: str) -> bytes:
    """A serialized load assignment without any endpoint."""
    return bytes(endpoint_pb2.ClusterLoadAssignment(cluster_name=name).SerializeToString())


def clusters_of(url: str, body: bytes) -> frozenset[str]:
    """Clusters to which a serialized route configuration or listener sends traffic: it is of no use before they are."""
    try:
        if url == ROUTE:
            return frozenset(_of_routes(route_pb2.RouteConfiguration.FromString(body)))
        if url == LISTENER:
            return frozenset(_of_listener(listener_pb2.Listener.FromString(body)))
    except DecodeError:
        pass  # whoever gets it will say so
    return frozenset()


def _of_listener(listener: listener_pb2.Listener) -> Iterator[str]:
    manager, tcp = http_connection_manager_pb2.HttpConnectionManager(), tcp_proxy_pb2.TcpProxy()
    if listener.api_listener.api_listener.Unpack(manager):
        yield from _of_routes(manager.route_config)
    for chain in (*listener.filter_chains, listener.default_filter_chain):
        for item in chain.filters:
            if item.typed_config.Unpack(manager):
                yield from _of_routes(manager.route_config)
            elif item.typed_config.Unpack(tcp):
                weighted = [part.name for part in tcp.weighted_clusters.clusters]
                yield from weighted or [tcp.cluster]


def _of_routes(config: route_pb2.RouteConfiguration) -> Iterator[str]:
    for host in config.virtual_hosts:
        for route in host.routes:
            if route.HasField("route"):
                yield from _of_action(route.route)


def _of_action(action: route_components_pb2.RouteAction) -> Iterator[str]:
    if action.cluster:
        yield action.cluster
    for part in action.weighted_clusters.clusters:
        if part.name:
            yield part.name
