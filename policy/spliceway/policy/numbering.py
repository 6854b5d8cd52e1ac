"""Stable numbers: the one mutable thing of `policy`.

Whatever the kernel and the proxy know by number keeps it as long as it lives, also across restarts of the agent
(`to_dict`, `from_dict`), and a number that became free is not given again before all others of its range were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from spliceway.policy.entity import RESERVED_LABELS, Reserved
from spliceway.policy.errors import NumberingError
from spliceway.policy.table import PolicyTable, RuleRef
from spliceway.policy.verdict import Direction

#: Label identities, as in Cilium: from 256. Identities of prefixes have a range of their own.
FIRST_LABEL_IDENTITY = 256
FIRST_CIDR_IDENTITY = 1 << 24
#: The node itself, with labels that tell its addresses apart. The kernel treats them all as the host.
FIRST_HOST_VARIANT = 64
LAST_HOST_VARIANT = 127
LAST_CIDR_IDENTITY = (1 << 25) - 1
_LAST_U32 = (1 << 32) - 1
#: Each rule set has a listener, and so a port of its own.
_LAST_U16 = (1 << 16) - 1

_FORMAT = 1
_HOST = Reserved.HOST.label
_RESERVED_NUMBERS: Mapping[tuple[str, ...], int] = {labels: number for number, labels in RESERVED_LABELS.items()}


class _Pool:
    """Numbers of one range by key. `changes` goes up with each one given or released."""

    __slots__ = ("_first", "_keys", "_last", "_next", "_numbers", "_what", "changes")

    def __init__(self, what: str, first: int, last: int) -> None:
        self._what = what
        self._first = first
        self._last = last
        self._next = first
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        self.changes = 0

    def number(self, key: str) -> int:
        """The number of a key; a new one if it has none."""
        found = self._numbers.get(key)
        if found is not None:
            return found
        if len(self._keys) > self._last - self._first:
            raise NumberingError(f"all {len(self._keys)} numbers for {self._what} are taken")
        while self._next in self._keys:
            self._next = self._after(self._next)
        number = self._next
        self._next = self._after(number)
        self._numbers[key] = number
        self._keys[number] = key
        self.changes += 1
        return number

    def release(self, number: int) -> None:
        """Forget the key of a number."""
        key = self._keys.pop(number, None)
        if key is not None:
            del self._numbers[key]
            self.changes += 1

    def keep(self, numbers: Iterable[int]) -> None:
        """Forget every key whose number is not among these."""
        for number in self._keys.keys() - set(numbers):
            self.release(number)

    def save(self) -> dict[str, Any]:
        return {"next": self._next, "numbers": dict(self._numbers)}

    def load(self, saved: object) -> None:
        """Take over what `save` gave. Raises NumberingError when it is damaged."""
        if not isinstance(saved, dict) or not isinstance(saved.get("numbers"), dict):
            raise NumberingError(f"saved numbers for {self._what} are damaged")
        numbers: dict[str, int] = saved["numbers"]
        values = [*numbers.values(), saved.get("next")]
        if not all(type(value) is int and self._first <= value <= self._last for value in values):
            raise NumberingError(f"saved numbers for {self._what} are not all from {self._first} to {self._last}")
        if len(set(numbers.values())) != len(numbers) or not all(isinstance(key, str) for key in numbers):
            raise NumberingError(f"saved numbers for {self._what} are not unique")
        self._next = saved["next"]
        self._numbers = dict(numbers)
        self._keys = {number: key for key, number in numbers.items()}

    def _after(self, number: int) -> int:
        return self._first if number >= self._last else number + 1

    def __len__(self) -> int:
        return len(self._numbers)


class Numbering:
    """Hands out numbers for identities, policies, classes, rules and rule sets. 0 is never given."""

    def __init__(self) -> None:
        self._identities = _Pool("label identities", FIRST_LABEL_IDENTITY, FIRST_CIDR_IDENTITY - 1)
        self._hosts = _Pool("addresses of this node that policies tell apart", FIRST_HOST_VARIANT, LAST_HOST_VARIANT)
        self._cidrs = _Pool("identities of prefixes", FIRST_CIDR_IDENTITY, LAST_CIDR_IDENTITY)
        self._policies = _Pool("policies", 1, _LAST_U32)
        self._rules = _Pool("rules", 1, _LAST_U32)
        self._rule_sets = _Pool("rule sets", 1, _LAST_U16)
        self._classes: dict[tuple[int, Direction], _Pool] = {}
        self._class_changes = 0

    @property
    def changes(self) -> int:
        """Goes up with each number given or released: what was saved at the same count need not be saved anew."""
        return self._class_changes + sum(pool.changes for pool in self._pools().values())

    def identity(self, labels: tuple[str, ...]) -> int:
        """Identity of sorted labels: the fixed number of a reserved one, otherwise one of its own."""
        found = _RESERVED_NUMBERS.get(labels)
        if found is not None:
            return found
        key = "\n".join(labels)
        if _HOST in labels:
            return self._hosts.number(key)
        return (self._cidrs if key.startswith("cidr:") else self._identities).number(key)

    def policy(self, subject: tuple[str, ...]) -> int:
        """Policy id of the endpoints with these labels."""
        return self._policies.number("\n".join(subject))

    def peer_class(self, policy_id: int, direction: Direction, key: str) -> int:
        """Class id, unique in one policy and direction."""
        pool = self._classes.get((policy_id, direction))
        if pool is None:
            pool = self._classes[policy_id, direction] = _Pool("classes", 1, _LAST_U32)
        before = pool.changes
        found = pool.number(key)
        self._class_changes += pool.changes - before
        return found

    def rule(self, ref: RuleRef) -> int:
        """Rule id."""
        return self._rules.number(f"{ref.policy}\n{ref.path}")

    def rule_set(self, refs: Iterable[RuleRef]) -> int:
        """Rule set id of the rules that contribute to it, whatever they say."""
        return self._rule_sets.number("\n\n".join(sorted(f"{ref.policy}\n{ref.path}" for ref in refs)))

    def release_identity(self, number: int) -> None:
        """Nothing has this identity any more."""
        for pool in (self._identities, self._hosts, self._cidrs):
            pool.release(number)

    def release_policy(self, policy_id: int) -> None:
        """No endpoint has this policy any more; its classes go with it."""
        self._policies.release(policy_id)
        for direction in Direction:
            self._classes.pop((policy_id, direction), None)

    def release_class(self, policy_id: int, direction: Direction, class_id: int) -> None:
        """No identity is in this class any more."""
        pool = self._classes.get((policy_id, direction))
        if pool is not None:
            before = pool.changes
            pool.release(class_id)
            self._class_changes += pool.changes - before

    def release_rule(self, number: int) -> None:
        """No row and no rule set names this rule any more."""
        self._rules.release(number)

    def release_rule_set(self, number: int) -> None:
        """No row steers to this rule set any more."""
        self._rule_sets.release(number)

    def prune(self, table: PolicyTable) -> None:
        """Forget what this table does not use. Call it once the kernel and the proxy have taken the table over."""
        self._identities.keep(table.identities)
        self._hosts.keep(table.identities)
        self._cidrs.keep(table.identities)
        self._policies.keep(endpoint.policy_id for endpoint in table.endpoints.values())
        self._rules.keep(table.rules)
        self._rule_sets.keep(table.rule_sets)
        used: dict[tuple[int, Direction], set[int]] = {}
        for key, class_id in table.classes.items():
            used.setdefault((key.policy_id, key.direction), set()).add(class_id)
        live = {endpoint.policy_id for endpoint in table.endpoints.values()}
        self._classes = {key: pool for key, pool in self._classes.items() if key[0] in live}
        for pool_key, pool in self._classes.items():
            pool.keep(used.get(pool_key, ()))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values of JSON."""
        classes = [[policy, int(direction), pool.save()] for (policy, direction), pool in self._classes.items()]
        saved: dict[str, Any] = {name: pool.save() for name, pool in self._pools().items()}
        return {"format": _FORMAT, **saved, "classes": classes}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Numbering:
        """What `to_dict` saved. Raises NumberingError when it is of another format or damaged."""
        if not isinstance(saved, Mapping) or saved.get("format") != _FORMAT:
            raise NumberingError(f"saved numbers are not of format {_FORMAT}")
        numbering = cls()
        for name, pool in numbering._pools().items():
            if name in saved or name != "hosts":  # which earlier versions did not have
                pool.load(saved.get(name))
        classes = saved.get("classes")
        if not isinstance(classes, list):
            raise NumberingError("saved numbers for classes are damaged")
        for entry in classes:
            try:
                policy, direction, state = entry
                key = int(policy), Direction(direction)
            except (TypeError, ValueError):
                raise NumberingError("saved numbers for classes are damaged") from None
            pool = numbering._classes[key] = _Pool("classes", 1, _LAST_U32)
            pool.load(state)
        return numbering

    def _pools(self) -> dict[str, _Pool]:
        return {
            "identities": self._identities,
            "hosts": self._hosts,
            "cidrs": self._cidrs,
            "policies": self._policies,
            "rules": self._rules,
            "rule_sets": self._rule_sets,
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={len(pool)}" for name, pool in self._pools().items())
        return f"Numbering({counts})"
