"""Framed messages with file descriptors over a Unix stream socket, on any event loop that has add_reader.

A frame is its length and its number of descriptors (two u32, little endian), then a msgpack message of a tagged union.
Descriptors come with the bytes of their frame; a frame with more of them than one sendmsg() takes is cut into pieces.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import msgspec

#: Descriptors in one message: SCM_MAX_FD, include/net/scm.h.
MOST_DESCRIPTORS = 253
#: Longest frame. 10,000 rule sets with ten rules each have about 20 MB.
LONGEST = 1 << 30
_HEAD = struct.Struct("<II")
_CHUNK = 256 << 10
_ANCILLARY = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
#: Too many descriptors of ours are on their way: they get fewer as the other side reads.
_RETRY = 0.01

In = TypeVar("In")


class Channel(Generic[In]):
    """One side of a connection. `send` never blocks: what the socket does not take waits in memory (`backlog` bytes).

    `on_message` gets each message with its descriptors, which then belong to it; `on_close` is called once, with the
    reason, when the other side has gone or sent what is no message, and not after `close`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        kind: Any,
        on_message: Callable[[In, list[int]], None],
        on_close: Callable[[str], None],
    ) -> None:
        """`kind`: the union of what comes in."""
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(kind)
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message = on_message
        self._on_close = on_close
        self._input = bytearray()
        self._received: deque[int] = deque()
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._drained = asyncio.Event()
        self._drained.set()
        self.backlog = 0
        self.closed = False
        loop.add_reader(sock, self._read)

    def __repr__(self) -> str:
        return f"<Channel {'closed' if self.closed else 'open'} backlog={self.backlog}>"

    def send(self, message: Any, descriptors: Iterable[int] = ()) -> None:
        """Send a message; descriptors stay the caller's. Nothing happens on a closed channel."""
        if self.closed:
            return
        body = self._encoder.encode(message)
        fds = list(descriptors)
        pieces = list(_pieces(_HEAD.pack(len(body), len(fds)) + body, fds))
        self.backlog += _HEAD.size + len(body)
        waiting = bool(self._queue)
        self._queue.extend((piece, [os.dup(fd) for fd in some]) for piece, some in pieces)
        if not waiting:
            self._write()

    async def flushed(self) -> None:
        """Wait until everything is with the kernel, or the channel is closed."""
        await self._drained.wait()

    def read_rest(self) -> None:
        """Hand on all that has arrived, of a side that sends no more."""
        while not self.closed and self._read():
            pass

    def close(self) -> None:
        """Close the socket. What was not sent is lost."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for fd in (*self._received, *(fd for _, fds in self._queue for fd in fds)):
            os.close(fd)
        self._received.clear()
        self._queue.clear()
        self.backlog = 0
        self._drained.set()

    def _write(self) -> None:
        while self._queue:
            piece, fds = self._queue[0]
            try:
                sent = self._sock.sendmsg([piece], _rights(fds))
            except (BlockingIOError, InterruptedError):
                self._wait()
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    self._loop.remove_writer(self._sock)
                    self._drained.clear()
                    self._loop.call_later(_RETRY, self._again)
                    return
                self._fail(f"can't write: {error.strerror}")
                return
            for fd in fds:
                os.close(fd)
            self.backlog -= sent
            if sent == len(piece):
                self._queue.popleft()
            else:
                self._queue[0] = (piece[sent:], [])
        self._loop.remove_writer(self._sock)
        self._drained.set()

    def _wait(self) -> None:
        self._drained.clear()
        self._loop.add_writer(self._sock, self._write)

    def _again(self) -> None:
        if not self.closed:
            self._write()

    def _read(self) -> bool:
        """Whether there may be more."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._fail(f"can't read: {error.strerror}")
            return False
        self._received.extend(_descriptors(ancillary))
        if flags & socket.MSG_CTRUNC:
            self._fail("no room for descriptors that came (RLIMIT_NOFILE)")
        elif not data:
            self._fail("closed by the other side")
        else:
            self._input += data
            self._take()
        return True

    def _take(self) -> None:
        at = 0
        while not self.closed and len(self._input) - at >= _HEAD.size:
            length, count = _HEAD.unpack_from(self._input, at)
            if length > LONGEST:
                self._fail(f"a frame of {length} bytes")
                return
            end = at + _HEAD.size + length
            if len(self._input) < end:
                break
            if count > len(self._received):
                self._fail(f"{count} descriptors were announced, {len(self._received)} came")
                return
            body = bytes(memoryview(self._input)[at + _HEAD.size : end])
            at = end
            try:
                message = self._decoder.decode(body)
            except msgspec.DecodeError as error:
                self._fail(f"not a message: {error}")
                return
            self._on_message(message, [self._received.popleft() for _ in range(count)])
        del self._input[:at]

    def _fail(self, why: str) -> None:
        self.close()
        self._loop.call_soon(self._on_close, why)


def _pieces(frame: bytes, fds: list[int]) -> Iterator[tuple[memoryview, list[int]]]:
    """Cut so that each piece has bytes, and no more descriptors than one message takes."""
    view = memoryview(frame)
    for first in range(0, len(fds) - MOST_DESCRIPTORS, MOST_DESCRIPTORS):
        yield view[:1], fds[first : first + MOST_DESCRIPTORS]
        view = view[1:]
    yield view, fds[(len(fds) - 1) // MOST_DESCRIPTORS * MOST_DESCRIPTORS :] if fds else []


def _rights(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds = array.array("i")
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            yield from fds


def take_sockets(fds: Iterable[int]) -> list[socket.socket]:
    """Socket objects, non-blocking, of descriptors that came by a channel."""
    made = [socket.socket(fileno=fd) for fd in fds]
    for sock in made:
        sock.setblocking(False)
    return made
