"""How much room the kernel's maps and the proxy have, and what a table needs of it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from spliceway.policy.errors import SplicewayError


class Limits(msgspec.Struct, frozen=True):
    """Most entries of each map; None: not limited.

    `endpoints`: local pods; `ipcache`: prefixes with an identity; `classes`: identities that a policy singles out, for
    each policy; `rows`: port prefixes for each class; `listeners`: rule sets, pairs included; `pairs`: rule sets that
    ask both ends of a connection.
    """

    endpoints: int | None = None
    ipcache: int | None = None
    classes: int | None = None
    rows: int | None = None
    listeners: int | None = None
    pairs: int | None = None


class Need(msgspec.Struct, frozen=True):
    """Something that does not fit: map, entries it would need, entries it has room for."""

    map: str
    need: int
    room: int

    def __str__(self) -> str:
        return f"{self.map} would need {self.need} entries and has room for {self.room}"


class Refusal(msgspec.Struct, frozen=True):
    """A policy (by kind and key) that was refused for want of room; its last version, if any, stays in force."""

    policy: tuple[str, str]
    needs: tuple[Need, ...]

    def __str__(self) -> str:
        kind, key = self.policy
        return f"{kind} {key}: refused for want of room: {said(self.needs)}"


class BudgetError(SplicewayError):
    """A table does not fit, and no policy of this change is to blame. The last table stays."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self.needs = tuple(needs)
        super().__init__(f"the table does not fit: {said(self.needs)}")


def said(needs: Iterable[Need]) -> str:
    """The needs in one sentence."""
    return "; ".join(map(str, needs))


def overflows(limits: Limits, sizes: dict[str, int]) -> tuple[Need, ...]:
    """What of these sizes, by the names of Limits, does not fit."""
    found = []
    for name, need in sizes.items():
        room = getattr(limits, name)
        if room is not None and need > room:
            found.append(Need(name, need, room))
    return tuple(found)
