"""What happened on xDS streams, kept for people who look and who watch. A slow follower loses some, and is told.

The server is never held up: publishing is an append, and each follower has a queue of its own with a bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

import msgspec

from spliceway.agent.flowlog import Lost
from spliceway.agent.xdstypes import short_type
from spliceway.xds.server.events import XdsEvent

#: How many of the latest events are kept, and how many may wait for one follower.
EVENTS = 4096
FOLLOWER_QUEUE = 4096
#: Longest message of a client that is kept, in characters. Clients say what they like.
LONGEST_ERROR = 8192

Match = Callable[[XdsEvent], bool]


class _Follower:
    __slots__ = ("lost", "match", "queue", "wake")

    def __init__(self, match: Match, first: list[XdsEvent]) -> None:
        self.match = match
        self.queue = deque(first)
        self.lost = 0
        self.wake = asyncio.Event()


class XdsEvents:
    """The latest events in memory, and whoever follows them."""

    def __init__(self, size: int = EVENTS, *, follower_queue: int = FOLLOWER_QUEUE) -> None:
        self._ring: deque[XdsEvent] = deque(maxlen=size)
        self._follower_queue = follower_queue
        self._followers: set[_Follower] = set()
        self._closed = False
        #: Events that followers were too slow for.
        self.lost = 0

    def __repr__(self) -> str:
        return f"XdsEvents(kept={len(self._ring)}, followers={self.followers}, lost={self.lost})"

    @property
    def followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    def publish(self, event: XdsEvent) -> None:
        """Keep an event, and hand it to everybody who follows."""
        if len(event.error) > LONGEST_ERROR:
            event = msgspec.structs.replace(
                event, error=f"{event.error[:LONGEST_ERROR]}… ({len(event.error)} characters)"
            )
        self._ring.append(event)
        for follower in self._followers:
            if not follower.match(event):
                continue
            if len(follower.queue) >= self._follower_queue:
                follower.lost += 1
                self.lost += 1
            else:
                follower.queue.append(event)
            follower.wake.set()

    def latest(self, count: int, match: Match = lambda _event: True) -> list[XdsEvent]:
        """Up to `count` matching events, oldest first."""
        found: list[XdsEvent] = []
        for event in reversed(self._ring):
            if len(found) == count:
                break
            if match(event):
                found.append(event)
        return found[::-1]

    async def follow(self, last: int = 0, match: Match = lambda _event: True) -> AsyncGenerator[XdsEvent | Lost, None]:
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
                follower.wake.clear()
                await follower.wake.wait()
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        """End all followers after what they still have to read."""
        self._closed = True
        for follower in self._followers:
            follower.wake.set()


def event_filter(query: dict[str, str]) -> Match:
    """Make a predicate of `node` and `type` (events of whole connections pass it). Raises ValueError."""
    unknown = query.keys() - {"node", "type"}
    if unknown:
        raise ValueError(f"unknown filter {', '.join(sorted(unknown))} (there are node, type)")
    node = query.get("node")
    types = (short_type(query["type"]), "") if "type" in query else None
    return lambda event: (node is None or event.node == node) and (types is None or event.type in types)
