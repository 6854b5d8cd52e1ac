"""The one cluster: connect to where the client wanted to go, on a connection of its own."""

from __future__ import annotations

import socket

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import socket_option_pb2
from envoy.extensions.http.header_formatters.preserve_case.v3 import preserve_case_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from spliceway.xds.resources.names import CLUSTER_ORIGINAL
from spliceway.xds.resources.packing import packed, seconds, typed
from spliceway.xds.resources.settings import ResourceSettings

_UNLIMITED = {"value": 0xFFFF_FFFF}
# linux/in.h; socket has no name for it. Without it bind() to the client's address takes a port of its own for every
# connection, and a client's 28,000 ports are gone while the 5-tuples are not.
_IP_BIND_ADDRESS_NO_PORT = 24


def preserve_case() -> dict[str, object]:
    """Header formatter that sends header names on in the case in which they came."""
    config = typed(
        "envoy.http.stateful_header_formatters.preserve_case", preserve_case_pb2.PreserveCaseFormatterConfig()
    )
    return {"stateful_formatter": config}


def original_cluster(settings: ResourceSettings) -> cluster_pb2.Cluster:
    """ORIGINAL_DST with one upstream connection for each downstream connection.

    Without `connection_pool_per_downstream_connection` all connections of one client share upstream connections, and a
    reused pod address inherits them.
    """
    thresholds = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED)
    options = http_protocol_options_pb2.HttpProtocolOptions(
        # The limits on heads are for requests; whoever is allowed to ask gets the answer as it is.
        common_http_protocol_options={
            "idle_timeout": seconds(settings.upstream_idle_timeout),
            "max_headers_count": {"value": 1000},
            "max_response_headers_kb": {"value": 1024},
        },
        use_downstream_protocol_config={
            "http_protocol_options": {"header_key_format": preserve_case()},
            "http2_protocol_options": {},
        },
    )
    return cluster_pb2.Cluster(
        name=CLUSTER_ORIGINAL,
        type=cluster_pb2.Cluster.ORIGINAL_DST,
        lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED,
        connect_timeout=seconds(settings.connect_timeout),
        connection_pool_per_downstream_connection=True,
        per_connection_buffer_limit_bytes={"value": settings.buffer_limit},
        circuit_breakers={"thresholds": [thresholds]},
        upstream_bind_config={
            "socket_options": [
                {
                    "description": "IP_BIND_ADDRESS_NO_PORT",
                    "level": socket.IPPROTO_IP,
                    "name": _IP_BIND_ADDRESS_NO_PORT,
                    "int_value": 1,
                    "state": socket_option_pb2.SocketOption.STATE_PREBIND,
                }
            ]
        },
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(options),
        },
    )
