"""The wire: HTTP/1.1 with keep-alive, chunked watches, TLS when asked, and what goes wrong on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec

from support.kubeapi.api import Answer, Api, Request, crd_ended
from support.kubeapi.errors import ApiError
from support.kubeapi.resources import CRDS, Served
from support.kubeapi.store import Change
from support.kubeapi.watches import Watch

_READ = 1 << 16
#: Seconds after which a watch ends that did not say how long it wants to be.
_TIMEOUT = (1800.0, 3600.0)
#: Turns of the loop that a connection takes from being accepted until it is one of ours: its transport is made, its
#: protocol is told.
_ACCEPTING = 4


class Faults:
    """What goes wrong from now on. All of it can be changed at any time, from the server's loop."""

    def __init__(self) -> None:
        #: Seconds before each line of a watch, and before each other answer.
        self.watch_delay = 0.0
        self.delay = 0.0
        #: Watches are open and send nothing.
        self.stalled = False
        #: Plural names of resources whose requests get this instead: code, and seconds of Retry-After.
        self.refuse: dict[str, tuple[int, int]] = {}
        #: So many watches get half of their next line, and then the end of the connection.
        self.cut_lines = 0


class Session:
    """A watch that runs: what it is of, and its connection."""

    def __init__(self, watch: Watch, served: Served, transport: asyncio.Transport) -> None:
        self.watch = watch
        self.served = served
        self.transport = transport


class Server:
    """Serves one `Api`. Everything runs in one loop."""

    def __init__(self, api: Api, *, bookmark_seconds: float = 60.0, context: ssl.SSLContext | None = None) -> None:
        self.api = api
        self.faults = Faults()
        self.sessions: set[Session] = set()
        self.requests: list[tuple[str, str, str]] = []  # method, path, query
        self._bookmark_seconds = bookmark_seconds
        self._context = context
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.Transport] = {}
        api.store.listeners.append(self._crds_changed)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._connected, host, port, ssl=self._context, backlog=1024)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, *, abrupt: bool = False) -> None:
        """Close the socket and all connections: in good order, or by resets."""
        if self._server is None:
            return
        server, self._server = self._server, None
        # Of a server that is closed, a connection that was accepted a moment before would never be ended by anybody.
        for one in server.sockets:
            asyncio.get_running_loop().remove_reader(one.fileno())
        for _ in range(_ACCEPTING):
            await asyncio.sleep(0)
        server.close()
        for transport in list(self._connections.values()):
            transport.abort() if abrupt else transport.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            # With TLS an end in good order waits for the client's, and for half a minute at most.
            _done, left = await asyncio.wait(tasks, timeout=1.0)
            for task in left:
                if task in self._connections:
                    self._connections[task].abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def drop_watches(self, share: float = 1.0, *, abrupt: bool = True) -> int:
        """End so many of the running watches; how many that were."""
        chosen = [one for one in self.sessions if random.random() < share]
        for one in chosen:
            if abrupt:
                one.transport.abort()
            else:
                one.watch.end()
        return len(chosen)

    def bookmark(self) -> None:
        """Send every watch that wants them a bookmark."""
        for one in self.sessions:
            one.watch.bookmark()

    def _crds_changed(self, change: Change) -> None:
        if change.resource == CRDS:
            for one in self.sessions:
                if crd_ended(self.api.registry, one.served):
                    one.watch.end()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections[task] = writer.transport  # type: ignore[assignment]

        def over(_task: asyncio.Task[None]) -> None:
            self._connections.pop(task, None)
            writer.close()  # also where the task was ended before it began

        task.add_done_callback(over)
        if self._server is None:  # a handshake of TLS that took longer
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = h11.Connection(h11.SERVER)
        while True:
            request = await _read(wire, reader)
            if request is None:
                return
            target = urlsplit(request.path)
            self.requests.append((request.method, target.path, target.query))
            read = msgspec.structs.replace(request, path=target.path, query=dict(parse_qsl(target.query)))
            await self._answer(wire, writer, read)
            if wire.our_state is not h11.DONE:
                return
            wire.start_next_cycle()

    async def _answer(self, wire: h11.Connection, writer: asyncio.StreamWriter, request: Request) -> None:
        try:
            if self.faults.delay:
                await asyncio.sleep(self.faults.delay)
            self._refuse(request)
            answer = self.api.answer(request)
        except ApiError as error:
            retry = (
                {"retry-after": str(error.details["retryAfterSeconds"])} if "retryAfterSeconds" in error.details else {}
            )
            await _send(wire, writer, Answer(error.code, msgspec.json.encode(error.body)), retry)
            return
        if isinstance(answer, Answer):
            await _send(wire, writer, answer, {})
            return
        try:
            await self._watch(wire, writer, answer, request)
        finally:
            answer.close()

    def _refuse(self, request: Request) -> None:
        for part in request.path.split("/"):
            if part in self.faults.refuse:
                code, seconds = self.faults.refuse[part]
                reason = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}.get(code, "Unknown")
                raise ApiError(code, reason, f"{part} is not to be had", retryAfterSeconds=seconds)

    async def _watch(self, wire: h11.Connection, writer: asyncio.StreamWriter, watch: Watch, request: Request) -> None:
        wanted = request.query.get("timeoutSeconds")
        loop = asyncio.get_running_loop()
        end = loop.time() + (float(wanted) if wanted and wanted != "0" else random.uniform(*_TIMEOUT))
        next_bookmark = loop.time() + self._bookmark_seconds
        session = Session(watch, watch.served, writer.transport)  # type: ignore[arg-type]
        headers = [
            ("content-type", "application/json"),
            ("transfer-encoding", "chunked"),
            ("cache-control", "no-cache, private"),
        ]
        writer.write(wire.send(h11.Response(status_code=200, headers=headers)) or b"")
        self.sessions.add(session)
        try:
            while True:
                if not self.faults.stalled:
                    for line in watch.lines():
                        if self.faults.watch_delay:
                            await asyncio.sleep(self.faults.watch_delay)
                        if self.faults.cut_lines:
                            self.faults.cut_lines -= 1
                            writer.write(wire.send(h11.Data(data=line[: len(line) // 2])) or b"")
                            await writer.drain()
                            return  # the connection ends without the last chunk
                        writer.write(wire.send(h11.Data(data=line)) or b"")
                        await writer.drain()
                if watch.ended or loop.time() >= end:
                    break
                if loop.time() >= next_bookmark:
                    watch.bookmark()
                    next_bookmark = loop.time() + self._bookmark_seconds
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min(end, next_bookmark, loop.time() + 0.5)):
                        await watch.woken.wait()
                if writer.transport.is_closing():
                    return
                if self.faults.stalled:
                    await asyncio.sleep(0.05)
            writer.write(wire.send(h11.EndOfMessage()) or b"")
            await writer.drain()
        finally:
            self.sessions.discard(session)


async def _read(wire: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            wire.receive_data(await reader.read(_READ))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = {bytes(name).decode().lower(): bytes(value).decode() for name, value in head.headers}
            return Request(bytes(head.method).decode(), bytes(head.target).decode(), {}, headers, bytes(body))
        else:
            return None


async def _send(wire: h11.Connection, writer: asyncio.StreamWriter, answer: Answer, more: Mapping[str, str]) -> None:
    headers = [("content-type", answer.kind), ("content-length", str(len(answer.body))), *more.items()]
    writer.write(wire.send(h11.Response(status_code=answer.code, headers=headers)) or b"")
    writer.write(wire.send(h11.Data(data=answer.body)) or b"")
    writer.write(wire.send(h11.EndOfMessage()) or b"")
    await writer.drain()
