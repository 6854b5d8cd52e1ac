"""Which policies a record of audit is due to: those of its rule, of its rule set, or those that deny by default."""

from __future__ import annotations

from collections.abc import Callable

from spliceway.agent.audit import AuditEntry
from spliceway.agent.manifests import Key
from spliceway.policy.table import PolicyTable, RuleSet
from spliceway.policy.verdict import Direction, Reason

#: Keys of the policies that isolate an endpoint in a direction.
Isolating = Callable[[str, Direction], tuple[Key, ...]]


class Blamer:
    """For one summary: what was asked once is remembered."""

    def __init__(self, table: PolicyTable | None, isolating: Isolating) -> None:
        """`table`: the one in force."""
        self._isolating = isolating
        self._asked: dict[tuple[str, str], tuple[str, ...]] = {}
        self._rule_sets = {found.name: found for found in table.rule_sets.values()} if table else {}
        self._rules = table.rules if table else {}

    def __repr__(self) -> str:
        return f"Blamer(rule_sets={len(self._rule_sets)}, asked={len(self._asked)})"

    def __call__(self, entry: AuditEntry) -> tuple[str, ...]:
        """Titles, «NetworkPolicy shop/web», sorted."""
        if entry.rule:
            return (" ".join(entry.rule.split(" ")[:2]),)
        if entry.rule_set and (found := self._rule_sets.get(entry.rule_set)) is not None:
            return tuple(sorted(self._of(found)))
        if entry.reason != Reason.DEFAULT_DENY.label or not entry.direction:
            return ()
        pod = entry.source.pod if entry.direction == Direction.EGRESS.label else entry.destination.pod
        key = (pod, entry.direction)
        if key not in self._asked:
            direction = next(one for one in Direction if one.label == entry.direction)
            self._asked[key] = tuple(" ".join(each) for each in self._isolating(pod, direction))
        return self._asked[key]

    def _of(self, rule_set: RuleSet) -> set[str]:
        rules = (*(rule_set.rules or ()), *(rule_set.audit or ()))
        numbers = {number for rule in rules for number in rule.numbers}
        found = {self._rules[number].policy for number in numbers if number in self._rules}
        return found | (self._of(rule_set.also) if rule_set.also is not None else set())
