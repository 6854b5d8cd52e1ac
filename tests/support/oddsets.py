"""Rule sets that odd requests are sent to: from one that lets everything pass to conditions at both ends."""

from __future__ import annotations

from random import Random

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from support.generated_http import generated_rule_sets

_PUBLIC = (
    HttpRule(11, "GET|HEAD", "/pub(/.*)?"),
    HttpRule(12, "GET|POST|PUT", "/a/?.*"),
    HttpRule(13, "DELETE", "/private", headers=(HeaderMatch("x-a", "1"),)),
    HttpRule(14, "", r"/b\?q=1", "api(:80)?"),
)
_CONDITIONS = (
    HttpRule(21, "GET", headers=(HeaderMatch("x-a", "1"),)),
    HttpRule(22, "POST|PUT", headers=(HeaderMatch("x-b"),)),
    HttpRule(23, "", "/open", headers=(HeaderMatch("x-c", ""),)),
)
_CHANGES = (
    HttpRule(31, headers=(HeaderMatch("x-a", "1", mismatch=Mismatch.REPLACE),)),
    HttpRule(32, "GET", headers=(HeaderMatch("x-b", "a", mismatch=Mismatch.ADD),)),
    HttpRule(33, "POST", headers=(HeaderMatch("x-a", "9", mismatch=Mismatch.DELETE),)),
    HttpRule(34, "PUT", headers=(HeaderMatch("x-b", mismatch=Mismatch.LOG),)),
)
OPEN, PUBLIC, HOSTS, CONDITIONS, CHANGES, AUDIT, BOTH, CHANGED_BOTH = range(1, 9)


def odd_sets(random_ones: int, seed: int) -> list[RuleSet]:
    """The sets above, and so many that a generator made."""
    return [
        RuleSet(OPEN, "open", (HttpRule(1),)),
        RuleSet(PUBLIC, "public", _PUBLIC),
        RuleSet(HOSTS, "hosts", (HttpRule(41, host="api"), HttpRule(42, "GET", host="[^:]+:80"))),
        RuleSet(CONDITIONS, "conditions", _CONDITIONS),
        RuleSet(CHANGES, "changes", _CHANGES),
        RuleSet(AUDIT, "audit", None, _PUBLIC),
        RuleSet(BOTH, "both", _PUBLIC, None, RuleSet(BOTH, "both", (HttpRule(51, "GET|PUT"),))),
        RuleSet(CHANGED_BOTH, "changed", _CHANGES, None, RuleSet(CHANGED_BOTH, "changed", None, _CONDITIONS)),
        *generated_rule_sets(random_ones, Random(f"sets/{seed}"), CHANGED_BOTH + 1),
    ]


#: Which set a request is sent to: those with the least in the way most often.
WEIGHTS = (OPEN, OPEN, OPEN, OPEN, PUBLIC, PUBLIC, PUBLIC, HOSTS, CONDITIONS, CHANGES, AUDIT, BOTH, CHANGED_BOTH)
