"""The stream to the agent: incremental xDS, aggregated. Only wiring: `state` decides what is said.

Responses are applied one after the other, in the order in which they came, and answered when that is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError

from spliceway.proxy.ads.channel import FIRST_PAUSE
from spliceway.proxy.ads.pauses import Pauses
from spliceway.proxy.ads.state import AdsState
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Batch, Resources, Response
from spliceway.proxy.ads.wire import node_of, request_message, response_of
from spliceway.proxy.model import ProxySettings

_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  (the stubs don't have it)
#: Envoy's prefix of the statistics of each type.
_STATS = {CLUSTER: "cluster_manager.cds", LISTENER: "listener_manager.lds", ROUTE: "http.spliceway.rds"}
_WHAT = ("update_attempt", "update_success", "update_rejected")
#: So many names of a refused response are logged.
_SHOWN = 10

#: Applies a batch, and returns what it refuses (name -> reason). When it returns, all else is in force everywhere.
Apply = Callable[[Batch], Awaitable[dict[str, str]]]

log = structlog.get_logger(__name__)


class _EndOfStreamError(Exception):
    """The stream is of no further use; the message says why."""


class AdsClient:
    """Keeps a stream to the agent, and `state` as the agent wants it. An agent that is away changes nothing."""

    def __init__(
        self,
        settings: ProxySettings,
        apply: Apply,
        state: AdsState,
        *,
        channel: grpc.aio.Channel,
        on_accepted: Callable[[], None] = lambda: None,
    ) -> None:
        """`channel`: see `open_channel`. `on_accepted` is called when the agent has changed `state.accepted`."""
        self.state = state
        self._apply = apply
        self._on_accepted = on_accepted
        self._node = node_of(settings)
        self._pauses = Pauses(FIRST_PAUSE, settings.reconnect_max)
        untyped: Any = channel  # bytes in and out: what can't be read must not end more than the stream
        self._open = untyped.stream_stream(_METHOD)
        self._streams = 0
        self._counts = {f"{prefix}.{what}": 0 for prefix in _STATS.values() for what in _WHAT}
        #: Whether there is a stream that the agent has answered.
        self.connected = False

    def __repr__(self) -> str:
        return f"<AdsClient {'connected' if self.connected else 'away'}, {self._streams} streams, {self.state}>"

    def counters(self) -> dict[str, int]:
        """Envoy's statistics of each type (`listener_manager.lds.update_success`, …) and of the stream.

        `control_plane.connected_state` is 1 while the agent answers, `control_plane.streams` counts all streams.
        """
        stream = {"control_plane.connected_state": int(self.connected), "control_plane.streams": self._streams}
        return {**self._counts, **stream}

    async def restore(self, resources: Resources) -> None:
        """Apply what an earlier proxy had, before `run`. What is refused of it is as if it had not been there.

        That is no reason to write it down: it may be good again for the next proxy, while the agent is still away.
        """
        for url in (CLUSTER, LISTENER, ROUTE):
            batch = self.state.restorable(url, resources)
            refused, _ = await self._applied(batch)
            self.state.take(batch, refused)
            for name, reason in refused.items():
                log.warning("an earlier resource is refused", type_url=url, name=name, reason=reason)

    async def run(self) -> None:
        """Follow the agent until cancelled."""
        while True:
            why = await self._stream()
            told = log.warning if self.connected else log.debug
            told("the agent's stream has ended, what it said stays in force", reason=why)
            self.connected = False
            await asyncio.sleep(self._pauses.take())

    async def _stream(self) -> str:
        """One stream, from beginning to end; returns why it ended."""
        # Waits for the agent, whom the channel tries again and again.
        call = self._open(wait_for_ready=True)
        try:
            first = self._node
            for request in self.state.connect():
                await call.write(request_message(request, first).SerializeToString())
                first = None
            while (raw := await call.read()) is not _EOF:
                if not self.connected:
                    self._streams += 1
                    self.connected = True
                    log.info("the agent answers", stream=self._streams)
                self._pauses.reset()
                await self._take(call, response_of(discovery_pb2.DeltaDiscoveryResponse.FromString(raw)))
            return f"{(await call.code()).name}: {await call.details()}"
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except (DecodeError, _EndOfStreamError) as error:
            return str(error)
        except asyncio.InvalidStateError as error:  # a write to a call that has just ended
            return str(error)
        finally:
            call.cancel()

    async def _take(self, call: Any, response: Response) -> None:
        """Apply a response and answer it."""
        batch = self.state.incoming(response)
        refused, failed = await self._applied(batch)
        if failed:
            batch = Batch(batch.type_url, batch.changed)
        outcome = self.state.settle(response, batch, refused)
        self._count(response, outcome.requests[0].error)
        await self._applied(Batch(ROUTE, {}, outcome.unwanted))
        if batch.changed or batch.removed:
            self._on_accepted()
        for request in outcome.requests:
            await call.write(request_message(request).SerializeToString())
        if failed:
            # What should have been removed is still there. The next stream's first request says so.
            raise _EndOfStreamError("a change could not be applied")

    async def _applied(self, batch: Batch) -> tuple[dict[str, str], bool]:
        """Apply a batch; what is refused of it, and whether nothing of it could be applied."""
        if not batch.changed and not batch.removed:
            return {}, False
        try:
            return await self._apply(batch), False
        except Exception as error:
            log.exception("a change could not be applied", type_url=batch.type_url)
            return dict.fromkeys(batch.changed, f"internal error: {type(error).__name__}"), True

    def _count(self, response: Response, error: str | None) -> None:
        if error is not None:
            names = [*response.unusable, *response.resources][:_SHOWN]
            log.warning("a response is refused", type_url=response.type_url, names=names, reason=error)
        if (prefix := _STATS.get(response.type_url)) is not None:
            self._counts[f"{prefix}.update_attempt"] += 1
            self._counts[f"{prefix}.{'update_success' if error is None else 'update_rejected'}"] += 1
