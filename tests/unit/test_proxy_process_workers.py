"""The frame of a worker around a data path that is none, and the pool around workers that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from spliceway.policy.regex import RegexError
from spliceway.proxy.model import AccessRecord, Change, Limits
from spliceway.proxy.process import handover, worker
from spliceway.proxy.process.channel import Channel
from spliceway.proxy.process.handover import Giver, Hello, Offer, Refused
from spliceway.proxy.process.messages import (
    Applied,
    Ask,
    Connections,
    Counters,
    Drain,
    Drained,
    Failed,
    Records,
    Start,
    Stop,
    Up,
)
from spliceway.proxy.process.pool import Pool, PoolError
from spliceway.proxy.process.worker import Worker

RECORD = AccessRecord(1, 2, "a", 1, "b", 2, "HTTP/1.1", "GET", "h", "/" + "x" * 1000, 200, 1, 64, 1)


class FakePath:
    """A data path that notes what it is told. Rules with the name `bad` are refused."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.connections = 0
        self.record: Callable[[AccessRecord], None] = lambda _: None

    def apply(self, change: Change, sockets: Mapping[str, Sequence[socket.socket]]) -> None:
        if "bad" in change.gone:
            raise RegexError("no")
        self.told.append(f"apply {change.revision}")

    def set_share(self, millionths: int) -> None:
        self.told.append(f"share {millionths}")

    def counters(self) -> dict[str, int]:
        return {"rq": 3, "cx": self.connections}

    def drain(self) -> None:
        self.told.append("drain")

    def close(self) -> None:
        self.told.append("close")

    def connection_list(self) -> list[dict[str, Any]]:
        return [{"id": 1}]


class Bench:
    """A worker in this process, and the supervisor's end of its channel."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        ours, self.theirs = socket.socketpair()
        self.ours = ours
        self.path = FakePath()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.up: Channel[Up] = Channel(
            loop, ours, Up, lambda message, _: self.heard.put_nowait(message), lambda _: None
        )
        self.worker = Worker(loop, self.theirs, self._make)
        self.task = asyncio.create_task(self.worker.run())
        memory = os.memfd_create("loads")
        os.ftruncate(memory, 4)
        self.up.send(Start(0, 7, 1, Limits(), 500), [memory])
        os.close(memory)

    def _make(self, _loop: Any, start: Start, on_record: Any, loads: memoryview) -> tuple[Any, frozenset[str]]:
        assert (start.epoch, len(loads)) == (7, 4)
        self.path.record = on_record
        return self.path, frozenset({"cx"})

    async def hears(self, kind: type) -> Any:
        """The next message of this kind."""
        while not isinstance(message := await self.heard.get(), kind):
            pass
        return message


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await work()

    asyncio.run(main())


def test_worker_does_what_it_is_told() -> None:
    async def work() -> None:
        bench = Bench()
        bench.up.send(Change(revision=1))
        bench.up.send(Change(revision=2, gone=("bad",)))
        assert await bench.hears(Applied) == Applied(1)
        assert await bench.hears(Failed) == Failed(2, "no")
        bench.up.send(Ask(9))
        assert await bench.hears(Connections) == Connections(9, [{"id": 1}])
        bench.path.connections = 1
        bench.up.send(Drain())
        assert (await bench.hears(Counters)) == Counters({"rq": 3}, {"cx": 1}, 0)
        bench.path.record(RECORD)
        bench.path.connections = 0
        assert await bench.hears(Records) == Records([RECORD])
        await bench.hears(Drained)
        bench.up.send(Stop())
        await bench.task
        assert bench.path.told == ["share 500", "apply 1", "drain", "close"]
        bench.up.close()

    run(work)


def test_worker_ends_with_its_supervisor() -> None:
    async def work() -> None:
        bench = Bench()
        bench.up.send(Change(revision=1))
        await bench.hears(Applied)
        bench.up.close()
        await bench.task
        assert bench.path.told[-1] == "close"

    run(work)


def test_worker_that_can_not_go_on_ends() -> None:
    """What the supervisor must never say, or a fault of ours: the next worker begins anew."""

    async def work() -> None:
        bench = Bench()
        bench.path.set_share = lambda _: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(ZeroDivisionError):
            await bench.task
        bench.up.close()
        bench.theirs.close()

    run(work)


def test_records_that_nobody_reads_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BACKLOG", 1 << 20)

    async def work() -> None:
        bench = Bench()
        bench.up.send(Change(revision=1))
        await bench.hears(Applied)
        asyncio.get_running_loop().remove_reader(bench.ours)  # a supervisor that is busy
        given = 10_000
        for _ in range(given):
            bench.path.record(RECORD)
        asyncio.get_running_loop().add_reader(bench.ours, bench.up._read)
        bench.up.send(Stop())
        await bench.task
        bench.up.read_rest()
        arrived, dropped = 0, 0
        while not bench.heard.empty():
            message = bench.heard.get_nowait()
            arrived += len(message.records) if isinstance(message, Records) else 0
            dropped = message.dropped if isinstance(message, Counters) else dropped
        assert arrived + dropped == given
        assert 0 < dropped < given

    run(work)


#: Workers by what they do with a message: `first` is its number.
_SCRIPT = """
import asyncio, socket, sys
from spliceway.proxy.process.channel import Channel
from spliceway.proxy.process.messages import *
from spliceway.proxy.model import Change
async def main():
    ended = asyncio.get_running_loop().create_future()
    def on(message, fds):
        if isinstance(message, Stop):
            ended.set_result(None)
        if isinstance(message, Change):
            channel.send(Failed(message.revision, "too much") if "bad" in message.gone else Applied(message.revision))
    channel = Channel(asyncio.get_running_loop(), socket.socket(fileno=int(sys.argv[1])), Down, on,
                      lambda why: ended.done() or ended.set_result(None))
    await ended
    channel.close()
asyncio.run(main())
"""
GOOD = (sys.executable, "-c", _SCRIPT)
CRASHES = (sys.executable, "-c", "raise SystemExit(3)")
_NONSENSE = "import socket, sys, time; socket.socket(fileno=int(sys.argv[1])).send(b'x' * 99); time.sleep(60)"
NONSENSE = (sys.executable, "-c", _NONSENSE)


def _pool(size: int, command: tuple[str, ...]) -> Pool:
    return Pool(size, Limits(), whole=lambda: (Change(revision=0), []), on_records=lambda _: None, command=command)


def test_pool_tells_what_a_worker_refuses() -> None:
    async def work() -> None:
        pool = _pool(2, GOOD)
        await pool.start()
        await pool.apply(Change(revision=1), [])
        with pytest.raises(PoolError, match="too much"):
            await pool.apply(Change(revision=2, gone=("bad",)), [])
        await pool.apply(Change(revision=3), [])
        await pool.stop()
        await pool.stop()
        assert pool.restarts == 0

    run(work)


@pytest.mark.parametrize("command", [CRASHES, NONSENSE])
def test_crash_loop_does_not_hold_up_changes(command: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        pool = _pool(1, command)
        await pool.start()
        for revision in range(1, 4):
            await pool.apply(Change(revision=revision), [])
            while pool.restarts < revision:  # noqa: ASYNC110  (a counter of the pool's own)
                await asyncio.sleep(0.01)
        await pool.stop()

    run(work)


def test_only_the_same_user_may_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(str(tmp_path / "handover"))
        listener.listen()
        frozen = asyncio.Lock()
        giver = Giver(frozen, lambda: (Offer([], {}, 1), []), lambda: pytest.fail("went"))
        task = asyncio.create_task(giver.serve(listener))
        monkeypatch.setattr(handover, "peer_of", lambda _: (1, os.geteuid() + 1))
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        await loop.sock_connect(client, str(tmp_path / "handover"))
        heard: asyncio.Queue[Any] = asyncio.Queue()
        channel: Channel[Any] = Channel(
            loop, client, Offer | Refused, lambda message, _: heard.put_nowait(message), lambda _: None
        )
        channel.send(Hello(handover.VERSION, "x"))
        answer = await heard.get()
        assert isinstance(answer, Refused)
        assert "is not the proxy's user" in answer.reason
        assert not frozen.locked()
        channel.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listener.close()

    run(work)
