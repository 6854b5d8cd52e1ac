"""Connections steered to a proxy without BPF: three network namespaces in a row, nftables' TPROXY in the middle.

A connection from the client to the server's port P, where P is a listener's port, is handed to that listener on the
node with both addresses kept; whatever the proxy sends on reaches one small HTTP server, which answers with the
request's head as it arrived. Everything is IPv4 and IPv6.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from spliceway.agent.testbed import netns

PORTS = (23000, 23999)
MARK, MASK, PROXY_MARK, TABLE = 0x1000, 0x1002, 0x1002, 2480
VERSIONS = (4, 6)
CLIENT = {4: "10.241.1.2", 6: "fd00:241:1::2"}
SERVER = {4: "10.241.2.2", 6: "fd00:241:2::2"}
_GATE = {"client": {4: "10.241.1.1", 6: "fd00:241:1::1"}, "server": {4: "10.241.2.1", 6: "fd00:241:2::1"}}
_NUMBERS = itertools.count()
_BITS = {4: 24, 6: 64}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_STEER = f"""
table inet steer {{
  chain prerouting {{
    type filter hook prerouting priority mangle
    socket transparent 1 meta mark set {MARK} accept
    iifname != "client" accept
    meta nfproto ipv4 tcp dport {PORTS[0]}-{PORTS[1]} tproxy ip to 127.0.0.1 meta mark set {MARK} accept
    meta nfproto ipv6 tcp dport {PORTS[0]}-{PORTS[1]} tproxy ip6 to [::1] meta mark set {MARK} accept
  }}
  chain forward {{
    type filter hook forward priority filter
    iifname "client" reject with tcp reset
  }}
}}
"""
_TO_ONE_PORT = """
table inet one_port {{
  chain prerouting {{
    type nat hook prerouting priority dstnat
    tcp dport {first}-{last} redirect to :{port}
  }}
}}
"""


class Reply(NamedTuple):
    """An HTTP/1 response, read to its end."""

    status: int
    head: bytes
    body: bytes


class SteeredNet:
    """The three namespaces; `client`, `node` and `server` are their paths. The server's port is `redirect_to`."""

    def __init__(self, redirect_to: int = 80) -> None:
        self._redirect = _TO_ONE_PORT.format(first=PORTS[0], last=PORTS[1], port=redirect_to)
        run = f"xds{os.getpid()}-{next(_NUMBERS)}"
        self.client, self.node, self.server = (netns.DIRECTORY / f"{run}-{who}" for who in ("c", "n", "s"))

    def __enter__(self) -> SteeredNet:
        try:
            for path in (self.client, self.node, self.server):
                netns.create(path, _begin)
            self._wire("client", self.client, CLIENT)
            self._wire("server", self.server, SERVER)
            netns.call(self.node, _route_node)
            netns.call(self.server, lambda: _run("nft", "-f", "-", stdin=self._redirect))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for path in (self.client, self.node, self.server):
            netns.delete(path)

    def _wire(self, name: str, end: Path, addresses: Mapping[int, str]) -> None:
        gate = _GATE[name]

        def far() -> None:
            for version, address in addresses.items():
                _address("eth0", address, version)
            _run("ip", "link", "set", "eth0", "up")
            for version, address in gate.items():
                _run("ip", f"-{version}", "route", "add", "default", "via", address)

        def near() -> None:
            _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", end.name)
            for version, address in gate.items():
                _address(name, address, version)
            _run("ip", "link", "set", name, "up")

        netns.call(self.node, near)
        netns.call(end, far)


class Upstream:
    """The HTTP server behind the proxy: answers 200 with the request's head, in a thread, one for each connection.

    `heads` are all heads that arrived. A path that ends in `/slow` is answered in two halves, 0.3 s apart;
    `/upgrade` with 101 and an echo of what follows, `/status/403` with a 403, `/cut` with a part of what it promises,
    `/many` with 200 headers of 1,000 bytes.
    """

    def __init__(self, net: SteeredNet) -> None:
        self.heads: list[bytes] = []
        self.peers: list[tuple[str, int]] = []
        self.open = 0  # connections now
        self._listeners = [netns.call(net.server, partial(_listen, version, 80)) for version in SERVER]

    def __enter__(self) -> Upstream:
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                self.peers.append(peer[:2])
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self.open += 1
        try:
            with connection, contextlib.suppress(OSError, ValueError, IndexError):  # what is no request ends it
                self._talk(connection)
        finally:
            self.open -= 1

    def _talk(self, connection: socket.socket) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                if not (data := connection.recv(65536)):
                    return
                buffer += data
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            if head.startswith(b"PRI "):
                return  # HTTP/2 is not spoken here
            self.heads.append(head)
            if b"100-continue" in head.lower():
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            buffer = _skip_body(connection, head, buffer)
            if self._answer(connection, head, buffer):
                return

    def _answer(self, connection: socket.socket, head: bytes, buffer: bytes) -> bool:
        path = head.split(b" ")[1]
        if path == b"/status/403":
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nmine")
            return False
        if path == b"/many":
            many = b"".join(b"X-%d: %b\r\n" % (number, b"v" * 1000) for number in range(200))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%b\r\n" % many)
            return False
        if path == b"/cut":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
            return True
        if path.endswith(b"/upgrade"):
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
            while data := buffer or connection.recv(65536):
                buffer = b""
                connection.sendall(data)
            return True
        if head.startswith(b"HEAD "):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Upstream: Yes\r\nContent-Length: 5\r\n\r\n")
            return False
        whole = b"HTTP/1.1 200 OK\r\nX-Upstream: Yes\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head)
        if path.endswith(b"/slow"):
            connection.sendall(whole[:-4])
            threading.Event().wait(0.3)
            connection.sendall(whole[-4:])
        else:
            connection.sendall(whole)
        return False


def dial(place: Path, address: tuple[str, int], version: int = 4) -> socket.socket:
    """A connection from inside a namespace."""

    def connect() -> socket.socket:
        made = socket.socket(_FAMILY[version], socket.SOCK_STREAM)
        made.settimeout(5)
        try:
            made.connect(address)
        except OSError:
            made.close()
            raise
        made.settimeout(20)  # what answers is a process that may have to wait for a CPU
        return made

    return netns.call(place, connect)


def read_reply(connection: socket.socket, no_body: bool = False) -> Reply:
    """Read one response with Content-Length or to the end of the connection; status 0 when there was none."""
    buffer = b""
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in buffer:
            if not (data := connection.recv(65536)):
                break
            buffer += data
        head, found, body = buffer.partition(b"\r\n\r\n")
        if not found:
            return Reply(0, b"", buffer)
        if head.split(b" ")[1].startswith(b"1") and head.split(b" ")[1] != b"101":
            return Reply(int(head.split(b" ")[1]), head, body)
        length = 0 if no_body else _length(head)
        while length is None or len(body) < length:
            if not (data := connection.recv(65536)):
                break
            body += data
        return Reply(int(head.split(b" ")[1]), head, body)
    return Reply(0, b"", buffer)


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0 if b" 101 " in head else None


def _skip_body(connection: socket.socket, head: bytes, buffer: bytes) -> bytes:
    if b"transfer-encoding: chunked" in head.lower():
        while not buffer.endswith(b"0\r\n\r\n"):
            buffer += connection.recv(65536)
        return b""
    length = _length(head) or 0
    while len(buffer) < length:
        buffer += connection.recv(65536)
    return buffer[length:]


def _listen(version: int, port: int) -> socket.socket:
    made = socket.socket(_FAMILY[version], socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((SERVER[version], port))
    made.listen(1024)
    return made


def _begin() -> None:
    for name in ("all", "default"):
        netns.sysctl(f"ipv6/conf/{name}/accept_dad", 0)  # link-local addresses work at once
    _run("ip", "link", "set", "lo", "up")


def _route_node() -> None:
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        netns.sysctl(name, 1)
    for name in ("all", "client", "server"):
        netns.sysctl(f"ipv4/conf/{name}/rp_filter", 0)
    for version in (4, 6):
        _run(
            "ip", f"-{version}", "rule", "add", "priority", "7", "fwmark", f"{MARK:#x}/{MASK:#x}", "lookup", str(TABLE)
        )
        _run("ip", f"-{version}", "route", "add", "local", "default", "dev", "lo", "table", str(TABLE))
    _run("nft", "-f", "-", stdin=_STEER)


def _address(interface: str, address: str, version: int) -> None:
    extra = ["nodad"] if version == 6 else []
    _run("ip", f"-{version}", "address", "add", f"{address}/{_BITS[version]}", "dev", interface, *extra)


def _run(*command: str, stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
