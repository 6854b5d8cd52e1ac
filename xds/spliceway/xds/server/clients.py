"""The streams that are open, the snapshots they are served from, and who waits for an acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping

import msgspec

from spliceway.xds.debug.status import Client, ClientStatus, StreamRecord, client_status
from spliceway.xds.errors import AckTimeoutError, NotAcceptedError, XdsError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Kind, Request
from spliceway.xds.protocol.typeurls import LISTENER, ROUTE, TYPES
from spliceway.xds.resources.names import listener_name


class AckEvent(msgspec.Struct, frozen=True):
    """An ACK or a NACK: who, which type, which version; `error` is the client's message of a NACK."""

    node: str
    stream: str
    type: str
    kind: Kind
    version: str
    error: str = ""


class Clients:
    """All streams by id, and a snapshot for each node id. A node never sees another's resources.

    Of several streams of one node the newest counts: the others are half-open, or about to be.
    """

    def __init__(self, on_ack: Callable[[AckEvent], None] | None = None) -> None:
        self._on_ack = on_ack
        self._records: dict[str, StreamRecord] = {}
        self._wakers: dict[str, asyncio.Event] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._progress = asyncio.Event()

    def __repr__(self) -> str:
        versions = {node: snapshot.version for node, snapshot in self._snapshots.items()}
        return f"<Clients {list(self._records.values())} snapshots {versions}>"

    def open(self, client: Client, stream: AdsStream) -> asyncio.Event:
        """Add a stream. The event is set whenever there may be something to send to it."""
        self._records[stream.stream_id] = StreamRecord(client, stream, time.time())
        waker = self._wakers[stream.stream_id] = asyncio.Event()
        return waker

    def close(self, stream_id: str) -> None:
        """Forget a stream."""
        self._records.pop(stream_id, None)
        self._wakers.pop(stream_id, None)
        self._advance()

    def receive(self, stream_id: str, request: Request) -> None:
        """Apply a request of that stream."""
        record = self._records[stream_id]
        answered = record.stream.subscriptions[request.type_url].pending if request.type_url in TYPES else None
        kind = record.stream.receive(request)
        self._wakers[stream_id].set()
        self._advance()
        if kind in (Kind.ACK, Kind.NACK) and answered is not None and self._on_ack is not None:
            short = TYPES[request.type_url].short
            self._on_ack(AckEvent(record.client.node, stream_id, short, kind, answered.version, request.error or ""))

    def snapshot(self, node: str) -> Snapshot | None:
        """What that node shall have; None until the agent knows."""
        return self._snapshots.get(node)

    def set_snapshot(self, node: str, snapshot: Snapshot) -> None:
        """Serve `snapshot` to that node from now on; it has been checked by the caller."""
        self._snapshots[node] = snapshot
        for stream_id, record in self._records.items():
            if record.client.node == node:
                self._wakers[stream_id].set()
        self._advance()

    def status(self) -> tuple[ClientStatus, ...]:
        """Every stream, newest last."""
        return tuple(
            client_status(record, self._snapshots.get(record.client.node), record is self._newest(record.client.node))
            for record in self._records.values()
        )

    async def wait_acked(self, node: str, wait: float, rule_sets: Collection[int] | None = None) -> None:
        """Wait until the node's proxy has acknowledged its snapshot, or the listeners and routes of `rule_sets`.

        Raises:
            NotAcceptedError: it refused part of it.
            AckTimeoutError: not within `wait` seconds; the message says what it waits for.
            XdsError: no snapshot, or a rule set that isn't in it.
        """
        names = self._names(node, rule_sets)
        try:
            async with asyncio.timeout(wait):
                while not self._acked(node, names):
                    await self._progress.wait()
        except TimeoutError:
            raise AckTimeoutError(f"{node}: {self._late(node, names)} (after {wait:g} s)") from None

    def _names(self, node: str, rule_sets: Collection[int] | None) -> Mapping[str, Collection[str]] | None:
        snapshot = self._snapshots.get(node)
        if snapshot is None:
            raise XdsError(f"{node}: has no snapshot yet")
        if rule_sets is None:
            return None
        names = {listener_name(key) for key in rule_sets}
        if absent := names - snapshot.types[LISTENER].resources.keys():
            raise XdsError(f"{node}: not in snapshot {snapshot.version}: {', '.join(sorted(absent))}")
        return {LISTENER: names, ROUTE: names}

    def _acked(self, node: str, names: Mapping[str, Collection[str]] | None) -> bool:
        record = self._newest(node)
        if record is None:
            return False
        progress = record.stream.progress(self._snapshots[node], names)
        if progress.refused:
            reasons = {error.message for _, _, error in progress.refused}
            resources = tuple(name for _, name, _ in progress.refused)
            raise NotAcceptedError(f"{node}: the proxy refused {', '.join(resources)}: {'; '.join(reasons)}", resources)
        return not progress.missing

    def _late(self, node: str, names: Mapping[str, Collection[str]] | None) -> str:
        record = self._newest(node)
        if record is None:
            return "no proxy is connected"
        missing = record.stream.progress(self._snapshots[node], names).missing
        first = ", ".join(f"{TYPES[url].short} {name}" for url, name in missing[:5])
        return f"the proxy has not acknowledged {first}" + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")

    def _newest(self, node: str) -> StreamRecord | None:
        return next((r for r in reversed(self._records.values()) if r.client.node == node), None)

    def _advance(self) -> None:
        done, self._progress = self._progress, asyncio.Event()
        done.set()
