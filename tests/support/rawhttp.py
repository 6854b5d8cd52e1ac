"""A client of raw bytes: how they are cut on their way, what came back, and how the connection ended."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from spliceway.agent.testbed import netns
from support.steered import SteeredNet

_SOCK_DIAG_BY_FAMILY = 20
_NETLINK_SOCK_DIAG = 4
_INET_DIAG_INFO = 2
_NO_COOKIE = b"\xff" * 8
#: Offsets: in an answer of sock_diag (struct inet_diag_msg behind the netlink header), and in struct tcp_info.
_QUEUE, _ATTRIBUTES = 72, 88
_BYTES_RECEIVED, _BYTES_SENT = 128, 200
#: Characters around which a parser's states change: cuts are made before and behind each of them.
_EDGES = b"\r\n\0 \t:;,"


class End(Enum):
    """How a connection ended for its reader."""

    FIN = "fin"
    RESET = "reset"
    OPEN = "open"


class Answer(NamedTuple):
    """One response. `head` is without the empty line."""

    status: int
    head: bytes
    body: bytes

    def values(self, name: str) -> list[str]:
        """Values of a header; `name` is in lower case."""
        pairs = (line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return [value.strip(" \t") for key, _, value in pairs if key.lower() == name]


class Exchange(NamedTuple):
    """All that came back on a connection, and how that ended."""

    data: bytes
    end: End

    def answers(self, methods: Iterable[str] = ()) -> list[Answer]:
        """The responses; `methods` of the requests, where they are not all GET (HEAD has no body)."""
        return split_answers(self.data, methods)

    @property
    def statuses(self) -> list[int]:
        """The statuses of the responses to requests that are not HEAD."""
        return [answer.status for answer in self.answers()]


class Receiver:
    """Sees what the node's process has not read yet of a connection: `sock_diag` in the node's namespace."""

    def __init__(self, net: SteeredNet) -> None:
        self._netlink = netns.call(net.node, _open_diag)

    def close(self) -> None:
        """Close the netlink socket."""
        self._netlink.close()

    def wait_read(self, connection: socket.socket, attempts: int = 2000) -> None:
        """Return when the proxy has read all that was sent, or will not: it ended, or holds back for a while."""
        own, peer = connection.getsockname()[:2], connection.getpeername()[:2]
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT + 8)
        sent = int.from_bytes(info[_BYTES_SENT:], sys.byteorder)
        for _ in range(attempts):
            state = _received(self._netlink, peer, own)
            if state is None or (state[0] >= sent and not state[1]):
                return


def _open_diag() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)


def _received(netlink: socket.socket, own: tuple[str, int], peer: tuple[str, int]) -> tuple[int, int] | None:
    """Bytes that a connection has received, and those not read yet; None when it is gone. Source: linux/inet_diag.h."""
    family = socket.AF_INET6 if ":" in own[0] else socket.AF_INET
    ends = b"".join(socket.inet_pton(family, one[0]).ljust(16, b"\0") for one in (own, peer))
    head = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0xFFFFFFFF)
    body = head + struct.pack("!HH", own[1], peer[1]) + ends + bytes(4) + _NO_COOKIE
    netlink.send(struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, 1, 0, 0) + body)
    answer = netlink.recv(65536)
    if struct.unpack_from("=H", answer, 4)[0] != _SOCK_DIAG_BY_FAMILY:
        return None
    unread: int = struct.unpack_from("=I", answer, _QUEUE)[0]
    at = _ATTRIBUTES
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _INET_DIAG_INFO:
            received: int = struct.unpack_from("=Q", answer, at + 4 + _BYTES_RECEIVED)[0]
            return received, unread
        at += (length + 3) & ~3
    return None


def deliver(connection: socket.socket, pieces: Iterable[bytes], receiver: Receiver) -> None:
    """Send the pieces so that the proxy reads each by itself; ends quietly when the proxy has closed."""
    try:
        for number, piece in enumerate(pieces):
            if number:
                receiver.wait_read(connection)
            connection.sendall(piece)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise


def read_to_end(connection: socket.socket, patience: float = 20.0) -> Exchange:
    """Everything until the connection ends; OPEN when it does not within `patience` seconds."""
    connection.settimeout(patience)
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        return Exchange(data, End.RESET)
    except TimeoutError:
        return Exchange(data, End.OPEN)
    return Exchange(data, End.FIN)


def read_answers(connection: socket.socket, count: int, methods: Iterable[str] = ()) -> list[Answer]:
    """Read until so many responses are whole, 1xx not counted; they must be."""
    methods = list(methods)
    data = b""
    while True:
        found = split_answers(data, methods)
        if sum(answer.status >= 200 or answer.status == 101 for answer in found) >= count:
            return found
        piece = connection.recv(1 << 16)
        assert piece, f"the connection ended after {len(found)} answers: {data!r}"
        data += piece


def split_answers(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """The whole responses in `data`. One without a length reaches to the end; behind a 101 nothing is HTTP."""
    asked = list(methods)
    found: list[Answer] = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        final = status >= 200 or status == 101
        method = asked.pop(0) if asked and final else "GET"
        answer = Answer(status, head, b"")
        if status < 200 or status in (204, 304) or method == "HEAD":
            body, left = (rest, b"") if status == 101 else (b"", rest)
        elif answer.values("transfer-encoding") == ["chunked"]:
            whole = _dechunk(rest)
            if whole is None:
                break
            body, left = whole
        else:
            length = int((answer.values("content-length") or [str(len(rest))])[0])
            if len(rest) < length:
                break
            body, left = rest[:length], rest[length:]
        found.append(answer._replace(body=body))
        data = left
    return found


def _dechunk(data: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while b"\r\n" in data:
        line, _, data = data.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            while b"\r\n" in data:
                line, _, data = data.partition(b"\r\n")
                if not line:
                    return body, data
            return None
        if len(data) < size + 2:
            return None
        body, data = body + data[:size], data[size + 2 :]
    return None


def by_bytes(data: bytes, longest: int = 2000) -> Sequence[bytes]:
    """One byte after the other; of what is longer than `longest`, only its first and last bytes are alone."""
    half = longest // 2
    if len(data) <= longest:
        return [data[i : i + 1] for i in range(len(data))]
    return [*by_bytes(data[:half]), data[half:-half], *by_bytes(data[-half:])]


def cuts(data: bytes, most: int = 24) -> list[tuple[bytes, bytes]]:
    """In two, at the places that matter: beside what separates. Of more than `most`, the first and the last."""
    edges = sorted({at for i, byte in enumerate(data) if byte in _EDGES for at in (i, i + 1)} - {0, len(data)})
    if len(edges) > most:
        edges = [*edges[: most // 2], *edges[-(most // 2) :]]
    return [(data[:at], data[at:]) for at in edges]
