"""The access log client: records become entries of Envoy's access log service (ALS), in the stream of the agent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any

import grpc
import structlog
from envoy.service.accesslog.v3 import als_pb2

from spliceway.proxy.ads.channel import FIRST_PAUSE
from spliceway.proxy.ads.entries import entry_of
from spliceway.proxy.ads.pauses import Pauses
from spliceway.proxy.ads.wire import node_of
from spliceway.proxy.model import AccessRecord, ProxySettings

LOG_NAME = "spliceway"
_METHOD = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
#: A message goes out after so many seconds, or with so many entries.
_GATHER, ENTRIES = 0.1, 100
#: Records that wait while the agent is away or slow. Those beyond are dropped, and counted.
QUEUE = 10_000
#: Seconds that what is queued has to go out at the end.
_LAST = 1.0

log = structlog.get_logger(__name__)


class AccessLogClient:
    """Sends records to the agent. Never waits for it where records are made: `add` drops what there is no room for."""

    def __init__(self, settings: ProxySettings, channel: grpc.aio.Channel) -> None:
        """`channel`: see `open_channel`."""
        identifier = als_pb2.StreamAccessLogsMessage.Identifier(node=node_of(settings), log_name=LOG_NAME)
        self._first = als_pb2.StreamAccessLogsMessage(identifier=identifier).SerializeToString()
        untyped: Any = channel
        self._open = untyped.stream_unary(_METHOD)
        self._pauses = Pauses(FIRST_PAUSE, settings.reconnect_max)
        self._queue: deque[AccessRecord] = deque()
        # Set when there is anything to do: a record, a full message, the end.
        self._some, self._full, self._ending = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._written = self._dropped = 0

    def __repr__(self) -> str:
        return f"<AccessLogClient {len(self._queue)} queued, {self._written} written, {self._dropped} dropped>"

    def add(self, records: Iterable[AccessRecord]) -> None:
        """Queue records."""
        for record in records:
            if len(self._queue) < QUEUE:
                self._queue.append(record)
            else:
                self._dropped += 1
        if self._queue:
            self._some.set()
        if len(self._queue) >= ENTRIES:
            self._full.set()

    def counters(self) -> dict[str, int]:
        """Entries that were written to a stream, and those that were dropped, by Envoy's names."""
        prefix = "access_logs.grpc_access_log"
        return {f"{prefix}.logs_written": self._written, f"{prefix}.logs_dropped": self._dropped}

    def stop(self) -> None:
        """Let `run` write what is queued, for a second at most, and return."""
        self._ending.set()
        self._some.set()
        self._full.set()

    async def run(self) -> None:
        """Send until `stop`, or for ever."""
        sending = asyncio.create_task(self._send())
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({sending, ending}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({sending}, timeout=_LAST)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            ending.cancel()
            await asyncio.gather(sending, ending, return_exceptions=True)
            self._dropped += len(self._queue)
            self._queue.clear()

    async def _send(self) -> None:
        while True:
            await self._some.wait()
            if self._ending.is_set() and not self._queue:
                return
            if (why := await self._stream()) is None:
                return
            log.debug("the access log's stream has ended", reason=why)
            await asyncio.sleep(self._pauses.take())

    async def _stream(self) -> str | None:
        """One stream; returns why it ended, None when it was because of `stop`."""
        call = self._open(wait_for_ready=True)
        try:
            await call.write(self._first)
            while await self._due():
                if call.done():
                    return "the agent has ended it"
                await self._write(call)
                self._pauses.reset()
            await call.done_writing()
            await call  # the agent has read all of it
            return None
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except asyncio.InvalidStateError as error:  # a write to a call that has just ended
            return str(error)
        finally:
            call.cancel()

    async def _due(self) -> bool:
        """Wait until there is a message to be sent; False when there is none and none will come."""
        await self._some.wait()
        if not self._full.is_set():
            try:
                async with asyncio.timeout(_GATHER):
                    await self._full.wait()
            except TimeoutError:
                pass
        return bool(self._queue)

    async def _write(self, call: Any) -> None:
        """Write the oldest records. They stay queued until that is done."""
        records = list(islice(self._queue, ENTRIES))
        message = als_pb2.StreamAccessLogsMessage()
        entries = message.http_logs.log_entry
        for record in records:
            try:
                entries.append(entry_of(record))
            except ValueError as error:
                log.warning("a record of a request can't be sent", error=str(error))
        await call.write(message.SerializeToString())
        for _ in records:
            self._queue.popleft()
        self._written += len(entries)
        self._dropped += len(records) - len(entries)
        if not self._ending.is_set():
            if not self._queue:
                self._some.clear()
            if len(self._queue) < ENTRIES:
                self._full.clear()
