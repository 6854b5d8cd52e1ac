"""The agent's gRPC server on a Unix socket: aggregated discovery (ADS) and the access log service (ALS).

Only wiring: what to answer is decided in `stream` and `subscription`. Works on asyncio's own loop and on uvloop.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import structlog
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.xds.accesslog.entries import flow_of
from spliceway.xds.accesslog.flow import FlowBudget, HttpFlow
from spliceway.xds.debug.status import ClientStatus
from spliceway.xds.errors import XdsError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.server.clients import AckEvent, Clients
from spliceway.xds.server.wire import client_of, message_of, request_of

_log = structlog.get_logger(__name__)

_ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_ALS = "envoy.service.accesslog.v3.AccessLogService"
#: gRPC's default of 4 MiB is about 10,000 names in one request.
_MAX_MESSAGE = 256 << 20


class XdsServer:
    """ADS and ALS for the proxies of one agent.

    Nothing is served to a node before its first `set_snapshot`, and stopping says nothing to anyone: a proxy whose
    agent goes away keeps what it has.
    """

    def __init__(
        self,
        socket: Path,
        *,
        identifier: str = "spliceway",
        on_flow: Callable[[HttpFlow], None] | None = None,
        on_ack: Callable[[AckEvent], None] | None = None,
        flows_per_second: float = 2000.0,
    ) -> None:
        self.socket = socket
        self.identifier = identifier
        #: Access log entries that arrived since the server was made.
        self.flows_received = 0
        #: Those among them that were more than `flows_per_second`, and not handed on.
        self.flows_skipped = 0
        self._budget = FlowBudget(flows_per_second)
        self._clients = Clients(on_ack)
        self.on_flow = on_flow
        self._server: grpc.aio.Server | None = None
        # Nonces of an earlier agent must not look like ours.
        self._boot = secrets.token_hex(4)
        self._streams = count(1)

    def __repr__(self) -> str:
        return f"<XdsServer {self.socket} {'up' if self._server else 'down'} {self._clients}>"

    async def start(self) -> None:
        """Listen on the socket (mode 0600).

        Raises:
            XdsError: the socket can't be made.
        """
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(self._handlers())
        try:
            self.socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            before = os.umask(0o177)  # the socket is never open to others, not even for a moment
            try:
                server.add_insecure_port(f"unix:{self.socket}")
            finally:
                os.umask(before)
        except (OSError, RuntimeError) as error:
            raise XdsError(f"{self.socket}: can't serve xDS there: {error}") from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close all streams without another word, and the socket."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace=None)
            self.socket.unlink(missing_ok=True)

    def snapshot(self, node: str) -> Snapshot | None:
        """What that node is served; None before the first `set_snapshot`."""
        return self._clients.snapshot(node)

    def set_snapshot(self, node: str, snapshot: Snapshot) -> None:
        """Serve `snapshot` to the proxy that calls itself `node`.

        Raises:
            InconsistentSnapshotError: it would open a hole; what was served before stays.
        """
        self._clients.set_snapshot(node, snapshot)

    async def wait_acked(self, node: str, wait: float, rule_sets: Collection[int] | None = None) -> None:
        """Wait until everything, or the listeners and routes of `rule_sets`, is acknowledged by the node's proxy.

        Acknowledged listeners with acknowledged routes are about to listen, which takes the workers another moment:
        look at the sockets before steering to them.

        Raises:
            NotAcceptedError: the proxy refused part of it.
            AckTimeoutError: not within `wait` seconds.
            XdsError: no snapshot, or a rule set that isn't in it.
        """
        await self._clients.wait_acked(node, wait, rule_sets)

    def status(self) -> tuple[ClientStatus, ...]:
        """Every open stream: what was sent, acknowledged and refused."""
        return self._clients.status()

    def _handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        ads = grpc.stream_stream_rpc_method_handler(
            self._stream_resources,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
        )
        als = grpc.stream_unary_rpc_method_handler(
            self._stream_logs,
            request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
            response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        return (
            grpc.method_handlers_generic_handler(_ADS, {"StreamAggregatedResources": ads}),
            grpc.method_handlers_generic_handler(_ALS, {"StreamAccessLogs": als}),
        )

    async def _stream_resources(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        first = await anext(requests, None)
        if first is None:
            return
        if not first.node.id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first request of a stream must have a node id")
        client = client_of(first.node)
        stream = AdsStream(f"{self._boot}-{next(self._streams)}")
        waker = self._clients.open(client, stream)
        _log.info("xds client connected", node=client.node, stream=stream.stream_id, version=client.version)
        self._clients.receive(stream.stream_id, request_of(first))
        reader = asyncio.create_task(self._read(stream.stream_id, requests, waker))
        try:
            while not reader.done():
                await waker.wait()
                waker.clear()
                snapshot = self._clients.snapshot(client.node)
                for response in stream.responses(snapshot) if snapshot is not None else ():
                    await context.write(message_of(response, self.identifier))
        finally:
            reader.cancel()
            self._clients.close(stream.stream_id)
            _log.info("xds client gone", node=client.node, stream=stream.stream_id)

    async def _read(
        self, stream_id: str, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], waker: asyncio.Event
    ) -> None:
        try:
            async for message in requests:
                self._clients.receive(stream_id, request_of(message))
        finally:
            waker.set()

    async def _stream_logs(
        self, messages: AsyncIterator[als_pb2.StreamAccessLogsMessage], context: grpc.aio.ServicerContext[Any, Any]
    ) -> als_pb2.StreamAccessLogsResponse:
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
