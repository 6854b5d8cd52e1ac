"""Which route configurations a listener asks for. Pure."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf.message import DecodeError


def route_names(listener: bytes) -> frozenset[str]:
    """Names of the RDS resources that a serialized listener waits for; none of what is no listener."""
    manager = http_connection_manager_pb2.HttpConnectionManager()
    try:
        found = listener_pb2.Listener.FromString(listener)
        names = {
            manager.rds.route_config_name
            for chain in (*found.filter_chains, found.default_filter_chain)
            for item in chain.filters
            if item.typed_config.Unpack(manager)
        }
    except DecodeError:
        return frozenset()  # who applies it will say so
    return frozenset(names - {""})
