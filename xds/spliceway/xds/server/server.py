"""The control plane's gRPC server: discovery, aggregated and by type, in both variants, and the access log (ALS).

Only wiring: `streams` has the discovery services, and `protocol` decides what they say. Works on asyncio's own loop
and on uvloop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import grpc
import structlog
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from spliceway.xds.accesslog.entries import flow_of
from spliceway.xds.accesslog.flow import FlowBudget, HttpFlow
from spliceway.xds.debug.status import ClientStatus, Held, TypeStatus
from spliceway.xds.protocol.snapshot import Check, Snapshot
from spliceway.xds.resources.consistency import check_policy
from spliceway.xds.server.clients import Clients, NodeKey, Stage
from spliceway.xds.server.events import XdsEvent
from spliceway.xds.server.listen import TcpSettings, add_tcp, add_unix, require_local
from spliceway.xds.server.streams import Discovery, ServerLimits

_log = structlog.get_logger(__name__)

_ALS = "envoy.service.accesslog.v3.AccessLogService"
#: Responses may have any size that is of use; gRPC's default of 4 MiB is about 10,000 names.
_MAX_SEND = 256 << 20
#: How long cancelled calls may take to end, in seconds; they have nothing to wait for.
_STOP_SECONDS = 1.0


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
        self._limits = limits
        self._services: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._budget = FlowBudget(flows_per_second)
        self._clients = Clients(on_event)
        self._discovery = Discovery(self._clients, identifier, tcp, unsafe, limits, on_event)
        self._calls = _Calls()
        self._server: grpc.aio.Server | None = None

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
        server = grpc.aio.server(options=options, interceptors=[self._calls])
        server.add_generic_rpc_handlers(self._handlers())
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
            calls = set(self._calls.tasks)
            await server.stop(grace=None)
            # They are cancelled and end a moment later. A loop that ends before would cancel them again, and gRPC logs
            # that as an error with a traceback.
            if calls:
                await asyncio.wait(calls, timeout=_STOP_SECONDS)
                await asyncio.sleep(0)
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
        return tuple(self._discovery.rejections)

    def _handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        als = grpc.stream_unary_rpc_method_handler(
            self._stream_logs,
            request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
            response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        access_log = grpc.method_handlers_generic_handler(_ALS, {"StreamAccessLogs": als})
        return [*self._discovery.handlers(), access_log, *self._services]

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


class _Calls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Knows the tasks of calls that go on."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Remember the task, which is the call's own to its end."""
        if (task := asyncio.current_task()) is not None:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return await continuation(handler_call_details)


def _key(node: str | NodeKey) -> NodeKey:
    return NodeKey(node) if isinstance(node, str) else node
