"""Hold back what is not ready, let everything else through; and what differs between two tables.

A row that steers to a listener which is not there yet would drop the connections that the last generation served, and
waiting for the listener would make every unrelated change wait with it, tightenings among them. So while a listener is
on its way, the unit (policy id, direction) that needs it stays as it was, whole, and all other units become new. Pure.

Everything here looks at the keys of a TableDelta only: what it costs is what changed, not what there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import TypeVar

import msgspec

from spliceway.policy.table import ClassKey, EndpointPolicy, PolicyTable, RowKey, TableDelta
from spliceway.policy.verdict import Direction

#: A policy in one direction: what is held back or let through together.
Unit = tuple[int, Direction]

K = TypeVar("K")
V = TypeVar("V")


class Overlay(Mapping[K, V]):
    """A mapping with some keys changed (None: taken out), without copying it."""

    def __init__(self, base: Mapping[K, V], changed: Mapping[K, V | None]) -> None:
        self._base = base
        self._changed = {key: value for key, value in changed.items() if value is not None or key in base}
        self._length = len(base) + sum((value is not None) - (key in base) for key, value in self._changed.items())

    def __repr__(self) -> str:
        return f"Overlay({self._length} keys, {len(self._changed)} changed)"

    def __getitem__(self, key: K) -> V:
        if key not in self._changed:
            return self._base[key]
        value = self._changed[key]
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[K]:
        yield from (key for key in self._base if key not in self._changed)
        yield from (key for key, value in self._changed.items() if value is not None)

    def __len__(self) -> int:
        return self._length


def difference(old: PolicyTable, new: PolicyTable) -> TableDelta:
    """A delta that is sure to be complete, for tables of which nobody knows what changed: every key of both."""
    return TableDelta(
        base=old.revision,
        identities=frozenset(chain(old.identities, new.identities)),
        ipcache=frozenset(chain(old.ipcache, new.ipcache)),
        endpoints=frozenset(chain(old.endpoints, new.endpoints)),
        classes=frozenset(chain(old.classes, new.classes)),
        rows=frozenset(chain(old.rows, new.rows)),
        rule_sets=frozenset(chain(old.rule_sets, new.rule_sets)),
        pairs=frozenset(chain(old.pairs, new.pairs)),
    )


def union(first: TableDelta, second: TableDelta) -> TableDelta:
    """What differs after both; the base is that of the first."""
    return TableDelta(
        base=first.base,
        identities=first.identities | second.identities,
        ipcache=first.ipcache | second.ipcache,
        endpoints=first.endpoints | second.endpoints,
        classes=first.classes | second.classes,
        rows=first.rows | second.rows,
        rule_sets=first.rule_sets | second.rule_sets,
        pairs=first.pairs | second.pairs,
    )


def waiting_units(table: PolicyTable, pending: Collection[int], rows: Collection[RowKey] | None = None) -> set[Unit]:
    """Units with a row (of these `rows`, or any) that steers to one of the `pending` rule sets."""
    waiting = set(pending)
    found = set()
    for key in table.rows if rows is None else rows:
        row = table.rows.get(key)
        if row is not None and row.rule_set and row.rule_set in waiting:
            found.add((key.policy_id, key.direction))
    return found


def hold_back(
    old: PolicyTable, new: PolicyTable, pending: Collection[int], delta: TableDelta
) -> tuple[PolicyTable, TableDelta | None]:
    """The new table, with each unit that waits for a `pending` rule set as it was in the old one.

    `delta`: what may differ between the two. With the table comes what still differs from the new one; None when
    nothing is held, and then the table is the new one itself.

    A unit is held only where that can't widen anything: it must have been in force in the old table, and no identity
    may be new (the old classes would take a new identity for «any other peer»). Otherwise the new rows come into force
    at once and drop what they would steer, with NO_LISTENER. A table with something held keeps the old revision.
    """
    if not pending:
        return new, None
    if any(number in new.identities and number not in old.identities for number in delta.identities):
        return new, None
    # Where both ends have HTTP rules, rows name the rule sets of the ends, and the listener is that of the pair.
    wanted = {*pending, *(end for pair, both in new.pairs.items() if both in pending for end in pair)}
    known = {(policy.policy_id, direction) for policy in old.endpoints.values() for direction in Direction}
    held = waiting_units(new, wanted, delta.rows) & known
    if held and (before := {number for number in wanted if number in old.rule_sets}):
        # A unit that steered to the same missing listener before gains nothing from being held.
        held -= waiting_units(old, before)
    if not held:
        return new, None
    classes: dict[ClassKey, int | None] = {
        key: old.classes.get(key) for key in delta.classes if (key.policy_id, key.direction) in held
    }
    rows = {key: old.rows.get(key) for key in delta.rows if (key.policy_id, key.direction) in held}
    flags = _flags(old)
    endpoints = {
        name: _with_flags(policy, held, flags) for name, policy in new.endpoints.items() if _is_of(policy, held)
    }
    kept = [row for row in rows.values() if row is not None]
    needed = {row.rule_set: old.rule_sets[row.rule_set] for row in kept if row.rule_set}
    let_through = waiting_units(new, wanted, delta.rows) - held
    listed = set(new.pairs.values())
    unused = (
        () if let_through else [number for number in pending if number not in listed and number not in old.rule_sets]
    )
    target = msgspec.structs.replace(
        new,
        revision=old.revision,
        endpoints=Overlay(new.endpoints, endpoints),
        classes=Overlay(new.classes, classes),
        rows=Overlay(new.rows, rows),
        rule_sets=Overlay(new.rule_sets, {**dict.fromkeys(unused), **needed}),
        rules=Overlay(new.rules, {row.rule: old.rules[row.rule] for row in kept if row.rule}),
        pairs={**old.pairs, **new.pairs},
        delta=delta,
    )
    left = TableDelta(
        base=old.revision,
        endpoints=frozenset(endpoints),
        classes=frozenset(classes),
        rows=frozenset(rows),
        rule_sets=delta.rule_sets,
        pairs=frozenset(pair for pair in old.pairs if pair not in new.pairs),
    )
    return target, left


def same_rows(old: PolicyTable, new: PolicyTable, delta: TableDelta) -> bool:
    """Whether the kernel would judge the same by both: an edit of HTTP rules alone changes no row."""
    return (
        all(old.rows.get(row) == new.rows.get(row) for row in delta.rows)
        and all(old.classes.get(key) == new.classes.get(key) for key in delta.classes)
        and all(old.endpoints.get(name) == new.endpoints.get(name) for name in delta.endpoints)
        and all(old.ipcache.get(prefix) == new.ipcache.get(prefix) for prefix in delta.ipcache)
        and all(old.pairs.get(pair) == new.pairs.get(pair) for pair in delta.pairs)
    )


def steered(table: PolicyTable) -> frozenset[int]:
    """The rule sets that the table steers to: it has no others."""
    return frozenset(table.rule_sets)


def _is_of(policy: EndpointPolicy, held: Collection[Unit]) -> bool:
    return any((policy.policy_id, direction) in held for direction in Direction)


def _flags(table: PolicyTable) -> dict[Unit, bool]:
    return {
        (policy.policy_id, direction): policy.ingress if direction is Direction.INGRESS else policy.egress
        for policy in table.endpoints.values()
        for direction in Direction
    }


def _with_flags(policy: EndpointPolicy, held: Collection[Unit], flags: dict[Unit, bool]) -> EndpointPolicy:
    ingress, egress = (policy.policy_id, Direction.INGRESS), (policy.policy_id, Direction.EGRESS)
    return msgspec.structs.replace(
        policy,
        ingress=flags[ingress] if ingress in held else policy.ingress,
        egress=flags[egress] if egress in held else policy.egress,
    )
