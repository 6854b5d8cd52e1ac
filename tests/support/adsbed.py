"""An AdsClient against a real XdsServer: resources in a short notation, and an `apply` that keeps what it was given."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import any_pb2

from spliceway.proxy.ads.channel import open_channel
from spliceway.proxy.ads.client import AdsClient
from spliceway.proxy.ads.state import AdsState
from spliceway.proxy.ads.values import Batch, Resources
from spliceway.proxy.model import ProxySettings
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import LISTENER, URLS
from support.xdsclient import NODE, body


def listener(name: str, revision: object = "", routes: str | None = None) -> bytes:
    """A serialized listener that asks for routes of its own name, or of another."""
    manager = any_pb2.Any()
    manager.Pack(
        http_connection_manager_pb2.HttpConnectionManager(
            rds={"route_config_name": name if routes is None else routes, "config_source": {"ads": {}}}
        )
    )
    made = listener_pb2.Listener(name=name, stat_prefix=str(revision))
    made.filter_chains.add().filters.add(name="http", typed_config=manager)
    return bytes(made.SerializeToString(deterministic=True))


def snapshot(version: str, previous: Snapshot | None = None, **types: str) -> Snapshot:
    """`snapshot("1", CDS="c", LDS="a b:2", RDS="a:1 b")`: listeners name routes of their own names (`a>x`: of x)."""
    bodies: dict[str, dict[str, bytes]] = {}
    for short, text in types.items():
        url = URLS[short]
        bodies[url] = {}
        for item in text.split():
            what, _, to = item.partition(">")
            name, _, revision = what.partition(":")
            made = listener(name, revision, to or None) if url == LISTENER else body(url, name, revision)
            bodies[url][name] = made
    return Snapshot.of(version, bodies, previous)


def settings_for(directory: Path, socket: Path | None = None) -> ProxySettings:
    """Settings with everything in a directory."""
    return ProxySettings(
        node_id=NODE,
        cluster="tests",
        xds_socket=socket or directory / "xds.sock",
        admin_socket=directory / "admin.sock",
        handover_socket=directory / "handover.sock",
        state_file=directory / "proxy.state",
        reconnect_max=0.2,
    )


class Applied:
    """An `apply` that refuses what `refuse` gives a reason for, and holds the rest."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.held: dict[str, dict[str, bytes]] = {}
        self.refuse: Callable[[str, str, bytes], str | None] = lambda _url, _name, _body: None
        #: Applying waits for this.
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0

    def __repr__(self) -> str:
        return f"<Applied {self.texts()}>"

    async def __call__(self, batch: Batch) -> dict[str, str]:
        """Apply it."""
        assert not self.running, "two at the same time"
        self.running += 1
        self.batches.append(batch)
        await self.gate.wait()
        held = self.held.setdefault(batch.type_url, {})
        refused: dict[str, str] = {}
        for name, value in batch.changed.items():
            reason = self.refuse(batch.type_url, name, value.body)
            if reason is None:
                held[name] = value.body
            else:
                refused[name] = reason
        for name in batch.removed:
            del held[name]
        self.running -= 1
        return refused

    def texts(self) -> list[str]:
        """Each batch in a line: `LDS a b -c`."""
        return [text_of(batch) for batch in self.batches]


def text_of(batch: Batch) -> str:
    """`LDS a b -c`."""
    short = next(short for short, url in URLS.items() if url == batch.type_url)
    return " ".join([short, *batch.changed, *(f"-{name}" for name in batch.removed)])


class Proxy:
    """A client that runs, with what it applied."""

    def __init__(self, settings: ProxySettings, applied: Applied | None = None) -> None:
        self.applied = applied or Applied()
        self.state = AdsState()
        self.touches = 0
        self.channel = open_channel(settings)
        self.client = AdsClient(settings, self.applied, self.state, channel=self.channel, on_accepted=self._touched)

    def _touched(self) -> None:
        self.touches += 1

    def agrees(self) -> bool:
        """What it says it has is what was applied."""
        return bodies(self.state.accepted) == {url: self.applied.held.get(url, {}) for url in self.state.accepted}


def bodies(resources: Resources) -> dict[str, dict[str, bytes]]:
    """Type URL -> name -> serialized message."""
    return {url: {name: value.body for name, value in named.items()} for url, named in resources.items()}


@contextlib.asynccontextmanager
async def running(proxy: Proxy, restored: Resources | None = None) -> AsyncIterator[Proxy]:
    """Run its client."""
    await proxy.client.restore(restored or {})
    task = asyncio.create_task(proxy.client.run())
    try:
        yield proxy
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await proxy.channel.close(None)


@contextlib.asynccontextmanager
async def nobody(socket: Path) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A socket where whoever comes is turned away; gives a function that waits for so many attempts."""
    attempts = asyncio.Semaphore(0)

    def turn_away(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.release()
        writer.close()

    async def wait(count: int) -> None:
        for _ in range(count):
            await attempts.acquire()

    server = await asyncio.start_unix_server(turn_away, socket)
    try:
        yield wait
    finally:
        server.close()
        await server.wait_closed()
        _unlink(socket)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
