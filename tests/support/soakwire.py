"""One end of a connection of the soak: reading and checking, and sending, what a plan says."""

from __future__ import annotations

import asyncio
import socket
import struct

from support.soakplan import Stream

#: A connection that takes longer hangs, whatever is restarted meanwhile.
DEADLINE = 60.0
_SLOW_READ, _SLOW_PAUSE = 16_384, 0.004
_LINGER_RESET = struct.pack("ii", 1, 0)


class Wrong(Exception):  # noqa: N818
    """Bytes that nobody sent, at this place."""


class Ended(Exception):  # noqa: N818
    """A clean end of the stream, before it was expected."""


class Wire:
    """A connected socket. `received` and `sent`: bytes of it so far."""

    def __init__(self, sock: socket.socket, *, slow: bool, piece: int) -> None:
        self.sock = sock
        self.slow = slow
        self.received = 0
        self.sent = 0
        self._piece = piece
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    async def _more(self) -> None:
        if self.slow:
            await asyncio.sleep(_SLOW_PAUSE)
        data = await self._loop.sock_recv(self.sock, _SLOW_READ if self.slow else 1 << 18)
        if not data:
            raise Ended(f"after {self.received} bytes")
        self.received += len(data)
        self._buffer = self._buffer + data if self._buffer else data

    async def until(self, mark: bytes, most: int = 4096) -> bytes:
        """Everything up to `mark`, and that. Raises Wrong where there is none in `most` bytes."""
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > most:
                raise Wrong(f"no {mark!r} in {self._buffer[:80]!r}")
            await self._more()
        end += len(mark)
        found, self._buffer = self._buffer[:end], self._buffer[end:]
        return found

    async def stream(self, stream: Stream, position: int, size: int) -> None:
        """`size` bytes of a stream, from `position` on. Raises Wrong."""
        while size:
            if not self._buffer:
                await self._more()
            data, self._buffer = self._buffer[:size], self._buffer[size:]
            if not stream.is_at(position, data):
                raise Wrong(f"{len(data)} bytes at {position} of a body, {data[:40]!r}")
            position += len(data)
            size -= len(data)

    async def chunks(self, stream: Stream, size: int) -> None:
        """A chunked body that is `size` bytes of a stream. Raises Wrong."""
        position = 0
        while length := int((await self.until(b"\r\n")).split(b";")[0], 16):
            if position + length > size:
                raise Wrong(f"chunks of {position + length} bytes or more instead of {size}")
            await self.stream(stream, position, length)
            position += length
            await self._line_end()
        await self._line_end()
        if position != size:
            raise Wrong(f"chunks of {position} bytes instead of {size}")

    async def _line_end(self) -> None:
        if (line := await self.until(b"\r\n")) != b"\r\n":
            raise Wrong(f"{line[:80]!r} at the end of a chunk")

    async def end(self) -> None:
        """Wait for a clean end. Raises Wrong where more bytes come."""
        try:
            while not self._buffer:
                await self._more()
        except Ended:
            return
        raise Wrong(f"after everything: {self._buffer[:80]!r}")

    def is_empty(self) -> bool:
        """Whether all that has been read so far was asked for."""
        return not self._buffer

    async def send(self, data: bytes, most: int | None = None) -> None:
        """Send `data`, in pieces as the plan has them; `most`: not more than so many in all on this connection."""
        if most is not None:
            data = data[: max(0, most - self.sent)]
        for at in range(0, len(data), self._piece):
            piece = data[at : at + self._piece]
            await self._loop.sock_sendall(self.sock, piece)
            self.sent += len(piece)

    async def send_stream(self, stream: Stream, size: int, *, chunked: bool, most: int | None = None) -> None:
        """Send a body, see `send`."""
        position = 0
        while position < size:
            data = stream.piece(position, min(size - position, 1 << 17))
            position += len(data)
            await self.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data, most)
        if chunked:
            await self.send(b"0\r\n\r\n", most)

    def half_close(self) -> None:
        """Send FIN, go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Send RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.sock.close()


def framing(size: int, *, chunked: bool) -> bytes:
    """The header that says how long a body is."""
    return b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % size


def sent_bytes(head: bytes, size: int, *, chunked: bool) -> int:
    """How many bytes `head` and its body are on the wire."""
    if not chunked:
        return len(head) + size
    pieces = [1 << 17] * (size >> 17) + ([size & 0x1FFFF] if size & 0x1FFFF else [])
    return len(head) + sum(len(b"%x" % piece) + 4 + piece for piece in pieces) + 5
