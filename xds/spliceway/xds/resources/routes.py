"""The route configuration of a rule set: its rules, and the way to the original destination."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf.any_pb2 import Any

from spliceway.policy.table import RuleSet
from spliceway.xds.resources.changes import changing, combination_rules, noted_changes, script_of
from spliceway.xds.resources.checks import check_rule_set
from spliceway.xds.resources.headers import first_values
from spliceway.xds.resources.names import (
    CLUSTER_ORIGINAL,
    FILTER_ALSO,
    FILTER_AMBIGUOUS,
    MAIN,
    OTHER,
    ROUTE_METADATA,
    End,
    listener_name,
)
from spliceway.xds.resources.packing import packed, seconds
from spliceway.xds.resources.rbac import audit_ambiguous, pass_all, per_route
from spliceway.xds.resources.rules import all_rules, audited, conditions, enforced


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
                        "metadata": _metadata(rule_set),
                        "typed_per_filter_config": _overrides(rule_set),
                    }
                ],
            }
        ],
    )


def _metadata(rule_set: RuleSet) -> base_pb2.Metadata | None:
    """What the filters don't need, and a reader of the rules does; None when that is nothing."""
    facts: dict[str, object] = {}
    if any(match.secret for rule in all_rules(rule_set) for match in rule.headers):
        facts["volatile"] = True
    halves = ((MAIN, rule_set), (OTHER, rule_set.also))
    audit = {end.policy: noted_changes(half.audit or ()) for end, half in halves if half is not None}
    if any(audit.values()):
        facts["audit"] = {name: items for name, items in audit.items() if items}
    if not facts:
        return None
    made = base_pb2.Metadata()
    made.filter_metadata[ROUTE_METADATA].update(facts)
    return made


def _overrides(rule_set: RuleSet) -> dict[str, Any]:
    """What the route tells the filters of the chain."""
    also = rule_set.also
    result = _end(rule_set, MAIN)
    result |= _end(also, OTHER) if also is not None else {FILTER_ALSO: packed(per_route(pass_all()))}
    if rule_set.rules is None and (also is None or also.rules is None):
        result[FILTER_AMBIGUOUS] = packed(audit_ambiguous())
    return result


def _end(half: RuleSet, end: End) -> dict[str, Any]:
    """The same for the rules of one end. What is there for audit only changes nothing."""
    result = {end.policy: packed(per_route(enforced(half), audited(half)))}
    rules = (*(half.rules or ()), *(half.audit or ()))
    first = first_values(match for rule in rules for match in conditions(rule))
    if first is not None:
        result[end.first] = packed(first)
    if half.rules is not None and changing(half.rules):
        result[end.matches] = packed(per_route(combination_rules(half.rules)))
        result[end.changes] = packed(script_of(half.rules, end))
    return result
