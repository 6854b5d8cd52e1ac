"""A worker process: `python -m spliceway.proxy.process.worker FD`, where FD is its end of the channel.

It begins with nothing, and gets its limits, its sockets and its rules by the channel. When the channel closes, the
supervisor has gone: rules could no longer be edited, so all connections are reset and the process ends.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import uvloop

from spliceway.policy.errors import SplicewayError
from spliceway.proxy.model import AccessRecord, Change
from spliceway.proxy.process.channel import Channel, take_sockets
from spliceway.proxy.process.messages import (
    Applied,
    Ask,
    Connections,
    Counters,
    Down,
    Drain,
    Drained,
    Failed,
    Records,
    Share,
    Start,
    Stop,
)
from spliceway.proxy.process.settings import configure_log

#: Records wait so long for others, in seconds; so many are sent at once.
_RECORD_PAUSE, _RECORDS = 0.05, 500
#: More bytes than this wait for the supervisor: further records are dropped.
_BACKLOG = 4 << 20
_COUNTERS_PAUSE = 1.0
#: How often a draining worker looks whether it is empty.
_DRAIN_PAUSE = 0.02


class DataPath(Protocol):
    """What a worker needs of `relay.Relay`."""

    @property
    def connections(self) -> int:
        """How many there are."""

    def apply(self, change: Change, sockets: Mapping[str, Sequence[socket.socket]]) -> None:
        """Put a change in force."""

    def set_share(self, millionths: int) -> None:
        """Record so many of a million allowed requests."""

    def counters(self) -> dict[str, int]:
        """Counters and gauges."""

    def drain(self) -> None:
        """Accept nothing more."""

    def close(self) -> None:
        """Reset what is left."""

    def connection_list(self) -> list[dict[str, Any]]:
        """The connections."""


class MakeDataPath(Protocol):
    """How a worker makes it."""

    def __call__(
        self, loop: asyncio.AbstractEventLoop, start: Start, on_record: Any, loads: memoryview
    ) -> tuple[DataPath, frozenset[str]]:
        """Make it; and the names of its gauges."""


class Worker:
    """The frame around the data path: messages in and out, records in batches, counters, drain, end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, make: MakeDataPath) -> None:
        """`sock`: the channel."""
        self._loop = loop
        self._make = make
        self._path: DataPath | None = None
        self._gauges: frozenset[str] = frozenset()
        self._records: list[AccessRecord] = []
        self._dropped = 0
        self._flush_due: asyncio.TimerHandle | None = None
        self._frozen = False
        self._ended: asyncio.Future[None] = loop.create_future()
        self._channel: Channel[Down] = Channel(loop, sock, Down, self._on_message, self._on_close)

    async def run(self) -> None:
        """Work until told to stop, or until the supervisor has gone.

        Raises whatever a message led to that it should not have.
        """
        await self._ended
        if self._path is not None:
            self._path.close()
            self._flush()
            self._send_counters()
        # A supervisor that reads no more must not keep a worker that has ended.
        try:
            async with asyncio.timeout(1):
                await self._channel.flushed()
        except TimeoutError:
            pass
        self._channel.close()

    def _on_message(self, message: Down, descriptors: list[int]) -> None:
        try:
            self._obey(message, descriptors)
        except Exception as error:
            # What is in force here is no longer known: the next worker begins anew.
            if not self._ended.done():
                self._ended.set_exception(error)

    def _obey(self, message: Down, descriptors: list[int]) -> None:
        match message:
            case Start():
                self._start(message, descriptors)
            case Change():
                self._apply(message, descriptors)
            case Share(millionths):
                self._ready().set_share(millionths)
            case Drain():
                self._ready().drain()
                self._look_drained()
            case Stop():
                self._end()
            case Ask(number):
                self._channel.send(Connections(number, self._ready().connection_list()))

    def _start(self, start: Start, descriptors: list[int]) -> None:
        (shared,) = descriptors
        loads = memoryview(mmap.mmap(shared, 4 * start.workers))
        os.close(shared)
        self._path, self._gauges = self._make(self._loop, start, self._on_record, loads)
        self._path.set_share(start.share)
        self._push_counters()

    def _apply(self, change: Change, descriptors: list[int]) -> None:
        received = iter(take_sockets(descriptors))
        sockets = {name: [next(received) for _ in change.listeners[name].addresses] for name in change.sockets}
        try:
            self._ready().apply(change, sockets)
        except (SplicewayError, LookupError) as error:
            self._channel.send(Failed(change.revision, str(error)))
            return
        if not self._frozen:
            self._frozen = True
            gc.collect()
            gc.freeze()
        self._channel.send(Applied(change.revision))

    def _ready(self) -> DataPath:
        if self._path is None:
            raise RuntimeError("the first message was not Start")
        return self._path

    def _on_record(self, record: AccessRecord) -> None:
        self._records.append(record)
        if len(self._records) >= _RECORDS:
            self._flush()
        elif self._flush_due is None:
            self._flush_due = self._loop.call_later(_RECORD_PAUSE, self._flush)

    def _flush(self) -> None:
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        records, self._records = self._records, []
        if not records:
            return
        if self._channel.backlog > _BACKLOG:
            self._dropped += len(records)
        else:
            self._channel.send(Records(records))

    def _push_counters(self) -> None:
        self._loop.call_later(_COUNTERS_PAUSE, self._push_counters)
        # What waits is as good: these are sums.
        if not self._channel.backlog:
            self._send_counters()

    def _send_counters(self) -> None:
        values = self._ready().counters()
        gauges = {name: values.pop(name) for name in self._gauges & values.keys()}
        self._channel.send(Counters(values, gauges, self._dropped))

    def _look_drained(self) -> None:
        if self._ended.done():
            return
        if self._ready().connections:
            self._loop.call_later(_DRAIN_PAUSE, self._look_drained)
        else:
            self._flush()
            self._send_counters()
            self._channel.send(Drained())

    def _on_close(self, _why: str) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def main(descriptor: int, make: MakeDataPath) -> None:
    """Be a worker until the supervisor ends it or ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group; the supervisor says what they mean
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def work() -> None:
        await Worker(asyncio.get_running_loop(), socket.socket(fileno=descriptor), make).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def _relay(
    loop: asyncio.AbstractEventLoop, start: Start, on_record: Any, loads: memoryview
) -> tuple[DataPath, frozenset[str]]:
    from spliceway.proxy.relay.counters import GAUGES
    from spliceway.proxy.relay.relay import Relay

    relay = Relay(loop, worker=start.worker, limits=start.limits, on_record=on_record, loads=loads, epoch=start.epoch)
    return relay, GAUGES


if __name__ == "__main__":
    configure_log("info")
    main(int(sys.argv[1]), _relay)
