"""One relay in a process of its own, in the network namespace it was started in: `python -m support.relayprocess`.

Commands come as JSON, one a line, on stdin; answers and access records go to stdout. It ends when stdin ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import msgspec
import uvloop

from spliceway.proxy.model import AccessRecord, Change, Limits
from spliceway.proxy.relay.relay import Relay

_IPV6_TRANSPARENT = 75
_IP_TRANSPARENT = 19


class Apply(msgspec.Struct, tag=True):
    """Apply a change; listening sockets are made for the names in `change.sockets`. Answer: null."""

    change: Change


class Ask(msgspec.Struct, tag=True):
    """Answer: counters and gauges, number of connections, open files, what is buffered."""


class Share(msgspec.Struct, tag=True):
    """`Relay.set_share`."""

    millionths: int


class Drain(msgspec.Struct, tag=True):
    """`Relay.drain`."""


class Close(msgspec.Struct, tag=True):
    """`Relay.close`."""


Command = Apply | Ask | Share | Drain | Close


class State(msgspec.Struct):
    """Answer to Ask."""

    counters: dict[str, int]
    connections: int
    listed: int
    files: int
    buffered: list[int]  # of each connection that holds something


class Line(msgspec.Struct):
    """One line of stdout: the answer to a command, or a record."""

    answered: bool = False
    state: State | None = None
    record: AccessRecord | None = None
    error: str = ""


class _Server:
    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._loop = loop
        self._pending = b""
        self._decoder = msgspec.json.Decoder(Command)
        self._encoder = msgspec.json.Encoder()
        self._relay = Relay(loop, worker=0, limits=limits, on_record=lambda record: self._write(Line(record=record)))
        loop.add_reader(0, self._read)

    def _write(self, line: Line) -> None:
        data = self._encoder.encode(line) + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def _read(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            self._loop.stop()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                self._write(Line(answered=True, state=self._do(self._decoder.decode(line))))
            except Exception as error:
                self._write(Line(answered=True, error=f"{type(error).__name__}: {error}"))
                raise

    def _do(self, command: Command) -> State | None:
        match command:
            case Apply(change):
                made = {
                    name: [_listen(*place) for place in change.listeners[name].addresses] for name in change.sockets
                }
                self._relay.apply(change, made)
            case Share(millionths):
                self._relay.set_share(millionths)
            case Drain():
                self._relay.drain()
            case Close():
                self._relay.close()
            case Ask():
                listed: list[Any] = self._relay.connection_list()
                files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
                buffered = [size for one in self._relay.holding if (size := one.buffered)]
                return State(self._relay.counters(), self._relay.connections, len(listed), files, buffered)
        return None


def _listen(address: str, port: int) -> socket.socket:
    version6 = ":" in address
    made = socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    made.bind((address, port))
    made.listen(4096)
    made.setblocking(False)
    return made


def main() -> None:
    """Run until stdin ends."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    _Server(loop, msgspec.json.decode(sys.argv[1], type=Limits))
    loop.run_forever()


if __name__ == "__main__":
    main()
