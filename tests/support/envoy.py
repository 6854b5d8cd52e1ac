"""A real Envoy in the shape in which it runs on a node, without BPF: nftables' TPROXY does the steering.

Three network namespaces in a row: client, node, server. A connection from the client to the server's port P, where P is
a listener's port, is handed to that listener on the node with both addresses kept; whatever the proxy sends on reaches
one small HTTP server, which answers with the request's head as it arrived. Everything is IPv4 and IPv6.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.testbed import netns
from spliceway.policy.table import RuleSet
from spliceway.xds.admin import admin_get
from spliceway.xds.bootstrap import bootstrap
from spliceway.xds.errors import AdminError
from spliceway.xds.flow import HttpFlow
from spliceway.xds.resources import build_snapshot
from spliceway.xds.server import XdsServer
from spliceway.xds.settings import BootstrapSettings, ResourceSettings

T = TypeVar("T")

NODE_ID = "node-under-test"
PORTS = (23000, 23999)
MARK, MASK, PROXY_MARK, TABLE = 0x1000, 0x1002, 0x1002, 2480
VERSIONS = (4, 6)
CLIENT = {4: "10.241.1.2", 6: "fd00:241:1::2"}
SERVER = {4: "10.241.2.2", 6: "fd00:241:2::2"}
_GATE = {"client": {4: "10.241.1.1", 6: "fd00:241:1::1"}, "server": {4: "10.241.2.1", 6: "fd00:241:2::1"}}
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
_TO_PORT_80 = f"""
table inet one_port {{
  chain prerouting {{
    type nat hook prerouting priority dstnat
    tcp dport {PORTS[0]}-{PORTS[1]} redirect to :80
  }}
}}
"""


class Reply(NamedTuple):
    """An HTTP/1 response, read to its end."""

    status: int
    head: bytes
    body: bytes


class SteeredNet:
    """The three namespaces. `client`, `node` and `server` are their paths."""

    def __init__(self) -> None:
        run = f"xds{os.getpid()}"
        self.client, self.node, self.server = (netns.DIRECTORY / f"{run}-{who}" for who in ("c", "n", "s"))

    def __enter__(self) -> SteeredNet:
        try:
            for path in (self.client, self.node, self.server):
                netns.create(path, _begin)
            self._wire("client", self.client, CLIENT)
            self._wire("server", self.server, SERVER)
            netns.call(self.node, _route_node)
            netns.call(self.server, lambda: _run("nft", "-f", "-", stdin=_TO_PORT_80))
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
    `/upgrade` with 101 and an echo of what follows, `/status/403` with a 403, `/cut` with a part of what it promises.
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
            with connection, contextlib.suppress(OSError):
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


class EnvoyNode:
    """The namespaces, the upstream, an XdsServer and an Envoy that is its client. `flows` are the access log."""

    def __init__(self, directory: Path, net: SteeredNet, upstream: Upstream, *, concurrency: int = 1) -> None:
        self.directory, self.net, self.upstream = directory, net, upstream
        self.flows: list[HttpFlow] = []
        self.settings = ResourceSettings(upstream_mark=PROXY_MARK, upstream_idle_timeout=0.5, log_flush_interval=0.02)
        self.bootstrap = BootstrapSettings(
            node_id=NODE_ID, xds_socket=directory / "xds.sock", admin_socket=directory / "admin.sock"
        )
        self.server = self.new_server()
        self._concurrency = concurrency
        self._revision = 0
        self._envoy: subprocess.Popen[bytes] | None = None

    def new_server(self) -> XdsServer:
        """Another agent on the same socket."""
        return XdsServer(self.bootstrap.xds_socket, on_flow=self.flows.append)

    async def start(self) -> None:
        """Start server and Envoy; returns when Envoy's admin interface answers."""
        await self.server.start()
        config = self.directory / "bootstrap.json"
        config.write_text(json.dumps(bootstrap(self.bootstrap)))
        enter = shutil.which("nsenter") or "nsenter"
        command = [
            *(enter, f"--net={self.net.node}", str(find_envoy()), "--config-path", str(config)),
            *("--disable-hot-restart", "--concurrency", str(self._concurrency)),
            *("--log-path", str(self.directory / "envoy.log")),
        ]
        envoy = self._envoy = await asyncio.to_thread(_start, command)
        for _ in range(200):
            with contextlib.suppress(AdminError):
                await admin_get(self.bootstrap.admin_socket, "/server_info")
                return
            assert envoy.poll() is None, self.log()
            await asyncio.sleep(0.05)
        raise AssertionError(f"Envoy did not start:\n{self.log()}")

    async def stop(self) -> None:
        """Stop Envoy, then the server."""
        if self._envoy is not None:
            self._envoy.terminate()
            await asyncio.to_thread(self._envoy.wait)
        await self.server.stop()

    def log(self) -> str:
        """The end of Envoy's log."""
        file = self.directory / "envoy.log"
        return file.read_text()[-4000:] if file.exists() else "(no log)"

    async def admin(self, target: str) -> str:
        """GET on Envoy's admin interface."""
        return (await admin_get(self.bootstrap.admin_socket, target)).decode()

    async def apply(self, *rule_sets: RuleSet, wait: float = 10.0) -> None:
        """Serve these rule sets on port 23000 + id; returns when they are acknowledged and listen."""
        self._revision += 1
        by_id = {rule_set.id: rule_set for rule_set in rule_sets}
        ports = {key: port_of(key) for key in by_id}
        previous = self.server.snapshot(NODE_ID)
        version = f"{id(self.server):x}.{self._revision}"
        self.server.set_snapshot(NODE_ID, build_snapshot(by_id, ports, self.settings, version, previous))
        await self.server.wait_acked(NODE_ID, wait)
        for _ in range(200):
            if await asyncio.to_thread(lambda: set(ports.values()) <= netns.call(self.net.node, netns.listening_ports)):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"not listening on {ports}:\n{self.log()}")

    def connect(self, rule_set: int, version: int = 4) -> socket.socket:
        """A connection from the client's namespace to the server, through the rule set's listener."""
        return self.connect_from(self.net.client, (SERVER[version], port_of(rule_set)), version)

    @staticmethod
    def connect_from(place: Path, address: tuple[str, int], version: int = 4) -> socket.socket:
        """A connection from a namespace."""

        def dial() -> socket.socket:
            made = socket.socket(_FAMILY[version], socket.SOCK_STREAM)
            made.settimeout(5)
            try:
                made.connect(address)
            except OSError:
                made.close()
                raise
            return made

        return netns.call(place, dial)

    def ask(self, rule_set: int, raw: bytes, version: int = 4) -> Reply:
        """Send raw bytes on a new connection and read one response."""
        with self.connect(rule_set, version) as connection:
            connection.sendall(raw)
            return read_reply(connection, raw.startswith(b"HEAD "))

    def get(self, rule_set: int, path: str, method: str = "GET", version: int = 4) -> Reply:
        """One plain request."""
        return self.ask(rule_set, f"{method} {path} HTTP/1.1\r\nHost: api\r\n\r\n".encode("latin-1"), version)

    async def flow(self, count: int) -> list[HttpFlow]:
        """Wait for so many access log entries, and take them."""
        for _ in range(250):
            if len(self.flows) >= count:
                break
            await asyncio.sleep(0.02)
        taken = list(self.flows)
        self.flows.clear()
        return taken


@contextlib.asynccontextmanager
async def envoy_node(directory: Path, *, concurrency: int = 1) -> AsyncIterator[EnvoyNode]:
    """An EnvoyNode that is up, and taken down afterwards."""
    with SteeredNet() as net, Upstream(net) as upstream:
        node = EnvoyNode(directory, net, upstream, concurrency=concurrency)
        try:
            await node.start()
            yield node
        finally:
            await node.stop()


class EnvoyThread:
    """An EnvoyNode for tests that are plain functions: the agent's side runs on an event loop in a thread."""

    def __init__(self, directory: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="envoy-node", daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()
        self.node = self.run(self._stack.enter_async_context(envoy_node(directory)))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def flow_of(self, source_port: int) -> HttpFlow:
        """The access log entry of the connection from that port; waits until it arrives."""
        for _ in range(500):
            found = next((flow for flow in self.node.flows if flow.source_port == source_port), None)
            if found is not None:
                return found
            self.run(asyncio.sleep(0.01))
        raise AssertionError(f"no access log entry of port {source_port}")

    def close(self) -> None:
        """Take everything down."""
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def port_of(rule_set: int) -> int:
    """The listener's port of a rule set."""
    return PORTS[0] + rule_set


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


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


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
