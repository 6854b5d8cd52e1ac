"""A server for pods of another node: it tells who came and what arrived, sends what it is asked for, and ends so.

`python farserver.py [PORT]`. A request's query says what it gets: `size=N`, so many bytes that follow from its target;
`end=fin`: a whole answer, and the end of the connection; `end=cut`, `end=reset`: half of it, and then FIN or RST.
The header X-Seen says what the server saw. A target that ends in `/ends` gets how earlier connections were ended by
their clients: a list of [port, "fin" or "reset"].
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import sys
import threading
from urllib.parse import parse_qs, urlsplit

#: What is sent of a body of 1,000 bytes that is cut.
_HALF = 500
ends: list[tuple[int, str]] = []


def content(target: str, size: int) -> bytes:
    """Bytes that are the same wherever they are made."""
    return random.Random(target).randbytes(size)


def _answer(status: str, body: bytes, seen: object, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\nX-Seen: "
    return f"{head}{json.dumps(seen)}\r\n\r\n".encode() + body


class _Reader:
    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._left = sock, b""

    def head(self) -> str:
        """The head of a request; empty when the client has ended the connection."""
        while b"\r\n\r\n" not in self._left:
            if not (data := self._recv(1 << 16)):
                return ""
            self._left += data
        head, self._left = self._left.split(b"\r\n\r\n", 1)
        return head.decode("latin-1")

    def _recv(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except BlockingIOError:  # a reset wakes the reader of a spliced socket so, once (docs/splicing.md)
            return self._sock.recv(size)

    def digest(self, length: int) -> str:
        """SHA-256 of a body."""
        found = hashlib.sha256()
        while length:
            data = self._left[:length] or self._recv(min(length, 1 << 18))
            if not data:
                raise ConnectionResetError("in the middle of a body")
            self._left = self._left[len(data) :] if self._left else b""
            found.update(data)
            length -= len(data)
        return found.hexdigest()


def serve(sock: socket.socket, peer: tuple[str, int]) -> None:
    """Serve one connection."""
    reader = _Reader(sock)
    with sock:
        try:
            while head := reader.head():
                if not _exchange(sock, reader, head, peer):
                    return
            ends.append((peer[1], "fin"))
        except ConnectionError:
            ends.append((peer[1], "reset"))


def _exchange(sock: socket.socket, reader: _Reader, head: str, peer: tuple[str, int]) -> bool:
    first, *lines = head.split("\r\n")
    _method, target, _version = first.split()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    seen = {"address": peer[0].removeprefix("::ffff:"), "port": peer[1], "sum": reader.digest(length)}
    asked = parse_qs(urlsplit(target).query)
    end = asked.get("end", [""])[0]
    if end in ("cut", "reset"):
        sock.sendall(_answer("200 OK", content(target, _HALF), seen, 2 * _HALF))
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
    body = content(target, int(asked.get("size", ["0"])[0]))
    if urlsplit(target).path.endswith("/ends"):
        body = json.dumps(ends).encode()
    sock.sendall(_answer("200 OK", body, seen))
    return end != "fin"


def main() -> None:
    """Serve both families until killed."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 80
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128) as server:
        while True:
            sock, peer = server.accept()
            threading.Thread(target=serve, args=(sock, peer[:2]), daemon=True).start()


if __name__ == "__main__":
    main()
