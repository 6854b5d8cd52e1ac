"""A proxy that only moves bytes, transparently: what is left when nothing is parsed and nothing is decided.

`python bench_proxy_bytes.py PORT MARK sockets|protocols`: `sockets` is uvloop with bare sockets, `protocols` asyncio's
own loop with its transports.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvloop

_CHUNK = 65536
_buffer = bytearray(_CHUNK)
_view = memoryview(_buffer)


def listening(port: int) -> socket.socket:
    """A socket to which connections for any address can be steered."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    made.bind(("127.0.0.1", port))
    made.listen(4096)
    made.setblocking(False)
    return made


def towards(client: str, mark: int) -> socket.socket:
    """A socket that connects from the client's address, with a fresh port."""
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    made.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    made.setsockopt(socket.SOL_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.bind((client, 0))
    return made


class Pump:
    """Moves what arrives at `source` to `target`; reads on only when all of it has been sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: socket.socket, target: socket.socket) -> None:
        self._loop, self._source, self._target = loop, source, target
        self._late = memoryview(b"")
        loop.add_reader(source, self._read)

    def _read(self) -> None:
        try:
            count = self._source.recv_into(_buffer)
            if not count:
                self._end()
                return
            sent = self._target.send(_view[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end()
            return
        if sent < count:
            self._late = memoryview(bytes(_view[sent:count]))
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._write)

    def _write(self) -> None:
        try:
            self._late = self._late[self._target.send(self._late) :]
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if not self._late:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._read)

    def _end(self) -> None:
        for one in (self._source, self._target):
            if one.fileno() >= 0:
                self._loop.remove_reader(one)
                self._loop.remove_writer(one)
                one.close()


class Side(asyncio.Protocol):
    """One end of a proxied connection, on asyncio's transports."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.other: Any = None

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        """This end is full: the other one waits."""
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """This end has room again."""
        self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Both ends go together."""
        self.other.transport.close()


async def serve(port: int, mark: int, kind: str) -> None:
    """Accept and move bytes, for ever."""
    loop = asyncio.get_running_loop()
    listener = listening(port)
    tasks: set[asyncio.Task[None]] = set()
    while True:
        client, (address, _) = await loop.sock_accept(listener)
        task = loop.create_task(_join(loop, client, address, mark, kind))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _join(loop: asyncio.AbstractEventLoop, client: socket.socket, address: str, mark: int, kind: str) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = towards(address, mark)
    await loop.sock_connect(server, client.getsockname())
    if kind == "sockets":
        Pump(loop, client, server)
        Pump(loop, server, client)
        return
    ends = Side(), Side()
    ends[0].other, ends[1].other = ends[1], ends[0]
    await loop.create_connection(lambda: ends[1], sock=server)
    await loop.connect_accepted_socket(lambda: ends[0], client)


if __name__ == "__main__":
    if sys.argv[3] == "sockets":
        uvloop.install()
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
