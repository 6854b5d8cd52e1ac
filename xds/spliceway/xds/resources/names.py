"""Names that several resources share, and that come back in access logs and errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class End(NamedTuple):
    """The HTTP filters that ask the rules of one end of a connection, in the order of the chain.

    `first` keeps first values of headers, `policy` enforces, `matches` finds out which rules change something, and
    `changes` changes it. Only `policy` runs always: routes bring its rules, and switch on the others that they need.
    """

    first: str
    policy: str
    matches: str
    changes: str


FILTER_AMBIGUOUS = "spliceway.deny-ambiguous"
FILTER_POLICY = "spliceway.policy"
FILTER_ALSO = "spliceway.policy-also"
FILTER_ROUTER = "envoy.filters.http.router"
#: The end whose rules a rule set has, and the other one (`RuleSet.also`), which is asked after it.
MAIN = End("spliceway.first-values", FILTER_POLICY, "spliceway.matches", "spliceway.changes")
OTHER = End("spliceway.first-values-also", FILTER_ALSO, "spliceway.matches-also", "spliceway.changes-also")
#: The chain.
FILTERS = (FILTER_AMBIGUOUS, *MAIN, *OTHER, FILTER_ROUTER)

#: The listener filters: where the client wanted to go, and from where the proxy connects there.
LISTENER_FILTERS = ("envoy.filters.listener.original_dst", "envoy.filters.listener.original_src")

#: The cluster that connects to where the client wanted to go.
CLUSTER_ORIGINAL = "original-destination"
#: The static cluster of the bootstrap: the agent's Unix socket, for ADS and access log.
CLUSTER_AGENT = "spliceway-agent"

#: One log name for all listeners: one per listener cost 274 MB against 110 with 500 listeners.
ACCESS_LOG = "spliceway"
#: Custom tag of an access log entry that holds Envoy's id of the downstream connection.
TAG_CONNECTION = "connection"

#: Where Envoy's RBAC filters write what they decided: `<prefix>enforced_engine_result`, and so on.
RBAC_METADATA = "envoy.filters.http.rbac"
#: Prefix of what each of the RBAC filters writes, so that the next one does not overwrite it.
PREFIXES = {
    FILTER_AMBIGUOUS: "ambiguous_",
    FILTER_POLICY: "policy_",
    FILTER_ALSO: "also_",
    MAIN.matches: "matches_",
    OTHER.matches: "matches_also_",
}
#: Where the script that changes headers writes which ones were not as they should be: under the name of the end's
#: policy filter, their names with commas.
HEADERS_METADATA = "spliceway.headers"
#: Metadata of a route: `volatile` where it has values of Secrets, which are to be kept off disks, and `audit`: mismatch
#: actions of rules in audit, which change nothing and so stand nowhere else.
ROUTE_METADATA = "spliceway"
#: Keys after the prefix: `allowed` or `denied`, and the policy that matched, of the rules and of the shadow rules.
RESULT = "enforced_engine_result"
POLICY = "enforced_effective_policy_id"
SHADOW_RESULT = "shadow_engine_result"
SHADOW_POLICY = "shadow_effective_policy_id"
#: Runtime key: how many of a million allowed requests are written to the access log.
RUNTIME_LOG_ALLOWED = "spliceway.access_log.allowed"

#: The one policy of an allow list that lets every request pass: there are no rules, or only ones in audit.
PASS = "pass"
#: Policies of the deny-ambiguous filter. Envoy tries them in the order of their names, and reports the first match.
MALFORMED_TARGET = "1-malformed-target"
MALFORMED_HOST = "2-malformed-host"
AMBIGUOUS_PATH = "3-ambiguous-path"


def listener_name(rule_set: int) -> str:
    """Name of the listener, and of the route configuration, of a rule set."""
    return f"rule-set-{rule_set}"


def rule_set_of(name: str) -> int:
    """Rule set id of a listener's or route configuration's name; 0 when it is neither."""
    digits = name.removeprefix("rule-set-")
    return int(digits) if digits != name and _is_id(digits) else 0


def first_value_key(header: str) -> str:
    """Key of the filter state that holds the first value of a header."""
    return f"spliceway.first.{header}"


def policy_name(index: int, rule: int) -> str:
    """Name of a rule's RBAC policy.

    Envoy tries policies in the order of their names, and the first that matches is the one it reports; the position
    in front makes that the order in which the rules are written.
    """
    return f"{index:05d}/{rule}"


def combination_name(index: int, groups: Iterable[int]) -> str:
    """Name of the RBAC policy of a combination of changing rules."""
    return f"{index:05d}/{','.join(map(str, groups))}"


def rule_of(policy: str) -> int:
    """Rule id in an RBAC policy's name; 0 when it has none."""
    _, slash, digits = policy.partition("/")
    return int(digits) if slash and _is_id(digits) else 0


def _is_id(digits: str) -> bool:
    """Clients name what they like, and Python makes no number of thousands of digits."""
    return digits.isascii() and digits.isdigit() and len(digits) < 20
