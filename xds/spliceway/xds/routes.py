"""The route configuration of a rule set: its rules, and the way to the original destination."""

from __future__ import annotations

from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2

from spliceway.policy.table import RuleSet
from spliceway.xds.names import CLUSTER_ORIGINAL, FILTER_POLICY, listener_name
from spliceway.xds.packing import packed, seconds
from spliceway.xds.rbac import allow_rules


def rule_set_routes(rule_set: RuleSet) -> route_pb2.RouteConfiguration:
    """Routes of `rule_set`: one, for every host and path, named with the rule set's id for the access log.

    `timeout` is 0: the default cuts streams after 15 seconds.

    Raises:
        ResourceError: no rules, or a pattern that Envoy would refuse.
    """
    rules = http_rbac_pb2.RBACPerRoute(rbac={"rules": allow_rules(rule_set)})
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
                        "typed_per_filter_config": {FILTER_POLICY: packed(rules)},
                    }
                ],
            }
        ],
    )
