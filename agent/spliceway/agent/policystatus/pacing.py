"""How often things are asked and written, for a whole cluster of agents that know nothing of each other.

What N agents do together is bounded by letting each do it N times as rarely: they all know how many nodes there are.
"""

from __future__ import annotations

import asyncio

import msgspec


class Pacing(msgspec.Struct, frozen=True):
    """Seconds, but for rates: a second.

    `lease`: after so long without a sign another agent writes; `deadline`: so long one that can't renew goes on;
    `retry`: between renewals, and between looks of others, of which there are `looks` at most in the cluster.
    `report`: the shortest time between two reports of a node, `reports` at most in the cluster; `refresh`: reports that
    say nothing new. `again`: until somebody looks whether our definitions are there now, or rights. `gather`: between
    two looks of the writer at what is to be written; `stale`: a status without a policy is deleted after that.
    `pause`: the first after a failure of one object, and the longest. `events`: a second, `burst` at once.
    """

    lease: float = 15.0
    deadline: float = 10.0
    retry: float = 2.0
    looks: float = 50.0
    report: float = 2.0
    reports: float = 100.0
    refresh: float = 600.0
    again: float = 60.0
    gather: float = 1.0
    stale: float = 60.0
    pause: tuple[float, float] = (2.0, 120.0)
    events: float = 1.0
    burst: int = 50

    def report_every(self, nodes: int) -> float:
        """Seconds between two reports of a node."""
        return max(self.report, nodes / self.reports)

    def look_every(self, nodes: int) -> float:
        """Seconds between two looks of an agent at the lease."""
        return max(self.retry, nodes / self.looks)


class Bucket:
    """So many a second, and so many at once after a while without."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._when: float | None = None

    def take(self) -> bool:
        """One, if there is one."""
        self._fill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def wait(self) -> None:
        """One, as soon as there is one."""
        while not self.take():  # noqa: ASYNC110
            await asyncio.sleep((1 - self._left) / self._rate)

    def _fill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._when is not None:
            self._left = min(self._burst, self._left + (now - self._when) * self._rate)
        self._when = now
