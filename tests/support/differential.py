"""The same bytes to two proxies with the same rules: what each answered, said and sent on."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec

from spliceway.agent.testbed import netns
from spliceway.xds.accesslog.flow import HttpFlow
from support.envoy import EnvoyNode, port_of
from support.oddrequests import TAG
from support.steered import SERVER

#: The server's port; `SteeredNet(redirect_to=RECORDED)` sends all connections there.
RECORDED = 8080
_PATIENCE = 1.0  # seconds for an answer; what differs is asked again with more
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
_SILENCE = 0.05  # after an answer: is there another?


class Arrived(msgspec.Struct, frozen=True):
    """A request that reached the server. `headers` as they came; `body` without framing, None if it is not whole."""

    line: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request: statuses of all answers (1xx apart), flows as (verdict, reason, rule), arrivals."""

    statuses: tuple[int, ...]
    flows: tuple[tuple[str, str, int], ...]
    arrived: tuple[Arrived, ...]

    @property
    def status(self) -> int:
        """The first answer's, 0 for none."""
        return self.statuses[0] if self.statuses else 0


class Recorder:
    """The server: it writes down what it understands of what it gets, by tag, and answers 200."""

    def __init__(self, node: EnvoyNode) -> None:
        self._node = node
        self._arrived: dict[bytes, list[Arrived]] = defaultdict(list)
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Recorder:
        listener = netns.call(self._node.net.server, partial(socket.create_server, (SERVER[4], RECORDED), backlog=1024))
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 20)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()

    def take(self, number: int) -> tuple[Arrived, ...]:
        """What has arrived with this tag."""
        return tuple(self._arrived.pop(b"%d" % number, ()))

    @property
    def untold(self) -> dict[bytes, list[Arrived]]:
        """What arrived with no tag that was asked for."""
        return dict(self._arrived)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head[:-4].split(b"\r\n")
                pairs = [(name, value.strip()) for name, _, value in (item.partition(b":") for item in lines)]
                found = Arrived(line, tuple(pairs))
                headers = {name.lower(): value for name, value in pairs}
                kept = self._arrived[headers.get(TAG, b"")]
                kept.append(found)
                place = len(kept) - 1
                if b"expect" in headers:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await _body(reader, headers)
                kept[place] = msgspec.structs.replace(found, body=body)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> bytes:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        while await reader.readuntil(b"\r\n") != b"\r\n":
            body += b"(trailer)"
        return body
    return await reader.readexactly(int(headers.get(b"content-length", b"0")))


async def ask(
    node: EnvoyNode, recorder: Recorder, requests: Iterable[tuple[int, int, bytes]], patience: float = _PATIENCE
) -> dict[int, Outcome]:
    """Send (number, rule set, bytes) each on a connection of its own, all at once; outcomes by number."""
    work = list(requests)
    node.flows.clear()
    began = time.time_ns()
    sockets = netns.call(node.net.client, lambda: [socket.socket() for _ in work])
    try:
        answers = await asyncio.gather(
            *(_one(sock, rule_set, raw, patience) for sock, (_, rule_set, raw) in zip(sockets, work, strict=True))
        )
        ports = [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
    # One port may serve connections to several destinations.
    ends = [(port, port_of(rule_set)) for port, (_, rule_set, _) in zip(ports, work, strict=True)]
    flows = await _flows(node, ends, began)
    return {
        number: Outcome(
            statuses,
            tuple((flow.verdict.label, flow.reason.label, flow.rule) for flow in flows.get(end, ())),
            recorder.take(number),
        )
        for (number, _, _), end, statuses in zip(work, ends, answers, strict=True)
    }


async def _one(sock: socket.socket, rule_set: int, raw: bytes, patience: float) -> tuple[int, ...]:
    """Statuses of all answers."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    buffer = b""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(10):
            await loop.sock_connect(sock, (SERVER[4], port_of(rule_set)))
            await loop.sock_sendall(sock, raw)
        while True:
            async with asyncio.timeout(_SILENCE if _final(buffer) else patience):
                data = await loop.sock_recv(sock, 65536)
            if not data:
                break
            buffer += data
    return _final(buffer)


def _final(buffer: bytes) -> tuple[int, ...]:
    """Statuses in what was received, 1xx apart. No body looks like a status line."""
    statuses = [int(found[1]) for found in _STATUS.finditer(buffer)]
    return tuple(status for status in statuses if status >= 200)


async def _flows(node: EnvoyNode, ends: Sequence[tuple[int, int]], began: int) -> dict[tuple[int, int], list[HttpFlow]]:
    """Flows by source and destination port, once each has one or nobody hopes any more; none of earlier connections."""
    found: dict[tuple[int, int], list[HttpFlow]] = defaultdict(list)
    for _ in range(60):
        if set(ends) <= {(flow.source_port, flow.destination_port) for flow in node.flows if flow.time >= began}:
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    for flow in sorted(node.flows, key=lambda flow: flow.time):
        if flow.time >= began:
            found[flow.source_port, flow.destination_port].append(flow)
    return found
