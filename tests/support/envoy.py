"""A real Envoy in the shape in which it runs on a node: the agent's xDS server over it, steered connections into it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.testbed import netns
from spliceway.policy.table import RuleSet
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.envoyadmin import admin_get
from spliceway.xds.errors import AdminError
from spliceway.xds.resources.bootstrap import bootstrap
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.settings import BootstrapSettings, ResourceSettings
from spliceway.xds.server.server import XdsServer
from support.steered import PORTS, PROXY_MARK, SERVER, Reply, SteeredNet, Upstream, dial, read_reply
from support.waiting import LIMIT, until, until_async

T = TypeVar("T")

NODE_ID = "node-under-test"


class EnvoyNode:
    """The namespaces, the upstream, an XdsServer and an Envoy that is its client. `flows` are the access log."""

    #: More of Envoy's command line.
    arguments: tuple[str, ...] = ()
    #: What it is in messages, and the name of its log.
    what = "envoy"

    def __init__(self, directory: Path, net: SteeredNet, *, concurrency: int = 1) -> None:
        self.directory, self.net = directory, net
        self.upstream = Upstream(net)
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
        """Start server and proxy; returns when the proxy's admin interface answers."""
        await self.server.start()
        enter = shutil.which("nsenter") or "nsenter"
        command = [enter, f"--net={self.net.node}", *self.command()]
        envoy = self._envoy = await asyncio.to_thread(_start, command)

        async def answers() -> bool:
            assert envoy.poll() is None, self.log()
            with contextlib.suppress(AdminError):
                await admin_get(self.bootstrap.admin_socket, "/server_info")
                return True
            return False

        await until_async(answers, told=lambda: f"{self.what} did not start:\n{self.log()}")

    def command(self) -> list[str]:
        """What is run in the node's namespace, with its configuration written."""
        config = self.directory / "bootstrap.json"
        config.write_text(json.dumps(bootstrap(self.bootstrap)))
        return [
            *(str(find_envoy()), "--config-path", str(config)),
            *("--disable-hot-restart", "--concurrency", str(self._concurrency)),
            *("--log-path", str(self.directory / "envoy.log")),
            *self.arguments,
        ]

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._envoy is not None
        return self._envoy.pid

    async def stop(self) -> None:
        """Stop Envoy, then the server."""
        if self._envoy is not None:
            self._envoy.terminate()
            await asyncio.to_thread(self._envoy.wait)
        await self.server.stop()

    def log(self) -> str:
        """The end of the proxy's log."""
        file = self.directory / f"{self.what}.log"
        return file.read_text()[-4000:] if file.exists() else "(no log)"

    async def admin(self, target: str) -> str:
        """GET on Envoy's admin interface."""
        return (await admin_get(self.bootstrap.admin_socket, target)).decode()

    async def apply(self, *rule_sets: RuleSet, wait: float = LIMIT) -> None:
        """Serve these rule sets on port 23000 + id; returns when they are acknowledged and listen."""
        self._revision += 1
        by_id = {rule_set.id: rule_set for rule_set in rule_sets}
        ports = {key: port_of(key) for key in by_id}
        previous = self.server.snapshot(NODE_ID)
        version = f"{id(self.server):x}.{self._revision}"
        self.server.set_snapshot(NODE_ID, build_snapshot(by_id, ports, self.settings, version, previous))
        await self.server.wait_acked(NODE_ID, wait)
        await self.listening(set(ports.values()))

    async def listening(self, ports: set[int]) -> None:
        """Wait until these ports are listened on."""

        async def there() -> bool:
            return ports <= await asyncio.to_thread(netns.call, self.net.node, netns.listening_ports)

        await until_async(there, told=lambda: f"not listening on {ports}:\n{self.log()}")

    def connect(self, rule_set: int, version: int = 4) -> socket.socket:
        """A connection from the client's namespace to the server, through the rule set's listener."""
        return dial(self.net.client, (SERVER[version], port_of(rule_set)), version)

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
        await until_async(lambda: len(self.flows) >= count, told=lambda: f"{len(self.flows)} of {count} entries")
        taken = list(self.flows)
        self.flows.clear()
        return taken


@contextlib.asynccontextmanager
async def envoy_node(
    directory: Path, *, concurrency: int = 1, redirect_to: int = 80, kind: type[EnvoyNode] = EnvoyNode
) -> AsyncIterator[EnvoyNode]:
    """An EnvoyNode that is up, and taken down afterwards. `redirect_to`: the server's port, 80 is `Upstream`."""
    with SteeredNet(redirect_to) as net:
        node = kind(directory, net, concurrency=concurrency)
        with node.upstream:
            try:
                await node.start()
                yield node
            finally:
                await node.stop()


class EnvoyThread:
    """An EnvoyNode for tests that are plain functions: the agent's side runs on an event loop in a thread."""

    def __init__(self, directory: Path, kind: type[EnvoyNode] = EnvoyNode) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="envoy-node", daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()
        self.node = self.run(self._stack.enter_async_context(envoy_node(directory, kind=kind)))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def flow_of(self, source_port: int) -> HttpFlow:
        """The access log entry of the connection from that port; waits until it arrives."""
        return until(
            lambda: next((flow for flow in self.node.flows if flow.source_port == source_port), None),
            told=lambda: f"no access log entry of port {source_port}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down."""
        self.run(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def port_of(rule_set: int) -> int:
    """The listener's port of a rule set."""
    return PORTS[0] + rule_set


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
