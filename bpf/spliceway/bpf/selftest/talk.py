"""Moving bytes between two non-blocking sockets of this process, and noticing when they don't come as they should."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

#: Seconds without any progress after which a transfer hangs.
STALL = 2.0
#: Seconds after which what a blocked recv() waits for is sent.
LATER = 0.0003
#: Seconds for what is done while another thread waits: it may stall twice.
_MEANWHILE = 2 * STALL + 1.0
_CHUNK = 1 << 18


class BadError(Exception):
    """A check has found what must not be; the text is its sentence."""


class KnownError(Exception):
    """A check has found a documented limit: not as over TCP, but nothing was lost."""


class NotRunError(Exception):
    """A check can't be made here; the text says why."""


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every place differs from its neighbourhood: what is overtaken or lost shows."""
    return random.Random(seed).randbytes(size)


def wait(sock: socket.socket, events: int, what: str, timeout: float = STALL) -> int:
    """Wait for poll events; returns those that are there. Raises BadError naming `what` didn't come."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(timeout * 1000)
    if not found:
        raise BadError(f"{what} did not come within {timeout:g} s")
    return found[0][1]


def send(sock: socket.socket, data: bytes) -> None:
    """Send all of it. Raises BadError when nobody takes it."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            wait(sock, select.POLLOUT, f"room for {len(view)} more bytes")


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or less at the end of the stream. Raises BadError when they don't come."""
    got = bytearray()
    while len(got) < size:
        try:
            piece = sock.recv(min(size - len(got), _CHUNK))
        except BlockingIOError:
            wait(sock, select.POLLIN, f"byte {len(got)} of {size}")
            continue
        if not piece:
            break
        got += piece
    return bytes(got)


def expect(sock: socket.socket, data: bytes) -> None:
    """Receive these bytes. Raises BadError when others come, or fewer."""
    compare(receive(sock, len(data)), data)


def compare(got: bytes, data: bytes) -> None:
    """Raises BadError when the bytes differ."""
    if got == data:
        return
    if len(got) < len(data) and data.startswith(got):
        raise BadError(f"the stream ended after {len(got)} of {len(data)} bytes")
    where = next((i for i, (a, b) in enumerate(zip(got, data, strict=False)) if a != b), min(len(got), len(data)))
    raise BadError(f"byte {where} of {len(data)} is not the one that was sent")


def expect_end(sock: socket.socket) -> None:
    """Receive the end of the stream. Raises BadError when bytes come, or nothing."""
    rest = receive(sock, 1)
    if rest:
        raise BadError("bytes came that nobody has sent")


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread, a little after this one has begun to wait. Its errors are raised here.

    Raises BadError when it does not come to its end.
    """
    failed: list[Exception] = []

    def later() -> None:
        time.sleep(LATER)
        try:
            work()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=later, daemon=True)  # one that hangs keeps the process from nothing
    thread.start()
    try:
        yield
    finally:
        thread.join(_MEANWHILE)
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise BadError(f"what is done meanwhile hangs after {_MEANWHILE:g} s")


def pump(source: socket.socket, sink: socket.socket, data: bytes, sent: int = 0) -> None:
    """Send all from one end while the other end reads; the first `sent` bytes are on their way already.

    Raises BadError when it does not arrive, whole and in order.
    """
    view, got = memoryview(data)[sent:], bytearray()
    poll = select.poll()
    poll.register(sink, select.POLLIN)
    poll.register(source, select.POLLOUT)
    last = time.monotonic()
    while len(got) < len(data):
        before = len(view), len(got)
        with contextlib.suppress(BlockingIOError):
            view = view[source.send(view[:_CHUNK]) :] if view else view
        if not view:
            poll.modify(source, 0)
        with contextlib.suppress(BlockingIOError):
            piece = sink.recv(_CHUNK)
            if not piece:
                break
            got += piece
        now = time.monotonic()
        if (len(view), len(got)) != before:
            last = now
        elif now - last > STALL:
            raise BadError(f"nothing moves after {len(got)} of {len(data)} bytes")
        else:
            poll.poll(50)
    compare(bytes(got), data)
