"""From a rule set to RBAC: one policy for each rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from envoy.config.rbac.v3 import rbac_pb2

from spliceway.policy.table import HeaderMatch, HttpRule, HttpTest, Mismatch, RuleSet
from spliceway.xds.resources.headers import condition, permission, shown_forms
from spliceway.xds.resources.names import policy_name
from spliceway.xds.resources.rbac import ANYONE, ANYTHING, pass_all, regex_permission


class Group(NamedTuple):
    """What a rule asks of a request, mismatch actions apart."""

    method: str
    path: str
    host: str
    headers: tuple[HeaderMatch, ...]
    tests: tuple[tuple[HttpTest, ...], ...] = ()


def allow_rules(rules: Sequence[HttpRule]) -> rbac_pb2.RBAC:
    """An allow list: one policy for each rule, named so that an access log entry tells which matched."""
    return rbac_pb2.RBAC(
        action=rbac_pb2.RBAC.ALLOW,
        policies={policy_name(index, rule.rule): matching_policy([group_of(rule)]) for index, rule in enumerate(rules)},
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


def group_of(rule: HttpRule) -> Group:
    """All that decides whether the rule matches: rules that are equal in it match the same requests."""
    tests = tuple(tuple(msgspec.structs.replace(test, rule=0) for test in group) for group in rule.tests)
    return Group(rule.method, rule.path, rule.host, tuple(conditions(rule)), tests)


def matching_policy(groups: Sequence[Group]) -> rbac_pb2.Policy:
    """A policy for the requests that all of these match."""
    wanted: list[rbac_pb2.Permission] = []
    for group in groups:
        patterns = ((":method", group.method), (":path", group.path), (":authority", group.host))
        wanted += [regex_permission(header, pattern) for header, pattern in patterns if pattern]
        wanted += [permission(match) for match in group.headers]
        wanted += [rbac_pb2.Permission(or_rules={"rules": list(map(_test, tests))}) for tests in group.tests]
    permissions = [rbac_pb2.Permission(and_rules={"rules": wanted}) if wanted else ANYTHING]
    headers = [match for group in groups for match in group.headers]
    return rbac_pb2.Policy(permissions=permissions, principals=[ANYONE], condition=condition(headers))


def _test(test: HttpTest) -> rbac_pb2.Permission:
    """What a request must be; the parts of the request line are there in every request that gets here."""
    parts = [regex_permission(header, pattern) for header, pattern in test.wanted]
    parts += [rbac_pb2.Permission(not_rule=regex_permission(header, pattern)) for header, pattern in test.unless]
    meant = rbac_pb2.Permission(and_rules={"rules": parts})
    return rbac_pb2.Permission(not_rule=meant) if test.negated else meant
