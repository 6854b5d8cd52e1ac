"""One socket of a connection, written without waiting and read when there is something."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import Callable, Sequence
from typing import Any

from spliceway.proxy.relay import sockets
from spliceway.proxy.relay.poller import GONE, IN, OUT, Poller

#: What is read at once, in bytes. One buffer for all: nothing of it is kept when a callback returns.
READ_SIZE = 262_144
_BUFFER = bytearray(READ_SIZE)
VIEW = memoryview(_BUFFER)

#: recv() would have waited.
NOTHING = -1
#: Pieces of one sendmsg(); IOV_MAX is 1024.
_PIECES = 512
#: What a spliced socket may send before it is asked about room, in bytes: less than any limit.
UNASKED = 262_144
#: What a message costs of that besides its bytes (spliceabi.h: MESSAGE_COST).
MESSAGE_COST = 33_792
#: One of so many bytes is always asked about: it is then that its reader may be reading, and keep its socket for long.
ALWAYS_ASKED = 65_536
#: While there is none: seconds to the first question; each pause is longer, about a fifth of what it has waited.
_FIRST_TRY, _LONGER, _LAST_TRY = 0.001, 1.25, 1.0
#: A spliced message is charged to its reader's cgroup, and refused when that is full: TCP would send it again.
_NO_MEMORY = (errno.ENOMEM, errno.ENOBUFS)


def _nothing(*_: int) -> None:
    """Nobody listens any more."""


class End:
    """A socket with what could not be sent yet. `full`: there is some, and more should wait.

    `on_read` is called when something can be read, and `on_drained` when all that waited has been sent. `on_gone`: the
    peer has reset the connection while nobody reads, or writing failed; what is written after that is dropped. None of
    them is called from within `write`.

    A socket that is spliced is always writable, and what its reader has not read waits in kernel memory. So such a
    socket is asked about room for more (docs/splicing.md), and as nothing tells when there is some again, asked anew.
    """

    __slots__ = (
        "_connecting",
        "_cut",
        "_fd",
        "_held",
        "_mask",
        "_on_connected",
        "_on_drained",
        "_on_gone",
        "_on_read",
        "_patient",
        "_pause",
        "_pending",
        "_poller",
        "_recv",
        "_room",
        "_send",
        "_shut",
        "_watched",
        "broken",
        "eof",
        "reading",
        "received",
        "sent",
        "sock",
    )

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        on_read: Callable[[], None],
        on_drained: Callable[[], None],
        on_gone: Callable[[], None],
        on_connected: Callable[[int], None] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        """`sock` is non-blocking. `on_connected`: it is not connected yet; gets the errno, 0 when it is.

        What is written before waits. `patient`: while it is not read, a reset can wait, too.
        """
        self._poller = poller
        self.sock = sock
        self._fd = sock.fileno()
        self._send = sock.send
        self._recv = sock.recv_into
        self._on_read = on_read
        self._on_drained = on_drained
        self._on_gone = on_gone
        self._on_connected = on_connected or _nothing
        self._connecting = on_connected is not None
        self._pending: list[bytes | memoryview] = []
        self._shut = 0  # 1: once everything is sent, 2: done
        self.reading = on_connected is None
        self.broken = False
        self._cut = False
        self.eof = False
        self.received = 0
        self.sent = 0
        self._patient = patient
        self._watched = True
        self._held: asyncio.TimerHandle | None = None
        self._pause = _FIRST_TRY
        self._room: float = UNASKED
        self._mask = OUT if self._connecting else IN
        poller.add(self._fd, self._mask, self._on_events)

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

    @property
    def shut(self) -> bool:
        """Whether the FIN was sent."""
        return self._shut == 2

    def read(self, most: int = READ_SIZE) -> int:
        """Read into VIEW: bytes, 0 at the end, NOTHING. Raises OSError when the connection is gone."""
        try:
            count = self._recv(_BUFFER, most)
        except (BlockingIOError, InterruptedError):
            return NOTHING
        self.received += count
        if not count:
            if self._cut:
                # Writing took the error, so that reading finds an end where there was a reset.
                raise ConnectionResetError(errno.ECONNRESET, "reset")
            self.eof = True
            self.pause()
        return count

    def resume(self) -> None:
        """Call `on_read` whenever there is something to read."""
        if not self.reading and not self.eof and self._fd >= 0:
            self.reading = True
            self._look(self._mask | IN)

    def pause(self) -> None:
        """Don't."""
        if self.reading:
            self.reading = False
            self._look(self._mask & ~IN)

    def write(self, data: bytes | memoryview) -> None:
        """Send, and keep what can't be sent now (a view is copied then)."""
        if self._pending or self._connecting:
            self._pending.append(bytes(data))
            return
        if self.broken or self._fd < 0:
            return
        count = self._try(data)
        if 0 <= count < len(data):
            self._pending.append(bytes(data[count:]))
            self._wait()

    def write_pieces(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send several at once."""
        for start in range(0, len(pieces), _PIECES):
            self._write_some(pieces[start : start + _PIECES])

    def shut_down(self) -> None:
        """Send a FIN after what is unsent."""
        if self._shut:
            return
        self._shut = 1
        if not self._pending and not self._connecting:
            self._shut_down()

    def close(self, *, reset: bool = False) -> None:
        """Close it; `reset`: with RST. What is unsent is lost."""
        if self._fd < 0:
            return
        self._poller.remove(self._fd)
        if self._held is not None:
            self._held.cancel()
        self._pending = []
        self._fd = -1
        self.reading = False
        # No more calls; and the connection and its ends don't hold each other any longer.
        self._on_read = self._on_drained = self._on_gone = self._on_connected = _nothing
        if reset:
            sockets.reset(self.sock)
        else:
            sockets.close(self.sock)

    def _write_some(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self._pending or self._connecting:
            self._pending += map(bytes, pieces)
            return
        if self.broken or self._fd < 0:
            return
        count = self._try_pieces(pieces)
        if count < 0:
            return
        for piece in pieces:
            if count >= len(piece):
                count -= len(piece)
            else:
                self._pending.append(bytes(piece[count:]))
                count = 0
        if self._pending:
            self._wait()

    def _try(self, data: bytes | memoryview) -> int:
        """Send what goes: bytes, -1 when the connection is gone."""
        size = len(data)
        if not self._has_room(size):
            return 0
        return self._sent(self._send, data if size <= self._room else data[: int(self._room)])

    def _try_pieces(self, pieces: Sequence[bytes | memoryview]) -> int:
        size = sum(map(len, pieces))
        if not self._has_room(size):
            return 0
        if size <= self._room:
            return self._sent(self.sock.sendmsg, pieces)
        return self._sent(self._send, b"".join(pieces)[: int(self._room)])

    def _sent(self, send: Callable[[Any], int], data: Any) -> int:
        try:
            count = send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno in _NO_MEMORY:
                self._try_later()
                return 0
            self._fail(error)
            return -1
        self.sent += count
        self._room -= count + MESSAGE_COST
        self._pause = _FIRST_TRY
        return count

    def _has_room(self, size: int) -> bool:
        """Whether something of this may be sent now; if not, it is tried again after a while."""
        if self._room == math.inf or size < min(ALWAYS_ASKED, self._room):
            return True
        room = sockets.room(self.sock)
        self._room = math.inf if room is None else room  # nothing is spliced later that is not now
        if not self._room:
            self._try_later()
        return self._room > 0

    def _try_later(self) -> None:
        """Nothing tells when a spliced socket takes something again."""
        if self._held is None:
            self._held = self._poller.later(self._pause, self._try_again)
            self._pause = min(_LONGER * self._pause, _LAST_TRY)

    def _wait(self) -> None:
        """Send the rest as soon as there is room."""
        if self._held is None:
            self._look(self._mask | OUT)

    def _try_again(self) -> None:
        self._held = None
        if self._fd >= 0 and self._pending:
            self._flush()

    def _look(self, mask: int) -> None:
        if self._fd < 0 or (mask == self._mask and self._watched):
            return
        self._mask = mask
        if self._watched:
            self._poller.modify(self._fd, mask)
        elif mask:
            self._watched = True
            self._poller.add(self._fd, mask, self._on_events)

    def _on_events(self, events: int) -> None:
        if self._fd < 0:
            return
        if self._connecting:
            self._connected()
            return
        if events & OUT and self._pending:
            self._flush()
        if events & ~OUT and self._fd >= 0:
            if self.reading:
                self._on_read()
            elif events & GONE:
                # It would be told again and again. Whoever reads on later finds what is left.
                self._watched = False
                self._poller.remove(self._fd)
                if not self._patient:
                    self._on_gone()

    def _connected(self) -> None:
        self._connecting = False
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._on_connected(code)
            return
        self.reading = True
        self._look(IN)
        if self._pending:
            self._flush()
        elif self._shut == 1:
            self._shut_down()
        self._on_connected(0)

    def _flush(self) -> None:
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        count = self._try(data)
        if count < 0:
            return
        if count < len(data):
            self._pending = [memoryview(data)[count:]]
            if self._held is not None:
                self._look(self._mask & ~OUT)
            self._wait()
            return
        self._pending = []
        self._look(self._mask & ~OUT)
        if self._shut == 1:
            self._shut_down()
        self._on_drained()

    def _shut_down(self) -> None:
        self._shut = 2
        with contextlib.suppress(OSError):  # gone already: reading tells
            self.sock.shutdown(socket.SHUT_WR)

    def _fail(self, error: OSError) -> None:
        """Writing has failed: the peer is gone. EPIPE: its FIN had come before (tcp_reset in net/ipv4/tcp_input.c)."""
        self.broken = True
        self._cut = error.errno != errno.EPIPE
        self._pending = []
        self._look(self._mask & ~OUT)
        self._poller.soon(self._tell)

    def _tell(self) -> None:
        if self._fd >= 0:
            self._on_gone()
