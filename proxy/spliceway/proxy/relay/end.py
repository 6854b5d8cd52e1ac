"""One socket of a connection, written without waiting and read when there is something."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from spliceway.proxy.relay import sockets

#: What is read at once, in bytes. One buffer for all: nothing of it is kept when a callback returns.
READ_SIZE = 262_144
_BUFFER = bytearray(READ_SIZE)
VIEW = memoryview(_BUFFER)

#: recv() would have waited.
NOTHING = -1
#: Pieces of one sendmsg(); IOV_MAX is 1024.
_PIECES = 512


def _nothing() -> None:
    """Nobody listens any more."""


class End:
    """A socket with what could not be sent yet. `full`: there is some, and more should wait.

    `on_drained` is called when all of it has been sent, `on_gone` when writing failed (never from within `write`).
    Bytes that are written after that are dropped.
    """

    __slots__ = (
        "_connecting",
        "_fd",
        "_loop",
        "_on_drained",
        "_on_gone",
        "_on_read",
        "_pending",
        "_recv",
        "_send",
        "_shut",
        "broken",
        "eof",
        "reading",
        "received",
        "sent",
        "sock",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_read: Callable[[], None],
        on_drained: Callable[[], None],
        on_gone: Callable[[], None],
        *,
        connecting: bool = False,
    ) -> None:
        """`sock` is non-blocking. `connecting`: what is written waits for `connected`."""
        self._loop = loop
        self.sock = sock
        self._fd = sock.fileno()
        self._send = sock.send
        self._recv = sock.recv_into
        self._on_read = on_read
        self._on_drained = on_drained
        self._on_gone = on_gone
        self._pending: list[bytes | memoryview] = []
        self._connecting = connecting
        self._shut = 0  # 1: once everything is sent, 2: done
        self.reading = False
        self.broken = False
        self.eof = False
        self.received = 0
        self.sent = 0

    def __repr__(self) -> str:
        return f"<End fd={self._fd} received={self.received} sent={self.sent}{' full' if self._pending else ''}>"

    @property
    def full(self) -> bool:
        """Whether something is unsent."""
        return bool(self._pending)

    @property
    def pending(self) -> int:
        """Bytes that are unsent."""
        return sum(map(len, self._pending))

    def read(self, most: int = READ_SIZE) -> int:
        """Read into VIEW: bytes, 0 at the end, NOTHING. Raises OSError when the connection is gone."""
        try:
            count = self._recv(_BUFFER, most)
        except (BlockingIOError, InterruptedError):
            return NOTHING
        self.received += count
        if not count:
            self.eof = True
            self.pause()
        return count

    def resume(self) -> None:
        """Call `on_read` whenever there is something to read."""
        if not self.reading and not self.eof and self._fd >= 0:
            self.reading = True
            self._loop.add_reader(self._fd, self._on_read)

    def pause(self) -> None:
        """Don't."""
        if self.reading:
            self.reading = False
            self._loop.remove_reader(self._fd)

    def write(self, data: bytes | memoryview) -> None:
        """Send, and keep what can't be sent now (a view is copied then)."""
        if self._pending or self._connecting:
            self._pending.append(bytes(data))
            return
        if self.broken or self._fd < 0:
            return
        try:
            count = self._send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._fail()
            return
        self.sent += count
        if count < len(data):
            self._pending.append(bytes(data[count:]))
            self._wait()

    def write_pieces(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send several at once."""
        if len(pieces) == 1 or self._pending or self._connecting or self.broken or self._fd < 0:
            for piece in pieces:
                self.write(piece)
            return
        for start in range(0, len(pieces), _PIECES):
            self._write_some(pieces[start : start + _PIECES])

    def _write_some(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self._pending:
            self._pending += map(bytes, pieces)
            return
        try:
            count = self.sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._fail()
            return
        self.sent += count
        for piece in pieces:
            if count >= len(piece):
                count -= len(piece)
            else:
                self._pending.append(bytes(piece[count:]))
                count = 0
        if self._pending:
            self._wait()

    def connected(self) -> None:
        """The connection is there: send what waited."""
        self._connecting = False
        if self._pending:
            self._wait()
            self._flush()
        elif self._shut == 1:
            self._shut_down()

    def shut_down(self) -> None:
        """Send a FIN after what is unsent."""
        if self._shut:
            return
        self._shut = 1
        if not self._pending and not self._connecting:
            self._shut_down()

    @property
    def shut(self) -> bool:
        """Whether the FIN was sent."""
        return self._shut == 2

    def close(self, *, reset: bool = False) -> None:
        """Close it; `reset`: with RST. What is unsent is lost."""
        if self._fd < 0:
            return
        self.pause()
        if self._pending or self._connecting:
            self._loop.remove_writer(self._fd)
        self._pending = []
        self._fd = -1
        # No more calls; and the connection and its ends don't hold each other any longer.
        self._on_read = self._on_drained = self._on_gone = _nothing
        if reset:
            sockets.reset(self.sock)
        else:
            sockets.close(self.sock)

    def _wait(self) -> None:
        self._loop.add_writer(self._fd, self._flush)

    def _flush(self) -> None:
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        try:
            count = self._send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._fail()
            return
        self.sent += count
        if count < len(data):
            self._pending = [memoryview(data)[count:]]
            return
        self._pending = []
        self._loop.remove_writer(self._fd)
        if self._shut == 1:
            self._shut_down()
        self._on_drained()

    def _shut_down(self) -> None:
        self._shut = 2
        with contextlib.suppress(OSError):  # gone already: reading tells
            self.sock.shutdown(socket.SHUT_WR)

    def _fail(self) -> None:
        if self.broken:
            return
        self.broken = True
        if self._pending:
            self._loop.remove_writer(self._fd)
            self._pending = []
        self._loop.call_soon(self._on_gone)
