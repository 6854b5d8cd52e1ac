"""RBAC messages: what is refused before matching, and a rule set's rules.

Everything here is fail closed: a header that is absent never matches, so «not well-formed» denies and «rule» doesn't
allow.
"""

from __future__ import annotations

from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.errors import ResourceError
from spliceway.xds.names import AMBIGUOUS_PATH, MALFORMED_HOST, MALFORMED_TARGET, policy_name

# A path that two servers can't read differently, up to `?` (docs/xds.md). Not in it: `;`, controls, space, DEL, bytes
# >= 0x80, `\`; %25 %2e %2f %5c %3b, encoded controls and bytes >= 0x80; a bare or cut percent sign.
_PLAIN = r"[^?%;\\\x00-\x20\x7f-\xff]"
_ENCODED = r"%(?:2[0-46-9a-dA-D]|3[0-9ac-fAC-F]|[46][0-9a-fA-F]|5[0-9abd-fABD-F]|7[0-9a-eA-E])"
WELL_FORMED_PATH = rf"(?s)(?:{_PLAIN}|{_ENCODED})*(?:\?.*)?"

# Origin form. `*` and absolute targets get a 404 before they come here, CONNECT and HTTP/2 do come.
ORIGIN_FORM = r"(?s)/.*"

# A host without userinfo, as `policy.http` has it. Two Host headers arrive joined with a comma, an empty one empty.
WELL_FORMED_HOST = r"[A-Za-z0-9._~!$&'()*+=%:\[\]-]+"

_ANYONE = rbac_pb2.Principal(any=True)


def _matches(header: str, pattern: str) -> rbac_pb2.Permission:
    matcher = route_components_pb2.HeaderMatcher(name=header, string_match={"safe_regex": {"regex": pattern}})
    return rbac_pb2.Permission(header=matcher)


def _unless(header: str, pattern: str) -> rbac_pb2.Policy:
    return rbac_pb2.Policy(permissions=[rbac_pb2.Permission(not_rule=_matches(header, pattern))], principals=[_ANYONE])


def deny_ambiguous() -> rbac_pb2.RBAC:
    """Rules of the first filter: what two servers could read differently is refused before it is matched."""
    return rbac_pb2.RBAC(
        action=rbac_pb2.RBAC.DENY,
        policies={
            MALFORMED_TARGET: _unless(":path", ORIGIN_FORM),
            MALFORMED_HOST: _unless(":authority", WELL_FORMED_HOST),
            AMBIGUOUS_PATH: _unless(":path", WELL_FORMED_PATH),
        },
    )


def deny_all() -> rbac_pb2.RBAC:
    """Rules of the second filter without a route's own: an allow list without entries."""
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.ALLOW)


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
                principals=[_ANYONE],
            )
        },
    )


def allow_rules(rule_set: RuleSet) -> rbac_pb2.RBAC:
    """The allow list of a rule set: one policy for each rule, named so that an access log entry tells which matched.

    Raises:
        ResourceError: no rules (that would be a listener that serves nobody, and a mistake), or a bad pattern.
    """
    if not rule_set.rules:
        raise ResourceError(f"rule set {rule_set.id} ({rule_set.name}): no rules")
    return rbac_pb2.RBAC(
        action=rbac_pb2.RBAC.ALLOW,
        policies={policy_name(index, rule.rule): _policy(rule_set, rule) for index, rule in enumerate(rule_set.rules)},
    )


def _policy(rule_set: RuleSet, rule: HttpRule) -> rbac_pb2.Policy:
    wanted = [
        _matches(header, _checked(rule_set, rule, field, pattern))
        for field, header, pattern in (("method", ":method", rule.method), ("path", ":path", rule.path))
        if pattern
    ]
    permission = rbac_pb2.Permission(and_rules={"rules": wanted}) if wanted else rbac_pb2.Permission(any=True)
    return rbac_pb2.Policy(permissions=[permission], principals=[_ANYONE])


def _checked(rule_set: RuleSet, rule: HttpRule, field: str, pattern: str) -> str:
    """The pattern, when Envoy will accept it: one refused RDS resource would hold back what comes with it."""
    try:
        compile_regex(pattern)
    except RegexError as error:
        where = f"rule set {rule_set.id} ({rule_set.name}), rule {rule.rule}, {field}"
        raise ResourceError(f"{where}: {pattern!r}: {error}") from error
    return pattern
