"""How long things take, and how a kind does: the values that others see of a `Reflector`."""

from __future__ import annotations

import random
from typing import Literal

import msgspec

State = Literal["waiting", "listed", "absent", "refused"]


class Timing(msgspec.Struct, frozen=True):
    """Seconds. `watch`: how long a watch shall last; `idle`: without a byte it is ended (bookmarks come each minute).

    `retry`: the first pause after a failure, and the longest; `again`: between looks for kinds that are not served;
    `gone`: so long a kind must be away until its objects are; `lost`: so long failures are nobody's business.
    `without`: so long a first look waits for kinds that fail and that it can do without.
    """

    watch: tuple[float, float] = (300.0, 600.0)
    idle: float = 150.0
    first_idle: float = 60.0
    retry: tuple[float, float] = (0.25, 10.0)
    again: float = 60.0
    gone: float = 10.0
    lost: float = 5.0
    without: float = 30.0
    page: int = 500

    def pause(self, tries: int) -> float:
        """Seconds to wait after a failure that so many came before."""
        first, most = self.retry
        return min(most, first * 2.0 ** min(tries, 16)) * random.uniform(0.5, 1.0)


class Figures(msgspec.Struct, frozen=True, rename="camel"):
    """How one kind does. `lists`: looks at all; `watches`: how often a watch began; `heard`: time of the last answer.

    `state`: `waiting` for the first look, `listed`, `absent` (not served), `refused` (by RBAC, and never listed).
    """

    kind: str
    state: State
    objects: int
    lists: int
    watches: int
    failures: int
    heard: float
    error: str
    essential: bool
