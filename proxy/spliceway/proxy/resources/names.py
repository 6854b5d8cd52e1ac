"""Names in the agent's resources, written down again: the proxy knows nothing of the agent's xDS side.

A test compares them with those of the agent.
"""

from __future__ import annotations

from typing import NamedTuple


class End(NamedTuple):
    """The HTTP filters that ask the rules of one end of a connection, in the order of the chain.

    `first` keeps first values of headers, `policy` enforces, `matches` finds out which rules change something, and
    `changes` changes it. Only `policy` runs always; the others where a route has something for them.
    """

    first: str
    policy: str
    matches: str
    changes: str


FILTER_AMBIGUOUS = "spliceway.deny-ambiguous"
FILTER_ROUTER = "envoy.filters.http.router"
#: The end whose rules a rule set has, and the other one (`RuleSet.also`).
MAIN = End("spliceway.first-values", "spliceway.policy", "spliceway.matches", "spliceway.changes")
OTHER = End("spliceway.first-values-also", "spliceway.policy-also", "spliceway.matches-also", "spliceway.changes-also")

CLUSTER_ORIGINAL = "original-destination"
CLUSTER_AGENT = "spliceway-agent"
ACCESS_LOG = "spliceway"
TAG_CONNECTION = "connection"
#: Where RBAC filters and the script that changes headers write what they found.
RBAC_METADATA = "envoy.filters.http.rbac"
HEADERS_METADATA = "spliceway.headers"
#: Metadata of a route that says more than its filters do.
ROUTE_METADATA = "spliceway"
#: Prefix of what each RBAC filter writes, and the keys after it.
PREFIXES = {
    FILTER_AMBIGUOUS: "ambiguous_",
    MAIN.policy: "policy_",
    OTHER.policy: "also_",
    MAIN.matches: "matches_",
    OTHER.matches: "matches_also_",
}
RESULT = "enforced_engine_result"
POLICY = "enforced_effective_policy_id"
SHADOW_RESULT = "shadow_engine_result"
RUNTIME_LOG_ALLOWED = "spliceway.access_log.allowed"

#: The one policy of an allow list that lets every request pass.
PASS = "pass"
MALFORMED_TARGET = "1-malformed-target"
MALFORMED_HOST = "2-malformed-host"
AMBIGUOUS_PATH = "3-ambiguous-path"

#: SHA-256 of the one script that changes headers.
SCRIPT_DIGEST = "b54ad21b05529029f3690b742cbf3d27e85c92b25d181696f514ea9cfbf1a7ef"


def resource_name(rule_set: int) -> str:
    """Name of the listener, and of the route configuration, of a rule set."""
    return f"rule-set-{rule_set}"


def first_value_key(header: str) -> str:
    """Key of the filter state that holds the first value of a header."""
    return f"spliceway.first.{header}"
