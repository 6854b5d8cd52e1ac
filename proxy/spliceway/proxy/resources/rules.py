"""RBAC policies, each of them one rule. Its name has the rule's place and id: `00017/4711`."""

from __future__ import annotations

import re
from typing import Any

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HttpRule
from spliceway.proxy.errors import UnenforceableError
from spliceway.proxy.resources.conditions import Group, escaped, group_in, policy_of, why_not
from spliceway.proxy.resources.filters import PASS_ALL
from spliceway.proxy.resources.names import PASS
from spliceway.proxy.resources.shapes import check, joined, keyed

#: Place and rule. Envoy sorts policies by name, so places beyond five digits would be in another order there.
_NAME = re.compile(r"([0-9]{5})/([1-9][0-9]{0,17})")


def enforced_rules(rules: Any, at: str) -> tuple[HttpRule, ...] | None:
    """The rules of an allow list (RBAC), None when every request passes.

    Raises:
        UnenforceableError: it is no allow list, or has no policies: that would be everybody or nobody, by mistake.
    """
    if PASS in rules.policies:
        check(rules, PASS_ALL, at, {})
        return None
    if not rules.policies:
        raise UnenforceableError(joined(at, "policies"), "is required")
    return allow_list(rules, at)


def allow_list(rules: Any, at: str) -> tuple[HttpRule, ...]:
    """The rules of an allow list, which may have none."""
    places = {}
    shapes = {}
    path = joined(at, "policies")
    for index, name in enumerate(sorted(rules.policies)):
        found = _NAME.fullmatch(name)
        if found is None or int(found[1]) != index:
            raise UnenforceableError(keyed(path, name), f"is not the name of a rule at place {index}")
        group = group_in(rules.policies[name])
        places[name] = HttpRule(int(found[2]), group.method, group.path, group.host, group.headers, group.tests)
        shapes[name] = policy_of([group])
    check(rules, {"policies": shapes} if shapes else {}, at, {})
    for name, rule in places.items():
        _check_rule(rule, keyed(path, name))
    return tuple(places.values())


def group_of(rule: HttpRule) -> Group:
    """What decides whether a rule without mismatch actions matches."""
    return Group(rule.method, rule.path, rule.host, rule.headers, rule.tests)


def _check_rule(rule: HttpRule, at: str) -> None:
    """That its expressions and headers can be asked."""
    permission = joined(at, "permissions[0].and_rules.rules")
    place = 0
    for pattern in (rule.method, rule.path, rule.host):
        if pattern:
            path = f"{permission}[{place}].header.string_match.safe_regex.regex"
            try:
                compile_regex(pattern)
            except RegexError as error:
                raise UnenforceableError(path, str(error)) from None
            place += 1
    for index, match in enumerate(rule.headers, place):
        if why := why_not(match):
            raise UnenforceableError(f"{permission}[{index}].header", why)
        if match.value is not None and not match.value.isascii():
            try:
                compile_regex(escaped(match.value))
            except RegexError:
                path = f"{permission}[{index}].header.string_match.safe_regex.regex"
                raise UnenforceableError(path, "is too large an expression") from None
    for index, tests in enumerate(rule.tests, place + len(rule.headers)):
        path = f"{permission}[{index}].or_rules"
        if not tests:
            raise UnenforceableError(f"{path}.rules", "is required")
        for number, test in enumerate(tests):
            if not test.wanted and not test.unless:
                raise UnenforceableError(f"{path}.rules[{number}]", "asks for nothing")
            for _, pattern in (*test.wanted, *test.unless):
                try:
                    compile_regex(pattern)
                except RegexError as error:
                    raise UnenforceableError(f"{path}.rules[{number}]", str(error)) from None
