"""The embedded proxy as it runs on a node: the agent's xDS server over it, steered connections into it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from spliceway.agent.testbed import netns
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.envoyadmin import admin_get, admin_stats
from spliceway.xds.errors import AdminError
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.events import XdsEvent
from spliceway.xds.server.server import XdsServer
from support.steered import PORTS, PROXY_MARK, SERVER, Reply, SteeredNet, Upstream, dial, read_reply

NODE_ID = "node-under-test"


def rules(number: int, *paths: str) -> RuleSet:
    """A rule set that allows GET of these paths, `/.*` when none is given."""
    return RuleSet(
        number, f"rules {number}", tuple(HttpRule(i, method="GET", path=p) for i, p in enumerate(paths or ("/.*",), 1))
    )


def port_of(rule_set: int) -> int:
    """The listener's port of a rule set."""
    return PORTS[0] + rule_set


class Running:
    """One `spliceway proxy` process in the node's namespace; what it logs is in `log`."""

    def __init__(self, node: ProxyNode, command: tuple[str, ...] = ()) -> None:
        self.log_file = node.directory / f"proxy-{len(node.started)}.log"
        enter = shutil.which("nsenter") or "nsenter"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(enter, f"--net={node.net.node}", sys.executable, "-m", "spliceway.proxy"),
                    *("--config", str(node.config_file), *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text()

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The same, line by line."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def children(self) -> list[int]:
        """Pids of its workers."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def files(self) -> int:
        """Open descriptors of supervisor and workers."""
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (self.pid, *self.children()))

    def memory(self, pid: int) -> float:
        """Resident memory in MiB."""
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    async def ended(self, wait: float = 15.0) -> int:
        """Its exit status, once it has ended."""
        return await asyncio.to_thread(self.process.wait, wait)


class ProxyNode:
    """The namespaces, the upstream, an XdsServer and proxies that are its clients. `flows` are the access log."""

    def __init__(self, directory: Path, net: SteeredNet, **settings: Any) -> None:
        self.directory, self.net = directory, net
        self.upstream = Upstream(net)
        self.flows: list[HttpFlow] = []
        self.events: list[XdsEvent] = []
        self.resources = ResourceSettings(upstream_mark=PROXY_MARK)
        self.socket, self.admin_socket = directory / "xds.sock", directory / "admin.sock"
        self.config_file = directory / "proxy.json"
        self.started: list[Running] = []
        self.rule_sets: dict[int, RuleSet] = {}
        self.revision = 0
        self.config_file.write_text(
            json.dumps(
                {
                    "nodeId": NODE_ID,
                    "xdsSocket": str(self.socket),
                    "adminSocket": str(self.admin_socket),
                    "handoverSocket": str(directory / "handover.sock"),
                    "stateFile": str(directory / "proxy-state.bin"),
                    "reconnectMax": 0.2,
                    **settings,
                }
            )
        )
        self.server = self.new_server()

    def new_server(self) -> XdsServer:
        """Another agent on the same socket."""
        return XdsServer(self.socket, on_flow=self.flows.append, on_event=self.events.append)

    def launch(self, *command: str) -> Running:
        """Start a proxy, without waiting for it."""
        self.started.append(Running(self, command))
        return self.started[-1]

    async def start(self) -> Running:
        """Start a proxy; returns when it is live."""
        running = self.launch()
        await self.live(running)
        return running

    async def live(self, running: Running) -> None:
        """Wait until the admin socket is this proxy's, and it is live."""

        async def answers() -> bool:
            assert running.process.poll() is None, running.log
            with contextlib.suppress(AdminError):
                info = await self.info()
                return bool(info["pid"] == running.pid and info["state"] == "LIVE")
            return False

        await self.until(answers, lambda: f"live {running.process.poll()}: {running.log}")

    async def info(self) -> dict[str, Any]:
        """`/server_info`."""
        found: dict[str, Any] = json.loads(await admin_get(self.admin_socket, "/server_info"))
        return found

    async def stat(self, name: str) -> int:
        """One of its counters, 0 if it has none of this name."""
        return (await admin_stats(self.admin_socket, name)).get(name, 0)

    async def until(self, condition: Callable[[], Any], what: Callable[[], str], wait: float = 20.0) -> None:
        """Ask again and again, until it is so. The condition may be awaitable."""
        deadline = asyncio.get_running_loop().time() + wait
        while not (await found if inspect.isawaitable(found := condition()) else found):
            assert asyncio.get_running_loop().time() < deadline, f"never: {what()}"
            await asyncio.sleep(0.01)

    def serve(self, *rule_sets: RuleSet, gone: tuple[int, ...] = (), move: int = 0) -> None:
        """Publish these beside (or instead of) what there is, on port 23000 + id + `move`."""
        self.revision += 1
        self.rule_sets |= {item.id: item for item in rule_sets}
        for number in gone:
            del self.rule_sets[number]
        ports = {number: port_of(number) + move for number in self.rule_sets}
        previous = self.server.snapshot(NODE_ID)
        version = f"{id(self.server):x}.{self.revision}"
        self.server.set_snapshot(NODE_ID, build_snapshot(self.rule_sets, ports, self.resources, version, previous))

    async def apply(self, *rule_sets: RuleSet, gone: tuple[int, ...] = (), move: int = 0) -> None:
        """Publish; returns when it is acknowledged and listens."""
        self.serve(*rule_sets, gone=gone, move=move)
        await self.acked()
        ports = {port_of(number) + move for number in self.rule_sets}

        async def listening() -> bool:
            there = {port for port in await self.listening() if port >= PORTS[0]}
            return there == ports

        await self.until(listening, lambda: f"listening on {ports}: {self.started[-1].log}")

    async def acked(self) -> None:
        """Everything published is acknowledged."""
        try:
            await self.server.wait_acked(NODE_ID, 20)
        except Exception as error:
            raise AssertionError(f"{error}: {self.started[-1].log}") from None

    async def listening(self) -> set[int]:
        """Ports that are listened on in the node's namespace."""
        return await asyncio.to_thread(netns.call, self.net.node, netns.listening_ports)

    def connect(self, rule_set: int = 1, version: int = 4, move: int = 0) -> socket.socket:
        """A connection from the client's namespace to the server, through the rule set's listener."""
        made = dial(self.net.client, (SERVER[version], port_of(rule_set) + move), version)
        made.settimeout(20)
        return made

    def get(self, path: str = "/", rule_set: int = 1, version: int = 4, move: int = 0) -> Reply:
        """One request on a connection of its own."""
        with self.connect(rule_set, version, move) as connection:
            return ask(connection, path)

    async def status(self, path: str = "/", rule_set: int = 1, version: int = 4, move: int = 0) -> int:
        """The status of that, 0 when there was none."""
        return (await asyncio.to_thread(self.get, path, rule_set, version, move)).status

    async def stop(self) -> None:
        """End all proxies, then the server."""
        for running in self.started:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGKILL)
            await running.ended()
        await self.server.stop()


def ask(connection: socket.socket, path: str = "/") -> Reply:
    """One request on this connection."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: api\r\n\r\n".encode())
    return read_reply(connection)


@contextlib.asynccontextmanager
async def proxy_node(directory: Path, **settings: Any) -> AsyncIterator[ProxyNode]:
    """A ProxyNode whose server runs, without a proxy yet."""
    with SteeredNet() as net:
        node = ProxyNode(directory, net, **settings)
        with node.upstream:
            await node.server.start()
            try:
                yield node
            finally:
                await node.stop()
