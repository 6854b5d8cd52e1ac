"""A real Envoy on loopback, in no namespace of its own: clusters by EDS, routes by RDS, everything over ADS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from spliceway.agent.envoyprocess import find_envoy
from spliceway.xds.envoyadmin import admin_get, admin_stats
from spliceway.xds.errors import AdminError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from spliceway.xds.resources.bootstrap import bootstrap
from spliceway.xds.resources.packing import seconds, serialized, typed
from spliceway.xds.resources.settings import BootstrapSettings
from spliceway.xds.server.events import EventKind, XdsEvent
from spliceway.xds.server.server import XdsServer
from support.waiting import LIMIT, until_async

NODE = "plain"
#: No time limit: a cluster that waits for endpoints that don't come waits for ever, and is seen to.
_ADS = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": seconds(0)}
Bodies = Mapping[str, Mapping[str, bytes]]


class PlainEnvoy:
    """An Envoy, the XdsServer that it asks, and HTTP servers `one`, `two` … which answer with their names."""

    def __init__(self, directory: Path, api_type: str, features: tuple[str, ...]) -> None:
        self.directory = directory
        self.events: list[XdsEvent] = []
        self.settings = BootstrapSettings(
            node_id=NODE, xds_socket=directory / "xds.sock", admin_socket=directory / "admin.sock"
        )
        self.server = self.new_server()
        #: Name -> port of an HTTP server.
        self.origins: dict[str, int] = {}
        self._api_type, self._features = api_type, features
        self._process: subprocess.Popen[bytes] | None = None
        self._servers: list[asyncio.Server] = []
        self._revision = 0

    def new_server(self) -> XdsServer:
        """Another agent on the same socket."""
        return XdsServer(self.settings.xds_socket, check=lambda _: None, on_event=self.events.append)

    async def start(self) -> None:
        """Start all of it; returns when Envoy's admin interface answers."""
        await self.server.start()
        for name in ("one", "two", "three"):
            self.origins[name] = await self._origin(name)
        made: dict[str, Any] = bootstrap(self.settings)
        made["node"]["client_features"] = list(self._features)
        made["dynamic_resources"]["ads_config"]["api_type"] = self._api_type
        config = self.directory / "bootstrap.json"
        config.write_text(json.dumps(made))
        command = [str(find_envoy()), "--config-path", str(config), "--disable-hot-restart", "--concurrency", "2"]
        command += ["--log-path", str(self.directory / "envoy.log"), "--drain-time-s", "1"]
        self._process = await asyncio.to_thread(_start, command)
        await self.until(self._answers, "Envoy's admin interface answers")

    async def stop(self) -> None:
        """Stop all of it."""
        if self._process is not None:
            self._process.terminate()
            await asyncio.to_thread(self._process.wait)
        await self.server.stop()
        for server in self._servers:
            server.close()

    def serve(self, bodies: Bodies, ttls: Mapping[tuple[str, str], float] | None = None) -> Snapshot:
        """Envoy shall have exactly this from now on."""
        self._revision += 1
        made = Snapshot.of(f"v{self._revision}", bodies, self.server.snapshot(NODE), ttls=ttls)
        self.server.set_snapshot(NODE, made)
        return made

    async def apply(self, bodies: Bodies, wait: float = 10) -> Snapshot:
        """Serve it, and wait until it is acknowledged."""
        made = self.serve(bodies)
        await self.server.wait_acked(NODE, wait)
        return made

    async def get(self, port: int, path: str = "/") -> tuple[int, str]:
        """Status and body of one request on a new connection; 0 if nothing listens, or no answer comes."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return 0, "refused"
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            reply = await asyncio.wait_for(reader.read(), 10)
        except OSError:
            return 0, "reset"
        finally:
            writer.close()
        head, _, text = reply.partition(b"\r\n\r\n")
        return (int(head.split()[1]), text.decode()) if head else (0, "closed")

    async def until_ok(self, port: int, expected: str = "") -> None:
        """Until requests succeed there (and are answered by that server)."""

        async def fine() -> bool:
            status, text = await self.get(port)
            return status == 200 and expected in text

        await self.until(fine, f"port {port} answers with {expected or 'success'}")

    async def stats(self, prefix: str) -> dict[str, int]:
        """Envoy's counters and gauges whose names contain `prefix`."""
        return await admin_stats(self.settings.admin_socket, prefix)

    async def clusters(self) -> set[str]:
        """Names of the clusters that Envoy has and uses, without the bootstrap's."""
        dump = await self._dump("ClustersConfigDump")
        return {item["cluster"]["name"] for item in dump.get("dynamic_active_clusters", ())}

    async def warming(self) -> set[str]:
        """Names of the clusters that wait for something."""
        dump = await self._dump("ClustersConfigDump")
        return {item["cluster"]["name"] for item in dump.get("dynamic_warming_clusters", ())}

    async def until(self, condition: Callable[[], Awaitable[object]], what: str, wait: float = LIMIT) -> None:
        """Wait until it is so."""
        file = self.directory / "envoy.log"

        def told() -> str:
            log = file.read_text()[-3000:] if file.exists() else "(no log)"
            return f"never: {what}; status {self.server.status()}\n{log}"

        await until_async(condition, wait, told)

    def pushes(self, short: str) -> list[XdsEvent]:
        """What was sent of that type so far."""
        return [event for event in self.events if event.kind is EventKind.PUSH and event.type == short]

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Envoy has ended"
        try:
            await admin_get(self.settings.admin_socket, "/server_info")
        except AdminError:
            return False
        return True

    async def _dump(self, kind: str) -> dict[str, Any]:
        body = await admin_get(self.settings.admin_socket, "/config_dump")
        found = (item for item in json.loads(body)["configs"] if item["@type"].endswith(kind))
        return next(found, {})

    async def _origin(self, name: str) -> int:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def plain_envoy(directory: Path, api_type: str, *features: str) -> AsyncIterator[PlainEnvoy]:
    """A PlainEnvoy that is up; `api_type` is GRPC or DELTA_GRPC, `features` what it announces."""
    made = PlainEnvoy(directory, api_type, features)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def world(
    clusters: Mapping[str, tuple[int, int]],
    listeners: Mapping[str, int],
    routes: Mapping[str, str],
    *,
    checked: bool = False,
) -> dict[str, dict[str, bytes]]:
    """Resources: cluster -> (port of its only endpoint, revision), listener -> port, route configuration -> cluster.

    Each listener uses the route configuration of its name. `checked`: Envoy looks whether the endpoints are healthy,
    and takes 0.3 s for it, before it uses a cluster.
    """
    return {
        CLUSTER: {name: _cluster(name, revision, checked) for name, (_, revision) in clusters.items()},
        ENDPOINT: {name: _endpoints(name, port) for name, (port, _) in clusters.items()},
        LISTENER: {name: listener(name, port) for name, port in listeners.items()},
        ROUTE: {name: route(name, cluster) for name, cluster in routes.items()},
    }


def listener(name: str, port: int) -> bytes:
    """A listener on loopback that takes its routes from RDS by its own name."""
    manager = HttpConnectionManager(
        stat_prefix=name,
        rds={"route_config_name": name, "config_source": _ADS},
        http_filters=[typed("envoy.filters.http.router", router_pb2.Router())],
    )
    made = listener_pb2.Listener(
        name=name,
        address={"socket_address": {"address": "127.0.0.1", "port_value": port}},
        filter_chains=[{"filters": [typed("envoy.filters.network.http_connection_manager", manager)]}],
    )
    return bytes(serialized(made))


def route(name: str, cluster: str, *, regex: str = "") -> bytes:
    """Everything to one cluster; with `regex`, only paths that match, which Envoy may refuse."""
    match: dict[str, Any] = {"safe_regex": {"regex": regex}} if regex else {"prefix": "/"}
    hosts = [{"name": "any", "domains": ["*"], "routes": [{"match": match, "route": {"cluster": cluster}}]}]
    return bytes(serialized(route_pb2.RouteConfiguration(name=name, virtual_hosts=hosts)))


def _cluster(name: str, revision: int, checked: bool) -> bytes:
    made = cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.EDS,
        eds_cluster_config={"eds_config": _ADS},
        connect_timeout=seconds(5 + revision / 100),
    )
    if checked:
        made.health_checks.add(
            timeout=seconds(1),
            interval=seconds(1),
            initial_jitter=seconds(0.3),
            unhealthy_threshold={"value": 1},
            healthy_threshold={"value": 1},
            http_health_check={"path": "/"},
        )
    return bytes(serialized(made))


def _endpoints(name: str, port: int) -> bytes:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    made = endpoint_pb2.ClusterLoadAssignment(
        cluster_name=name, endpoints=[{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    )
    return bytes(serialized(made))


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
