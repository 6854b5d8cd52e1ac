"""The shape of the HTTP connection manager: how requests are read, answered and recorded."""

from __future__ import annotations

from typing import Any

from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.http.header_formatters.preserve_case.v3 import preserve_case_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from spliceway.policy.verdict import Reason
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.resources.filters import CHAIN
from spliceway.proxy.resources.names import (
    ACCESS_LOG,
    AMBIGUOUS_PATH,
    CLUSTER_AGENT,
    FILTER_AMBIGUOUS,
    HEADERS_METADATA,
    MAIN,
    OTHER,
    PREFIXES,
    RBAC_METADATA,
    RESULT,
    RUNTIME_LOG_ALLOWED,
    SHADOW_RESULT,
    TAG_CONNECTION,
)
from spliceway.proxy.resources.shapes import (
    ANY,
    Found,
    Hole,
    Packed,
    Shape,
    check,
    joined,
    packed_bytes,
    parsed,
)
from spliceway.proxy.resources.values import body, count, kibibytes

PRESERVE_CASE: Shape = {
    "stateful_formatter": {
        "name": "envoy.http.stateful_header_formatters.preserve_case",
        "typed_config": Packed(preserve_case_pb2.PreserveCaseFormatterConfig, {}),
    }
}


def _metadata(namespace: str, key: str, value: Shape, if_absent: bool) -> Shape:
    matcher = {"filter": namespace, "path": [{"key": key}], "value": value}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": if_absent}}


def _denied_by(key: str, if_absent: bool) -> Shape:
    return _metadata(RBAC_METADATA, key, {"string_match": {"exact": "denied"}}, if_absent)


_SAMPLED: Shape = {
    "runtime_key": RUNTIME_LOG_ALLOWED,
    "percent_sampled": {"numerator": 1_000_000, "denominator": "MILLION"},
    "use_independent_randomness": True,
}
_RECORDED: list[Shape] = [
    _denied_by(PREFIXES[OTHER.policy] + RESULT, True),
    *(_denied_by(PREFIXES[name] + SHADOW_RESULT, False) for name in (FILTER_AMBIGUOUS, MAIN.policy, OTHER.policy)),
    *(_metadata(HEADERS_METADATA, name, {"present_match": True}, False) for name in (MAIN.policy, OTHER.policy)),
    {"runtime_filter": _SAMPLED},
]
_ACCESS_LOG: Shape = {
    "name": "envoy.access_loggers.http_grpc",
    "filter": {"or_filter": {"filters": _RECORDED}},
    "typed_config": Packed(
        als_pb2.HttpGrpcAccessLogConfig,
        {
            "common_config": {
                "log_name": ACCESS_LOG,
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": CLUSTER_AGENT}},
                "buffer_flush_interval": ANY,
                "custom_tags": [{"tag": TAG_CONNECTION, "value": "%CONNECTION_ID%"}],
            }
        },
        kept=1,
    ),
}

_STATUS: Shape = {
    "status_code_filter": {"comparison": {"value": {"default_value": 403, "runtime_key": "spliceway.denied_status"}}}
}


def _refused_by(policy: str) -> Shape:
    expression = f"response.code_details == 'rbac_access_denied_matched_policy[{policy}]'"
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": Packed(cel_pb2.ExpressionFilter, {"expression": expression}, kept=1),
        }
    }


def _answer(condition: Shape, key: str) -> Shape:
    return {"filter": condition, "body": {"inline_string": Hole(key, body)}}


#: The policy that refuses for a reason, in Envoy's words; an allow list refuses by none.
_EXPLAINED = {Reason.HTTP_AMBIGUOUS: AMBIGUOUS_PATH, Reason.HTTP_DENIED: "none"}
_PLAIN_ANSWERS = [_answer(_STATUS, "denied_body")]
_EXPLAINED_ANSWERS = [
    *(_answer(_refused_by(policy), reason.label) for reason, policy in _EXPLAINED.items()),
    *_PLAIN_ANSWERS,
]


def _answers(value: Any, at: str, found: Found) -> None:
    """Bodies of a 403: one, or those that name the reason before it."""
    bodies: Found = {}
    check(value, _PLAIN_ANSWERS if len(value) <= 1 else _EXPLAINED_ANSWERS, at, bodies)
    found["denied_body"] = bodies.pop("denied_body")
    found["denied"] = bodies


_MANAGER: Shape = {
    "stat_prefix": ANY,
    "rds": {
        "config_source": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": 0.0},
    },
    "http_filters": CHAIN,
    "access_log": [_ACCESS_LOG],
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "REJECT_REQUEST",
    "http_protocol_options": {
        "accept_http_10": True,
        "allow_absolute_url": False,
        "header_key_format": PRESERVE_CASE,
    },
    "use_remote_address": False,
    "skip_xff_append": True,
    "generate_request_id": False,
    "server_header_transformation": "PASS_THROUGH",
    "upgrade_configs": [{"upgrade_type": "websocket"}],
    "proxy_100_continue": True,
    "local_reply_config": {"mappers": _answers},
    "stream_idle_timeout": 0.0,
    "request_timeout": 0.0,
    "request_headers_timeout": Hole("headers_timeout"),
    "max_request_headers_kb": Hole("max_head_bytes", kibibytes),
    "common_http_protocol_options": {
        "idle_timeout": Hole("idle_timeout"),
        "max_headers_count": Hole("max_headers", count),
    },
}
_NAMELESS = Packed(HttpConnectionManager, _MANAGER, kept=64)


def manager(value: Any, at: str, found: Found) -> None:
    """Read an HTTP connection manager. All of a node's are the same but for the name of their routes."""
    held = parsed(HttpConnectionManager, packed_bytes(value, HttpConnectionManager, at), at)
    name = held.rds.route_config_name
    if held.HasField("rds"):
        held.rds.ClearField("route_config_name")
    nameless = AnyMessage()
    nameless.Pack(held, deterministic=True)
    _NAMELESS(nameless, at, found)
    if not name:
        raise UnenforceableError(joined(at, "rds.route_config_name"), "is required")
    found["route"] = name
