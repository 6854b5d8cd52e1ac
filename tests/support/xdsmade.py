"""Made-up resources of realistic sizes: the project's own listeners and routes, clusters and endpoints as in a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, URLS
from spliceway.xds.resources import packing
from spliceway.xds.resources.clusters import original_cluster
from spliceway.xds.resources.listeners import rule_set_listener
from spliceway.xds.resources.names import CLUSTER_ORIGINAL, listener_name
from spliceway.xds.resources.routes import rule_set_routes
from spliceway.xds.resources.settings import ResourceSettings

#: Short names of the types that there are resources of.
KINDS = ("CDS", "EDS", "LDS", "RDS")
_ENDPOINTS = 10
_SETTINGS = ResourceSettings()

Bodies = dict[str, dict[str, bytes]]


def made(count: int) -> Bodies:
    """`count` resources (a quarter of each of `KINDS`) and the cluster that routes name: type URL -> name -> body."""
    each = max(1, count // len(KINDS))
    bodies: Bodies = {URLS[kind]: {name_of(kind, n): body(kind, n) for n in range(each)} for kind in KINDS}
    bodies[CLUSTER][CLUSTER_ORIGINAL] = packing.serialized(original_cluster(_SETTINGS))
    return bodies


def name_of(kind: str, number: int) -> str:
    """The name of the resource of that kind with that number. A listener and its routes have the same."""
    return f"service-{number}" if kind in ("CDS", "EDS") else listener_name(number + 1)


def body(kind: str, number: int, revision: int = 0) -> bytes:
    """One resource, serialized; each revision is other content of about the same size."""
    if kind == "CDS":
        return packing.serialized(_cluster(number, revision))
    if kind == "EDS":
        return packing.serialized(_endpoints(number, revision))
    if kind == "LDS":
        listener = rule_set_listener(number + 1, 1024 + number, _SETTINGS)
        listener.stat_prefix = f"revision{revision}"
        return packing.serialized(listener)
    paths = ("/api/v1/orders", "/api/v1/items/[0-9]+", "/healthz", f"/revision/{revision}")
    rules = tuple(HttpRule(at + 1, "GET", path) for at, path in enumerate(paths))
    return packing.serialized(rule_set_routes(RuleSet(number + 1, f"shop/{name_of('RDS', number)}", rules)))


def changed(bodies: Mapping[str, Mapping[str, bytes]], kind: str, number: int, revision: int) -> Bodies:
    """The same with one resource in another revision."""
    url = URLS[kind]
    result = {each: dict(named) for each, named in bodies.items()}
    result[url][name_of(kind, number)] = body(kind, number, revision)
    return result


def name_in(resource: bytes) -> str:
    """The name of a resource of any of these kinds: the first field of its message, as `serialized` orders them."""
    size, start = resource[1], 2
    if size & 0x80:
        size, start = size & 0x7F | resource[2] << 7, 3
    return resource[start : start + size].decode()


@lru_cache(maxsize=1)
def names(count: int) -> dict[str, tuple[str, ...]]:
    """What a client asks for by name: type URL -> names."""
    each = max(1, count // len(KINDS))
    return {URLS[kind]: tuple(name_of(kind, n) for n in range(each)) for kind in ("EDS", "RDS")}


def _cluster(number: int, revision: int) -> cluster_pb2.Cluster:
    return cluster_pb2.Cluster(
        name=name_of("CDS", number),
        alt_stat_name=f"shop;revision{revision}",
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config={"eds_config": {"ads": {}, "resource_api_version": "V3"}},
        connect_timeout={"seconds": 5},
        lb_policy=cluster_pb2.Cluster.LEAST_REQUEST,
        circuit_breakers={"thresholds": [{"max_connections": {"value": 4096}, "max_requests": {"value": 4096}}]},
        outlier_detection={"consecutive_5xx": {"value": 5}, "interval": {"seconds": 10}},
        common_lb_config={"healthy_panic_threshold": {"value": 25}},
    )


def _endpoints(number: int, revision: int) -> endpoint_pb2.ClusterLoadAssignment:
    def one(at: int) -> dict[str, object]:
        address = f"10.{number >> 8 & 255}.{number & 255}.{at + 1}"
        return {
            "endpoint": {"address": {"socket_address": {"address": address, "port_value": 8080}}},
            "load_balancing_weight": {"value": 1 + (revision + at) % 100 if at == 0 else 100},
        }

    zone = {"region": "north", "zone": f"north-{revision % 1000}"}
    localities = [{"locality": zone, "lb_endpoints": [one(at) for at in range(_ENDPOINTS)]}]
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name_of("EDS", number), endpoints=localities)


assert {CLUSTER, ENDPOINT, LISTENER, ROUTE} == {URLS[kind] for kind in KINDS}
