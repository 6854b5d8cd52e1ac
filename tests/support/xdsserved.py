"""A real xDS server in a process of its own: `python -m support.xdsserved SOCKET`, told what to do on stdin.

See `Served` for the commands. It runs on uvloop, as the agent does.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import sys
import time
from pathlib import Path

import uvloop

from spliceway.xds.protocol.snapshot import Resource, Snapshot
from spliceway.xds.protocol.typeurls import URLS
from spliceway.xds.resources import packing
from spliceway.xds.server.clients import ANY_NODE, NodeKey
from spliceway.xds.server.events import EventKind, XdsEvent
from spliceway.xds.server.server import XdsServer
from support import xdsmade
from support.commands import serve_commands


class Served:
    """The server, its made-up resources, and what was counted of its events."""

    def __init__(self, socket: Path) -> None:
        self.server = XdsServer(socket, check=_no_check, on_event=self._note)
        self.nodes: tuple[NodeKey, ...] = (ANY_NODE,)
        self.bodies: xdsmade.Bodies = {}
        self.snapshots: dict[NodeKey, Snapshot] = {}
        self.revision = 0
        self.counts = dict.fromkeys(EventKind, 0)
        self.sent = 0
        #: Type -> seconds from the change to the answer, of the ACKs since the last change.
        self.answers: dict[str, list[float]] = {}
        self._awaited = ("", 0)
        self._answered = asyncio.Event()
        self.encoded = _Counter()
        self._churn: asyncio.Task[None] | None = None
        #: Version -> type and when (monotonic seconds) it was due to be published by `churn`.
        self.published: dict[str, tuple[str, float]] = {}

    def _note(self, event: XdsEvent) -> None:
        self.counts[event.kind] += 1
        if event.kind is EventKind.PUSH:
            self.sent += event.size
        elif event.kind is EventKind.ACK and event.seconds is not None:
            self.answers.setdefault(event.type, []).append(event.seconds)
            kind, acks = self._awaited
            if event.type == kind and len(self.answers[kind]) >= acks:
                self._answered.set()

    async def serve(self, resources: int, nodes: int = 0) -> dict[str, object]:
        """Serve so many resources, to each of `node-0`… a snapshot of its own, or one to everybody (`nodes` 0)."""
        self.bodies = xdsmade.made(resources)
        self.revision += 1
        first = Snapshot.of(f"{self.revision}", self.bodies)
        for key in self.snapshots:
            self.server.remove_snapshot(key)
        self.nodes = tuple(NodeKey(f"node-{n}") for n in range(nodes)) or (ANY_NODE,)
        self.snapshots = {}
        self._publish(first)
        bodies = [body for named in self.bodies.values() for body in named.values()]
        return {"resources": len(bodies), "bytes": sum(map(len, bodies))}

    async def change(self, kind: str, number: int, acks: int, wait: float = 60.0) -> dict[str, object]:
        """Change one resource, and wait until so many ACKs of that type have come."""
        each = len(self.bodies[URLS[kind]])
        before = self.counts[EventKind.PUSH], self.sent, self.encoded.made, self.encoded.wrapped
        self.answers.clear()
        self._awaited = (kind, acks)
        self._answered.clear()
        begin, cpu = time.monotonic(), time.process_time()
        self._edit(kind, number % (each - (kind == "CDS")))
        published = time.monotonic() - begin
        async with asyncio.timeout(wait):
            await self._answered.wait()
            # The endpoints of a changed cluster go out again: until everything has been answered.
            await self.quiet()
        return {
            "version": str(self.revision),
            "begin": begin,
            "published": published,
            "cpu": time.process_time() - cpu,
            "seconds": self.answers[kind],
            "pushes": self.counts[EventKind.PUSH] - before[0],
            "bytes": self.sent - before[1],
            "encoded": self.encoded.made - before[2],
            "wrapped": self.encoded.wrapped - before[3],
        }

    async def quiet(self) -> None:
        """Wait until every response has been answered, and nothing more is sent."""
        open_before = -1
        while (still := self.counts[EventKind.PUSH] - self.counts[EventKind.ACK]) or open_before:
            open_before = still
            await asyncio.sleep(0.02)

    async def churn(self, per_second: float, kinds: list[str]) -> dict[str, object]:
        """Change resources of those types in turn, so many a second, until `calm`."""
        self.published.clear()
        self._churn = asyncio.create_task(self._keep_changing(per_second, kinds))
        return {}

    async def calm(self) -> dict[str, object]:
        """No further changes; gives when each version was published."""
        if self._churn is not None:
            self._churn.cancel()
            await asyncio.gather(self._churn, return_exceptions=True)
        return {"published": self.published}

    async def usage(self, collect: bool = False) -> dict[str, object]:
        """Memory in MiB and CPU seconds of the process, events so far.

        `collect`: after a garbage collection, and after the C library has given back what it keeps for later.
        """
        if collect:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text()  # noqa: ASYNC240  of memory
        sizes = {key: int(kib) / 1024 for key, kib in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status)}
        return {
            "rss": sizes["VmRSS"],
            "peak": sizes["VmHWM"],
            "cpu": time.process_time(),
            "time": time.monotonic(),
            "tasks": len(asyncio.all_tasks()),
            "events": {kind.value: count for kind, count in self.counts.items()},
            "sent": self.sent,
        }

    async def status(self, resources: bool = True) -> dict[str, object]:
        """How long `status()` takes, with each resource or without, how many streams are open, and the newest."""
        begin = time.monotonic()
        found = self.server.status(resources=resources)
        took = time.monotonic() - begin
        last = [f"{each.client.node[:40]} {each.stream} {each.protocol}" for each in found[-5:]]
        return {"seconds": took, "streams": len(found), "last": last}

    async def digests(self) -> dict[str, object]:
        """What everybody should have by now: type URL -> name -> digest."""
        held = self.snapshots[self.nodes[0]].types
        return {url: {r.name: r.digest for r in types.resources.values()} for url, types in held.items()}

    async def _keep_changing(self, per_second: float, kinds: list[str]) -> None:
        begin, done = time.monotonic(), 0
        while True:
            await asyncio.sleep(max(0.0, begin + done / per_second - time.monotonic()))
            kind = kinds[done % len(kinds)]
            each = len(self.bodies[URLS[kind]]) - (kind == "CDS")
            self._edit(kind, done // len(kinds) * 7 % each)
            # When it should have been published: if something held up this process, that counts.
            self.published[str(self.revision)] = (kind, begin + done / per_second)
            done += 1

    def _edit(self, kind: str, number: int) -> None:
        self.revision += 1
        self.bodies = xdsmade.changed(self.bodies, kind, number, self.revision)
        self._publish(Snapshot.of(str(self.revision), self.bodies, self.snapshots[self.nodes[0]]))

    def _publish(self, snapshot: Snapshot) -> None:
        """Nodes have snapshots of their own, and the sets of resources in them are the same objects."""
        for node in self.nodes:
            own = snapshot if len(self.nodes) == 1 else Snapshot(snapshot.version, snapshot.types)
            self.snapshots[node] = own
            self.server.set_snapshot(node, own)


def _no_check(snapshot: Snapshot) -> None:
    """Nothing: these resources are made up, and no policy."""


class _Counter:
    """How often a resource was serialized, and how often a `Resource` was made of that."""

    def __init__(self) -> None:
        self.made = self.wrapped = 0
        serialized, of = packing.serialized, Resource.of

        def counted(message: object) -> bytes:
            self.made += 1
            return serialized(message)  # type: ignore[arg-type]

        def counted_of(*arguments: object, **more: object) -> Resource:
            self.wrapped += 1
            return of(*arguments, **more)  # type: ignore[arg-type]

        # Where it was imported by name, it is another name of the same function.
        for module in list(sys.modules.values()):
            if getattr(module, "serialized", None) is serialized:
                module.serialized = counted  # type: ignore[attr-defined]
        Resource.of = counted_of  # type: ignore[method-assign]


async def _main(socket: Path) -> None:
    served = Served(socket)
    await served.server.start()
    await serve_commands(served)
    await served.server.stop()


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1])))
