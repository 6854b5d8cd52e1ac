"""The client of the soak, in its pod: `python -m support.soakclient OPTIONS` makes connections first to last.

Every one does what its plan says, and every byte of its answers is checked. Prints one JSON line (`ClientResult`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
import time
from collections import Counter

import msgspec

from support.soakplan import Exchange, Kind, Plan, Stream, denied_target, plan, target
from support.soakresults import ClientResult, Options, Trouble
from support.soakwire import DEADLINE, Ended, Wire, Wrong, framing, sent_bytes

_DENIED = b"Access denied"


class _Shortened(Exception):  # noqa: N818
    """An answer said `Connection: close` though more requests were planned."""


class _LetGo(Exception):  # noqa: N818
    """Ended after a whole answer, though more were due."""


class _CutAsPlanned(Exception):  # noqa: N818
    """By one of the ends, where the plan has it."""


class Client:
    """All connections of one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.done: Counter[str] = Counter()
        self.shortened: list[Trouble] = []
        self.troubles: list[Trouble] = []
        self.let_go = self.early = self.bound = self.received = self.sent = 0
        self.slowest = 0.0
        self._numbers = iter(range(options.first, options.last))

    async def work(self) -> None:
        """One connection after the other."""
        for number in self._numbers:
            await self._one(plan(self.options.seed, number))

    async def _one(self, planned: Plan) -> None:
        began = time.monotonic()
        connection = _Connection(self, planned)
        what = detail = ""
        shortened = False
        try:
            async with asyncio.timeout(DEADLINE):
                await connection.run()
        except Wrong as error:
            what, detail = "wrong", str(error)
        except _Shortened:
            shortened = True
        except _LetGo:
            self.let_go += 1
            return
        except TimeoutError:
            what, detail = "hang", connection.phase
        except (Ended, OSError) as error:
            what, detail = "cut", f"{connection.phase}: {error!r}"
        finally:
            connection.close()
        ended = time.monotonic()
        self.slowest = max(self.slowest, ended - began)
        if not what and not shortened:
            self.done[planned.kind.value] += 1
            return
        where = self.shortened if shortened else self.troubles
        where.append(Trouble(planned.number, planned.kind.value, what, detail, connection.local, began, ended))


class _Connection:
    def __init__(self, client: Client, planned: Plan) -> None:
        self.client = client
        self.plan = planned
        self.phase = "connect"
        self.local = ("", 0)
        self.wire: Wire | None = None

    def close(self) -> None:
        if self.wire is not None:
            self.client.received += self.wire.received
            self.client.sent += self.wire.sent
            self.wire.sock.close()

    async def run(self) -> None:
        """Connect, and do what is planned."""
        planned = self.plan
        first = self._head(0, planned.exchanges[0]) if planned.early and planned.kind is not Kind.DENIED else b""
        try:
            sock, taken = await self._connect(first)
        except _CutAsPlanned:
            return
        self.local = sock.getsockname()[:2]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(planned.nodelay))
        self.wire = wire = Wire(sock, slow=planned.slow_client, piece=planned.piece)
        wire.sent = taken
        if planned.kind is Kind.DENIED:
            await self._denied(wire)
        if planned.kind is Kind.PIPELINED:
            await self._pipelined(wire, taken)
        elif planned.kind is Kind.TUNNEL:
            await self._tunnel(wire, taken)
        else:
            for index in range(len(planned.exchanges)):
                if planned.pauses[index]:
                    self.phase = f"pause before {index}"
                    await asyncio.sleep(planned.pauses[index])
                with contextlib.suppress(_CutAsPlanned):
                    await self._exchange(wire, index, taken)
                taken = 0
        if planned.kind is Kind.CLIENT_RESETS:
            wire.reset()
        elif planned.kind is not Kind.SERVER_RESETS:
            await self._over(wire)

    async def _over(self, wire: Wire) -> None:
        planned = self.plan
        self.phase = "end"
        if not wire.is_empty():
            raise Wrong("more than was asked for")
        if planned.kind is Kind.CLIENT_HALF_CLOSES:
            if self.client.options.envoy:
                wire.half_close()
            await wire.end()
        elif planned.close and planned.kind is not Kind.TUNNEL:
            await wire.end()

    async def _connect(self, first: bytes) -> tuple[socket.socket, int]:
        """A connected socket, and how many of the first bytes it has taken."""
        planned = self.plan
        address = (self.client.options.addresses[planned.version], 80)
        family = socket.AF_INET6 if planned.version == 6 else socket.AF_INET
        for port in (*planned.bound, 0):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                if port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("", port))
                return await self._connected(sock, address, first)
            except BaseException as error:
                sock.close()
                in_use = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
                if not (port and in_use):
                    raise
        raise AssertionError("unreachable")

    async def _connected(
        self, sock: socket.socket, address: tuple[str, int], first: bytes
    ) -> tuple[socket.socket, int]:
        loop = asyncio.get_running_loop()
        taken = 0
        if first:
            self.client.early += 1
            with contextlib.suppress(BlockingIOError):
                taken = sock.sendto(first, socket.MSG_FASTOPEN, address)
            # Connected, or not yet: connect() says the rest.
            with contextlib.suppress(OSError):
                sock.getpeername()
                return sock, taken
            await _writable(loop, sock)
            self.local = sock.getsockname()[:2]
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                if error == errno.ECONNRESET and self.plan.kind is Kind.SERVER_RESETS:
                    raise _CutAsPlanned  # the request went with the SYN
                raise OSError(error, "connect")
        else:
            await loop.sock_connect(sock, address)
        if self.plan.bound:
            self.client.bound += 1
        return sock, taken

    def _head(self, index: int, exchange: Exchange) -> bytes:
        planned = self.plan
        path = target(planned.number, index)
        if planned.kind is Kind.TUNNEL:
            upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: c29haw==\r\n"
            return b"GET %b HTTP/1.1\r\nHost: soak\r\n%b\r\n" % (path, upgrade)
        last = index == len(planned.exchanges) - 1
        close = b"Connection: close\r\n" if last and planned.close else b""
        has_body = exchange.up or exchange.up_chunked
        body = framing(exchange.up, chunked=exchange.up_chunked) if has_body else b""
        return b"%b %b HTTP/1.1\r\nHost: soak\r\n%b%b\r\n" % (b"POST" if has_body else b"GET", path, body, close)

    async def _exchange(self, wire: Wire, index: int, taken: int) -> None:
        """One request and its answer; `taken` bytes of the head have gone."""
        planned, exchange = self.plan, self.plan.exchanges[index]
        head = self._head(index, exchange)
        most = None
        if planned.kind is Kind.CLIENT_RESETS and planned.cut < 1:
            size = sent_bytes(head, exchange.up, chunked=exchange.up_chunked)
            most = max(taken, int(size * planned.cut))
        self.phase = f"request {index}"
        await wire.send(head[taken:], most)
        if exchange.up or exchange.up_chunked:
            await wire.send_stream(
                Stream(planned.number, index, 0), exchange.up, chunked=exchange.up_chunked, most=most
            )
        if most is not None:
            raise _CutAsPlanned
        last = index == len(planned.exchanges) - 1
        if planned.kind is Kind.CLIENT_HALF_CLOSES and last and not self.client.options.envoy:
            wire.half_close()
        self.phase = f"answer {index}"
        if planned.kind is Kind.SERVER_RESETS:
            await self._cut_answer(wire, index)
        elif planned.kind is Kind.CLIENT_RESETS:
            await self._answer_head(wire)
            await wire.stream(Stream(planned.number, index, 1), 0, int(exchange.down * (planned.cut - 1)))
        else:
            await self._answer(wire, index)

    async def _answer_head(self, wire: Wire) -> bytes:
        head = await wire.until(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Wrong(f"{head[:200]!r}")
        return head.lower()

    async def _answer(self, wire: Wire, index: int) -> None:
        planned, exchange = self.plan, self.plan.exchanges[index]
        head = await self._answer_head(wire)
        stream = Stream(planned.number, index, 1)
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            await wire.chunks(stream, exchange.down)
        elif b"\r\ncontent-length: %d\r\n" % exchange.down in head:
            await wire.stream(stream, 0, exchange.down)
        else:
            raise Wrong(f"{head!r} does not say {exchange.down} bytes")
        if b"\r\nconnection: close\r\n" in head and index < len(planned.exchanges) - 1:
            raise _Shortened

    async def _cut_answer(self, wire: Wire, index: int) -> None:
        """The server resets in the middle: what has come is right, and it never looks complete."""
        try:
            head = await wire.until(b"\r\n\r\n")
            if head.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 502 ")):
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                raise Wrong(f"{head[:200]!r}")
            exchange, stream = self.plan.exchanges[index], Stream(self.plan.number, index, 1)
            if b"\r\ntransfer-encoding: chunked\r\n" in head.lower():
                await wire.chunks(stream, exchange.down)
            else:
                await wire.stream(stream, 0, exchange.down)
        except (Ended, OSError):
            return
        raise Wrong("an answer that was cut looks complete")

    async def _denied(self, wire: Wire) -> None:
        self.phase = "denied"
        await wire.send(b"GET %b HTTP/1.1\r\nHost: soak\r\n\r\n" % denied_target(self.plan.number))
        head = (await wire.until(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 403 ") or b"\r\ncontent-length: %d\r\n" % len(_DENIED) not in head:
            raise Wrong(f"{head!r}")
        if await wire.until(_DENIED) != _DENIED:
            raise Wrong("another body of a 403")
        if b"\r\nconnection: close\r\n" in head:
            raise _Shortened

    async def _pipelined(self, wire: Wire, taken: int) -> None:
        planned = self.plan
        self.phase = "pipelined requests"
        heads = b"".join(self._head(index, exchange) for index, exchange in enumerate(planned.exchanges))
        sending = asyncio.create_task(wire.send(heads[taken:]))
        try:
            for index in range(len(planned.exchanges)):
                self.phase = f"pipelined answer {index}"
                before = wire.received
                try:
                    await self._answer(wire, index)
                except Ended:
                    if index and self.client.options.envoy and wire.received == before and wire.is_empty():
                        raise _LetGo from None
                    raise
            await sending
        finally:
            await _cancel(sending)

    async def _tunnel(self, wire: Wire, taken: int) -> None:
        planned, exchange = self.plan, self.plan.exchanges[0]
        self.phase = "upgrade"
        await wire.send(self._head(0, exchange)[taken:])
        head = await wire.until(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Wrong(f"{head[:200]!r}")
        self.phase = "tunnel"
        sending = asyncio.create_task(wire.send_stream(Stream(planned.number, 0, 0), exchange.up, chunked=False))
        try:
            await wire.stream(Stream(planned.number, 0, 1), 0, exchange.down)
            await sending
        finally:
            await _cancel(sending)
        self.phase = "tunnel's end"
        if await wire.until(b"!", 1) != b"!":
            raise Wrong("bytes in a tunnel that nobody sent")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await task


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_writer(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock)


async def run(options: Options) -> ClientResult:
    """All of them."""
    client, began = Client(options), time.monotonic()
    await asyncio.gather(*(client.work() for _ in range(options.parallel)))
    return ClientResult(
        dict(client.done),
        client.shortened,
        client.troubles,
        client.let_go,
        client.early,
        client.bound,
        client.received,
        client.sent,
        client.slowest,
        time.monotonic() - began,
    )


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(run(msgspec.json.decode(sys.argv[1], type=Options)))).decode())
