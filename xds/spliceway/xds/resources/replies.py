"""Bodies of the answers that Envoy gives by itself."""

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2

from spliceway.policy.verdict import Reason
from spliceway.xds.resources.names import (
    AMBIGUOUS_PATH,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_POLICY,
    POLICY,
    PREFIXES,
    RBAC_METADATA,
    RESULT,
)
from spliceway.xds.resources.recordfilters import denied_by, metadata_filter
from spliceway.xds.resources.settings import ResourceSettings


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
    reasons = _reasons() if settings.explain_denied else {}
    explained = [_answer(found, f"{settings.denied_body}: {reason.label}") for reason, found in reasons.items()]
    return [*explained, _answer(status, settings.denied_body)]


def _reasons() -> dict[Reason, dict[str, object]]:
    """How a refused request shows why: a filter in front names what it refused for, the rules only refuse."""
    ambiguous: dict[str, object] = {"string_match": {"exact": AMBIGUOUS_PATH}}
    refused = [denied_by(PREFIXES[name] + RESULT, if_absent=False) for name in (FILTER_POLICY, FILTER_ALSO)]
    return {
        Reason.HTTP_AMBIGUOUS: metadata_filter(RBAC_METADATA, PREFIXES[FILTER_AMBIGUOUS] + POLICY, ambiguous, False),
        Reason.HTTP_DENIED: {"or_filter": {"filters": refused}},
    }


def _answer(condition: dict[str, object], body: str) -> dict[str, object]:
    return {"filter": condition, "body": {"inline_string": body}}
