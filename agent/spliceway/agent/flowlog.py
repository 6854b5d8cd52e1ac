"""The latest flows in memory, and followers that get each new one. A slow follower loses some, and is told how many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

#: How many flows may wait for one follower.
FOLLOWER_QUEUE = 4096


class FlowPeer(msgspec.Struct, frozen=True, rename="camel"):
    """One end of a flow. `pod` is «namespace/name», empty for anything that is no pod we know."""

    address: str
    port: int
    identity: int
    pod: str = ""
    labels: tuple[str, ...] = ()


class HttpPart(msgspec.Struct, frozen=True, rename="camel"):
    """The request of an HTTP verdict, as the client sent it. Duration in milliseconds."""

    method: str
    path: str
    host: str
    status: int
    duration: float
    flags: str = ""


class Flow(msgspec.Struct, frozen=True, rename="camel"):
    """One verdict with names. `time` is RFC 3339 in UTC; `hook` is where in the kernel, or `proxy`.

    `verdict` is `audit` where it passed and would be denied if policies in audit were enforced. `rule` is the RuleRef
    as text (of the server's end, where both ends have HTTP rules; `client_rule` is then that of the client's);
    `rule_set` the name of the rule set; `nearest_miss` says what the closest rule of a denied request lacked;
    `mismatches`: headers that a rule's mismatch action changed or noted. `direction`: for default deny, which no rule
    makes, whether it is that of the client's `egress` or of the server's `ingress`; empty where that is not known.
    """

    time: str
    hook: str
    verdict: str
    reason: str
    source: FlowPeer
    destination: FlowPeer
    protocol: str
    leg: str
    reply: bool
    rule: str = ""
    rule_set: str = ""
    length: int = 0
    http: HttpPart | None = None
    nearest_miss: str = ""
    client_rule: str = ""
    mismatches: tuple[str, ...] = ()
    direction: str = ""


class Lost(msgspec.Struct, frozen=True, rename="camel"):
    """Stands in a follower's stream for flows that it was too slow for."""

    lost: int


class _Follower:
    __slots__ = ("event", "lost", "match", "queue")

    def __init__(self, match: Callable[[Flow], bool]) -> None:
        self.match = match
        self.queue: deque[Flow] = deque()
        self.lost = 0
        self.event = asyncio.Event()


class FlowLog:
    """Ring buffer and fan-out. `publish` never blocks, and a flow that nobody reads is never made."""

    def __init__(self, size: int, *, follower_queue: int = FOLLOWER_QUEUE) -> None:
        self._ring: deque[Callable[[], Flow]] = deque(maxlen=size)
        self._follower_queue = follower_queue
        self._followers: set[_Follower] = set()
        self._closed = False
        self.published = 0
        self.lost = 0

    def __repr__(self) -> str:
        return f"FlowLog(kept={len(self._ring)}, followers={self.followers}, lost={self.lost})"

    def __len__(self) -> int:
        return len(self._ring)

    @property
    def followers(self) -> int:
        """How many follow now."""
        return len(self._followers)

    def publish(self, make: Callable[[], Flow]) -> None:
        """Add a flow for everybody. `make` is called when it is read, by each reader: it must be pure."""
        self.published += 1
        self._ring.append(make)
        if not self._followers:
            return
        flow = make()
        for follower in self._followers:
            if not follower.match(flow):
                continue
            if len(follower.queue) >= self._follower_queue:
                follower.lost += 1
                self.lost += 1
            else:
                follower.queue.append(flow)
            follower.event.set()

    def latest(self, count: int, match: Callable[[Flow], bool] = lambda _flow: True) -> list[Flow]:
        """Up to `count` matching flows, oldest first."""
        found: list[Flow] = []
        for make in reversed(self._ring):
            if len(found) == count:
                break
            flow = make()
            if match(flow):
                found.append(flow)
        return found[::-1]

    async def follow(
        self, last: int = 0, match: Callable[[Flow], bool] = lambda _flow: True
    ) -> AsyncGenerator[Flow | Lost, None]:
        """The latest `last` flows, then each new one until `close`. None is left out between the two."""
        follower = _Follower(match)
        follower.queue.extend(self.latest(last, match))
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


def flow_filter(query: dict[str, str]) -> Callable[[Flow], bool]:
    """Make a predicate of `verdict`, `reason`, `hook`, `pod` (either end), `port` (either end). Raises ValueError."""
    unknown = query.keys() - _FILTERS.keys()
    if unknown:
        raise ValueError(f"unknown filter {', '.join(sorted(unknown))} (there are {', '.join(_FILTERS)})")
    tests = [(_FILTERS[name], value) for name, value in query.items()]
    return lambda flow: all(test(flow, value) for test, value in tests)


_FILTERS: dict[str, Callable[[Flow, str], Any]] = {
    "verdict": lambda flow, value: flow.verdict == value,
    "reason": lambda flow, value: flow.reason == value,
    "hook": lambda flow, value: flow.hook == value,
    "pod": lambda flow, value: value in (flow.source.pod, flow.destination.pod),
    "port": lambda flow, value: value in (str(flow.source.port), str(flow.destination.port)),
}
