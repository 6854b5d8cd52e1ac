"""Which resources name which, and what dangles: any snapshot, whoever made it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET
from spliceway.xds.resources.consistency import check_references
from spliceway.xds.resources.facts import Address, Facts, Want, addresses_of, facts_of, wants_of
from spliceway.xds.resources.index import Index, Indexes
from spliceway.xds.resources.protofiles import load_object, load_resources
from support.protomodules import modules

TYPES = "type.googleapis.com/envoy.extensions"
ADS = {"ads": {}, "resource_api_version": "V3"}
FILE = {"path_config_source": {"path": "/x"}, "resource_api_version": "V3"}
MANAGER = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"


def listener(name: str = "l", port: int = 80, address: str = "0.0.0.0", **manager: object) -> dict[str, Any]:
    config = {
        "@type": MANAGER,
        "stat_prefix": "x",
        **(manager or {"rds": {"route_config_name": "r", "config_source": ADS}}),
    }
    return {
        "@type": LISTENER,
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": config}]}],
    }


def routes(name: str = "r", **action: object) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": action or {"cluster": "c"}}
    return {"@type": ROUTE, "name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}


def cluster(name: str = "c", **more: object) -> dict[str, Any]:
    eds = {"type": "EDS", "eds_cluster_config": {"eds_config": ADS}}
    return {"@type": CLUSTER, "name": name, **(more or eds)}


ENDPOINTS = {"@type": ENDPOINT, "cluster_name": "c"}
GOOD = [listener(), routes(), cluster(), ENDPOINTS]


def snapshot(*documents: object, previous: Snapshot | None = None, version: str = "1") -> Snapshot:
    bodies: dict[str, dict[str, bytes]] = {}
    for each in load_resources(yaml.safe_dump_all(documents), "f"):
        bodies.setdefault(each.url, {})[each.name] = each.body
    return Snapshot.of(version, bodies, previous)


def with_filter(name: str, **more: object) -> dict[str, Any]:
    return listener(http_filters=[{"name": name, **more}], route_config={})


def secret(source: object) -> dict[str, Any]:
    secrets = [{"name": "s", "sds_config": source} if source else {"name": "s"}]
    config = {
        "@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"tls_certificate_sds_secret_configs": secrets},
    }
    return cluster("c", type="STATIC", transport_socket={"name": "tls", "typed_config": config})


DISCOVERED = {"config_source": ADS, "type_urls": [f"{TYPES}.filters.http.router.v3.Router"]}
LOG = {
    "name": "x",
    "typed_config": {
        "@type": f"{TYPES}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        "common_config": {"log_name": "x", "grpc_service": {"envoy_grpc": {"cluster_name": "from-the-bootstrap"}}},
    },
}


@pytest.mark.parametrize(
    "documents",
    [
        [],
        GOOD,
        [listener(rds={"route_config_name": "r", "config_source": FILE})],
        [cluster("c", type="EDS", eds_cluster_config={"eds_config": FILE})],
        [cluster("c", type="EDS", eds_cluster_config={"eds_config": ADS, "service_name": "e"}),
         {**ENDPOINTS, "cluster_name": "e"}],
        [secret(FILE)],
        [secret(None)],
        [secret(ADS), {"@type": SECRET, "name": "s"}],
        [with_filter("f", config_discovery={**DISCOVERED, "config_source": FILE})],
        [listener(route_config={}, access_log=[LOG])],
        [ENDPOINTS],
        [listener("a", route_config={}), listener("b", address="127.0.0.1", route_config={})],
        [listener("a", route_config={}), {**listener("b", route_config={}), "bind_to_port": False}],
        [routes(cluster_header="x")],
    ],
)  # fmt: skip
def test_what_fits_together(documents: list[Any]) -> None:
    check_references(snapshot(*documents))


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (GOOD[:1], "listener 'l': route configuration 'r' is missing "
                   "(filter_chains[0].filters[0].typed_config.rds.route_config_name)"),
        (GOOD[1:2], "route configuration 'r': cluster 'c' is missing (virtual_hosts[0].routes[0].route.cluster)"),
        (GOOD[2:3], "cluster 'c': endpoints 'c' is missing (eds_cluster_config)"),
        ([secret(ADS)], "cluster 'c': secret 's' is missing (transport_socket.typed_config.common_tls_context."
                        "tls_certificate_sds_secret_configs[0].name)"),
        ([with_filter("f", config_discovery=DISCOVERED)],
         "listener 'l': extension 'f' is missing (filter_chains[0].filters[0].typed_config.http_filters[0].name)"),
        ([routes(weighted_clusters={"clusters": [{"name": "x", "weight": 1}]})],
         "route configuration 'r': cluster 'x' is missing "
         "(virtual_hosts[0].routes[0].route.weighted_clusters.clusters[0].name)"),
        ([cluster("c", cluster_type={"name": "a", "typed_config": {
            "@type": f"{TYPES}.clusters.aggregate.v3.ClusterConfig", "clusters": ["c", "x"]}})],
         "cluster 'c': cluster 'x' is missing (cluster_type.typed_config.clusters)"),
        ([listener("a", route_config={}), listener("b", route_config={})],
         "listener 'b': has the address 0.0.0.0 port 80 of 'a'"),
        ([listener("a", address="::1", route_config={}), listener("b", address="0:0::1", route_config={})],
         "listener 'b': has the address ::1 port 80 of 'a'"),
    ],
)  # fmt: skip
def test_what_dangles(documents: list[Any], message: str) -> None:
    with pytest.raises(InconsistentSnapshotError) as caught:
        check_references(snapshot(*documents))
    assert str(caught.value) == message


def test_names_and_types_of_what_is_stored() -> None:
    body = snapshot(routes("r", cluster_header="x")).types[ROUTE].resources["r"].body
    with pytest.raises(InconsistentSnapshotError, match=r"'x': is stored under this name, but calls itself 'r'"):
        check_references(Snapshot.of("1", {ROUTE: {"x": body}}))
    for url in (CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE, EXTENSION):
        with pytest.raises(InconsistentSnapshotError, match=r"'x': is not a envoy\."):
            check_references(Snapshot.of("1", {url: {"x": b"\xff"}}))


def test_each_change_is_seen_after_any_other() -> None:
    """Random changes of one resource at a time: the check that goes on from the last says what a fresh one says."""
    source = random.Random(7)
    held: dict[str, dict[str, Any]] = {}
    last: Snapshot | None = None
    seen = set()
    for turn in range(150):
        key = source.choice("lrce") + str(source.randrange(4))
        if key in held and source.random() < 0.4:
            del held[key]
        else:
            held[key] = document(key, source.randrange(4), source.randrange(3))
        last = snapshot(*held.values(), previous=last, version=str(turn))
        fresh = Snapshot.of("fresh", last.bodies())
        found = verdict(last)
        assert bool(found) == bool(verdict(fresh)), (turn, found)
        seen.add(found.partition(":")[0].split(" ")[0])
    assert seen == {"", "listener", "route", "cluster"}


def document(key: str, other: int, port: int) -> dict[str, Any]:
    kind, number = key[0], key[1:]
    if kind == "l":
        rds = {"route_config_name": f"r{other}", "config_source": ADS}
        return listener(key, 80 + port, rds=rds) if port else listener(key, 90 + int(number), route_config={})
    if kind == "r":
        return routes(key, cluster=f"c{other}") if port else routes(key, cluster_header="x")
    if kind == "c":
        eds = {"eds_config": ADS, "service_name": f"e{other}"}
        return cluster(key, type="EDS", eds_cluster_config=eds) if port else cluster(key, type="STATIC")
    return {**ENDPOINTS, "cluster_name": key}


def verdict(of: Snapshot) -> str:
    try:
        check_references(of)
    except InconsistentSnapshotError as error:
        return str(error)
    return ""


def test_only_what_changed_is_read() -> None:
    read: list[str] = []

    def reader(url: str, name: str, body: bytes) -> Facts:
        read.append(name)
        return facts_of(url, name, body)

    indexes = Indexes(reader)
    first = snapshot(*(routes(f"r{index}") for index in range(20)))
    indexes.of(ROUTE, first.types[ROUTE])
    assert len(read) == 20
    indexes.of(ROUTE, first.types[ROUTE])
    assert len(read) == 20
    changed = [routes(f"r{index}", cluster="c" if index else "d") for index in range(19)]
    second = snapshot(*changed, previous=first, version="2")
    index = indexes.of(ROUTE, second.types[ROUTE])
    assert read[20:] == ["r0"]
    assert index.wants == {CLUSTER: {"c": 18, "d": 1}}
    assert "r19" not in index.facts


def test_counts_go_back_to_nothing() -> None:
    facts = Facts(
        "l", (Want(ROUTE, "r", ""), Want(ROUTE, "r", "")), (Address("TCP", "::", 1), Address("TCP", "::1", 1))
    )
    index = Index()
    index.put("l", facts)
    assert (index.wants[ROUTE], index.ports, index.listening) == ({"r": 2}, {1: 2}, 2)
    index.put("l", None)
    index.put("m", None)
    assert (index.wants[ROUTE], index.ports, index.addresses, index.listening) == ({}, {}, {}, 0)


def test_addresses_of_a_listener() -> None:
    _, message = load_object(
        {
            **listener(address="0:0:0::1"),
            "additional_addresses": [
                {"address": {"pipe": {"path": "/x"}}},
                {"address": {"socket_address": {"protocol": "UDP", "address": "::", "port_value": 53}}},
            ],
        },
        LISTENER,
        "f",
    )
    found = [str(address) for address in addresses_of(message)]  # type: ignore[arg-type]
    assert found == ["::1 port 80", "/x", ":: port 53"]


#: Every field of a served resource, or of what can be in one, whose name speaks of clusters and that names none.
NO_CLUSTERS = {
    "envoy.config.bootstrap.v3.ClusterManager.local_cluster_name",
    "envoy.config.core.v3.Node.cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment.cluster_name",
    "envoy.config.endpoint.v3.ClusterStats.cluster_name",
    "envoy.config.endpoint.v3.ClusterStats.cluster_service_name",
    "envoy.config.metrics.v3.StatsdSink.tcp_cluster_name",
    "envoy.config.route.v3.RouteAction.cluster_header",
    "envoy.config.route.v3.RouteAction.cluster_specifier_plugin",
    "envoy.config.route.v3.RouteAction.RequestMirrorPolicy.cluster_header",
    "envoy.config.route.v3.WeightedCluster.ClusterWeight.cluster_header",
    "envoy.extensions.filters.http.fault.v3.HTTPFault.upstream_cluster",
    "envoy.extensions.filters.network.reverse_tunnel.v3.Validation.cluster_id_format",
    "envoy.extensions.filters.network.thrift_proxy.v3.RouteAction.cluster_header",
}
#: Packages whose messages are in no served resource.
OTHERS = ("envoy.service", "envoy.data", "envoy.admin")


def test_every_field_that_speaks_of_clusters_is_known() -> None:
    """A new version of the protos may bring one: it is a reference, or belongs in the list."""
    named = {}
    for descriptor in (each for module in modules() for each in messages(module.DESCRIPTOR.message_types_by_name)):
        if ".v3." not in descriptor.full_name or descriptor.full_name.startswith(OTHERS):
            continue
        for field in descriptor.fields:
            if field.type == field.TYPE_STRING and "cluster" in field.name:
                message = descriptor._concrete_class()
                if field.is_repeated:
                    getattr(message, field.name).append("x")
                else:
                    setattr(message, field.name, "x")
                named[f"{descriptor.full_name}.{field.name}"] = any(want.url == CLUSTER for want in wants_of(message))
    assert {name for name, wanted in named.items() if not wanted} == NO_CLUSTERS


def messages(types: Mapping[str, Any]) -> list[Any]:
    """Types and the types inside them."""
    return [each for kind in types.values() for each in (kind, *messages(kind.nested_types_by_name))]
