"""Simulated xDS clients, many in one process: `python -m support.xdsload SOCKET`, told what to do on stdin.

Each asks as Envoy does: all clusters, then the endpoints by name, all listeners, then the routes by name; and it
acknowledges everything at once. What it acknowledged and when is noted (CLOCK_MONOTONIC, the same for all processes of
a machine). Commands are JSON objects, one in a line, and each has one answer; see `Fleet`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from typing import Any

import uvloop
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPES
from support import grpcraw, xdsmade
from support.commands import serve_commands

#: After the first answer of the one type, the other is asked for by name.
_THEN = {CLUSTER: ENDPOINT, LISTENER: ROUTE}


class Simulated:
    """One well-behaved client on a connection of its own."""

    def __init__(self, fleet: Fleet, number: int, node: str, delta: bool) -> None:
        self.fleet, self.number, self.node, self.delta = fleet, number, node, delta
        self.seen: set[str] = set()
        #: (type URL, name) -> digest of what it has.
        self.has: dict[tuple[str, str], str] = {}
        self._connection: grpcraw.Connection | None = None
        self._call: grpcraw.Call | None = None

    async def connect(self, socket: str) -> None:
        """Connect and ask for everything."""
        self._connection = await grpcraw.dial(socket)
        self._connection.on_lost = self._lost
        self._call = self._connection.open(grpcraw.DELTA if self.delta else grpcraw.SOTW, self._take)
        node = base_pb2.Node(id=self.node, cluster="bench", user_agent_name="simulated")
        self._ask(CLUSTER, node=node)
        self._ask(LISTENER)

    def close(self) -> None:
        """Break the connection off."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _lost(self) -> None:
        if self._connection is not None:
            self.fleet.lost += 1

    def _ask(self, url: str, names: tuple[str, ...] = (), **more: Any) -> None:
        assert self._connection is not None
        assert self._call is not None
        request: Any
        if self.delta:
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=url, resource_names_subscribe=names, **more)
        else:
            request = discovery_pb2.DiscoveryRequest(type_url=url, resource_names=names, **more)
        self._connection.send(self._call, request.SerializeToString())

    def _take(self, raw: bytes) -> None:
        if self._connection is None:
            return
        response: Any
        if self.delta:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(raw)
            url, version = response.type_url, response.system_version_info
            self._ask(url, response_nonce=response.nonce)
        else:
            response = discovery_pb2.DiscoveryResponse.FromString(raw)
            url, version = response.type_url, response.version_info
            names = self.fleet.names.get(url, ())
            self._ask(url, names, response_nonce=response.nonce, version_info=version)
        now = time.monotonic()
        fleet = self.fleet
        fleet.messages += 1
        fleet.bytes += len(raw)
        fleet.acked.append((self.number, TYPES[url].short, version, now))
        if url not in self.seen:
            self.seen.add(url)
            if url in _THEN:
                self._ask(_THEN[url], fleet.names[_THEN[url]])
            if len(self.seen) == len(xdsmade.KINDS):
                fleet.answered()
        if fleet.remember:
            self._remember(url, response)

    def _remember(self, url: str, response: Any) -> None:
        if self.delta:
            for resource in response.resources:
                self.has[url, resource.name] = resource.version
            for name in response.removed_resources:
                self.has.pop((url, name), None)
            return
        found = {(url, xdsmade.name_in(item.value)): digest(item.value) for item in response.resources}
        if TYPES[url].full_set:
            self.has = {key: known for key, known in self.has.items() if key[0] != url}
        self.has.update(found)


class Fleet:
    """The clients of this process, and the commands that they obey."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.clients: list[Simulated] = []
        self.names: dict[str, tuple[str, ...]] = {}
        self.acked: list[tuple[int, str, str, float]] = []
        self.remember = False
        self.messages = self.bytes = self.ready = self.lost = 0
        self._all_ready = asyncio.Event()

    def answered(self) -> None:
        """One more client has been answered for every type."""
        self.ready += 1
        if self.ready == len(self.clients):
            self._all_ready.set()

    async def connect(
        self, clients: int, resources: int, *, delta: bool = True, own: bool = False, remember: bool = False
    ) -> dict[str, object]:
        """So many more clients, `own`: those that the server has snapshots for; returns when all have been answered.

        `remember`: keep the digests of what each client has, for `behind`.
        """
        self.names = xdsmade.names(resources)
        self.remember = remember
        begin, cpu = time.monotonic(), time.process_time()
        start = len(self.clients)
        self._all_ready.clear()
        fresh = [
            Simulated(self, start + n, f"{'node' if own else 'client'}-{start + n}", delta) for n in range(clients)
        ]
        self.clients += fresh
        for at in range(0, clients, 50):
            await asyncio.gather(*(client.connect(self.socket) for client in fresh[at : at + 50]))
        async with asyncio.timeout(300):
            await self._all_ready.wait()
        return {"seconds": time.monotonic() - begin, "cpu": time.process_time() - cpu}

    async def disconnect(self) -> dict[str, object]:
        """Break all connections off."""
        for client in self.clients:
            client.close()
        self.clients, self.ready, self.acked = [], 0, []
        return {}

    async def take(self) -> dict[str, object]:
        """What was acknowledged since the last time: (client, type, version, when); counters go on."""
        acked, self.acked = self.acked, []
        return {
            "acked": acked,
            "messages": self.messages,
            "bytes": self.bytes,
            "lost": self.lost,
            "cpu": time.process_time(),
        }

    async def behind(self, digests: dict[str, dict[str, str]]) -> dict[str, object]:
        """How many clients have something else than `digests`: type URL -> name -> digest."""
        want = {(url, name): known for url, named in digests.items() for name, known in named.items()}
        return {"behind": sum(client.has != want for client in self.clients), "resources": len(want)}


def digest(raw: bytes) -> str:
    """As the server makes it of a resource's content."""
    return hashlib.blake2b(raw, digest_size=8, person=b"xds").hexdigest()


async def _main(socket: str) -> None:
    await serve_commands(Fleet(socket))


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
