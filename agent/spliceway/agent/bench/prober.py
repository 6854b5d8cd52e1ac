"""Asks without pause from inside a pod, and prints when it asked and what it got. Started by `latency`.

    python -m spliceway.agent.bench.prober http ADDRESS PATH
    python -m spliceway.agent.bench.prober udp ADDRESS

Each line is `START OUTCOME PORT`: CLOCK_MONOTONIC in nanoseconds when it asked, `ok` or `denied`, and the own port of
the connection (0: there is none). `http` asks on one live connection as long as that answers (a 403 is an answer), and
tries new ones when it does not. `udp` sends from one socket for ever.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

#: From one question to the next, in seconds: far below the latencies that are measured.
INTERVAL = 0.002
#: From one try to open a new connection to the next. Each try that is dropped is a socket until PATIENCE is over.
CONNECT_INTERVAL = 0.004
#: What is not answered after this is denied, in seconds.
PATIENCE = 0.25
PORT = 80

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def report(start: int, outcome: bool, port: int) -> None:
    """Print one attempt."""
    sys.stdout.write(f"{start} {'ok' if outcome else 'denied'} {port}\n")
    sys.stdout.flush()


class HttpProber:
    """One client. `live` is its connection, None while it looks for a new one."""

    def __init__(self, address: str, path: str) -> None:
        self._address = address
        self._request = f"GET {path} HTTP/1.1\r\nHost: server\r\n\r\n".encode()
        self._found: asyncio.Queue[Stream] = asyncio.Queue()

    async def run(self) -> None:
        """Ask for ever."""
        live: Stream | None = None
        while True:
            if live is None:
                live = await self._connect()
            start = time.monotonic_ns()
            port = _port(live)
            status = await self._ask(live)
            report(start, status == 200, port)
            if status == 0:
                live[1].transport.abort()
                live = None
            await asyncio.sleep(max(0.0, INTERVAL - (time.monotonic_ns() - start) / 1e9))

    async def _connect(self) -> Stream:
        """Try side by side, because a try that is dropped takes its time; the first that is answered is taken."""
        async with asyncio.TaskGroup() as group:
            tries = set()
            while self._found.empty():
                tries.add(group.create_task(self._try()))
                await asyncio.sleep(CONNECT_INTERVAL)
                tries = {task for task in tries if not task.done()}
            for task in tries:
                task.cancel()
        found = self._found.get_nowait()
        while not self._found.empty():
            self._found.get_nowait()[1].transport.abort()
        return found

    async def _try(self) -> None:
        start = time.monotonic_ns()
        try:
            async with asyncio.timeout(PATIENCE):
                stream = await asyncio.open_connection(self._address, PORT)
        except (TimeoutError, OSError):
            report(start, False, 0)
            return
        status = await self._ask(stream)
        report(start, status == 200, _port(stream))
        if status:
            self._found.put_nowait(stream)
        else:
            stream[1].transport.abort()

    async def _ask(self, stream: Stream) -> int:
        """Status of the answer, 0 when there is none."""
        reader, writer = stream
        try:
            async with asyncio.timeout(PATIENCE):
                writer.write(self._request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
                return int(head.split(b" ", 2)[1])
        except (TimeoutError, OSError, EOFError, ValueError):
            return 0


class UdpProber(asyncio.DatagramProtocol):
    """Sends numbered datagrams from one socket; what comes back in time is `ok`."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to send."""
        # asyncio's own datagram transport is not of that class, but has all its methods.
        self._transport = cast("asyncio.DatagramTransport", transport)
        self._port = int(transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: object) -> None:
        """An answer: the number is the time when it was asked."""
        del addr
        timer = self._waiting.pop(int(data), None)
        if timer is not None:
            timer.cancel()
            report(int(data), True, self._port)

    def error_received(self, exc: Exception) -> None:
        """Leave it to the timer: an ICMP error is no answer."""

    async def run(self) -> None:
        """Ask for ever."""
        loop = asyncio.get_running_loop()
        while True:
            start = time.monotonic_ns()
            self._waiting[start] = loop.call_later(PATIENCE, self._give_up, start)
            self._transport.sendto(str(start).encode())
            await asyncio.sleep(INTERVAL)

    def _give_up(self, start: int) -> None:
        del self._waiting[start]
        report(start, False, self._port)


async def _udp(address: str) -> None:
    loop = asyncio.get_running_loop()
    _, prober = await loop.create_datagram_endpoint(UdpProber, remote_addr=(address, PORT))
    await prober.run()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":", 1)[1])
    return 0


def _port(stream: Stream) -> int:
    return int(stream[1].get_extra_info("sockname")[1])


def main() -> None:
    """Entry point of the module."""
    kind, address, *rest = sys.argv[1:]
    asyncio.run(HttpProber(address, rest[0]).run() if kind == "http" else _udp(address))


if __name__ == "__main__":
    main()
