"""Discovery streams, each from its first request to its end. What is said on them is decided in `protocol`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import chain, count
from typing import Any, Literal

import grpc
import msgspec
import structlog
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from spliceway.xds.accesslog.flow import FlowBudget
from spliceway.xds.debug.status import Client, StreamRecord
from spliceway.xds.protocol.ledger import Kind
from spliceway.xds.protocol.stream import MAX_URL, AdsStream
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.server.clients import Clients
from spliceway.xds.server.events import EventKind, XdsEvent
from spliceway.xds.server.listen import TcpSettings, names_of
from spliceway.xds.server.wire import (
    can_forget,
    client_of,
    delta_message_of,
    delta_request_of,
    message_of,
    request_of,
)

_log = structlog.get_logger(__name__)

_ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
#: Rejected streams that are remembered.
_REJECTIONS = 16
#: Lines of log about clients that come, go and are refused.
_LINES_PER_SECOND = 20.0
#: A stream whose heartbeat can't go out yet looks again after so many seconds.
_BEAT_RETRY = 0.2
#: Requests of more bytes are worked on one at a time, whoever sent them: each takes the event loop for long.
_HEAVY = 64 << 10


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may ask of the server: more ends its stream with RESOURCE_EXHAUSTED, and no other one.

    `message`: bytes of a request; `names`: subscribed names of a type on a stream, and those that a client says it has;
    `name`: characters of one, and of its version; `streams`: open at a time, all clients together, those of one node
    id, and on one connection (more wait there); `node_id`: characters of it, and of its cluster; `first_request`:
    seconds that a stream may be silent at its beginning. `keepalive`: seconds without a sign of life until a connection
    is asked for one, and `keepalive_timeout` for the answer: so long a half-open stream is taken for a client.
    """

    message: int = 16 << 20
    names: int = 50_000
    name: int = 1024
    streams: int = 4096
    streams_of_node: int = 256
    streams_of_connection: int = 100
    node_id: int = 512
    first_request: float = 10.0
    keepalive: float = 30.0
    keepalive_timeout: float = 10.0


class _Rejected(Exception):  # noqa: N818
    """A stream is not served (any longer)."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Discovery:
    """The discovery services: `handlers` for gRPC."""

    def __init__(
        self,
        clients: Clients,
        identifier: str,
        tcp: TcpSettings | None,
        unsafe: Literal["refuse", "warn"],
        limits: ServerLimits,
        on_event: Callable[[XdsEvent], None] | None,
    ) -> None:
        self.rejections: deque[XdsEvent] = deque(maxlen=_REJECTIONS)
        self._clients = clients
        self._identifier = identifier
        self._tcp = tcp
        self._unsafe = unsafe
        self._limits = limits
        self._on_event = on_event
        self._lines = FlowBudget(_LINES_PER_SECOND)
        self._heavy = asyncio.Lock()
        # Nonces of an earlier agent must not look like ours.
        self._boot = secrets.token_hex(4)
        self._streams = count(1)

    def __repr__(self) -> str:
        return f"<Discovery {self._boot} {len(self._clients)} streams>"

    def handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        """All services: aggregated, and each type's own."""
        aggregated = self._methods(tuple(TYPES), "ADS", "StreamAggregatedResources", "DeltaAggregatedResources")
        handlers = [grpc.method_handlers_generic_handler(_ADS, aggregated)]
        for url, info in TYPES.items():
            methods = self._methods((url,), info.short, info.sotw_method, info.delta_method)
            handlers.append(grpc.method_handlers_generic_handler(info.service, methods))
        return handlers

    def _methods(self, urls: tuple[str, ...], service: str, sotw: str, delta: str) -> dict[str, Any]:
        """Both methods of a service, on bytes: what is in them is read and made here."""
        return {
            sotw: grpc.stream_stream_rpc_method_handler(partial(self._stream, urls, service, False)),
            delta: grpc.stream_stream_rpc_method_handler(partial(self._stream, urls, service, True)),
        }

    async def _stream(
        self,
        urls: tuple[str, ...],
        service: str,
        delta: bool,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        rejected: _Rejected | None = None
        try:
            first = await self._first(requests, context, delta=delta)
            if first is not None:
                await self._serve(self._admit(first, urls, service, delta, context), first, requests, context)
        except _Rejected as error:
            # Without its traceback, which would keep a request of any size alive as long as gRPC keeps the call.
            rejected = error.with_traceback(None)
        if rejected is not None:
            first = None
            with contextlib.suppress(grpc.aio.InternalError):  # the client has gone
                await context.abort(rejected.code, str(rejected))

    async def _first(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any], *, delta: bool
    ) -> Any | None:
        """The request that a stream begins with; None when the client has gone without one."""
        try:
            async with asyncio.timeout(self._limits.first_request):
                raw = await anext(requests, None)
        except TimeoutError:
            raise _Rejected(grpc.StatusCode.DEADLINE_EXCEEDED, "a stream begins with a request") from None
        if raw is None:
            return None
        async with self._turn(raw):
            return None if context.done() else _read(raw, delta=delta)

    def _admit(
        self,
        first: Any,
        urls: tuple[str, ...],
        service: str,
        delta: bool,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> StreamRecord:
        """A record of the stream. Raises _Rejected for a client that is not to be served."""
        client = client_of(first.node)
        stream_id = f"{self._boot}-{next(self._streams)}"
        stream = AdsStream(stream_id, urls, delta=delta, ttl=can_forget(client, delta=delta))
        record = StreamRecord(client, stream, time.time(), service, context.peer(), time.monotonic())
        try:
            self._check(client, context)
        except _Rejected as error:
            self._tell_rejection(record, str(error))
            raise
        return record

    async def _serve(
        self,
        record: StreamRecord,
        first: Any,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        stream, client = record.stream, record.client
        waker = self._clients.open(record)
        self._tell("xds client connected", client, stream=stream.stream_id, version=client.version)
        reader = None
        encode = delta_message_of if stream.delta else message_of
        try:
            self._receive(record, first)
            del first
            reader = asyncio.create_task(self._read(record, requests, context, waker))
            while not reader.done():
                await self._wait(waker, stream.next_beat())
                snapshot = self._clients.snapshot_for(record)
                for response in stream.responses(snapshot, time.monotonic()) if snapshot is not None else ():
                    message = encode(response, self._identifier, ttl=stream.ttl)
                    self._clients.pushed(stream.stream_id, response, len(message))
                    await context.write(message)
            if not reader.cancelled():  # the call was
                reader.result()
        except _Rejected as error:
            self._tell_rejection(record, str(error))
            raise
        finally:
            if reader is not None:
                reader.cancel()
            self._clients.close(stream.stream_id)
            self._tell("xds client gone", client, stream=stream.stream_id)

    async def _wait(self, waker: asyncio.Event, beat: float) -> None:
        """Until there may be something to say; `beat`: when a heartbeat is due."""
        if beat == float("inf"):
            await waker.wait()
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(waker.wait(), max(_BEAT_RETRY, beat - time.monotonic()))
        waker.clear()

    async def _read(
        self,
        record: StreamRecord,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
        waker: asyncio.Event,
    ) -> None:
        try:
            async for raw in requests:
                async with self._turn(raw):
                    if context.done():
                        return
                    self._receive(record, _read(raw, delta=record.stream.delta))
        finally:
            waker.set()

    @contextlib.asynccontextmanager
    async def _turn(self, raw: bytes) -> AsyncIterator[None]:
        """Wait until a request of that size may be worked on. Other streams come in between two heavy ones."""
        if len(raw) <= _HEAVY:
            yield
            return
        async with self._heavy:
            yield
            await asyncio.sleep(0)

    def _receive(self, record: StreamRecord, message: Any) -> None:
        """Take in one request. Raises _Rejected when it asks for too much."""
        stream = record.stream
        alone = next(iter(stream.subscriptions)) if len(stream.subscriptions) == 1 else ""
        if alone and message.type_url not in ("", alone):
            reason = f"{message.type_url[:MAX_URL]} on a stream of {TYPES[alone].service}"
            raise _Rejected(grpc.StatusCode.INVALID_ARGUMENT, reason)
        # Before anything is made of it: a million names are a hundred megabytes.
        if stream.delta:
            subscription = stream.subscriptions.get(message.type_url or alone)
            asked = len(message.resource_names_subscribe) + (len(subscription.names) if subscription is not None else 0)
            # What it has are the same names, when it comes again.
            asked = max(asked, len(message.initial_resource_versions))
        else:
            asked = len(message.resource_names)
        if asked > self._limits.names:
            raise _Rejected(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self._limits.names} names of one type")
        # They are kept, by the stream and in events.
        if max(map(len, _texts(message, delta=stream.delta)), default=0) > self._limits.name:
            raise _Rejected(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a name of more than {self._limits.name} characters")
        request = delta_request_of(message, alone) if stream.delta else request_of(message, alone)
        kind = self._clients.receive(stream.stream_id, request, message.ByteSize())
        if kind is Kind.UNSUPPORTED and stream.unsupported.get(request.type_url[:MAX_URL]) == 1:
            _log.warning("a type that isn't served", node=record.client.node, type_url=request.type_url[:MAX_URL])

    def _check(self, client: Client, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        limits = self._limits
        if not client.node:
            raise _Rejected(grpc.StatusCode.INVALID_ARGUMENT, "the first request of a stream must have a node id")
        if max(len(client.node), len(client.cluster)) > limits.node_id:
            reason = f"node id or cluster has more than {limits.node_id} characters"
            raise _Rejected(grpc.StatusCode.INVALID_ARGUMENT, reason)
        if len(self._clients) >= limits.streams or self._clients.count(client.node) >= limits.streams_of_node:
            raise _Rejected(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams are open")
        if self._tcp is not None and self._tcp.tls is not None and self._tcp.tls.match_node:
            auth = context.auth_context()
            if auth.get("transport_security_type") == [b"ssl"] and client.node not in names_of(auth):
                names = ", ".join(sorted(names_of(auth))) or "no name"
                reason = f"node id {client.node!r} is not in the certificate ({names})"
                raise _Rejected(grpc.StatusCode.PERMISSION_DENIED, reason)
        if client.warning:
            if self._unsafe == "refuse":
                raise _Rejected(grpc.StatusCode.FAILED_PRECONDITION, client.warning)
            _log.warning("an unsafe proxy is served", node=client.node, reason=client.warning)

    def _tell_rejection(self, record: StreamRecord, reason: str) -> None:
        client = record.client
        event = XdsEvent(
            time=time.time(),
            kind=EventKind.REJECTED,
            node=client.node[: self._limits.node_id],
            cluster=client.cluster[: self._limits.node_id],
            stream=record.stream.stream_id,
            protocol=record.protocol,
            error=reason,
        )
        known = any((old.node, old.error) == (event.node, event.error) for old in self.rejections)
        self.rejections.append(event)
        told = _log.debug if known or not self._lines.take(time.monotonic()) else _log.warning
        told("an xds stream is not served", node=event.node, reason=reason)
        if self._on_event is not None:
            self._on_event(event)

    def _tell(self, what: str, client: Client, **values: object) -> None:
        """Log it, unless clients come and go so fast that this would fill the disk."""
        (_log.info if self._lines.take(time.monotonic()) else _log.debug)(what, node=client.node, **values)


def _texts(message: Any, *, delta: bool) -> Iterator[str]:
    """Names in a request, and the versions that the client says it has of some."""
    if not delta:
        return iter(message.resource_names)
    versions = message.initial_resource_versions
    return chain(
        message.resource_names_subscribe, message.resource_names_unsubscribe, versions.keys(), versions.values()
    )


def _read(raw: bytes, *, delta: bool) -> Any:
    """A request. Raises _Rejected when it isn't one."""
    kind = discovery_pb2.DeltaDiscoveryRequest if delta else discovery_pb2.DiscoveryRequest
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise _Rejected(grpc.StatusCode.INVALID_ARGUMENT, "a request can't be read") from None
