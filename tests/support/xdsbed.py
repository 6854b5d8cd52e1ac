"""An XdsServer with snapshots in a short notation, and raw streams to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import uvloop

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPES, URLS
from spliceway.xds.server.events import EventKind, XdsEvent
from spliceway.xds.server.listen import TcpSettings
from spliceway.xds.server.server import XdsServer
from support.waiting import until_async
from support.xdsclient import NODE, DeltaStream, SotwStream, body, dial, names_of


def state(
    version: str, previous: Snapshot | None = None, ttls: Mapping[str, float] | None = None, **types: str
) -> Snapshot:
    """`state("1", CDS="a b:2", RDS="r>a")`: clusters a and b, b with other content, and a route configuration to a.

    A cluster whose name begins with `eds` is of type EDS. `ttls`: `"CDS a"` -> seconds.
    """
    bodies: dict[str, dict[str, bytes]] = {}
    for short, text in types.items():
        url = URLS[short]
        bodies[url] = {}
        for item in text.split():
            what, _, to = item.partition(">")
            name, _, revision = what.partition(":")
            eds = "" if url == CLUSTER and name.startswith("eds") else None
            bodies[url][name] = body(url, name, revision, eds=eds, to=to)
    times = {(URLS[key.split()[0]], key.split()[1]): seconds for key, seconds in (ttls or {}).items()}
    return Snapshot.of(version, bodies, previous, ttls=times)


class Bed:
    """A server whose snapshots aren't checked, what it told of (`events`), and a channel to it."""

    def __init__(self, socket: Path, tcp: TcpSettings | None = None, **arguments: Any) -> None:
        self.socket = socket
        self.events: list[XdsEvent] = []
        self._arguments: dict[str, Any] = {"tcp": tcp, "identifier": "test", "check": lambda _: None} | arguments
        self._versions = count(1)
        self.server = self.new_server()
        self._channels: list[grpc.aio.Channel] = []

    def new_server(self) -> XdsServer:
        """Another agent on the same socket, which knows nothing of the first."""
        return XdsServer(self.socket, on_event=self.events.append, **self._arguments)

    async def restart(self) -> None:
        """The agent goes, and another one comes, without a snapshot."""
        await self.server.stop()
        self.server = self.new_server()
        await self.server.start()

    def serve(
        self, node: str = NODE, *, version: str = "", ttls: Mapping[str, float] | None = None, **types: str
    ) -> Snapshot:
        """From now on the node shall have exactly this (see `state`)."""
        made = state(version or f"v{next(self._versions)}", self.server.snapshot(node), ttls, **types)
        self.server.set_snapshot(node, made)
        return made

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own, closed with the bed."""
        over_tcp = self._arguments["tcp"] is not None
        opened = dial(f"127.0.0.1:{self.server.tcp_port}" if over_tcp else self.socket)
        self._channels.append(opened)
        return opened

    def sotw(self, node: Any = NODE, service: str | None = None, features: Iterable[str] = ()) -> SotwStream:
        """A stream of the state-of-the-world variant on a new connection."""
        return SotwStream(self.channel(), node, service=service, features=features)

    def delta(self, node: Any = NODE, service: str | None = None, features: Iterable[str] = ()) -> DeltaStream:
        """A stream of the delta variant on a new connection."""
        return DeltaStream(self.channel(), node, service=service, features=features)

    def stream(self, variant: str, node: Any = NODE, service: str | None = None) -> Any:
        """A stream of the variant `sotw` or `delta`; what both can do looks the same."""
        return self.sotw(node, service) if variant == "sotw" else self.delta(node, service)

    def kinds(self, *kinds: EventKind, type_: str = "") -> list[XdsEvent]:
        """Events of these kinds (and type) so far."""
        return [event for event in self.events if event.kind in kinds and event.type in (type_ or event.type,)]

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until it is so; requests take a moment to arrive."""
        await until_async(condition, told=lambda: f"never: {what}; events {self.events[-5:]}")

    async def close(self) -> None:
        """End everything."""
        for channel in self._channels:
            await channel.close(None)
        await self.server.stop()


def run(
    socket: Path, work: Callable[[Bed], Awaitable[None]], loop: str = "asyncio", wait: float = 120, **arguments: Any
) -> None:
    """Run `work` with a bed on one of the event loops, in `wait` seconds at most."""

    async def main() -> None:
        bed = Bed(socket, **arguments)
        await bed.server.start()
        try:
            async with asyncio.timeout(wait):
                await work(bed)
        finally:
            await bed.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main())


async def subscribe(stream: Any, eds: tuple[str, ...], routes: tuple[str, ...]) -> None:
    """Ask for everything, in an order that is not the server's; while the server has nothing to say."""
    await stream.ask(ROUTE, *routes)
    await stream.ask(LISTENER)
    await stream.ask(ENDPOINT, *eds)
    await stream.ask(CLUSTER)
    await stream.silent()


async def settled(stream: Any) -> list[str]:
    """Acknowledge all that comes until nothing comes; `CDS a b` for each response, in order."""
    found = await stream.drained()
    return [" ".join([TYPES[response.type_url].short, *names_of(response)]) for response in found]
