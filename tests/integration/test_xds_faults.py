"""Clients that misbehave in every way that we could think of, and others beside them that must not notice.

A real server in a process of its own changes resources all the time; well-behaved clients of both variants (another
process) note when they have acknowledged what; those that misbehave are a third process. For each fault: no update is
lost, none is later than `LATE` beyond what it was without any fault (counted from when the change was due), nobody is
disconnected, the server's memory stays below `PEAK` and comes back, `status()` answers, and the log has no exceptions
and no end of lines. Seconds for each fault: SPLICEWAY_FAULT_SECONDS.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import Commanded
from support.waiting import until_async
from support.xdsfaults import FAULTS

SECONDS = float(os.environ.get("SPLICEWAY_FAULT_SECONDS", "1.5"))
RESOURCES = 100
#: Well-behaved clients of each variant.
GOOD = 4
#: Changes a second.
RATE = 20.0
#: Seconds by which an update may be later than the latest one of the run without faults.
LATE = 1.5
#: The same while each request of the others takes a quarter of a second, in one piece.
LATE_BEHIND_HEAVY = dict.fromkeys(("million_names", "initial_versions"), 4.0)
#: MiB by which the server's memory may grow: while a fault lasts, and afterwards.
PEAK, KEPT = 700.0, 200.0
#: Seconds that an answer with `status()` may take, also while a fault lasts; behind heavy requests as much longer.
STATUS = 1.0
#: MiB of log for each second.
LOG = 1.0
_BAD_LOG = re.compile(r"traceback|exception|\[error|\[critical", re.IGNORECASE)
#: gRPC's own words when a client is gone before it can be told why its stream ends.
_GONE = re.compile(r"Traceback .*\n(?: .*\n)+grpc\._cython\.cygrpc\.ExecuteBatchError: .*\n")


class Bed:
    """The server, the well-behaved clients, and a loop for the whole module."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "xds.sock")
        self.directory = directory
        self.runner = asyncio.Runner()
        self.quiet = 0.0
        self.rss = 0.0
        self.slowest = 0.0
        self.done: dict[str, int] = {}

    async def start(self) -> None:
        """Start all, and see how late updates are without faults."""
        self.server = await Commanded.start("support.xdsserved", self.socket, log=self.directory / "server.log")
        self.fleet = await Commanded.start("support.xdsload", self.socket, log=self.directory / "fleet.log")
        self.faults = await Commanded.start("support.xdsfaults", self.socket, log=self.directory / "faults.log")
        await self.faults.do("prepare")
        await self.server.do("serve", resources=RESOURCES)
        for delta in (True, False):
            await self.fleet.do("connect", clients=GOOD, resources=RESOURCES, delta=delta, remember=True)
        late, _ = await self.watched(None, max(SECONDS, 2))
        self.quiet = max(late)
        self.rss = (await self.server.do("usage", collect=True))["rss"]

    async def stop(self) -> None:
        """End all."""
        await self.faults.stop()
        await self.fleet.stop()
        await self.server.stop()

    async def watched(self, fault: str | None, seconds: float) -> tuple[list[float], float]:
        """How late each update was for each well-behaved client, and the server's memory at most (MiB)."""
        await self.fleet.do("take")
        await self.server.do("churn", per_second=RATE, kinds=["EDS", "LDS"])
        if fault is not None:
            await self.faults.do("begin", name=fault)
        peak, end = 0.0, time.monotonic() + seconds
        self.slowest = 0.0
        while (begin := time.monotonic()) < end:
            await self.server.do("status", resources=False)
            self.slowest = max(self.slowest, time.monotonic() - begin)
            await asyncio.sleep(0.1)
            peak = max(peak, memory(self.server.pid))
        published = (await self.server.do("calm"))["published"]
        await self.settle()
        if fault is not None:
            self.done = await self.faults.do("end")
        taken = await self.fleet.do("take")
        assert taken["lost"] == 0, "a well-behaved client was disconnected"
        return lateness(published, taken["acked"]), peak

    async def settle(self) -> None:
        """Until the well-behaved clients have everything.

        Raises:
            AssertionError: they never get it.
        """
        digests = await self.server.do("digests")

        async def all_there() -> bool:
            return bool((await self.fleet.do("behind", digests=digests))["behind"] == 0)

        await until_async(all_there, told=lambda: "updates are lost")

    async def calm_memory(self) -> float:
        """The server's memory (MiB) once gRPC has freed what the faults left: after 15 seconds as it is then."""
        for _ in range(75):
            after: float = (await self.server.do("usage", collect=True))["rss"]
            if after < self.rss + KEPT:
                break
            await asyncio.sleep(0.2)
        return after

    async def gone(self) -> None:
        """Until only the well-behaved streams are left."""
        status: dict[str, Any] = {}

        async def only_good() -> bool:
            status.update(await self.server.do("status", resources=False))
            return bool(status["streams"] == 2 * GOOD)

        await until_async(
            only_good, told=lambda: f"{status['streams']} streams are still open, the newest are {status['last']}"
        )


def memory(pid: int) -> float:
    """Resident MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) / 256


def lateness(published: dict[str, tuple[str, float]], acked: list[tuple[int, str, str, float]]) -> list[float]:
    """Of each version and client: seconds until the client had acknowledged that or a later version of its type."""
    late = []
    clients = {client for client, _, _, _ in acked}
    assert len(clients) == 2 * GOOD, f"only {len(clients)} clients have heard of anything"
    for client in clients:
        for kind in ("EDS", "LDS"):
            mine = [(int(version), at) for who, what, version, at in acked if who == client and what == kind]
            for version, (what, begin) in published.items():
                if what == kind:
                    late.append(next(at for known, at in mine if known >= int(version)) - begin)
    return late


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    made = Bed(tmp_path_factory.mktemp("faults"))
    with made.runner as runner:
        try:
            runner.run(made.start())
            yield made
        finally:
            runner.run(made.stop())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_others_do_not_notice(bed: Bed, fault: str) -> None:
    logged = len(bed.server.log())

    async def main() -> None:
        late, peak = await bed.watched(fault, SECONDS)
        await bed.gone()
        await asyncio.sleep(0.2)
        after = await bed.calm_memory()
        log = _GONE.sub("", bed.server.log()[logged:])
        figures = (
            f"{fault}: latest {max(late) * 1000:.0f} ms ({bed.quiet * 1000:.0f} without), "
            f"status {bed.slowest * 1000:.0f} ms, memory {bed.rss:.0f}, at most {peak:.0f}, "
            f"after it {after:.0f} MiB, log {len(log) / 1024:.0f} KiB; it did {bed.done}"
        )
        print(figures)
        assert sum(bed.done.values()) > 5, figures
        assert max(late) < bed.quiet + LATE_BEHIND_HEAVY.get(fault, LATE), figures
        assert peak < bed.rss + PEAK, figures
        assert after < bed.rss + KEPT, figures
        assert bed.slowest < STATUS + LATE_BEHIND_HEAVY.get(fault, 0.0), figures
        assert len(log) < LOG * SECONDS * (1 << 20), figures
        found = _BAD_LOG.search(log)
        assert found is None, log[max(0, found.start() - 500) : found.start() + 3000]

    bed.runner.run(main())
