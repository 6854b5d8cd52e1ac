"""The latest events in memory, and followers that get each new one. A slow follower loses some, and is told so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar

import msgspec

#: How many events may wait for one follower.
FOLLOWER_QUEUE = 4096

T = TypeVar("T")


def _any(_event: Any) -> bool:
    return True


class Lost(msgspec.Struct, frozen=True, rename="camel"):
    """Stands in a follower's stream for events that it was too slow for."""

    lost: int


class _Follower(Generic[T]):
    __slots__ = ("event", "lost", "match", "queue")

    def __init__(self, match: Callable[[T], bool], first: list[T]) -> None:
        self.match = match
        self.queue: deque[T] = deque(first)
        self.lost = 0
        self.event = asyncio.Event()


class Ring(Generic[T]):
    """Ring buffer and fan-out. `publish` never blocks, and an event that nobody reads is never made."""

    def __init__(self, size: int, *, follower_queue: int = FOLLOWER_QUEUE) -> None:
        self._ring: deque[Callable[[], T]] = deque(maxlen=size)
        self._follower_queue = follower_queue
        self._followers: set[_Follower[T]] = set()
        self._closed = False
        self.published = 0
        #: Events that followers were too slow for.
        self.lost = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kept={len(self._ring)}, followers={self.followers}, lost={self.lost})"

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    def publish(self, make: Callable[[], T]) -> None:
        """Add an event for everybody. `make` is called when it is read, by each reader: it must be pure."""
        self.published += 1
        self._ring.append(make)
        if not self._followers:
            return
        event = make()
        for follower in self._followers:
            if not follower.match(event):
                continue
            if len(follower.queue) >= self._follower_queue:
                follower.lost += 1
                self.lost += 1
            else:
                follower.queue.append(event)
            follower.event.set()

    def latest(self, count: int, match: Callable[[T], bool] = _any) -> list[T]:
        """Up to `count` matching events, oldest first."""
        found: list[T] = []
        for make in reversed(self._ring):
            if len(found) == count:
                break
            event = make()
            if match(event):
                found.append(event)
        return found[::-1]

    async def follow(self, last: int = 0, match: Callable[[T], bool] = _any) -> AsyncGenerator[T | Lost, None]:
        """The latest `last` events, then each new one until `close`. None is left out between the two."""
        follower = _Follower(match, self.latest(last, match))
        self._followers.add(follower)
        try:
            while True:
                while follower.queue:
                    yield follower.queue.popleft()
                if follower.lost:
                    lost, follower.lost = follower.lost, 0
                    yield Lost(lost)
                if self._closed:
                    return
                follower.event.clear()
                await follower.event.wait()
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        """End all followers after what they still have to read."""
        self._closed = True
        for follower in self._followers:
            follower.event.set()
