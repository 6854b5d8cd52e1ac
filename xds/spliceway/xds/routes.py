"""The route configuration of a rule set: its rules, and the way to the original destination."""

from __future__ import annotations

from envoy.config.route.v3 import route_pb2
from google.protobuf.any_pb2 import Any

from spliceway.policy.table import RuleSet
from spliceway.xds.headers import first_values
from spliceway.xds.names import (
    CLUSTER_ORIGINAL,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    FILTER_FIRST,
    FILTER_POLICY,
    listener_name,
)
from spliceway.xds.packing import packed, seconds
from spliceway.xds.rbac import audit_ambiguous, pass_all, per_route
from spliceway.xds.rules import all_rules, audited, check_rule_set, conditions, enforced


def rule_set_routes(rule_set: RuleSet) -> route_pb2.RouteConfiguration:
    """Routes of `rule_set`: one, for every host and path, named with the rule set's id for the access log.

    `timeout` is 0: the default cuts streams after 15 seconds.

    Raises:
        ResourceError: see `check_rule_set`.
    """
    check_rule_set(rule_set)
    return route_pb2.RouteConfiguration(
        name=listener_name(rule_set.id),
        virtual_hosts=[
            {
                "name": "any",
                "domains": ["*"],
                "routes": [
                    {
                        "name": str(rule_set.id),
                        "match": {"prefix": "/"},
                        "route": {"cluster": CLUSTER_ORIGINAL, "timeout": seconds(0)},
                        "typed_per_filter_config": _overrides(rule_set),
                    }
                ],
            }
        ],
    )


def _overrides(rule_set: RuleSet) -> dict[str, Any]:
    """What the route tells each filter of the chain."""
    also = rule_set.also
    result = {
        FILTER_POLICY: packed(per_route(enforced(rule_set), audited(rule_set))),
        FILTER_ALSO: packed(per_route(pass_all()) if also is None else per_route(enforced(also), audited(also))),
    }
    if rule_set.rules is None and (also is None or also.rules is None):
        result[FILTER_AMBIGUOUS] = packed(audit_ambiguous())
    first = first_values(match for rule in all_rules(rule_set) for match in conditions(rule))
    if first is not None:
        result[FILTER_FIRST] = packed(first)
    return result
