"""Clients that misbehave, each in one way and without end: `python -m support.xdsfaults SOCKET`, told which on stdin.

Each counts what it has done, so that a fault that never came about is noticed: `connections`, `messages` that went out
whole, `answers`, and streams and connections that the server `ended`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from spliceway.xds.server.streams import ServerLimits
from support import grpcraw
from support.commands import serve_commands

#: Lets itself loose on the server.
Fault = Callable[["Target"], Coroutine[Any, Any, None]]
_MIB = 1 << 20
#: The largest message that the server takes, less what belongs to the message itself.
_LARGEST = 16 * _MIB - 1024
#: Names that a client asks for, or says it has: as many as the server allows for a type.
_KNOWN = ServerLimits().names - 1


class Target:
    """The server at that socket, and what was done to it. `chance` is the same in each run."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.chance = random.Random(7)
        self.done: Counter[str] = Counter()

    async def dial(self, window: int = (1 << 31) - 1) -> grpcraw.Connection:
        """A connection of its own."""
        connection = await grpcraw.dial(self.socket, window)
        connection.on_lost = self._lost
        self.done["connections"] += 1
        return connection

    def open(self, connection: grpcraw.Connection, path: str) -> grpcraw.Call:
        """A stream; what comes on it is counted."""
        return connection.open(path, self._answered)

    def send(self, connection: grpcraw.Connection, call: grpcraw.Call, body: bytes) -> None:
        """Send a message, now or when the server lets it."""
        connection.send(call, body)
        self.done["messages"] += not call.queue

    def ask_for_all(self, connection: grpcraw.Connection, of_delta: bool) -> grpcraw.Call:
        """A stream on which all clusters and listeners are asked for."""
        call = self.open(connection, grpcraw.DELTA if of_delta else grpcraw.SOTW)
        say = delta if of_delta else sotw
        self.send(connection, call, say(CLUSTER, node=f"misbehaving-{self.done['connections']}"))
        self.send(connection, call, say(LISTENER))
        return call

    async def send_whole(self, path: str, *bodies: bytes, heard: bool = False) -> None:
        """Send messages on a connection of its own until all are out, the stream is ended, or nothing moves.

        `heard`: and until there is an answer.
        """
        connection = await self.dial()
        answered = asyncio.Event()
        connection.on_lost = answered.set
        try:
            call = self.open(connection, path)
            call.on_message = lambda raw: answered.set()
            for body in bodies:
                connection.send(call, body)
                for _ in range(200):
                    if not call.queue or call.ended or connection.closed.is_set():
                        break
                    await asyncio.sleep(0.01)
                self.done["messages"] += not call.queue
            if heard:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(answered.wait(), 5)
                self.done["heard"] += answered.is_set()
            await asyncio.sleep(0.05)
        finally:
            connection.close()

    def _answered(self, raw: bytes) -> None:
        self.done["answers"] += 1

    def _lost(self) -> None:
        self.done["ended"] += 1


def delta(url: str, *names: str, node: str | None = None, **more: Any) -> bytes:
    """A serialized DeltaDiscoveryRequest."""
    made = discovery_pb2.DeltaDiscoveryRequest(type_url=url, resource_names_subscribe=names, **more)
    if node is not None:
        made.node.CopyFrom(base_pb2.Node(id=node))
    return bytes(made.SerializeToString())


def sotw(url: str, *names: str, node: str | None = None, **more: Any) -> bytes:
    """A serialized DiscoveryRequest."""
    made = discovery_pb2.DiscoveryRequest(type_url=url, resource_names=names, **more)
    if node is not None:
        made.node.CopyFrom(base_pb2.Node(id=node))
    return bytes(made.SerializeToString())


async def never_acks(target: Target) -> None:
    """50 clients want everything and answer nothing."""
    with _connections() as connections:
        for number in range(50):
            connections.append(await target.dial())
            target.ask_for_all(connections[-1], number % 2 == 0)
        await asyncio.Event().wait()


async def nacks_for_ever(target: Target) -> None:
    """20 clients refuse whatever comes."""
    with _connections() as connections:

        def refuser(connection: grpcraw.Connection, call: grpcraw.Call, of_delta: bool) -> Callable[[bytes], None]:
            def refuse(raw: bytes) -> None:
                target.done["answers"] += 1
                kind: Any = discovery_pb2.DeltaDiscoveryResponse if of_delta else discovery_pb2.DiscoveryResponse
                response = kind.FromString(raw)
                error = {"code": 13, "message": "no " * target.chance.randrange(1, 1000)}
                say = delta if of_delta else sotw
                target.send(connection, call, say(response.type_url, response_nonce=response.nonce, error_detail=error))

            return refuse

        for number in range(20):
            connections.append(await target.dial())
            call = target.ask_for_all(connections[-1], number % 2 == 0)
            call.on_message = refuser(connections[-1], call, number % 2 == 0)
        await asyncio.Event().wait()


async def cuts_off(target: Target) -> None:
    """Connections end in mid-preface, in mid-frame, in mid-message, and with a message under way to them."""
    message = grpcraw.message(delta(CLUSTER, node="cut off", resource_names_unsubscribe=["x" * 2000]))
    while True:
        with _connections() as connections:
            connection = await target.dial()
            connections.append(connection)
            how = target.chance.randrange(4)
            if how == 0:
                connection.write_raw(b"\0\0")
            elif how == 3:
                target.ask_for_all(connection, target.chance.random() < 0.5)
            else:
                call = target.open(connection, grpcraw.DELTA)
                # A whole frame with part of a message, or part of a frame.
                half = message[: target.chance.randrange(len(message))]
                data = grpcraw.frame(grpcraw.DATA, 0, call.number, half if how == 1 else message)
                connection.write_raw(data if how == 1 else data[: target.chance.randrange(len(data))])
            await asyncio.sleep(0.002)


async def storms(target: Target) -> None:
    """1,000 clients connect within a second, want everything, and are gone again."""
    loop = asyncio.get_running_loop()
    while True:
        begin = loop.time()
        with _connections() as connections:
            for number in range(1000):
                with contextlib.suppress(OSError):
                    connections.append(await target.dial())
                    target.ask_for_all(connections[-1], number % 2 == 0)
                await asyncio.sleep(max(0.0, begin + number / 1000 - loop.time()))
        await asyncio.sleep(0.1)


async def never_reads(target: Target) -> None:
    """100 clients want everything; half of them open no window, the others do and never read."""
    with _connections() as connections:
        for number in range(100):
            window = 0 if number % 2 == 0 else (1 << 31) - 1
            connections.append(await target.dial(window))
            target.ask_for_all(connections[-1], number % 4 < 2)
            if window:
                connections[-1].pause()
        await asyncio.Event().wait()


async def garbage_types(target: Target) -> None:
    """Types that nobody has heard of, each another one, some of them long."""
    with _connections() as connections:
        connections.append(await target.dial())
        call = target.open(connections[-1], grpcraw.DELTA)
        target.send(connections[-1], call, delta(CLUSTER, node="garbage types"))
        for number in itertools.count():
            target.send(
                connections[-1],
                call,
                delta(f"type.googleapis.com/{number}" + "x" * target.chance.choice((0, 10, 100_000))),
            )
            await asyncio.sleep(0.001)


async def garbage_bytes(target: Target) -> None:
    """Messages that are no protobuf, frames that are none, and bytes that are nothing."""
    while True:
        with _connections() as connections:
            connection = await target.dial()
            connections.append(connection)
            how = target.chance.randrange(3)
            if how == 0:
                connection.write_raw(target.chance.randbytes(target.chance.randrange(1, 5000)))
            elif how == 1:
                for _ in range(20):
                    kind, flags = target.chance.randrange(12), target.chance.randrange(256)
                    payload = target.chance.randbytes(target.chance.randrange(100))
                    connection.write_raw(grpcraw.frame(kind, flags, 1, payload))
            else:
                call = target.open(connection, target.chance.choice((grpcraw.DELTA, grpcraw.SOTW)))
                target.send(connection, call, delta(CLUSTER, node="garbage bytes"))
                target.send(connection, call, target.chance.randbytes(target.chance.randrange(1, 1000)))
            await asyncio.sleep(0.005)


async def large_messages(target: Target) -> None:
    """Eight clients send messages of 16 MiB at once: a name, a nonce or an error of that size; some are larger."""

    async def one(number: int) -> None:
        path, bodies = grpcraw.DELTA, _large(too_large=number % 4 == 0)
        while True:
            for body in bodies:
                await target.send_whole(path, delta(ENDPOINT, node=f"large {number}"), body)

    await _together(one(number) for number in range(8))


async def million_names(target: Target) -> None:
    """Requests for a million names, and for tens of thousands, type by type."""

    async def one(number: int) -> None:
        of_delta = number % 2 == 0
        path = grpcraw.DELTA if of_delta else grpcraw.SOTW
        too_many, fit = _millions(of_delta)
        while True:
            await target.send_whole(path, too_many)
            await target.send_whole(path, *fit, heard=True)

    await _together(one(number) for number in range(3))


async def floods(target: Target) -> None:
    """Subscribes to and unsubscribes from what there is and what there isn't, without waiting for anything."""

    async def one(number: int) -> None:
        with _connections() as connections:
            connection = await target.dial()
            connections.append(connection)
            call = target.open(connection, grpcraw.DELTA)
            target.send(connection, call, delta(ENDPOINT, "service-1", node=f"flood {number}"))
            for turn in itertools.count():
                names = [f"service-{target.chance.randrange(50)}" for _ in range(20)]
                target.send(connection, call, delta(ENDPOINT, *names, resource_names_unsubscribe=names[::2]))
                target.send(
                    connection, call, delta(CLUSTER, *(["*"] if turn % 2 else []), resource_names_unsubscribe=["*"])
                )
                await asyncio.sleep(0.001)

    await _together(one(number) for number in range(5))


async def initial_versions(target: Target) -> None:
    """Reconnects again and again and tells of thousands of resources that it has, type by type; some don't wait."""
    bodies = _all_known()

    async def one(heard: bool) -> None:
        while True:
            await target.send_whole(grpcraw.DELTA, *bodies, heard=heard)

    await _together(one(number < 2) for number in range(4))


async def huge_nodes(target: Target) -> None:
    """Nodes with ten megabytes of metadata, and nodes with an id of one."""
    metadata = {f"key{number}": "x" * 1000 for number in range(10_000)}
    node = base_pb2.Node(id="huge", metadata=metadata)
    bodies = [
        bytes(discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER, node=made).SerializeToString())
        for made in (node, base_pb2.Node(id="x" * _MIB))
    ]

    async def one(number: int) -> None:
        while True:
            await target.send_whole(grpcraw.DELTA, bodies[number % 2])

    await _together(one(number) for number in range(4))


async def many_streams(target: Target) -> None:
    """One connection opens as many streams as it can, and others as many again."""
    with _connections() as connections:
        for number in itertools.count():
            if number % 2500 == 0 and number < 10_000:
                connections.append(await target.dial())
            call = target.open(connections[-1], grpcraw.DELTA)
            target.send(connections[-1], call, delta(ENDPOINT, "service-1", node="many"))
            await asyncio.sleep(0 if number % 50 else 0.01)


async def silent_streams(target: Target) -> None:
    """Connections with streams on which nothing is ever said, as many as can be."""
    with _connections() as connections:
        for number in itertools.count():
            if number % 1000 == 0 and number < 20_000:
                connections.append(await target.dial())
            if number < 20_000:
                target.open(connections[-1], grpcraw.DELTA)
            await asyncio.sleep(0 if number % 100 else 0.01)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        never_acks,
        nacks_for_ever,
        cuts_off,
        storms,
        never_reads,
        garbage_types,
        garbage_bytes,
        large_messages,
        million_names,
        floods,
        initial_versions,
        huge_nodes,
        many_streams,
        silent_streams,
    )
}


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"{number:x}" for number in range(count))


@functools.cache
def _large(too_large: bool) -> tuple[bytes, ...]:
    text = "x" * (17 * _MIB if too_large else _LARGEST)
    return (
        delta(ENDPOINT, text),
        delta(ENDPOINT, response_nonce=text),
        delta(ENDPOINT, error_detail={"message": text}),
    )


@functools.cache
def _millions(of_delta: bool) -> tuple[bytes, tuple[bytes, ...]]:
    """A request for more names than anybody may have, and requests for very many of each type."""
    say = delta if of_delta else sotw
    fit = _names(_KNOWN)
    more = (say(url, *fit) for url in (ROUTE, CLUSTER, LISTENER))
    return say(ENDPOINT, *_names(1_000_000), node="names"), (say(ENDPOINT, *fit, node="names"), *more)


@functools.cache
def _all_known() -> tuple[bytes, ...]:
    have = dict.fromkeys(_names(_KNOWN), "0" * 16)
    first = delta(CLUSTER, "*", node="initial", initial_resource_versions=have)
    return (first, *(delta(url, "*", initial_resource_versions=have) for url in (LISTENER, ENDPOINT)))


async def _together(works: Iterator[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*works)


@contextlib.contextmanager
def _connections() -> Iterator[list[grpcraw.Connection]]:
    """Connections that are broken off at the end."""
    made: list[grpcraw.Connection] = []
    try:
        yield made
    finally:
        for connection in made:
            connection.close()


class Faults:
    """One fault at a time, in this process."""

    def __init__(self, socket: str) -> None:
        self.target = Target(socket)
        self._work: asyncio.Future[None] | None = None

    async def prepare(self) -> dict[str, int]:
        """Make what takes long to make."""
        _all_known(), _millions(True), _millions(False), _large(True), _large(False)
        return {}

    async def begin(self, name: str) -> dict[str, int]:
        """Let it loose."""
        self.target = Target(self.target.socket)
        self._work = asyncio.ensure_future(FAULTS[name](self.target))
        return {}

    async def end(self) -> dict[str, int]:
        """Stop it; gives what it did."""
        assert self._work is not None
        if self._work.done():
            self._work.result()
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        return dict(self.target.done)


async def _main(socket: str) -> None:
    await serve_commands(Faults(socket))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
