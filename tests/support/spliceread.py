"""Reading a socket to its end, asking it how much there is, and bytes that tell their place."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
from array import array
from typing import NamedTuple

_SO_MEMINFO = 55
#: Milliseconds without room after which a sender counts as stopped.
_A_WHILE = 150


class Drained(NamedTuple):
    """What was read, and how it ended: "" for a good end, else the name of the error."""

    data: bytes
    end: str


def numbered(size: int, start: int = 0) -> bytes:
    """`size` bytes in which each word says its own place: bytes that were swapped, lost or doubled show."""
    first, last = start // 4, (start + size + 3) // 4
    words = array("I", range(first, last))
    if sys.byteorder == "little":
        words.byteswap()
    return words.tobytes()[start - first * 4 :][:size]


def drain(sock: socket.socket) -> Drained:
    """Read to the end."""
    parts = []
    try:
        while data := sock.recv(1 << 20):
            parts.append(data)
    except OSError as error:
        return Drained(b"".join(parts), type(error).__name__)
    return Drained(b"".join(parts), "")


def exactly(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes. Raises EOFError before that."""
    parts = []
    while size:
        data = sock.recv(min(size, 1 << 20))
        if not data:
            raise EOFError(f"{size} bytes are missing")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def readable(sock: socket.socket) -> int:
    """What FIONREAD says."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])


def pour(sock: socket.socket, at_most: int, start: int = 0, piece: int = 65536) -> int:
    """Send numbered bytes until nothing more is taken for a while, or `at_most` were. Returns how many were taken."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    sent = 0
    while sent < at_most and poll.poll(_A_WHILE):
        try:
            sent += sock.send(numbered(min(piece, at_most - sent), start + sent))
        except BlockingIOError:
            continue
    sock.settimeout(10)
    return sent


def memory(sock: socket.socket) -> int:
    """Bytes of receive memory that the kernel has charged to a socket (SK_MEMINFO_RMEM_ALLOC)."""
    return int(struct.unpack_from("I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64))[0])


def reset(sock: socket.socket) -> None:
    """Close it with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
