"""Bodies of the answers that Envoy gives by itself."""

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2

from spliceway.policy.verdict import Reason
from spliceway.xds.resources.names import AMBIGUOUS_PATH
from spliceway.xds.resources.packing import typed
from spliceway.xds.resources.settings import ResourceSettings

#: The policy that refused, in Envoy's words; an allow list refuses by none. What the refusing filter writes into the
#: metadata comes too late: the answer is made before (seen in Envoy 1.40).
_POLICY = {Reason.HTTP_AMBIGUOUS: AMBIGUOUS_PATH, Reason.HTTP_DENIED: "none"}


def denied_answers(settings: ResourceSettings) -> list[dict[str, object]]:
    """The bodies of a 403 (ResponseMapper); the first whose filter fits is taken."""
    status: dict[str, object] = {
        "status_code_filter": {
            "comparison": {
                "op": accesslog_pb2.ComparisonFilter.EQ,
                "value": {"default_value": 403, "runtime_key": "spliceway.denied_status"},
            }
        }
    }
    explained = [
        _answer(_refused_by(policy), f"{settings.denied_body}: {reason.label}")
        for reason, policy in (_POLICY.items() if settings.explain_denied else ())
    ]
    return [*explained, _answer(status, settings.denied_body)]


def _refused_by(policy: str) -> dict[str, object]:
    expression = f"response.code_details == 'rbac_access_denied_matched_policy[{policy}]'"
    config = cel_pb2.ExpressionFilter(expression=expression)
    return {"extension_filter": typed("envoy.access_loggers.extension_filters.cel", config)}


def _answer(condition: dict[str, object], body: str) -> dict[str, object]:
    return {"filter": condition, "body": {"inline_string": body}}
