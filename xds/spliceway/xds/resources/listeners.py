"""The listener of a rule set. Everything that changes with the rules is in its route configuration, not here.

Changing a listener drains its connections; changing routes reaches live connections at their next request.
"""

from __future__ import annotations

from functools import lru_cache

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from spliceway.xds.resources.changes import no_script
from spliceway.xds.resources.clusters import preserve_case
from spliceway.xds.resources.names import (
    ACCESS_LOG,
    CLUSTER_AGENT,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_POLICY,
    FILTER_ROUTER,
    HEADERS_METADATA,
    LISTENER_FILTERS,
    MAIN,
    OTHER,
    PREFIXES,
    RBAC_METADATA,
    RESULT,
    RUNTIME_LOG_ALLOWED,
    SHADOW_RESULT,
    TAG_CONNECTION,
    End,
    listener_name,
)
from spliceway.xds.resources.packing import seconds, typed
from spliceway.xds.resources.rbac import deny_all, deny_ambiguous, deny_own_addresses, http_filter, pass_all
from spliceway.xds.resources.replies import denied_answers
from spliceway.xds.resources.settings import ResourceSettings

_STATS = "spliceway"  # one prefix for all: counters for each listener cost memory that nobody reads
_NEVER = seconds(0)
_SHADOWED = (FILTER_AMBIGUOUS, FILTER_POLICY, FILTER_ALSO)


def rule_set_listener(rule_set: int, port: int, settings: ResourceSettings) -> listener_pb2.Listener:
    """The listener of `rule_set` on 127.0.0.1 and [::1] port `port`."""
    addresses = [{"socket_address": {"address": ip, "port_value": port}} for ip in ("127.0.0.1", "::1")]
    name = listener_name(rule_set)
    return listener_pb2.Listener(
        name=name,
        stat_prefix=_STATS,
        address=addresses[0],
        additional_addresses=[{"address": addresses[1]}] if settings.ipv6 else [],
        transparent={"value": True},
        # One listening socket for all workers. Linux before 6.6 does not assign sockets with SO_REUSEPORT. And any
        # process of the proxy's user could join their group, in which the kernel chooses after bpf_sk_assign: with SYN
        # cookies such a process got whole requests.
        enable_reuse_port={"value": False},
        tcp_backlog_size={"value": 4096},
        per_connection_buffer_limit_bytes={"value": settings.buffer_limit},
        listener_filters=[
            typed(LISTENER_FILTERS[0], original_dst_pb2.OriginalDst()),
            typed(LISTENER_FILTERS[1], original_src_pb2.OriginalSrc(mark=settings.upstream_mark)),
        ],
        filter_chains=[
            {
                "filters": [
                    typed("envoy.filters.network.rbac", _never_to_oneself()),
                    typed("envoy.filters.network.http_connection_manager", _manager(name, settings)),
                ]
            }
        ],
    )


def _never_to_oneself() -> network_rbac_pb2.RBAC:
    return network_rbac_pb2.RBAC(rules=deny_own_addresses(), stat_prefix=f"{_STATS}_own_address.")


def _manager(name: str, settings: ResourceSettings) -> HttpConnectionManager:
    manager = HttpConnectionManager()
    manager.CopyFrom(_nameless_manager(settings))
    manager.rds.route_config_name = name
    return manager


@lru_cache(maxsize=8)
def _nameless_manager(settings: ResourceSettings) -> HttpConnectionManager:
    """What the managers of all listeners have in common. Never changed: building one takes half a millisecond."""
    return HttpConnectionManager(
        stat_prefix=_STATS,
        codec_type=HttpConnectionManager.AUTO,
        rds={"config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": _NEVER}},
        http_filters=[
            typed(FILTER_AMBIGUOUS, http_filter(FILTER_AMBIGUOUS, deny_ambiguous())),
            *_end(MAIN),
            *_end(OTHER),
            typed(FILTER_ROUTER, router_pb2.Router(suppress_envoy_headers=True)),
        ],
        access_log=[_access_log(settings)],
        **_same_meaning(),
        **_transparent(settings),
        **_limits(settings),
    )


def _end(end: End) -> list[dict[str, object]]:
    """The filters of one end. Without a route the rules refuse; the others run only where a route has something."""
    on_demand = {
        end.first: set_filter_state_pb2.Config(),
        end.matches: http_filter(end.matches, pass_all()),
        end.changes: no_script(),
    }
    return [
        typed(name, on_demand[name]) | {"disabled": True}
        if name in on_demand
        else typed(name, http_filter(name, deny_all()))
        for name in end
    ]


def _same_meaning() -> dict[str, object]:
    """One reading of a request: what is matched is what is sent on."""
    return {
        "normalize_path": {"value": True},
        "merge_slashes": True,
        "path_with_escaped_slashes_action": HttpConnectionManager.REJECT_REQUEST,
        "http_protocol_options": {
            "accept_http_10": True,
            # An absolute target would override Host; so it gets a 404.
            "allow_absolute_url": {"value": False},
            "header_key_format": preserve_case(),
        },
    }


def _transparent(settings: ResourceSettings) -> dict[str, object]:
    """Head and answer as they came: neither end should see that a proxy is there."""
    return {
        "use_remote_address": {"value": False},
        "skip_xff_append": True,
        "generate_request_id": {"value": False},
        "server_header_transformation": HttpConnectionManager.PASS_THROUGH,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        # Otherwise Envoy answers 100 by itself, before the verdict.
        "proxy_100_continue": True,
        "local_reply_config": {"mappers": denied_answers(settings)},
    }


def _limits(settings: ResourceSettings) -> dict[str, object]:
    age = {"max_connection_duration": seconds(settings.connection_age)} if settings.connection_age else {}
    return {
        "stream_idle_timeout": _NEVER,
        "request_timeout": _NEVER,
        "request_headers_timeout": seconds(settings.headers_timeout),
        "max_request_headers_kb": {"value": settings.max_head_kib},
        "common_http_protocol_options": {
            "idle_timeout": seconds(settings.idle_timeout),
            "max_headers_count": {"value": settings.max_headers},
            **age,
        },
    }


def _access_log(settings: ResourceSettings) -> accesslog_pb2.AccessLog:
    """Denied, changed and audited requests always, the others as often as the agent says by the runtime key.

    Audited are those that would be denied if policies in audit were enforced.
    """
    config = als_pb2.HttpGrpcAccessLogConfig(
        common_config={
            "log_name": ACCESS_LOG,
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": CLUSTER_AGENT}},
            "buffer_flush_interval": seconds(settings.log_flush_interval),
            "custom_tags": [
                {"tag": TAG_CONNECTION, "value": "%CONNECTION_ID%"},
            ],
        }
    )
    sampled = {
        "runtime_key": RUNTIME_LOG_ALLOWED,
        "percent_sampled": {"numerator": 1_000_000, "denominator": "MILLION"},
        "use_independent_randomness": True,
    }
    filters = [
        # The last of the filters has no result where one before it refused, or Envoy itself.
        _denied_by(PREFIXES[FILTER_ALSO] + RESULT, if_absent=True),
        *(_denied_by(PREFIXES[name] + SHADOW_RESULT, if_absent=False) for name in _SHADOWED),
        *(_has(HEADERS_METADATA, name) for name in (FILTER_POLICY, FILTER_ALSO)),
        {"runtime_filter": sampled},
    ]
    return accesslog_pb2.AccessLog(
        **typed("envoy.access_loggers.http_grpc", config), filter={"or_filter": {"filters": filters}}
    )


def _denied_by(key: str, if_absent: bool) -> dict[str, object]:
    """The requests whose RBAC result under this key is «denied»."""
    return _metadata_filter(RBAC_METADATA, key, {"string_match": {"exact": "denied"}}, if_absent)


def _has(namespace: str, key: str) -> dict[str, object]:
    """The requests that have metadata under this key."""
    return _metadata_filter(namespace, key, {"present_match": True}, False)


def _metadata_filter(namespace: str, key: str, value: dict[str, object], if_absent: bool) -> dict[str, object]:
    matcher = {"filter": namespace, "path": [{"key": key}], "value": value}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": {"value": if_absent}}}
