"""A listener of a user's own beside those of policy (`proxy.extraListeners`)."""

from __future__ import annotations

from typing import Any

EXTENSIONS = "type.googleapis.com/envoy.extensions.filters"
ROUTER = {"name": "router", "typed_config": {"@type": f"{EXTENSIONS}.http.router.v3.Router"}}


def extra_listener(name: str, port: int, cluster: str, **changes: object) -> dict[str, Any]:
    """An HTTP listener on all addresses that sends everything to a cluster. `changes`: of the connection manager."""
    everything = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    manager = {
        "@type": f"{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [ROUTER],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [everything]}]},
        **changes,
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
