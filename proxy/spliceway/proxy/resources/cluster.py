"""Reads the one cluster."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from spliceway.proxy.model import ClusterConfig
from spliceway.proxy.resources.manager import PRESERVE_CASE
from spliceway.proxy.resources.names import CLUSTER_ORIGINAL
from spliceway.proxy.resources.shapes import ANY, Found, Hole, Packed, Shape, check, parsed
from spliceway.proxy.resources.values import buffer, count, kibibytes, some_time

_UNLIMITED = 0xFFFF_FFFF
# linux/in.h; `level` (IPPROTO_IP) and `state` (STATE_PREBIND) are 0.
_IP_BIND_ADDRESS_NO_PORT = 24

_OPTIONS: Shape = {
    "common_http_protocol_options": {
        # Of upstream connections that nobody uses: the proxy's end with the client's.
        "idle_timeout": ANY,
        "max_headers_count": Hole("max_headers", count),
        "max_response_headers_kb": Hole("max_head_bytes", kibibytes),
    },
    "use_downstream_protocol_config": {
        "http_protocol_options": {"header_key_format": PRESERVE_CASE},
        "http2_protocol_options": {},
    },
}
_CLUSTER: Shape = {
    "name": CLUSTER_ORIGINAL,
    "type": "ORIGINAL_DST",
    "lb_policy": "CLUSTER_PROVIDED",
    "connect_timeout": Hole("connect_timeout", some_time),
    "connection_pool_per_downstream_connection": True,
    "per_connection_buffer_limit_bytes": Hole("buffer_limit", buffer),
    "circuit_breakers": {
        "thresholds": [
            dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED)
        ]
    },
    "upstream_bind_config": {
        "socket_options": [{"description": ANY, "name": _IP_BIND_ADDRESS_NO_PORT, "int_value": 1}]
    },
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Packed(
            http_protocol_options_pb2.HttpProtocolOptions, _OPTIONS
        )
    },
}


def cluster(body: bytes) -> ClusterConfig:
    """Read a serialised `envoy.config.cluster.v3.Cluster`.

    Raises:
        UnenforceableError: it is not exactly the cluster that connects to where the client wanted to go.
    """
    found: Found = {}
    check(parsed(cluster_pb2.Cluster, body), _CLUSTER, "", found)
    return ClusterConfig(name=CLUSTER_ORIGINAL, **found)
