"""From a rule set to RBAC: one policy for each rule, and what a rule set must not be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envoy.config.rbac.v3 import rbac_pb2

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.xds.errors import ResourceError
from spliceway.xds.headers import condition, permission, shown_forms, why_not
from spliceway.xds.names import policy_name
from spliceway.xds.rbac import ANYONE, ANYTHING, pass_all, regex_permission


def check_rule_set(rule_set: RuleSet) -> None:
    """Refuse what can't be served.

    Raises:
        ResourceError: no rules (that would be a listener that serves nobody, or everybody, and a mistake), a third end,
            a pattern that Envoy would refuse, a condition on headers that it can't be asked exactly.
    """
    also = rule_set.also
    for half in (rule_set, also) if also is not None else (rule_set,):
        if half.rules == () or (half.rules is None and half.audit is None):
            which = "" if half is rule_set else " of the other end"
            raise ResourceError(f"{_title(rule_set)}: no rules{which}")
        for rule in (*(half.rules or ()), *(half.audit or ())):
            _check_rule(f"{_title(rule_set)}, rule {rule.rule}", rule)
    if also is not None and also.also is not None:
        raise ResourceError(f"{_title(rule_set)}: rules of more than two ends")


def allow_rules(rules: Sequence[HttpRule]) -> rbac_pb2.RBAC:
    """An allow list: one policy for each rule, named so that an access log entry tells which matched."""
    return rbac_pb2.RBAC(
        action=rbac_pb2.RBAC.ALLOW,
        policies={policy_name(index, rule.rule): _policy(rule) for index, rule in enumerate(rules)},
    )


def enforced(half: RuleSet) -> rbac_pb2.RBAC:
    """What one end enforces: its rules, or nothing where it is there for audit only."""
    return pass_all() if half.rules is None else allow_rules(half.rules)


def audited(half: RuleSet) -> rbac_pb2.RBAC | None:
    """What one end would enforce without audit; None when that is the same."""
    return None if half.audit is None else allow_rules(half.audit)


def all_rules(rule_set: RuleSet) -> Iterator[HttpRule]:
    """Every rule of the set: both ends, enforced and in audit."""
    yield from rule_set.rules or ()
    yield from rule_set.audit or ()
    if rule_set.also is not None:
        yield from all_rules(rule_set.also)


def conditions(rule: HttpRule) -> list[HeaderMatch]:
    """The conditions on headers without which the rule doesn't match."""
    return [match for match in rule.headers if match.mismatch is Mismatch.DENY]


def secret_forms(rule_set: RuleSet) -> frozenset[str]:
    """All forms in which values of Secrets stand in the routes of this rule set."""
    values = {match.value for rule in all_rules(rule_set) for match in rule.headers if match.secret and match.value}
    return frozenset(form for value in values for form in shown_forms(value))


def _policy(rule: HttpRule) -> rbac_pb2.Policy:
    patterns = ((":method", rule.method), (":path", rule.path), (":authority", rule.host))
    wanted = [regex_permission(header, pattern) for header, pattern in patterns if pattern]
    headers = conditions(rule)
    wanted += [permission(match) for match in headers]
    permissions = [rbac_pb2.Permission(and_rules={"rules": wanted}) if wanted else ANYTHING]
    return rbac_pb2.Policy(permissions=permissions, principals=[ANYONE], condition=condition(headers))


def _title(rule_set: RuleSet) -> str:
    return f"rule set {rule_set.id} ({rule_set.name})"


def _check_rule(where: str, rule: HttpRule) -> None:
    for field, pattern in (("method", rule.method), ("path", rule.path), ("host", rule.host)):
        if pattern:
            try:
                compile_regex(pattern)
            except RegexError as error:
                raise ResourceError(f"{where}, {field}: {pattern!r}: {error}") from error
    for match in rule.headers:
        if reason := why_not(match):
            raise ResourceError(f"{where}, {reason}")
