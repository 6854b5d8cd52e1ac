"""The control plane's gRPC server: discovery, aggregated and by type, in both variants, and the access log (ALS).

Only wiring: what to answer is decided in `protocol`. Works on asyncio's own loop and on uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import grpc
import msgspec
import structlog
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.xds.accesslog.entries import flow_of
from spliceway.xds.accesslog.flow import FlowBudget, HttpFlow
from spliceway.xds.debug.status import Client, ClientStatus, Held, StreamRecord, TypeStatus
from spliceway.xds.protocol.ledger import Kind
from spliceway.xds.protocol.snapshot import Check, Snapshot
from spliceway.xds.protocol.stream import MAX_URL, AdsStream
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.resources.consistency import check_policy
from spliceway.xds.server.clients import Clients, NodeKey, Stage
from spliceway.xds.server.events import EventKind, XdsEvent
from spliceway.xds.server.listen import TcpSettings, add_tcp, add_unix, names_of, require_local
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
_ALS = "envoy.service.accesslog.v3.AccessLogService"
#: Responses may have any size that is of use; gRPC's default of 4 MiB is about 10,000 names.
_MAX_SEND = 256 << 20
#: Lines of log about clients that come, go and are refused.
_LINES_PER_SECOND = 20.0
#: Rejected streams that are remembered.
_REJECTIONS = 16
#: A stream whose heartbeat can't go out yet looks again after so many seconds.
_BEAT_RETRY = 0.2


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one client may ask of the server: more ends its stream with RESOURCE_EXHAUSTED, and no other one.

    `message`: bytes of a request; `names`: subscribed names of a type on a stream; `streams`: open at a time, all
    clients together. `keepalive`: seconds without a sign of life until a connection is asked for one, and
    `keepalive_timeout` for the answer: so long a half-open stream is taken for a client.
    """

    message: int = 16 << 20
    names: int = 100_000
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


class XdsServer:
    """Discovery and access log service for the proxies of one agent.

    Nothing is served to a node before its first `set_snapshot`, and stopping says nothing to anyone: a proxy whose
    agent goes away keeps what it has.
    """

    def __init__(
        self,
        socket: Path | None,
        *,
        tcp: TcpSettings | None = None,
        identifier: str = "spliceway",
        check: Check = check_policy,
        on_flow: Callable[[HttpFlow], None] | None = None,
        on_event: Callable[[XdsEvent], None] | None = None,
        unsafe: Literal["refuse", "warn"] = "refuse",
        flows_per_second: float = 2000.0,
        limits: ServerLimits = ServerLimits(),  # noqa: B008  a frozen value
    ) -> None:
        """`socket`: Unix socket, None for TCP only. `check` refuses snapshots. `unsafe`: Envoys with known holes."""
        self.socket = socket
        self.tcp = tcp
        self.tcp_port = 0
        self.identifier = identifier
        #: Access log entries that arrived since the server was made.
        self.flows_received = 0
        #: Those among them that were more than `flows_per_second`, and not handed on.
        self.flows_skipped = 0
        self.on_flow = on_flow
        self._check = check
        self._unsafe = unsafe
        self._limits = limits
        self._services: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._budget = FlowBudget(flows_per_second)
        self._told = FlowBudget(_LINES_PER_SECOND)
        self._on_event = on_event
        self._rejections: deque[XdsEvent] = deque(maxlen=_REJECTIONS)
        self._clients = Clients(on_event)
        self._server: grpc.aio.Server | None = None
        # Nonces of an earlier agent must not look like ours.
        self._boot = secrets.token_hex(4)
        self._streams = count(1)

    def __repr__(self) -> str:
        return f"<XdsServer {self.socket or self.tcp} {'up' if self._server else 'down'} {self._clients}>"

    async def start(self) -> None:
        """Listen on the socket (mode 0600) and the TCP address.

        Raises:
            XdsError: one of them can't be had, or TCP without TLS was not asked for.
        """
        limits = self._limits
        options = [
            ("grpc.max_receive_message_length", limits.message),
            ("grpc.max_send_message_length", _MAX_SEND),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", limits.streams_of_connection),
            ("grpc.keepalive_time_ms", int(limits.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((*self._handlers(), *self._services))
        if self.socket is not None:
            add_unix(server, self.socket)
        if self.tcp is not None:
            self.tcp_port = add_tcp(server, self.tcp)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close all streams without another word, and the socket."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace=None)
            if self.socket is not None:
                self.socket.unlink(missing_ok=True)

    def add_services(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Serve these as well, on the same sockets; before `start`."""
        self._services += handlers

    def snapshot(self, node: str | NodeKey) -> Snapshot | None:
        """What was published for that node; None before the first `set_snapshot`."""
        return self._clients.snapshot(_key(node))

    def nodes(self) -> tuple[NodeKey, ...]:
        """For whom there is a snapshot."""
        return self._clients.nodes()

    def set_snapshot(self, node: str | NodeKey, snapshot: Snapshot) -> None:
        """Serve `snapshot` to the proxy that calls itself `node`.

        Raises:
            InconsistentSnapshotError: it would open a hole; what was served before stays.
        """
        self._check(snapshot)
        self._clients.set_snapshot(_key(node), snapshot)

    def remove_snapshot(self, node: str | NodeKey) -> None:
        """Serve that node nothing of its own any more; what it has stays with it."""
        self._clients.remove_snapshot(_key(node))

    async def wait_acked(self, node: str | NodeKey, wait: float, rule_sets: Collection[int] | None = None) -> None:
        """Wait until everything, or the listeners and routes of `rule_sets`, is acknowledged by the node's proxy.

        Acknowledged listeners with acknowledged routes are about to listen, which takes the workers another moment:
        look at the sockets before steering to them.

        Raises:
            NotAcceptedError: the proxy refused part of it.
            AckTimeoutError: not within `wait` seconds.
            XdsError: no snapshot, or a rule set that isn't in it.
        """
        await self._clients.wait_acked(_key(node), wait, rule_sets)

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        """Every open stream: what was sent, acknowledged and refused; without `resources` only sums."""
        return self._clients.status(resources=resources)

    def current(self, node: str | NodeKey) -> dict[str, TypeStatus]:
        """Short type -> its status on the newest stream of that node that has asked for the type."""
        return self._clients.current(_key(node))

    def held(self, node: str | NodeKey, stage: Stage) -> dict[str, dict[str, Held]]:
        """Type URL -> name -> what the node shall have, was sent last, or has acknowledged."""
        return self._clients.held(_key(node), stage)

    def rejections(self) -> tuple[XdsEvent, ...]:
        """The last streams that were not served, with the reason."""
        return tuple(self._rejections)

    def _handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        aggregated = self._discovery(tuple(TYPES), "ADS", "StreamAggregatedResources", "DeltaAggregatedResources")
        handlers = [grpc.method_handlers_generic_handler(_ADS, aggregated)]
        for url, info in TYPES.items():
            methods = self._discovery((url,), info.short, info.sotw_method, info.delta_method)
            handlers.append(grpc.method_handlers_generic_handler(info.service, methods))
        als = grpc.stream_unary_rpc_method_handler(
            self._stream_logs,
            request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
            response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        return [*handlers, grpc.method_handlers_generic_handler(_ALS, {"StreamAccessLogs": als})]

    def _discovery(self, urls: tuple[str, ...], service: str, sotw: str, delta: str) -> dict[str, Any]:
        """Both methods of a service. Responses are serialized here, from resources that are serialized already."""
        return {
            sotw: grpc.stream_stream_rpc_method_handler(
                partial(self._stream, urls, service, False),
                request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            ),
            delta: grpc.stream_stream_rpc_method_handler(
                partial(self._stream, urls, service, True),
                request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            ),
        }

    async def _stream(
        self,
        urls: tuple[str, ...],
        service: str,
        delta: bool,
        requests: AsyncIterator[Any],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        try:
            async with asyncio.timeout(self._limits.first_request):
                first = await anext(requests, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "a stream begins with a request")
        if first is None:
            return
        client = client_of(first.node)
        peer = context.peer()
        stream = AdsStream(
            f"{self._boot}-{next(self._streams)}", urls, delta=delta, ttl=can_forget(client, delta=delta)
        )
        record = StreamRecord(client, stream, time.time(), service, peer, time.monotonic())
        rejected: _Rejected | None = None
        try:
            self._admit(client, context)
            await self._serve(record, first, requests, context)
        except _Rejected as error:
            # Without its traceback, which would keep a request of any size alive as long as gRPC keeps the call.
            rejected = error.with_traceback(None)
        if rejected is not None:
            del first
            self._reject(record, str(rejected))
            with contextlib.suppress(grpc.aio.InternalError):  # the client has gone
                await context.abort(rejected.code, str(rejected))

    async def _serve(
        self,
        record: StreamRecord,
        first: Any,
        requests: AsyncIterator[Any],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        stream, client = record.stream, record.client
        waker = self._clients.open(record)
        self._tell("xds client connected", client, stream=stream.stream_id, version=client.version)
        reader = None
        encode = delta_message_of if stream.delta else message_of
        try:
            self._receive(record, first)
            reader = asyncio.create_task(self._read(record, requests, waker))
            while not reader.done():
                await self._wait(waker, stream.next_beat())
                snapshot = self._clients.snapshot_for(record)
                for response in stream.responses(snapshot, time.monotonic()) if snapshot is not None else ():
                    message = encode(response, self.identifier, ttl=stream.ttl)
                    self._clients.pushed(stream.stream_id, response, len(message))
                    await context.write(message)
            if not reader.cancelled():  # the call was
                reader.result()
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

    async def _read(self, record: StreamRecord, requests: AsyncIterator[Any], waker: asyncio.Event) -> None:
        try:
            async for message in requests:
                self._receive(record, message)
        finally:
            waker.set()

    def _receive(self, record: StreamRecord, message: Any) -> None:
        """Take in one request. Raises _Rejected when it asks for too much."""
        stream = record.stream
        alone = next(iter(stream.subscriptions)) if len(stream.subscriptions) == 1 else ""
        if alone and message.type_url not in ("", alone):
            raise _Rejected(
                grpc.StatusCode.INVALID_ARGUMENT, f"{message.type_url} on a stream of {TYPES[alone].service}"
            )
        # Before anything is made of it: a million names are a hundred megabytes.
        if stream.delta:
            asked = len(message.resource_names_subscribe) + len(message.initial_resource_versions)
            subscription = stream.subscriptions.get(message.type_url or alone)
            asked += len(subscription.names) if subscription is not None else 0
        else:
            asked = len(message.resource_names)
        if asked > self._limits.names:
            raise _Rejected(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self._limits.names} names of one type")
        request = delta_request_of(message, alone) if stream.delta else request_of(message, alone)
        kind = self._clients.receive(stream.stream_id, request, message.ByteSize())
        if kind is Kind.UNSUPPORTED and stream.unsupported.get(request.type_url[:MAX_URL]) == 1:
            _log.warning("a type that isn't served", node=record.client.node, type_url=request.type_url[:MAX_URL])

    def _admit(self, client: Client, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Raises _Rejected for a client that is not to be served."""
        limits = self._limits
        if not client.node:
            raise _Rejected(grpc.StatusCode.INVALID_ARGUMENT, "the first request of a stream must have a node id")
        if max(len(client.node), len(client.cluster)) > limits.node_id:
            raise _Rejected(
                grpc.StatusCode.INVALID_ARGUMENT, f"node id or cluster has more than {limits.node_id} characters"
            )
        if len(self._clients) >= limits.streams or self._clients.count(client.node) >= limits.streams_of_node:
            raise _Rejected(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams are open")
        if self.tcp is not None and self.tcp.tls is not None and self.tcp.tls.match_node:
            auth = context.auth_context()
            if auth.get("transport_security_type") == [b"ssl"] and client.node not in names_of(auth):
                names = ", ".join(sorted(names_of(auth))) or "no name"
                raise _Rejected(
                    grpc.StatusCode.PERMISSION_DENIED, f"node id {client.node!r} is not in the certificate ({names})"
                )
        if client.warning:
            if self._unsafe == "refuse":
                raise _Rejected(grpc.StatusCode.FAILED_PRECONDITION, client.warning)
            _log.warning("an unsafe proxy is served", node=client.node, reason=client.warning)

    def _reject(self, record: StreamRecord, reason: str) -> None:
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
        known = any((old.node, old.error) == (event.node, event.error) for old in self._rejections)
        self._rejections.append(event)
        told = _log.debug if known or not self._told.take(time.monotonic()) else _log.warning
        told("an xds stream is not served", node=event.node, reason=reason)
        if self._on_event is not None:
            self._on_event(event)

    def _tell(self, what: str, client: Client, **values: object) -> None:
        """Log it, unless clients come and go so fast that this would fill the disk."""
        (_log.info if self._told.take(time.monotonic()) else _log.debug)(what, node=client.node, **values)

    async def _stream_logs(
        self, messages: AsyncIterator[als_pb2.StreamAccessLogsMessage], context: grpc.aio.ServicerContext[Any, Any]
    ) -> als_pb2.StreamAccessLogsResponse:
        await require_local(context, self.tcp)
        async for message in messages:
            for entry in message.http_logs.log_entry:
                self.flows_received += 1
                if self._budget.take(time.monotonic()):
                    self._hand_on(entry)
                else:
                    self.flows_skipped += 1
        return als_pb2.StreamAccessLogsResponse()

    def _hand_on(self, entry: accesslog_pb2.HTTPAccessLogEntry) -> None:
        if self.on_flow is None:
            return
        try:
            self.on_flow(flow_of(entry))
        except Exception:  # one bad entry, or a mistake in the receiver, must not cost the stream and all that follow
            _log.exception("an access log entry was lost")


def _key(node: str | NodeKey) -> NodeKey:
    return NodeKey(node) if isinstance(node, str) else node
