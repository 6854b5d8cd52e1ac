"""Rule sets: one for each distinct set of rules whose HTTP rules apply together.

The number and name follow from *which* rules contribute, not from what they say: an edit keeps the listener.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from spliceway.policy.model import HttpMatch, NetworkPolicy
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import HttpRule, RuleRef, RuleSet

#: Longest name; the proxy uses names in statistics and logs.
MAX_NAME = 200


class RuleSets:
    """Collects the rule sets of a table, and numbers their rules."""

    def __init__(self, policies: Iterable[NetworkPolicy], numbering: Numbering) -> None:
        self._numbering = numbering
        self._http: dict[RuleRef, tuple[HttpMatch, ...]] = {}
        self._order: dict[RuleRef, int] = {}
        for policy in policies:
            for spec in policy.specs:
                for rule in spec.rules:
                    for entry in rule.to_ports:
                        if entry.http is not None:
                            ref = policy.ref(entry.path)
                            self._http[ref] = entry.http
                            self._order[ref] = len(self._order)
        self._numbers: dict[frozenset[RuleRef], int] = {}
        self.rule_sets: dict[int, RuleSet] = {}
        self.rules: dict[int, RuleRef] = {}

    def number(self, contributors: frozenset[RuleRef]) -> int:
        """Id of the rule set of these rules, built on first use."""
        found = self._numbers.get(contributors)
        if found is None:
            found = self._numbers[contributors] = self._numbering.rule_set(contributors)
            self.rule_sets[found] = self._build(found, contributors)
        return found

    def _build(self, number: int, contributors: frozenset[RuleRef]) -> RuleSet:
        refs = sorted(contributors, key=self._order.__getitem__)
        rules = []
        for ref in refs:
            for match in self._http[ref]:
                http_ref = RuleRef(ref.policy, match.path)
                rule = self._numbering.rule(http_ref)
                self.rules[rule] = http_ref
                rules.append(HttpRule(rule, match.method_regex, match.path_regex))
        return RuleSet(number, rule_set_name(refs), tuple(rules))


def rule_set_name(refs: Iterable[RuleRef]) -> str:
    """A readable, unique name: `default/api-http:ingress[0].toPorts[0]`, several joined by `+`.

    What would be too long is cut and ends in a digest of all of it.
    """
    parts = sorted(f"{ref.policy.partition(' ')[2]}:{ref.path.removeprefix('spec.')}" for ref in refs)
    name = "+".join(parts)
    if len(name) <= MAX_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:12]
    return f"{name[: MAX_NAME - 24]}...{len(parts)}-{digest}"
