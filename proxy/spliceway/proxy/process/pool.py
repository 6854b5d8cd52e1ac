"""The worker processes: each change reaches all of them, and one that ends is replaced.

A worker that dies takes its connections with it, and nothing else: the others go on, and its successor gets the whole
configuration before it accepts anything.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from spliceway.policy.errors import SplicewayError
from spliceway.proxy.model import AccessRecord, Change, Limits
from spliceway.proxy.process.messages import (
    Applied,
    Ask,
    Connections,
    Counters,
    Drain,
    Drained,
    Failed,
    Records,
    Share,
    Start,
    Stop,
    Up,
)
from spliceway.proxy.process.totals import Totals
from spliceway.proxy.process.workerprocess import COMMAND, WorkerProcess
from spliceway.proxy.relay.loads import Loads

_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 5.0
#: A worker that ran so long (seconds) has earned a quick restart.
_STEADY = 10.0
#: A worker that does not answer a change in so many seconds hangs; a new one has more time, for its imports.
_ANSWER, _FIRST_ANSWER = 5.0, 30.0
#: A worker says something each second. One that is silent for so many seconds hangs; it is looked at so often.
_SILENT, _LOOK = 10.0, 2.0
#: How long a worker may take to end when it is told to, in seconds.
_END = 2.0

log = structlog.get_logger(__name__)


class PoolError(SplicewayError):
    """A worker can't apply a change. The message has its reason."""


class _Slot:
    """A place for one worker.

    `ready`: it has applied something. `heard`: when it last said anything. `last`: how the one before it ended.
    `waiting`: revision -> what waits for its answer, which is a reason or empty.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: WorkerProcess | None = None
        self.ready = asyncio.Event()
        self.last = ""
        self.heard = 0.0
        self.drained = asyncio.Event()
        self.waiting: dict[int, asyncio.Future[str]] = {}
        self.asked: dict[int, asyncio.Future[list[dict[str, Any]]]] = {}

    def release(self) -> None:
        """Nothing more comes from this worker: whoever waits for it goes on."""
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_result("")
        for asked in self.asked.values():
            if not asked.done():
                asked.set_result([])
        self.waiting.clear()
        self.asked.clear()


class Pool:
    """`start` it, `apply` changes, `stop` it. `restarts` counts workers that had to be replaced."""

    def __init__(
        self,
        size: int,
        limits: Limits,
        *,
        whole: Callable[[], tuple[Change, list[int]]],
        on_records: Callable[[Sequence[AccessRecord]], None],
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        """`whole`: everything that is in force now, with the descriptors of its sockets (they stay the caller's)."""
        self.totals = Totals()
        self.restarts = 0
        self.share = 1_000_000
        self._limits = limits
        self._whole = whole
        self._on_records = on_records
        self._command = command
        self._slots = [_Slot(number) for number in range(size)]
        self._epochs = itertools.count(random.randrange(4096))
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self._memory = os.memfd_create("spliceway-proxy-loads", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, 4 * size)
        self._loads = Loads.of(memoryview(mmap.mmap(self._memory, 4 * size)))

    def __repr__(self) -> str:
        return f"<Pool of {len(self._slots)}, pids {self.pids}, {self.restarts} restarts>"

    @property
    def size(self) -> int:
        """How many workers there shall be."""
        return len(self._slots)

    @property
    def pids(self) -> list[int]:
        """Of the workers that are there."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    @property
    def connections(self) -> int:
        """Of all workers, now."""
        return self._loads.total()

    async def start(self) -> None:
        """Start the workers, and keep so many of them."""
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        await asyncio.sleep(0)  # now there are processes, and the first change waits for them

    async def until_ready(self) -> None:
        """Wait until every worker has what is in force.

        Raises:
            PoolError: one is not there in time; the message says how the last one ended.
        """
        try:
            async with asyncio.timeout(_FIRST_ANSWER):
                for slot in self._slots:
                    await slot.ready.wait()
        except TimeoutError:
            missing = next(slot for slot in self._slots if not slot.ready.is_set())
            how = missing.last or "it does not answer"
            raise PoolError(f"worker {missing.number} is not there after {_FIRST_ANSWER:g} seconds: {how}") from None

    async def apply(self, change: Change, descriptors: Sequence[int]) -> None:
        """Send a change to all workers and wait until it is in force in each, or that worker has gone.

        `whole` must already give what will be in force. A worker that does not answer is killed: its successor begins
        with the change.

        Raises:
            PoolError: a worker refused it. The others have applied it.
        """
        answers = [self._tell(slot, change, descriptors) for slot in self._slots if slot.process is not None]
        for reason in await asyncio.gather(*answers):
            if reason:
                raise PoolError(reason)

    def set_share(self, millionths: int) -> None:
        """How many of a million allowed requests are recorded."""
        self.share = millionths
        self._send_all(Share(millionths))

    async def connection_list(self) -> list[dict[str, Any]]:
        """All connections of all workers; those of a worker that does not answer are missing."""
        asked = []
        for slot in self._slots:
            if slot.process is not None and slot.ready.is_set():
                number = next(self._numbers)
                slot.asked[number] = asyncio.get_running_loop().create_future()
                slot.process.send(Ask(number))
                asked.append((slot, slot.asked[number]))
        if asked:
            await asyncio.wait([future for _, future in asked], timeout=_ANSWER)
        return [{"worker": slot.number} | item for slot, future in asked if future.done() for item in future.result()]

    def begin_drain(self) -> None:
        """Accept nothing more, and start no more workers."""
        self._ending = True
        self._send_all(Drain())
        for slot in self._slots:
            if slot.process is None:
                slot.drained.set()

    async def drained(self) -> None:
        """Wait until the last connection has ended."""
        await asyncio.gather(*(slot.drained.wait() for slot in self._slots))

    async def stop(self) -> None:
        """End all workers: what connections are left end with them. Once more does nothing."""
        if self._memory < 0:
            return
        self._ending = True
        self._send_all(Stop())
        left = [slot.process for slot in self._slots if slot.process is not None]
        if left:
            _, late = await asyncio.wait([process.ended for process in left], timeout=_END)
            for process in left:
                if process.ended in late:
                    process.kill("did not end when told")
                await asyncio.shield(process.ended)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self._memory)
        self._memory = -1

    def _send_all(self, message: Any) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.send(message)

    async def _tell(self, slot: _Slot, change: Change, descriptors: Sequence[int]) -> str:
        """Send a change to one worker; the reason if it is refused."""
        process = slot.process
        assert process is not None
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        slot.waiting[change.revision] = answer
        process.send(change, descriptors)
        try:
            async with asyncio.timeout(_ANSWER if slot.ready.is_set() else _FIRST_ANSWER):
                return await asyncio.shield(answer)
        except TimeoutError:
            process.kill(f"no answer to change {change.revision}")
            await asyncio.shield(process.ended)
            return ""

    async def _keep(self, slot: _Slot) -> None:
        """Have a worker in this slot, for ever."""
        pause = _BACKOFF_FIRST
        while not self._ending:
            began = time.monotonic()
            how = await self._one(slot)
            if self._ending:
                return
            self.restarts += 1
            slot.last = how
            log.error("a worker has ended, its connections are reset", worker=slot.number, how=how)
            pause = _BACKOFF_FIRST if time.monotonic() - began > _STEADY else min(pause * 2, _BACKOFF_LAST)
            await asyncio.sleep(pause)

    async def _one(self, slot: _Slot) -> str:
        """Start a worker, and wait until it has ended; how it ended."""
        try:
            process = WorkerProcess(lambda _, message: self._take(slot, message), self._command)
        except OSError as error:
            return f"can't be started: {error.strerror}"
        slot.process = process
        slot.drained.clear()
        start = Start(slot.number, next(self._epochs) & 0xFFF, self.size, self._limits, self.share)
        process.send(start, [self._memory])
        whole, descriptors = self._whole()
        process.send(whole, descriptors)
        try:
            await self._until_ended(slot, process)
            return await asyncio.shield(process.ended)
        finally:
            slot.process = None
            slot.ready.clear()
            slot.release()
            slot.drained.set()
            self.totals.end(slot.number)
            self._loads.leave(slot.number)

    async def _until_ended(self, slot: _Slot, process: WorkerProcess) -> None:
        """Wait for a worker's end, and bring it about when it hangs: its connections would hang with it."""
        slot.heard = looked = time.monotonic()
        while not process.ended.done():
            await asyncio.wait([process.ended], timeout=_LOOK)
            now = time.monotonic()
            if now - looked > 2 * _LOOK:
                slot.heard = now  # it is us who were not there
            looked = now
            if slot.ready.is_set() and now - slot.heard > _SILENT:
                process.kill(f"silent for {_SILENT:g} seconds")
                return

    def _take(self, slot: _Slot, message: Up) -> None:
        slot.heard = time.monotonic()
        match message:
            case Applied(revision):
                slot.ready.set()
                self._answer(slot, revision, "")
            case Failed(revision, reason):
                self._answer(slot, revision, reason or "refused")
            case Records(records):
                self._on_records(records)
            case Counters():
                self.totals.take(slot.number, message)
            case Connections(number, connections):
                asked = slot.asked.pop(number, None)
                if asked is not None and not asked.done():
                    asked.set_result(connections)
            case Drained():
                slot.drained.set()

    def _answer(self, slot: _Slot, revision: int, reason: str) -> None:
        answer = slot.waiting.pop(revision, None)
        if answer is not None and not answer.done():
            answer.set_result(reason)
        elif answer is None and reason and slot.process is not None:
            # Nobody waits for the answer to the whole: a worker that can't serve it is of no use.
            log.error("a new worker refuses the configuration", worker=slot.number, reason=reason)
            slot.process.kill(reason)
