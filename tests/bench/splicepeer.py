"""Both ends of `bench_splice.py`, run inside pods: bytes in messages of one size, behind an upgrade that policy allows.

`splicepeer.py server PORT` serves for ever; `splicepeer.py client ADDRESS PORT PATTERN SIZE NODELAY SECONDS` prints one
JSON line {"messages": n, "seconds": s}. Patterns: `ping-pong` (the server sends each message back), `up` (the client
streams), `down` (the server streams). A rate counts what has arrived, not what was sent.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time

UPGRADE = (
    "GET /{pattern}/{size}/{nodelay}/{seconds} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
READ = 1 << 18


def head(sock: socket.socket) -> bytes:
    """Everything up to the empty line; nothing is sent behind it before the other side has answered."""
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        data = sock.recv(65536)
        if not data:
            raise ConnectionError(f"the connection has ended after {found!r}")
        found += data
    return found


def exactly(sock: socket.socket, view: memoryview) -> bool:
    """Fill `view`; False when the connection ends first."""
    got = 0
    while got < len(view):
        count = sock.recv_into(view[got:])
        if not count:
            return False
        got += count
    return True


def drain(sock: socket.socket) -> int:
    """Bytes until the end."""
    buffer, total = bytearray(READ), 0
    while count := sock.recv_into(buffer):
        total += count
    return total


def stream(sock: socket.socket, size: int, seconds: float) -> None:
    """Send messages for a time."""
    message, send = bytes(size), sock.sendall
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(16):
            send(message)


def serve(sock: socket.socket) -> None:
    """One connection."""
    with sock:
        _, pattern, size, nodelay, seconds = head(sock).split(b" ")[1].decode().split("/")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(nodelay))
        sock.sendall(ANSWER)
        if pattern == "ping-pong":
            view = memoryview(bytearray(int(size)))
            while exactly(sock, view):
                sock.sendall(view)
        elif pattern == "up":
            drain_until_mark(sock, int(size))
        elif exactly(sock, memoryview(bytearray(1))):
            stream(sock, int(size), float(seconds))
            sock.shutdown(socket.SHUT_WR)
            drain(sock)


def drain_until_mark(sock: socket.socket, size: int) -> None:
    """Read messages until one that does not begin with a zero, the last, and say that it has come."""
    view, at = memoryview(bytearray(max(READ, size))), 0
    while count := sock.recv_into(view):
        marked = next((i for i in range(-at % size, count, size) if view[i]), None)
        if marked is not None:
            exactly(sock, view[: size - (count - marked)])  # a close with something unread would be a reset
            sock.sendall(b"!")
            return
        at += count


def ask(address: str, port: int, pattern: str, size: int, nodelay: int, seconds: float) -> dict[str, float]:
    """One connection of a client."""
    with socket.create_connection((address, port), 60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        sock.sendall(UPGRADE.format(pattern=pattern, size=size, nodelay=nodelay, seconds=seconds).encode())
        assert head(sock).startswith(b"HTTP/1.1 101 ")
        begin, count, message = time.monotonic(), 0, bytes(size)
        if pattern == "ping-pong":
            view = memoryview(bytearray(size))
            while time.monotonic() - begin < seconds:
                sock.sendall(message)
                assert exactly(sock, view)
                count += 1
        elif pattern == "up":
            while time.monotonic() - begin < seconds:
                for _ in range(16):
                    sock.sendall(message)
                count += 16
            sock.sendall(b"\1" + message[1:])
            count += 1
            assert exactly(sock, memoryview(bytearray(1)))
        else:
            sock.sendall(b"\1")
            count = drain(sock) // size
        return {"messages": count, "seconds": time.monotonic() - begin}


def main() -> None:
    """As the module says."""
    if sys.argv[1] == "server":
        with socket.create_server(("::", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            while True:
                sock, _ = listening.accept()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
                threading.Thread(target=serve, args=(sock,), daemon=True).start()
    address, port, pattern, size, nodelay, seconds = sys.argv[2:]
    print(json.dumps(ask(address, int(port), pattern, int(size), int(nodelay), float(seconds))))


if __name__ == "__main__":
    main()
