"""From changes of the source to tables: the engine, load balancing, and the numbers that things have."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import msgspec
import structlog

from spliceway.agent.inventory import Changes
from spliceway.agent.manifests import Key
from spliceway.policy.budget import said
from spliceway.policy.engine import Engine, Options
from spliceway.policy.loadbalancing import Changes as ServiceChanges
from spliceway.policy.loadbalancing import LoadBalancing
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction

log = structlog.get_logger(__name__)


class RefusedPolicy(msgspec.Struct, frozen=True):
    """A policy for which a map has no room. `kept`: its version before is in force."""

    key: Key
    reason: str
    kept: bool


class Compiler:
    """Makes the tables of one node. `apply` and `settle` are not for two threads at once; the rest may be read."""

    def __init__(
        self,
        options: Options,
        numbering: Numbering,
        *,
        on_services: Sequence[Callable[[ServiceChanges], None]] = (),
    ) -> None:
        """`numbering`: with the numbers of an earlier agent; `on_services` are told of frontends that are different.

        Each change is told once, also when `apply` raises then: whoever is told must remember it. They are called in
        the thread of `apply`.
        """
        self._on_services = on_services
        self._engine = Engine(options, numbering)
        self._numbering = numbering
        self._released = 0
        self._balancing = LoadBalancing(options.node)
        self.balance = self._balancing.balance
        self.refused: tuple[RefusedPolicy, ...] = ()
        self.refused_pairs = 0

    def __repr__(self) -> str:
        return f"Compiler({self._engine!r})"

    def apply(self, changes: Changes, revision: int) -> PolicyTable:
        """The table with these changes; then `refused` says which policies have no room. Raises SplicewayError.

        `balance` follows the changes in any case: it needs no room.
        """
        first = self._engine.table is None
        services = self._balancing.apply(changes)
        self.balance = self._balancing.balance
        for tell in self._on_services if services else ():
            tell(services)
        try:
            table = self._engine.apply(
                (item for item in changes.values() if item is not None),
                (key for key, item in changes.items() if item is None),
                revision=revision,
            )
        finally:
            self._tell()
        if first:
            # What is there now mostly stays: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
        return table

    @property
    def given(self) -> int:
        """How many numbers were given. Only these must be saved before anyone uses them; releasing can wait."""
        return self._numbering.changes - self._released

    @property
    def hopeful(self) -> bool:
        """Whether policies that were refused may have room by now: `apply` tries them, also without changes."""
        return self._engine.hopeful

    def isolating(self, endpoint: str, direction: Direction) -> tuple[Key, ...]:
        """Policies by which what nothing allows is denied to an endpoint, in audit or not."""
        return self._engine.isolating(endpoint, direction)

    def selecting(self, endpoint: str) -> frozenset[Key]:
        """Policies that are about an endpoint."""
        return self._engine.selecting(endpoint)

    def settle(self, table: PolicyTable) -> None:
        """Forget numbers that this table does not use: it is in force everywhere."""
        before = self._numbering.changes
        self._engine.settle(table.revision)
        self._released += self._numbering.changes - before

    def _tell(self) -> None:
        before = {one.key for one in self.refused}
        found = self._engine.refused
        kept = self._engine.cluster.policies.keys() if found else ()
        self.refused = tuple(
            RefusedPolicy(key, f"refused for want of room: {said(why.needs)}", key in kept)
            for key, why in sorted(found.items())
        )
        self.refused_pairs = len(self._engine.refused_pairs)
        for one in self.refused:
            if one.key not in before:
                log.warning("policy refused", policy=" ".join(one.key), reason=one.reason, kept=one.kept)
