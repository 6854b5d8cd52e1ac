"""What a rule set must not be: what Envoy would refuse, could not be asked exactly, or would take for «everything»."""

from __future__ import annotations

from collections.abc import Iterator

from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.errors import ResourceError
from spliceway.xds.resources.changes import combined_tests, too_many
from spliceway.xds.resources.headers import why_not

#: Most tests of requests in one rule set: each stands beside each rule, so that they multiply (some 50 bytes each).
MAX_TESTS = 50_000


def check_rule_set(rule_set: RuleSet) -> None:
    """Refuse what can't be served.

    Raises:
        ResourceError: no rules (that would be a listener that serves nobody, or everybody, and a mistake), a third end,
            a pattern that Envoy would refuse (one refused route would hold back what comes with it), a condition on
            headers or an action that it can't be asked for exactly, too many tests. Never says the value of a header.
    """
    title = f"rule set {rule_set.id} ({rule_set.name})"
    also = rule_set.also
    if also is not None and also.also is not None:
        raise ResourceError(f"{title}: rules of more than two ends")
    halves = (rule_set, also) if also is not None else (rule_set,)
    count = sum(len(group) for half in halves for rule in _rules(half) for group in rule.tests)
    if count > MAX_TESTS:
        raise ResourceError(f"{title}: {_too_many_tests(count)}")
    for half in halves:
        if half.rules == () or (half.rules is None and half.audit is None):
            raise ResourceError(f"{title}: no rules{'' if half is rule_set else ' of the other end'}")
        for rule in _rules(half):
            _check_rule(f"{title}, rule {rule.rule}", rule)
        if reason := too_many(half.rules or ()):
            raise ResourceError(f"{title}: {reason}")
        count += combined_tests(half.rules or ())
    if count > MAX_TESTS:
        raise ResourceError(f"{title}: {_too_many_tests(count)}")


def _rules(half: RuleSet) -> tuple[HttpRule, ...]:
    return *(half.rules or ()), *(half.audit or ())


def _too_many_tests(count: int) -> str:
    return (
        f"{count} tests of AuthorizationPolicies beside its rules, and no more than {MAX_TESTS} can be served: "
        "each operation stands beside each rule of the other policies"
    )


def _check_rule(where: str, rule: HttpRule) -> None:
    for field, pattern in (("method", rule.method), ("path", rule.path), ("host", rule.host), *_tested(where, rule)):
        if pattern:
            try:
                compile_regex(pattern)
            except RegexError as error:
                raise ResourceError(f"{where}, {field}: {pattern!r}: {error}") from error
    for match in rule.headers:
        if reason := why_not(match):
            raise ResourceError(f"{where}, {reason}")


def _tested(where: str, rule: HttpRule) -> Iterator[tuple[str, str]]:
    """The expressions of its tests. An empty group would be nobody, and an empty test everybody."""
    for group in rule.tests:
        if not group or not all(test.wanted or test.unless for test in group):
            raise ResourceError(f"{where}: a test that asks for nothing")
        for test in group:
            yield from ((f"test of {part.strip(':')}", pattern) for part, pattern in (*test.wanted, *test.unless))
