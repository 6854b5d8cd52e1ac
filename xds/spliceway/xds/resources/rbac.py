"""RBAC messages that don't depend on rules: what is refused before matching, lists that allow nothing or everything.

Everything here is fail closed: a header that is absent never matches, so «not well-formed» denies and «rule» doesn't
allow.
"""

from __future__ import annotations

from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2

from spliceway.policy.wellformed import ORIGIN_FORM, WELL_FORMED_HOST, WELL_FORMED_PATH
from spliceway.xds.resources.names import AMBIGUOUS_PATH, MALFORMED_HOST, MALFORMED_TARGET, PASS, PREFIXES

ANYONE = rbac_pb2.Principal(any=True)
ANYTHING = rbac_pb2.Permission(any=True)


def regex_permission(header: str, pattern: str) -> rbac_pb2.Permission:
    """What has this header with a value that the expression matches as a whole."""
    matcher = route_components_pb2.HeaderMatcher(name=header, string_match={"safe_regex": {"regex": pattern}})
    return rbac_pb2.Permission(header=matcher)


def _unless(header: str, pattern: str) -> rbac_pb2.Policy:
    unfit = rbac_pb2.Permission(not_rule=regex_permission(header, pattern))
    return rbac_pb2.Policy(permissions=[unfit], principals=[ANYONE])


_MALFORMED = {
    MALFORMED_TARGET: _unless(":path", ORIGIN_FORM),
    MALFORMED_HOST: _unless(":authority", WELL_FORMED_HOST),
}
_AMBIGUOUS = {AMBIGUOUS_PATH: _unless(":path", WELL_FORMED_PATH)}


def deny_ambiguous() -> rbac_pb2.RBAC:
    """Rules of the first filter: what two servers could read differently is refused before it is matched."""
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.DENY, policies=_MALFORMED | _AMBIGUOUS)


def audit_ambiguous() -> http_rbac_pb2.RBACPerRoute:
    """The first filter where nothing is enforced: what no proxy may pass on is refused, the ambiguous is only noted."""
    return per_route(
        rbac_pb2.RBAC(action=rbac_pb2.RBAC.DENY, policies=_MALFORMED),
        rbac_pb2.RBAC(action=rbac_pb2.RBAC.DENY, policies=_AMBIGUOUS),
    )


def deny_all() -> rbac_pb2.RBAC:
    """Rules of the policy filters without a route's own: an allow list without entries."""
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW)


def pass_all() -> rbac_pb2.RBAC:
    """An allow list that every request passes.

    It is written down instead of leaving `rules` out, which does the same in Envoy: no rules at all stays a mistake.
    """
    everything = rbac_pb2.Policy(permissions=[ANYTHING], principals=[ANYONE])
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW, policies={PASS: everything})


def http_filter(name: str, rules: rbac_pb2.RBAC) -> http_rbac_pb2.RBAC:
    """The configuration of an RBAC filter in the chain. Its prefix holds for what routes override, too."""
    prefix = PREFIXES[name]
    return http_rbac_pb2.RBAC(rules=rules, rules_stat_prefix=prefix, shadow_rules_stat_prefix=prefix)


def per_route(rules: rbac_pb2.RBAC, shadow: rbac_pb2.RBAC | None = None) -> http_rbac_pb2.RBACPerRoute:
    """A route's override of an RBAC filter: rules that are enforced, and rules whose answer is only written down."""
    return http_rbac_pb2.RBACPerRoute(rbac={"rules": rules} | ({} if shadow is None else {"shadow_rules": shadow}))


def deny_own_addresses() -> rbac_pb2.RBAC:
    """Rules of the network filter: a connection that was not steered has the listener's own address as destination.

    Connecting there would be connecting to oneself, again and again. Loopback and unspecified addresses are nobody
    else's either.
    """
    ranges = (("0.0.0.0", 8), ("127.0.0.0", 8), ("::", 127), ("::ffff:0.0.0.0", 104), ("::ffff:127.0.0.0", 104))
    return rbac_pb2.RBAC(
        action=rbac_pb2.RBAC.DENY,
        policies={
            "own-address": rbac_pb2.Policy(
                permissions=[
                    rbac_pb2.Permission(destination_ip={"address_prefix": prefix, "prefix_len": {"value": bits}})
                    for prefix, bits in ranges
                ],
                principals=[ANYONE],
            )
        },
    )
