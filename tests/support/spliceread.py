"""Reading a socket to its end, asking it how much there is, and bytes that tell their place."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_WORD = struct.Struct(">I")


class Drained(NamedTuple):
    """What was read, and how it ended: "" for a good end, else the name of the error."""

    data: bytes
    end: str


def numbered(size: int, start: int = 0) -> bytes:
    """`size` bytes in which each word says its own place: bytes that were swapped, lost or doubled show."""
    first, last = start // 4, (start + size + 3) // 4
    words = b"".join(_WORD.pack(number) for number in range(first, last))
    return words[start - first * 4 :][:size]


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


def reset(sock: socket.socket) -> None:
    """Close it with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
