"""Conditions by Secrets that nobody has read match nothing: that is told, with the rule sets that have one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from spliceway.agent.sourceviews import secret_warnings
from spliceway.policy.rulesets import NO_VALUE
from spliceway.policy.table import HeaderMatch, HttpRule, PolicyTable, RuleSet

MISSING = HttpRule(1, headers=(HeaderMatch("x-token", NO_VALUE, secret=True),))
READ = HttpRule(2, headers=(HeaderMatch("x-token", "letmein", secret=True),))


def table(*rule_sets: RuleSet) -> PolicyTable:
    found: Any = SimpleNamespace(rule_sets={one.id: one for one in rule_sets})
    return cast("PolicyTable", found)


def test_those_that_lack_one_are_named_and_no_others() -> None:
    sets = (
        RuleSet(1, "default/read", (READ,)),
        RuleSet(2, "default/missing", (READ, MISSING)),
        RuleSet(3, "default/other-end", (READ,), also=RuleSet(0, "", None, (MISSING,))),
    )
    (told,) = secret_warnings(table(*sets), cluster=True)
    assert "not read from an API server" in told
    assert told.endswith(": default/missing, default/other-end")
    (told,) = secret_warnings(table(*sets), cluster=False)
    assert "API server" not in told
    assert secret_warnings(table(sets[0]), cluster=True) == ()
    assert secret_warnings(None, cluster=True) == ()


def test_the_sentence_stays_short() -> None:
    (told,) = secret_warnings(table(*(RuleSet(n, f"default/{n}", (MISSING,)) for n in range(1, 100))), cluster=True)
    assert told.endswith("and 94 more")
