"""Envoy's bootstrap: only the way to the agent; the rest comes over ADS. Pure: settings in, a JSON object out."""

from __future__ import annotations

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf.json_format import MessageToDict

from spliceway.policy.regex import MAX_PROGRAM_SIZE
from spliceway.xds.resources.names import CLUSTER_AGENT
from spliceway.xds.resources.packing import packed, seconds
from spliceway.xds.resources.settings import BootstrapSettings

_API = config_source_pb2.ApiConfigSource
_V3 = config_source_pb2.ApiVersion.V3
#: Source of listeners and clusters. No time limit for the first answer: without it Envoy would begin without listeners
#: and, worse, call itself ready.
_FROM_ADS = {"ads": {}, "resource_api_version": _V3, "initial_fetch_timeout": seconds(0)}


def bootstrap(settings: BootstrapSettings) -> dict[str, object]:
    """The bootstrap as a JSON object for Envoy's `--config-path`."""
    config = bootstrap_pb2.Bootstrap(
        node={"id": settings.node_id, "cluster": settings.cluster},
        admin={"address": {"pipe": {"path": str(settings.admin_socket), "mode": 0o600}}},
        dynamic_resources={
            "ads_config": {
                "api_type": _API.DELTA_GRPC if settings.delta else _API.GRPC,
                "transport_api_version": _V3,
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": CLUSTER_AGENT,
                            # Envoy's own back-off goes up to 30 s: an agent that is back should be seen at once.
                            "retry_policy": {
                                "retry_back_off": {
                                    "base_interval": seconds(min(0.1, settings.reconnect_max)),
                                    "max_interval": seconds(settings.reconnect_max),
                                }
                            },
                        }
                    }
                ],
            },
            "lds_config": _FROM_ADS,
            "cds_config": _FROM_ADS,
        },
        static_resources={"clusters": [_agent_cluster(settings)]},
        layered_runtime={
            "layers": [{"name": "static", "static_layer": _runtime()}, {"name": "admin", "admin_layer": {}}]
        },
        overload_manager=_overload(settings.max_connections) if settings.max_connections else None,
    )
    result: dict[str, object] = MessageToDict(config, preserving_proto_field_name=True)
    return result


def _overload(connections: int) -> dict[str, object]:
    limit = downstream_connections_pb2.DownstreamConnectionsConfig(max_active_downstream_connections=connections)
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return {"resource_monitors": [{"name": name, "typed_config": packed(limit)}]}


def _runtime() -> dict[str, object]:
    return {
        "re2.max_program_size.error_level": MAX_PROGRAM_SIZE,
        "re2.max_program_size.warn_level": MAX_PROGRAM_SIZE,
        # Envoy's answer to `/pub/..;/private` is to resolve it; ours is to refuse every `;`, which the deny-ambiguous
        # filter can only do while it is still there. Whoever lets `;` through some day has to give this up.
        "envoy.reloadable_features.strip_dotdot_segments_with_parameters": False,
    }


def _agent_cluster(settings: BootstrapSettings) -> cluster_pb2.Cluster:
    http2 = http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config={"http2_protocol_options": {}})
    pipe = {"endpoint": {"address": {"pipe": {"path": str(settings.xds_socket)}}}}
    return cluster_pb2.Cluster(
        name=CLUSTER_AGENT,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(1),
        load_assignment={"cluster_name": CLUSTER_AGENT, "endpoints": [{"lb_endpoints": [pipe]}]},
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(http2),
        },
    )
