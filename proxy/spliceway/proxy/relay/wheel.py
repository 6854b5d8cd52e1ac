"""Timeouts of many connections: looked at when the earliest could be due, not set anew for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

#: Resolution, in seconds: a timeout may come this much late.
TICK = 0.25


class Timed(Protocol):
    """What may time out. `slot` belongs to the wheel, -1 at first."""

    slot: int

    def due(self) -> float:
        """When something is to be done, in the loop's time; infinity for never."""

    def expire(self, now: float) -> None:
        """It is due."""


class Wheel:
    """Buckets of `TICK` seconds. `watch` whatever may be due sooner than it was; later comes by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_error: Callable[[Timed, Exception], None]) -> None:
        """`on_error`: told of what one `expire` raises; others are not kept from theirs."""
        self._loop = loop
        self._on_error = on_error
        self._slots: dict[int, set[Timed]] = {}
        self._next = int(loop.time() / TICK) + 1
        self._timer: asyncio.TimerHandle | None = loop.call_at(self._next * TICK, self._turn)

    def __repr__(self) -> str:
        return f"<Wheel with {sum(map(len, self._slots.values()))}>"

    def watch(self, item: Timed) -> None:
        """Look at it when it is due."""
        due = item.due()
        if due == float("inf"):
            return
        slot = max(int(due / TICK) + 1, self._next)
        if item.slot < 0 or slot < item.slot:
            self.forget(item)
            self._slots.setdefault(slot, set()).add(item)
            item.slot = slot

    def forget(self, item: Timed) -> None:
        """Don't look at it any more."""
        if item.slot >= 0:
            bucket = self._slots.get(item.slot)
            if bucket is not None:
                bucket.discard(item)
            item.slot = -1

    def stop(self) -> None:
        """Turn no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()

    def _turn(self) -> None:
        now = self._loop.time()
        while self._next * TICK <= now:
            bucket = self._slots.pop(self._next, None)
            self._next += 1
            for item in bucket or ():
                item.slot = -1
                try:
                    if item.due() <= now:
                        item.expire(now)
                    else:
                        self.watch(item)
                except Exception as error:
                    self._on_error(item, error)
        if self._timer is not None:
            self._timer = self._loop.call_at(self._next * TICK, self._turn)
