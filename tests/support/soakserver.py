"""The server of the soak, in its pod: `python -m support.soakserver SEED`, until its stdin ends.

It knows from its number what each connection must send, checks that, and answers and ends as the plan says. Prints
"ready", and at the end one JSON line (`ServerResult`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
import time

import msgspec

from support.soakplan import Kind, Plan, Stream, plan
from support.soakresults import ServerResult, Trouble
from support.soakwire import DEADLINE, Ended, Wire, Wrong, framing, sent_bytes

_REQUEST = re.compile(rb"(GET|POST) /soak/([0-9]+)/([0-9]+) HTTP/1.1\r\n")
#: After the load's end connections are over within that time: Envoy keeps those to servers for 4 s.
_LAST = 15.0


class Server:
    """Counts and troubles of all connections."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.connections = self.requests = self.received = self.sent = 0
        self.troubles: list[Trouble] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        """Serve what comes, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            sock, peer = await loop.sock_accept(listener)
            task = asyncio.create_task(self._serve(sock, peer[:2]))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _serve(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        self.connections += 1
        began = time.monotonic()
        connection = _Connection(self, sock)
        what = detail = ""
        try:
            async with asyncio.timeout(DEADLINE + 10):
                await connection.serve()
        except Wrong as error:
            what, detail = "wrong", str(error)
        except TimeoutError:
            what, detail = "hang", f"{connection.phase}, received {connection.wire.received}"
        except (Ended, OSError) as error:
            if not connection.may_end():
                what, detail = "cut", f"{connection.phase}: {error!r}, received {connection.wire.received}"
        finally:
            sock.close()
            self.received += connection.wire.received
            self.sent += connection.wire.sent
        if what:
            known = connection.plan
            number, kind = (known.number, known.kind.value) if known else (-1, "")
            self.troubles.append(Trouble(number, kind, what, detail, peer, began, time.monotonic()))


class _Connection:
    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.wire = Wire(sock, slow=False, piece=1 << 20)
        self.plan: Plan | None = None
        self.phase = "first request"

    def may_end(self) -> bool:
        """Whether the client may end here: between requests, or where the plan has it."""
        if self.phase in ("first request", "between requests", "tunnel's end") and self.wire.is_empty():
            return True
        return self.plan is not None and self.plan.kind in (Kind.CLIENT_RESETS, Kind.SERVER_RESETS)

    async def serve(self) -> None:
        wire = self.wire
        while True:
            head = await wire.until(b"\r\n\r\n")
            self.phase = "request"
            found = _REQUEST.match(head)
            if found is None:
                raise Wrong(f"{head[:80]!r}")
            method, number, index = found[1], int(found[2]), int(found[3])
            self.server.requests += 1
            planned = plan(self.server.seed, number)
            if self.plan is not None and self.plan.number != number:
                raise Wrong(f"a request of {number} on the connection of {self.plan.number}")
            self._adopt(planned)
            exchange = planned.exchanges[index]
            fields = head.lower()
            if planned.kind is Kind.TUNNEL:
                await self._tunnel(exchange.up, exchange.down, number)
                return
            if (method == b"POST") != bool(exchange.up or exchange.up_chunked):
                raise Wrong(f"{method!r} of {planned}")
            up = Stream(number, index, 0)
            if b"\r\ntransfer-encoding: chunked\r\n" in fields:
                await wire.chunks(up, exchange.up)
            elif b"\r\ncontent-length: %d\r\n" % exchange.up in fields:
                await wire.stream(up, 0, exchange.up)
            elif exchange.up:
                raise Wrong(f"no length {exchange.up} in {head!r}")
            self.phase = "answer"
            last = b"\r\nconnection: close\r\n" in fields or planned.kind is Kind.SERVER_HALF_CLOSES
            last = last and index == len(planned.exchanges) - 1
            if await self._answer(planned, index, last):
                return
            self.phase = "between requests"
            if last:
                wire.half_close()
                await wire.end()
                return

    def _adopt(self, planned: Plan) -> None:
        if self.plan is None:
            self.plan = planned
            self.wire.slow = planned.slow_server
            self.wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(planned.nodelay))

    async def _answer(self, planned: Plan, index: int, last: bool) -> bool:
        """Returns whether the connection has been reset."""
        exchange, wire = planned.exchanges[index], self.wire
        close = b"Connection: close\r\n" if last else b""
        chunked = exchange.down_chunked
        head = b"HTTP/1.1 200 OK\r\n%b%b\r\n" % (framing(exchange.down, chunked=chunked), close)
        most = None
        if planned.kind is Kind.SERVER_RESETS:
            most = int(sent_bytes(head, exchange.down, chunked=chunked) * planned.cut)
        await wire.send(head, most)
        await wire.send_stream(Stream(planned.number, index, 1), exchange.down, chunked=chunked, most=most)
        if most is not None:
            self.phase = "reset"
            wire.reset()
            return True
        return False

    async def _tunnel(self, up: int, down: int, number: int) -> None:
        self.phase = "tunnel"
        wire = self.wire
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        sending = asyncio.create_task(wire.send_stream(Stream(number, 0, 1), down, chunked=False))
        try:
            await wire.stream(Stream(number, 0, 0), 0, up)
            await sending
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sending
        # Everything is here: the client ends when it knows that.
        await wire.send(b"!")
        self.phase = "tunnel's end"
        await wire.end()


def _listener(family: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(("", 80))
    made.listen(4096)
    made.setblocking(False)
    return made


async def run(seed: int) -> ServerResult:
    """Serve until stdin ends."""
    server, loop, stop = Server(seed), asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(0, stop.set)
    listeners = [_listener(family) for family in (socket.AF_INET, socket.AF_INET6)]
    accepting = [asyncio.create_task(server.accept(listener)) for listener in listeners]
    print("ready", flush=True)
    await stop.wait()
    loop.remove_reader(0)
    if server.tasks:
        await asyncio.wait(set(server.tasks), timeout=_LAST)
    still_open = len(server.tasks)
    for task in (*accepting, *server.tasks):
        task.cancel()
    await asyncio.gather(*accepting, *server.tasks, return_exceptions=True)
    for listener in listeners:
        listener.close()
    return ServerResult(server.connections, server.requests, server.received, server.sent, still_open, server.troubles)


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(run(int(sys.argv[1])))).decode())
