"""Attackers that run inside a pod, as its programs: `python -m support.attacker VERB JSON` prints a report as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

#: Bytes of the bystander's own; whatever else it gets was somebody else's.
OWN_CLIENT, OWN_SERVER = b"BYSTANDER-CLIENT", b"BYSTANDER-SERVER"
_SO_MARK = 36
_TCP_FASTOPEN_NO_COOKIE = 34
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _free(address: str) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    return sock


def impersonate(pairs: list[list[str]], port: int, duration: float) -> dict[str, Any]:
    """Play both ends of other pods' connections in one's own namespace.

    `pairs` are (client, server) addresses, which the caller has put on lo; stdin brings the client ports that are live,
    one list a line. Each is connected locally: the sockets have the victims' tuples. Whoever keys by tuple alone gives
    the victims' bytes to these sockets, or these bytes to the victims.
    """
    listeners = {}
    for _, server in pairs:
        sock = _free(server)
        sock.bind((server, port))
        sock.listen(1024)
        listeners[server] = sock
    connections, stolen, lost = 0, [], 0
    deadline = time.monotonic() + duration
    for line in sys.stdin:
        for client_port in json.loads(line):
            if time.monotonic() > deadline:
                break
            for client, server in pairs:
                with contextlib.suppress(OSError), _free(client) as out:
                    out.bind((client, client_port))
                    out.settimeout(0.5)
                    out.connect((server, port))
                    accepted, _ = listeners[server].accept()
                    with accepted:
                        accepted.settimeout(0.5)
                        connections += 1
                        for a, b, own in ((out, accepted, OWN_CLIENT), (accepted, out, OWN_SERVER)):
                            a.sendall(own)
                            got = _read(b, len(own))
                            if got != own:
                                lost += got == b""
                                if got:
                                    stolen.append(repr(got[:60]))
                        for each in (out, accepted):
                            if extra := _read(each, 1, 0.002):
                                stolen.append(repr(extra))
                        # Both ends forget it: no TIME_WAIT that would keep the tuple from being tried again.
                        out.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return {"connections": connections, "stolen": stolen[:10], "lost": lost}


def _read(sock: socket.socket, count: int, wait: float = 0.5) -> bytes:
    data = b""
    deadline = time.monotonic() + wait
    while len(data) < count and select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return data


def loopback(name: str, duration: float, first_port: int, addresses: list[str]) -> dict[str, Any]:
    """Ask the pod's own server over loopback, from ports that other pods use at the same time."""
    asked, wrong = 0, []
    deadline = time.monotonic() + duration
    while time.monotonic() < deadline:
        for address in addresses:
            for offset in range(32):
                with _free(address) as sock:
                    sock.settimeout(5)
                    try:
                        sock.bind((address, first_port + offset))
                        sock.connect((address, 80))
                    except OSError:
                        continue
                    target = f"/{name}/{asked}"
                    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                    answer = b""
                    wanted = f"{name} GET {target}\n".encode()
                    while not answer.endswith(wanted):
                        piece = sock.recv(65536)
                        if not piece:
                            break
                        answer += piece
                    asked += 1
                    if not answer.endswith(wanted):
                        wrong.append(repr(answer[-80:]))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return {"asked": asked, "wrong": wrong[:10]}


def dial(targets: list[list[Any]], marks: list[int], wait: float, request: str = "") -> dict[str, Any]:
    """Connect to every (address, port) with every mark (0: none), all at once. What answers, and with what."""
    waiting: dict[int, tuple[socket.socket, str]] = {}
    poll = select.poll()
    refused, answered, tried = 0, [], 0
    for address, port in targets:
        for mark in marks:
            tried += 1
            sock = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark.to_bytes(4, "little"))
            try:
                sock.connect((address, port))
            except BlockingIOError:
                waiting[sock.fileno()] = (sock, f"{address} {port} mark {mark:#x}")
                poll.register(sock, select.POLLOUT)
            except OSError:
                refused += 1
                sock.close()
    deadline = time.monotonic() + wait
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fileno, _ in poll.poll(left * 1000):
            sock, what = waiting.pop(fileno)
            poll.unregister(sock)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                refused += 1
            else:
                answered.append(f"{what}: {_ask(sock, request)}")
            sock.close()
    for sock, _ in waiting.values():
        sock.close()
    return {"tried": tried, "refused": refused, "silent": len(waiting), "answered": answered}


def _ask(sock: socket.socket, request: str) -> str:
    if not request:
        return "connected"
    sock.settimeout(2)
    try:
        sock.sendall(request.encode())
        return sock.recv(65536).decode("latin-1").split("\r\n")[0]
    except OSError as error:
        return f"connected, then {error}"


def exchange(address: str, port: int, pieces: list[str], wait: float, delay: float = 0.0) -> dict[str, Any]:
    """Send these bytes (latin-1), piece by piece, and return all that comes back until the end or `wait` seconds."""
    answer, ended = b"", "open"
    with socket.create_connection((address, port), timeout=wait) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                sock.sendall(piece.encode("latin-1"))
                if delay:
                    time.sleep(delay)
            deadline = time.monotonic() + wait
            while select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
                data = sock.recv(65536)
                if not data:
                    ended = "closed"
                    break
                answer += data
        except OSError as error:
            ended = str(error)
    return {"answer": answer.decode("latin-1"), "end": ended}


def exchanges(address: str, port: int, cases: list[list[str]], wait: float, delay: float = 0.0) -> list[dict[str, Any]]:
    """`exchange` for each case, each on its own connection, side by side."""
    found: list[dict[str, Any]] = []
    children = []
    for case in cases:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                result = exchange(address, port, case, wait, delay)
            except OSError as error:
                result = {"answer": "", "end": f"connect: {error}"}
            os.write(write, json.dumps(result).encode()[:65536])
            os._exit(0)
        os.close(write)
        children.append((pid, read))
        if len(children) == 8:
            found += [_reap(*child) for child in children]
            children = []
    return found + [_reap(*child) for child in children]


def _reap(pid: int, read: int) -> dict[str, Any]:
    with os.fdopen(read, "rb") as pipe:
        result: dict[str, Any] = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return result


def fast_open(address: str, port: int) -> dict[str, str]:
    """The first line of the answers to requests that are sent with the SYN."""
    found = {}
    for name, path in (("private", "/private"), ("articles", "/articles/1")):
        with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
            # Blocking, and with data in the first SYN: without a cookie of the server's.
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
            request = f"GET {path} HTTP/1.1\r\nHost: api\r\n\r\n".encode()
            sock.sendto(request, socket.MSG_FASTOPEN, (address, port))
            found[name] = sock.recv(65536).decode("latin-1").split("\r\n")[0]
    return found


_VERBS: dict[str, Callable[..., Any]] = {
    "impersonate": impersonate,
    "loopback": loopback,
    "dial": dial,
    "exchange": exchange,
    "fast_open": fast_open,
    "exchanges": exchanges,
}


def main() -> None:
    """Entry of the program."""
    print(json.dumps(_VERBS[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
