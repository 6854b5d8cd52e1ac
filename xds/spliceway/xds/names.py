"""Names that several resources share, and that come back in access logs and errors."""

from __future__ import annotations

#: Names of the HTTP filters, in the order of the chain. RBACPerRoute is keyed with FILTER_POLICY.
FILTER_AMBIGUOUS = "spliceway.deny-ambiguous"
FILTER_POLICY = "spliceway.policy"
FILTER_ROUTER = "envoy.filters.http.router"

#: The cluster that connects to where the client wanted to go.
CLUSTER_ORIGINAL = "original-destination"
#: The static cluster of the bootstrap: the agent's Unix socket, for ADS and access log.
CLUSTER_AGENT = "spliceway-agent"

#: One log name for all listeners: one per listener cost 274 MB against 110 with 500 listeners.
ACCESS_LOG = "spliceway"
#: Custom tag of an access log entry that holds Envoy's id of the downstream connection.
TAG_CONNECTION = "connection"

#: Where Envoy's RBAC filter writes what it decided, and the key with the policy's name.
RBAC_METADATA = "envoy.filters.http.rbac"
#: Runtime key: how many of a million allowed requests are written to the access log.
RUNTIME_LOG_ALLOWED = "spliceway.access_log.allowed"
RBAC_POLICY_KEY = "enforced_effective_policy_id"

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
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() else 0


def policy_name(index: int, rule: int) -> str:
    """Name of a rule's RBAC policy.

    Envoy tries policies in the order of their names, and the first that matches is the one it reports; the position
    in front makes that the order in which the rules are written.
    """
    return f"{index:05d}/{rule}"


def rule_of(policy: str) -> int:
    """Rule id in an RBAC policy's name; 0 when it has none."""
    _, slash, digits = policy.partition("/")
    return int(digits) if slash and digits.isascii() and digits.isdigit() else 0
