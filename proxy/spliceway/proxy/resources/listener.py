"""Reads a listener."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2

from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.model import ListenerConfig
from spliceway.proxy.resources.filters import NEVER_TO_ONESELF
from spliceway.proxy.resources.manager import manager
from spliceway.proxy.resources.shapes import ANY, Found, Hole, Maybe, Packed, Shape, check, parsed
from spliceway.proxy.resources.values import buffer, count, port, rule_set_id

_LISTENER: Shape = {
    "name": Hole("id", rule_set_id),
    "stat_prefix": ANY,
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": Hole("port", port)}},
    "additional_addresses": Maybe(
        [{"address": {"socket_address": {"address": "::1", "port_value": Hole("port6", port)}}}]
    ),
    "transparent": True,
    # How many sockets share the address is the proxy's own matter: the same connections come in.
    "enable_reuse_port": ANY,
    "tcp_backlog_size": Hole("backlog", count),
    "per_connection_buffer_limit_bytes": Hole("buffer_limit", buffer),
    "listener_filters": [
        {
            "name": "envoy.filters.listener.original_dst",
            "typed_config": Packed(original_dst_pb2.OriginalDst, {}),
        },
        {
            "name": "envoy.filters.listener.original_src",
            "typed_config": Packed(original_src_pb2.OriginalSrc, {"mark": Hole("upstream_mark")}),
        },
    ],
    "filter_chains": [
        {
            "filters": [
                {"name": "envoy.filters.network.rbac", "typed_config": NEVER_TO_ONESELF},
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
            ]
        }
    ],
}


def listener(body: bytes) -> ListenerConfig:
    """Read a serialised `envoy.config.listener.v3.Listener`.

    Raises:
        UnenforceableError: it is not exactly what a rule set's listener is.
    """
    message = parsed(listener_pb2.Listener, body)
    found: Found = {}
    check(message, _LISTENER, "", found)
    del found["id"]
    if found["route"] != message.name:
        raise UnenforceableError(
            "filter_chains[0].filters[1].typed_config.rds.route_config_name", "must be the listener's own name"
        )
    addresses = [("127.0.0.1", found.pop("port"))]
    if "port6" in found:
        addresses.append(("::1", found.pop("port6")))
    return ListenerConfig(name=message.name, addresses=tuple(addresses), **found)
