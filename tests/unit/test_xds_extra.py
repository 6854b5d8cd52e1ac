"""The user's own listeners and clusters: what is served beside policy, and what is refused at which field."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2

from spliceway.agent.config import parse_config
from spliceway.agent.errors import ConfigError
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.consistency import check_policy
from spliceway.xds.resources.extra import NO_EXTRA, Extra, Reserved, load_extra
from spliceway.xds.resources.packing import serialized
from spliceway.xds.resources.settings import ResourceSettings

TYPES = "type.googleapis.com/envoy.extensions"
MANAGER = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
RESERVED = Reserved(23000, 23999, ("/run/spliceway/agent.sock", "/var/lib/spliceway/"))
ROUTER = {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}
EXPORTER: dict[str, Any] = {
    "name": "exporter",
    "type": "STATIC",
    "load_assignment": {
        "cluster_name": "exporter",
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9256}}}}
                ]
            }
        ],
    },
}
METRICS: dict[str, Any] = {
    "name": "metrics",
    "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9100}},
    "filter_chains": [
        {
            "filters": [
                {
                    "name": "http",
                    "typed_config": {
                        "@type": MANAGER,
                        "stat_prefix": "metrics",
                        "http_filters": [ROUTER],
                        "route_config": {
                            "virtual_hosts": [
                                {
                                    "name": "all",
                                    "domains": ["*"],
                                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "exporter"}}],
                                }
                            ]
                        },
                    },
                }
            ]
        }
    ],
}
HTTP = "filter_chains[0].filters[0].typed_config"
ROUTE_WAY = "route_config/virtual_hosts/0/routes/0/route"
ROUTE_0 = f"{HTTP}.route_config.virtual_hosts[0].routes[0].route"


_REST = {"cgroups": {"pods": "/a", "proxy": "/b"}, "source": {"directory": "/c"}, "proxy": {"kind": "envoy"}}


def config_text(**envoy: object) -> str:
    return yaml.safe_dump({**_REST, "envoy": envoy}, sort_keys=False)


def edited(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one place changed: keys with slashes between, numbers for items of lists."""
    result = at = copy.deepcopy(document)
    *way, last = path.split("/")
    for key in way:
        if isinstance(at, dict) and key not in at:
            at[key] = {}
        at = at[int(key)] if key.isdigit() else at[key]
    at[int(last) if last.isdigit() else last] = value
    return result


def manager(path: str, value: object) -> dict[str, Any]:
    return edited(METRICS, f"filter_chains/0/filters/0/typed_config/{path}", value)


def route(path: str, value: object) -> dict[str, Any]:
    return manager(f"{ROUTE_WAY}/{path}", value)


def good() -> Extra:
    return load_extra([METRICS], [EXPORTER], RESERVED)


def test_of_the_configuration() -> None:
    config = parse_config(config_text(extraListeners=[METRICS], extraClusters=[EXPORTER]), "agent.yaml")
    extra = config.envoy_extra()
    assert extra == good()
    assert extra.names == {(CLUSTER, "exporter"), (LISTENER, "metrics")}
    listener = listener_pb2.Listener.FromString(extra.bodies[LISTENER]["metrics"])
    assert listener.address.socket_address.port_value == 9100
    assert parse_config(config_text(), "agent.yaml").envoy_extra() == Extra({CLUSTER: {}, LISTENER: {}})


def test_with_its_type_and_in_the_other_spelling() -> None:
    typed = {"@type": LISTENER, **METRICS, "perConnectionBufferLimitBytes": 4096}
    assert load_extra([typed], [{"@type": CLUSTER, **EXPORTER}], RESERVED).names == good().names


@pytest.mark.parametrize(
    ("listeners", "clusters", "field", "reason"),
    [
        ([5], [], "extraListeners[0]", "must be a mapping, is an integer"),
        ([{"@type": CLUSTER}], [], "extraListeners[0].@type", f"must be {LISTENER}"),
        ([METRICS, {}], [EXPORTER], "extraListeners[1].name", "is required"),
        ([manager("foo", 1)], [EXPORTER], f"extraListeners[0].{HTTP}", 'unknown field "foo"'),
        ([manager("stat_prefix", "")], [EXPORTER], f"extraListeners[0].{HTTP}.stat_prefix", "is required"),
        ([], [edited(EXPORTER, "connect_timeout", "-1s")], "extraClusters[0].connect_timeout", "must be more than 0s"),
        ([], [edited(EXPORTER, "metadata", "2020")], "extraClusters[0].metadata", "must be a mapping, is a string"),
    ],
)
def test_what_the_protos_refuse_ends_the_start(
    listeners: list[object], clusters: list[object], field: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config_text(extraListeners=listeners, extraClusters=clusters), "agent.yaml")
    assert str(caught.value) == f"agent.yaml: envoy.{field}: {reason}"


OPTION = {"level": 1, "name": 36, "int_value": 0x1002, "state": "STATE_PREBIND"}
KEEPALIVE = {"level": 1, "name": 9, "int_value": 1, "state": "STATE_PREBIND"}
ORIGINAL_SRC = {"name": "x", "typed_config": {"@type": f"{TYPES}.filters.listener.original_src.v3.OriginalSrc"}}
TYPED_STRUCT = {
    "name": "x",
    "typed_config": {
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": f"{TYPES}.filters.listener.original_src.v3.OriginalSrc",
    },
}
TCP_STATE = {
    "name": "x",
    "typed_config": {
        "@type": f"{TYPES}.filters.network.set_filter_state.v3.Config",
        "on_new_connection": [
            {
                "object_key": "envoy.tcp_proxy.cluster",
                "format_string": {"text_format_source": {"inline_string": "%REQUESTED_SERVER_NAME%"}},
            }
        ],
    },
}
TCP = {
    "name": "x",
    "typed_config": {
        "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "exporter",
    },
}  # fmt: skip
UDP = {
    "name": "x",
    "typed_config": {
        "@type": f"{TYPES}.filters.udp.udp_proxy.v3.UdpProxyConfig",
        "stat_prefix": "x",
        "cluster": "exporter",
        "use_original_src_ip": True,
    },
}
ADS = {"ads": {}, "resource_api_version": "V3"}
FILE = {"path_config_source": {"path": "/etc/x.yaml"}, "resource_api_version": "V3"}
LOG = {
    "name": "x",
    "typed_config": {
        "@type": f"{TYPES}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        "common_config": {"log_name": "x", "grpc_service": {"envoy_grpc": {"cluster_name": "spliceway-agent"}}},
    },
}
AUTHZ = {
    "name": "x",
    "typed_config": {
        "@type": f"{TYPES}.filters.http.ext_authz.v3.ExtAuthz",
        "grpc_service": {"envoy_grpc": {"cluster_name": "nobody"}},
    },
}
TLS = f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"


def tls(source: object) -> dict[str, Any]:
    """The listener with a certificate from somewhere."""
    secrets = [{"name": "certificate", "sds_config": source}]
    socket = {
        "name": "x",
        "typed_config": {"@type": TLS, "common_tls_context": {"tls_certificate_sds_secret_configs": secrets}},
    }
    return edited(METRICS, "filter_chains/0/transport_socket", socket)


def eds(source: object) -> dict[str, Any]:
    return {"name": "exporter", "type": "EDS", "eds_cluster_config": {"eds_config": source}}


OTHERS = "is not allowed: it would speak with addresses that are not the node's"
BOUND = "is not allowed: it could be another's address; the kernel chooses one of the node's"
LATER = "is not allowed: a request could choose a cluster of policy's own"
ELSEWHERE = "is not allowed: what comes from elsewhere can't be checked; write it here"
CHOSEN = "ORIGINAL_DST is not allowed: clients would say where it connects to"

PORTS = "one of proxy.listenerPorts (23000-23999)"
OWN = "is a cluster of policy's own"
NOBODY = "there is no cluster 'nobody' in envoy.extraClusters"

LISTENERS: list[tuple[dict[str, Any], str, str]] = [
    (edited(METRICS, "name", "rule-set-7"), "name", "rule-set-7 is a name of policy's own"),
    (edited(METRICS, "name", "rule-set-x"), "name", "rule-set-x is a name of policy's own"),
    (edited(METRICS, "address", None), "address", "is required"),
    (edited(METRICS, "address/socket_address/port_value", 0), "address.socket_address.port_value",
     "is required: a port from 1 to 65535"),
    (edited(METRICS, "address/socket_address/port_value", 23005), "", f"port 23005 is {PORTS}"),
    (edited(METRICS, "address/socket_address", {"address": "192.0.2.1", "port_value": 23999, "protocol": "UDP"}), "",
     f"port 23999 is {PORTS}"),
    (edited(METRICS, "additional_addresses", [{"address": {"socket_address": {"address": "::", "port_value": 23000}}}]),
     "", f"port 23000 is {PORTS}"),
    (edited(METRICS, "address/socket_address/network_namespace_filepath", "/run/netns/x"),
     "address.socket_address.network_namespace_filepath",
     "is not allowed: policy does not know the sockets of other namespaces"),
    (edited(METRICS, "address", {"pipe": {"path": "/var/lib/spliceway/xds.sock"}}), "address.pipe.path",
     "/var/lib/spliceway/ is the agent's own"),
    (edited(METRICS, "address", {"pipe": {"path": "/var/lib/x/..//./spliceway/xds.sock"}}), "address.pipe.path",
     "/var/lib/spliceway/ is the agent's own"),
    (edited(METRICS, "transparent", True), "transparent", OTHERS),
    (edited(METRICS, "freebind", True), "freebind", OTHERS),
    (edited(METRICS, "use_original_dst", True), "use_original_dst",
     "is not allowed: it hands connections to other listeners"),
    (edited(METRICS, "socket_options", [KEEPALIVE, OPTION]), "socket_options[1]",
     "socket option 1/36 is not allowed: only those of keepalive, buffers and TCP are"),
    (edited(METRICS, "additional_addresses",
            [{"address": {"socket_address": {"address": "::", "port_value": 9100}},
              "socket_options": {"socket_options": [OPTION]}}]),
     "additional_addresses[0].socket_options.socket_options[0]",
     "socket option 1/36 is not allowed: only those of keepalive, buffers and TCP are"),
    (edited(METRICS, "listener_filters", [ORIGINAL_SRC]), "listener_filters[0].typed_config",
     "original_src is not allowed: it would speak with addresses that are not the node's"),
    (edited(METRICS, "listener_filters", [TYPED_STRUCT]), "listener_filters[0].typed_config",
     "a TypedStruct is not allowed: what is in it can't be checked; write the message itself"),
    (edited(METRICS, "listener_filters", [{"name": "x", "config_discovery": {
        "config_source": FILE, "type_urls": [f"{TYPES}.filters.listener.original_src.v3.OriginalSrc"]}}]),
     "listener_filters[0].config_discovery.config_source", ELSEWHERE),
    (edited(METRICS, "filter_chains/0/filters", [TCP_STATE, TCP]),
     "filter_chains[0].filters[0].typed_config.on_new_connection[0].object_key",
     "envoy.tcp_proxy.cluster is not allowed: a connection could choose a cluster of policy's own"),
    ({"name": "udp", "address": {"socket_address": {"address": "::", "port_value": 9100, "protocol": "UDP"}},
      "udp_listener_config": {}, "listener_filters": [UDP]},
     "listener_filters[0].typed_config.use_original_src_ip", OTHERS),
    (edited(METRICS, "api_listener", {"api_listener": {"@type": MANAGER, "stat_prefix": "x", "route_config": {}}}),
     "api_listener", "is not allowed: it is for clients, not for a proxy"),
    (route("cluster", "original-destination"), f"{ROUTE_0}.cluster", f"original-destination {OWN}"),
    (route("cluster", "spliceway-agent"), f"{ROUTE_0}.cluster", "spliceway-agent is a cluster of policy's own"),
    (route("cluster", "nobody"), f"{ROUTE_0}.cluster", NOBODY),
    (route("request_mirror_policies", [{"cluster": "exporter"}, {"cluster": "nobody"}]),
     f"{ROUTE_0}.request_mirror_policies[1].cluster", NOBODY),
    (manager(ROUTE_WAY, {"cluster_header": "x-cluster"}), f"{ROUTE_0}.cluster_header", LATER),
    (manager(ROUTE_WAY,
             {"weighted_clusters": {"clusters": [{"name": "exporter", "weight": 1}, {"name": "nobody", "weight": 1}]}}),
     f"{ROUTE_0}.weighted_clusters.clusters[1].name", NOBODY),
    (manager("http_filters", [AUTHZ, ROUTER]),
     f"{HTTP}.http_filters[0].typed_config.grpc_service.envoy_grpc.cluster_name",
     NOBODY),
    (manager("access_log", [LOG]),
     f"{HTTP}.access_log[0].typed_config.common_config.grpc_service.envoy_grpc.cluster_name",
     "spliceway-agent is a cluster of policy's own"),
    (tls(ADS), "filter_chains[0].transport_socket.typed_config.common_tls_context."
     "tls_certificate_sds_secret_configs[0].name", "there is no secret 'certificate' here: write it out in place"),
]  # fmt: skip

WAITS = "policy waits for it when Envoy starts"
ASKED = {
    "api_type": "GRPC",
    "transport_api_version": "V3",
    "grpc_services": [{"envoy_grpc": {"cluster_name": "exporter"}}],
}


def asked(wait: str | None) -> dict[str, Any]:
    """A source of certificates that is another server."""
    source = {"api_config_source": ASKED, "resource_api_version": "V3"}
    return source if wait is None else {**source, "initial_fetch_timeout": wait}


SDS_WAIT = (
    "filter_chains[0].transport_socket.typed_config.common_tls_context."
    "tls_certificate_sds_secret_configs[0].sds_config.initial_fetch_timeout"
)
DNS = {**EXPORTER, "type": "STRICT_DNS"}
CHECK = {"timeout": "2s", "interval": "5s", "unhealthy_threshold": 1, "healthy_threshold": 1, "tcp_health_check": {}}
JWT = f"{TYPES}.filters.http.jwt_authn.v3.JwtAuthentication"


def keys(**fetch: object) -> dict[str, Any]:
    """The listener with keys that are fetched from a server."""
    uri = {"uri": "https://keys.example/", "cluster": "exporter", "timeout": "1s"}
    provider = {"remote_jwks": {"http_uri": uri, "async_fetch": fetch}}
    item = {"name": "x", "typed_config": {"@type": JWT, "providers": {"a": provider}}}
    return manager("http_filters", [item, ROUTER])


LISTENERS += [
    *((tls(asked(wait)), SDS_WAIT, f"is required, more than 0s and at most 2s: {WAITS}")
      for wait in (None, "0s", "2.1s")),
    (keys(), f'{HTTP}.http_filters[0].typed_config.providers["a"].remote_jwks.async_fetch.fast_listener',
     f"must be true: else {WAITS}"),
]  # fmt: skip
CLUSTERS: list[tuple[dict[str, Any], str, str]] = [
    (edited(EXPORTER, "name", "original-destination"), "name", "original-destination is a name of policy's own"),
    (edited(EXPORTER, "name", "spliceway-agent"), "name", "spliceway-agent is a name of policy's own"),
    ({"name": "exporter", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}, "type", CHOSEN),
    (
        {
            "name": "exporter",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {"name": "envoy.clusters.dynamic_forward_proxy"},
        },
        "cluster_type",
        "is not allowed: clients would say where it connects to",
    ),
    ({"name": "exporter", "cluster_type": {"name": "envoy.clusters.original_dst"}}, "cluster_type",
     "is not allowed: clients would say where it connects to"),
    (edited(EXPORTER, "upstream_bind_config", {"freebind": True}), "upstream_bind_config.freebind", BOUND),
    (edited(EXPORTER, "upstream_bind_config", {"source_address": {"address": "10.0.0.7", "port_value": 0}}),
     "upstream_bind_config.source_address", BOUND),
    (edited(EXPORTER, "upstream_bind_config",
            {"source_address": {"address": "::", "port_value": 0, "network_namespace_filepath": "/run/netns/x"}}),
     "upstream_bind_config.source_address.network_namespace_filepath",
     "is not allowed: policy does not know the sockets of other namespaces"),
    (edited(EXPORTER, "upstream_bind_config/extra_source_addresses",
            [{"address": {"address": "10.0.0.7", "port_value": 0}}]),
     "upstream_bind_config.extra_source_addresses", BOUND),
    (edited(EXPORTER, "upstream_bind_config", {"socket_options": [OPTION]}), "upstream_bind_config.socket_options[0]",
     "socket option 1/36 is not allowed: only those of keepalive, buffers and TCP are"),
    (edited(EXPORTER, "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address",
            {"pipe": {"path": "/run/spliceway/agent.sock"}}),
     "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.pipe.path",
     "/run/spliceway/agent.sock is the agent's own"),
    *((eds(source), "type", f"EDS is not allowed: {WAITS}; write the endpoints here") for source in (ADS, FILE)),
    (DNS, "wait_for_warm_on_init", f"must be false: else {WAITS}"),
    ({**DNS, "type": "LOGICAL_DNS", "wait_for_warm_on_init": True}, "wait_for_warm_on_init",
     f"must be false: else {WAITS}"),
    ({**EXPORTER, "health_checks": [CHECK, {**CHECK, "timeout": "3s"}]}, "health_checks[1].timeout",
     f"must be at most 2s, with initial_jitter: {WAITS}"),
    ({**EXPORTER, "health_checks": [{**CHECK, "initial_jitter": "1s"}]}, "health_checks[0].timeout",
     f"must be at most 2s, with initial_jitter: {WAITS}"),
]  # fmt: skip


@pytest.mark.parametrize(("listener", "field", "reason"), LISTENERS)
def test_listeners_that_policy_does_not_allow(listener: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config_text(extraListeners=[listener], extraClusters=[EXPORTER]), "agent.yaml")
    where = ".".join(part for part in ("envoy.extraListeners[0]", field) if part)
    assert str(caught.value) == f"agent.yaml: {where}: {reason}"


@pytest.mark.parametrize(("cluster", "field", "reason"), CLUSTERS)
def test_clusters_that_policy_does_not_allow(cluster: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config_text(extraClusters=[cluster]), "agent.yaml")
    assert str(caught.value) == f"agent.yaml: envoy.extraClusters[0].{field}: {reason}"


def test_routes_come_with_the_listener() -> None:
    bare = manager("route_config", None)
    for source, field, reason in (
        (ADS, "rds.config_source", ELSEWHERE),
        (FILE, "rds.config_source", ELSEWHERE),
    ):
        rds = {"route_config_name": "rule-set-7", "config_source": source}
        listener = edited(bare, "filter_chains/0/filters/0/typed_config/rds", rds)
        with pytest.raises(ConfigError) as caught:
            parse_config(config_text(extraListeners=[listener], extraClusters=[EXPORTER]), "agent.yaml")
        assert str(caught.value) == f"agent.yaml: envoy.extraListeners[0].{HTTP}.{field}: {reason}"


@pytest.mark.parametrize(
    ("listeners", "clusters", "message"),
    [
        ([METRICS, METRICS], [EXPORTER],
         "envoy.extraListeners[1].name: metrics is the name of envoy.extraListeners[0] too"),
        ([METRICS, edited(METRICS, "name", "b")], [EXPORTER],
         "envoy.extraListeners[1]: has the address 0.0.0.0 port 9100 of envoy.extraListeners[0]"),
        ([], [EXPORTER, EXPORTER], "envoy.extraClusters[1].name: exporter is the name of envoy.extraClusters[0] too"),
    ],
)  # fmt: skip
def test_nothing_is_there_twice(listeners: list[object], clusters: list[object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config_text(extraListeners=listeners, extraClusters=clusters), "agent.yaml")
    assert str(caught.value) == f"agent.yaml: {message}"


@pytest.mark.parametrize(
    ("listener", "cluster"),
    [
        (tls(FILE), EXPORTER),
        (tls(asked("2s")), EXPORTER),
        (keys(fast_listener=True), EXPORTER),
        (METRICS, {**DNS, "wait_for_warm_on_init": False}),
        (METRICS, {**EXPORTER, "health_checks": [CHECK]}),
        (edited(METRICS, "socket_options", [KEEPALIVE]), EXPORTER),
        (METRICS, edited(EXPORTER, "upstream_bind_config/source_address", {"address": "0.0.0.0", "port_value": 0})),
        (edited(METRICS, "address", {"pipe": {"path": "/run/other.sock"}}), EXPORTER),
        (edited(METRICS, "transparent", False), EXPORTER),
        (edited(METRICS, "bind_to_port", False), EXPORTER),
        (edited(METRICS, "address/socket_address/protocol", "TCP"), EXPORTER),
    ],
)
def test_what_leaves_policy_alone_is_allowed(listener: dict[str, Any], cluster: dict[str, Any]) -> None:
    config = parse_config(config_text(extraListeners=[listener], extraClusters=[cluster]), "agent.yaml")
    assert build(config.envoy_extra()).extra == good().names


def rule_sets(*keys: int) -> dict[int, RuleSet]:
    return {key: RuleSet(key, f"set {key}", (HttpRule(1, "GET", "/a"),)) for key in keys}


def build(extra: Extra = NO_EXTRA, *keys: int, previous: Snapshot | None = None, version: str = "1") -> Snapshot:
    sets = rule_sets(*(keys or (5,)))
    return build_snapshot(sets, {key: 23000 + key for key in sets}, ResourceSettings(), version, previous, extra)


def test_the_snapshot_has_both() -> None:
    snapshot = build(good())
    assert snapshot.extra == {(CLUSTER, "exporter"), (LISTENER, "metrics")}
    assert list(snapshot.types[LISTENER].resources) == ["metrics", "rule-set-5"]
    assert list(snapshot.types[CLUSTER].resources) == ["exporter", "original-destination"]
    again = build(good(), 5, 6, previous=snapshot, version="2")
    assert again.types[LISTENER].changed == {"rule-set-6"}
    assert again.types[LISTENER].resources["metrics"].version == "1"
    gone = build(NO_EXTRA, 5, 6, previous=again, version="3")
    assert gone.types[LISTENER].changed == {"metrics"}
    assert gone.extra == frozenset()


def with_extra(bodies: dict[str, dict[str, bytes]], extra: frozenset[tuple[str, str]]) -> Snapshot:
    """Policy's snapshot with these beside it, past the checks of the configuration."""
    own = build(good()).bodies()
    return Snapshot.of("9", {url: {**own[url], **bodies.get(url, {})} for url in own}, extra=good().names | extra)


def listening(name: str, address: str, port: int) -> bytes:
    return serialized(
        listener_pb2.Listener(name=name, address={"socket_address": {"address": address, "port_value": port}})
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.1"])
def test_an_extra_listener_on_a_rule_sets_port_is_found(address: str) -> None:
    snapshot = with_extra({LISTENER: {"x": listening("x", address, 23005)}}, frozenset({(LISTENER, "x")}))
    with pytest.raises(InconsistentSnapshotError, match=r"^listener 'x': has port 23005, which is a rule set's$"):
        check_policy(snapshot)


def routes_to(name: str, cluster: str) -> bytes:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    return serialized(
        route_pb2.RouteConfiguration(name=name, virtual_hosts=[{"name": "x", "domains": ["*"], "routes": [route]}])
    )


CLUSTER_X = serialized(cluster_pb2.Cluster(name="original-destination"))
FORGED = listener_pb2.Listener(name="x", address={"socket_address": {"address": "127.0.0.1", "port_value": 99}})
FORGED.transparent.value = True


@pytest.mark.parametrize(
    ("url", "name", "body", "extra", "message"),
    [
        (LISTENER, "x", listening("x", "0.0.0.0", 99), False, "listener 'x': has no HTTP connection manager"),
        (LISTENER, "rule-set-5", listening("rule-set-5", "0.0.0.0", 99), True, "rule-set-5 is a name of policy's own"),
        (LISTENER, "x", listening("y", "0.0.0.0", 99), True, "'x': is stored under this name, but calls itself 'y'"),
        (LISTENER, "x", listening("x", "0.0.0.0", 9100), True, "address 0.0.0.0 port 9100 of 'metrics'"),
        (LISTENER, "x", serialized(FORGED), True, "listener 'x': transparent: is not allowed"),
        (LISTENER, "x", b"\xff", True, "listener 'x': is not a envoy.config.listener.v3.Listener"),
        (ROUTE, "rule-set-5", routes_to("rule-set-5", "exporter"), True, "rule-set-5 is a name of policy's own"),
        (ROUTE, "rule-set-5", routes_to("rule-set-5", "exporter"), False, "does not lead to original-destination"),
        (ROUTE, "x", routes_to("x", "exporter"), False, "does not lead to original-destination"),
        (ROUTE, "x", routes_to("x", "original-destination"), True, "original-destination is a cluster of policy's own"),
        (ROUTE, "x", routes_to("x", "nobody"), True, "route configuration 'x': cluster 'nobody' is missing"),
        (CLUSTER, "original-destination", CLUSTER_X, True, "original-destination is a name of policy's own"),
        (CLUSTER, "original-destination", CLUSTER_X, False, "does not connect to where the client wanted to go"),
    ],
)  # fmt: skip
def test_a_snapshot_whose_extra_resources_touch_policy_is_refused(
    url: str, name: str, body: bytes, extra: bool, message: str
) -> None:
    snapshot = with_extra({url: {name: body}}, frozenset({(url, name)} if extra else ()))
    with pytest.raises(InconsistentSnapshotError) as caught:
        check_policy(snapshot)
    assert message in str(caught.value)


def test_extra_is_told_by_the_snapshot_and_not_by_what_was_checked_before() -> None:
    snapshot = build(good())
    same = Snapshot.of("2", snapshot.bodies(), snapshot)
    assert same.types[LISTENER] is snapshot.types[LISTENER]
    with pytest.raises(InconsistentSnapshotError, match="listener 'metrics': "):
        check_policy(same)


def test_neither_errors_nor_repr_show_what_is_in_a_resource() -> None:
    secret = {"name": "x", "generic_secret": {"secret": {"inline_string": "hunter2"}}}
    item = {"name": "x", "typed_config": {"@type": f"{TYPES}.transport_sockets.tls.v3.Secret", **secret}}
    assert "hunter2" not in repr(load_extra([manager("http_filters", [item])], [EXPORTER], RESERVED))
