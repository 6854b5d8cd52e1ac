"""Which table is wanted, which is in force, and what may differ between the two: deltas, added up. Pure.

A table's own delta is against the table before it. Tables are skipped (a newer one is wanted already) and held back in
part (`staging`), so what the kernel must look at is the union since what it has.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from spliceway.agent.staging import difference, hold_back, same_rows, union
from spliceway.policy.table import PolicyTable, TableDelta


class TableChain:
    """`desired` is what the source says, `applied` what is in force (the two may be one), None before the first."""

    def __init__(self) -> None:
        self.desired: PolicyTable | None = None
        self.applied: PolicyTable | None = None
        self._delta: TableDelta | None = None  # of the two
        self._kernel: PolicyTable | None = None  # what the kernel was given last

    def __repr__(self) -> str:
        wanted, applied = (table and table.revision for table in (self.desired, self.applied))
        return f"TableChain(desired={wanted}, applied={applied})"

    def want(self, table: PolicyTable) -> None:
        """A new table is wanted."""
        before, self.desired = self.desired, table
        if self.applied is None:
            return
        known = table.delta if before is not None and table.delta and table.delta.base == before.revision else None
        if self._delta is None or known is None:
            self._delta = difference(self.applied, table)
        else:
            self._delta = union(self._delta, known)

    def target(self, pending: Collection[int]) -> tuple[PolicyTable, TableDelta | None]:
        """The table to bring into force while these rule sets are `pending`, and what it still leaves out."""
        desired = self.desired
        assert desired is not None  # `want` was called
        if self.applied is None or self._delta is None:
            return desired, None
        return hold_back(self.applied, desired, pending, self._delta)

    def changes_rows(self, target: PolicyTable) -> bool:
        """Whether the kernel must be told of this target."""
        return self.applied is None or self._delta is None or not same_rows(self.applied, target, self._delta)

    def for_kernel(self, target: PolicyTable) -> PolicyTable:
        """The target with its difference from what the kernel was given last."""
        delta = self._delta
        if delta is not None and self._kernel is not None:
            delta = msgspec.structs.replace(delta, base=self._kernel.revision)
        return msgspec.structs.replace(target, delta=delta)

    def given(self, target: PolicyTable) -> None:
        """The kernel has taken the target over."""
        self._kernel = target

    def settle(self, target: PolicyTable, left: TableDelta | None) -> None:
        """The target is in force; `left`: what still differs from the table that is wanted."""
        self.applied = target
        self._delta = left or TableDelta(base=target.revision)
