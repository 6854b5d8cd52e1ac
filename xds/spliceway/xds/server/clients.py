"""The streams that are open, the snapshots they are served from, and who waits for an acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Literal

import msgspec

from spliceway.xds.debug.status import ClientStatus, Held, StreamRecord, TypeStatus, client_status, held_of, type_status
from spliceway.xds.errors import AckTimeoutError, NotAcceptedError, XdsError
from spliceway.xds.protocol.delta import DeltaRequest
from spliceway.xds.protocol.ledger import WILDCARD, Kind, Response
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import Progress
from spliceway.xds.protocol.subscription import Request
from spliceway.xds.protocol.typeurls import LISTENER, ROUTE, TYPES
from spliceway.xds.resources.names import listener_name
from spliceway.xds.server.events import MAX_NAMES, EventKind, XdsEvent

#: What of a client's resources is asked for: what it shall have, was sent last, or has acknowledged.
Stage = Literal["desired", "sent", "acked"]


class NodeKey(msgspec.Struct, frozen=True):
    """Whose snapshot it is: a node id, and its cluster; None is any cluster."""

    id: str
    cluster: str | None = None

    def __str__(self) -> str:
        return self.id if self.cluster is None else f"{self.cluster}/{self.id}"


#: Every node that has no snapshot of its own.
ANY_NODE = NodeKey("*")

_EVENTS = {
    Kind.ACK: EventKind.ACK,
    Kind.NACK: EventKind.NACK,
    Kind.INITIAL: EventKind.SUBSCRIBE,
    Kind.SUBSCRIBE: EventKind.SUBSCRIBE,
}


class _Published(msgspec.Struct, frozen=True):
    """A snapshot, and when each of its types changed last (monotonic seconds)."""

    snapshot: Snapshot
    changed: Mapping[str, float]


class Clients:
    """All streams by id, and a snapshot for each node. A node never sees another's resources.

    Of several streams of one node the newest counts for each type, and one of the Unix socket before all of TCP: the
    others are half-open, or about to be, or somebody else's.
    """

    def __init__(self, on_event: Callable[[XdsEvent], None] | None = None) -> None:
        self._on_event = on_event
        self._records: dict[str, StreamRecord] = {}
        self._by_node: dict[str, list[StreamRecord]] = {}
        self._wakers: dict[str, asyncio.Event] = {}
        self._published: dict[NodeKey, _Published] = {}
        self._progress = asyncio.Event()

    def __repr__(self) -> str:
        versions = {str(node): held.snapshot.version for node, held in self._published.items()}
        return f"<Clients {list(self._records.values())} snapshots {versions}>"

    def __len__(self) -> int:
        return len(self._records)

    def count(self, node: str) -> int:
        """Open streams of that node id."""
        return len(self._by_node.get(node, ()))

    def open(self, record: StreamRecord) -> asyncio.Event:
        """Add a stream. The event is set whenever there may be something to send to it."""
        stream_id = record.stream.stream_id
        self._records[stream_id] = record
        self._by_node.setdefault(record.client.node, []).append(record)
        waker = self._wakers[stream_id] = asyncio.Event()
        self._emit(record, EventKind.CONNECTED)
        return waker

    def close(self, stream_id: str) -> None:
        """Forget a stream."""
        record = self._records.pop(stream_id, None)
        if record is None:
            return
        self._wakers.pop(stream_id)
        others = self._by_node[record.client.node]
        others.remove(record)
        if not others:
            del self._by_node[record.client.node]
        self._emit(record, EventKind.DISCONNECTED)
        self._advance()

    def receive(self, stream_id: str, request: Request | DeltaRequest, size: int = 0) -> Kind:
        """Apply a request of that stream; `size` of its message in bytes."""
        record = self._records[stream_id]
        subscription = record.stream.subscriptions.get(request.type_url)
        answered = subscription.pending if subscription is not None else None
        kind = record.stream.receive(request)
        self._wakers[stream_id].set()
        self._advance()
        if subscription is None or kind is Kind.STALE:
            return kind
        if kind in (Kind.ACK, Kind.NACK) and answered is not None:
            self._answered(record, kind, answered, size)
        elif kind in (Kind.INITIAL, Kind.SUBSCRIBE):
            self._subscribed(record, request, kind, size)
        return kind

    def pushed(self, stream_id: str, response: Response, size: int) -> None:
        """Note that a response goes out; `size` of its message in bytes."""
        record = self._records[stream_id]
        timing = record.timings[response.type_url]
        timing.pushes += 1
        timing.sent_at = time.time()
        published = self._of(record)
        timing.began = max(record.opened, published.changed[response.type_url] if published else 0.0)
        self._emit(
            record,
            EventKind.PUSH,
            type=TYPES[response.type_url].short,
            version=response.version,
            nonce=response.nonce,
            resources=tuple(resource.name for resource in response.resources[:MAX_NAMES]),
            count=len(response.resources),
            removed=response.removed[:MAX_NAMES],
            size=size,
        )

    def snapshot_for(self, record: StreamRecord) -> Snapshot | None:
        """What the client of that stream shall have; None until somebody knows."""
        published = self._of(record)
        return published.snapshot if published else None

    def snapshot(self, node: NodeKey) -> Snapshot | None:
        """What was published for exactly that key."""
        published = self._published.get(node)
        return published.snapshot if published else None

    def nodes(self) -> tuple[NodeKey, ...]:
        """For whom there is a snapshot."""
        return tuple(self._published)

    def set_snapshot(self, node: NodeKey, snapshot: Snapshot) -> None:
        """Serve `snapshot` to that node from now on; it has been checked by the caller."""
        before = self._published.get(node)
        now = time.monotonic()
        changed = {
            url: before.changed[url] if before and before.snapshot.types[url].serial == held.serial else now
            for url, held in snapshot.types.items()
        }
        self._published[node] = _Published(snapshot, changed)
        self._wake(node)

    def remove_snapshot(self, node: NodeKey) -> None:
        """Serve that node nothing of its own any more; what it has stays with it. Unknown nodes are ignored."""
        if self._published.pop(node, None) is not None:
            self._wake(node)

    def status(self, *, resources: bool = True) -> tuple[ClientStatus, ...]:
        """Every stream, newest last; without `resources` only sums."""
        return tuple(
            client_status(record, self.snapshot_for(record), self._is_current(record), resources=resources)
            for record in self._records.values()
        )

    def current(self, node: NodeKey) -> dict[str, TypeStatus]:
        """Short type -> its status on the newest stream of that node that has asked for it."""
        found = {}
        for url, record in self._newest(node).items():
            subscription = record.stream.subscriptions[url]
            if subscription.active:
                found[TYPES[url].short] = type_status(subscription, self.snapshot_for(record), record.timings[url])
        return found

    def held(self, node: NodeKey, stage: Stage) -> dict[str, dict[str, Held]]:
        """Type URL -> name -> what the node shall have, was sent or has acknowledged."""
        if stage == "desired":
            published = self._published.get(node) or self._published.get(NodeKey(node.id))
            published = published or next((held for key, held in self._published.items() if key.id == node.id), None)
            published = published or self._published.get(ANY_NODE)
            if published is None:
                return {}
            return {url: held_of(held.resources) for url, held in published.snapshot.types.items()}
        return {
            url: held_of(getattr(record.stream.subscriptions[url], stage)) for url, record in self._newest(node).items()
        }

    async def wait_acked(self, node: NodeKey, wait: float, rule_sets: Collection[int] | None = None) -> None:
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

    def _of(self, record: StreamRecord) -> _Published | None:
        client = record.client
        for key in (NodeKey(client.node, client.cluster), NodeKey(client.node), ANY_NODE):
            if (published := self._published.get(key)) is not None:
                return published
        return None

    def _records_of(self, node: NodeKey) -> Iterator[StreamRecord]:
        """The node's streams, newest first, those of the Unix socket before all others.

        Only the agent's own user can connect there: who comes by TCP may be somebody else under the node's name, and
        must not answer for its proxy.
        """
        newest = self._by_node.get(node.id, [])[::-1]
        for record in sorted(newest, key=lambda record: not record.peer.startswith("unix:")):
            if node.cluster is None or record.client.cluster == node.cluster:
                yield record

    def _newest(self, node: NodeKey) -> dict[str, StreamRecord]:
        """Type URL -> the newest stream that has asked for the type, or else the newest that may.

        Of each service only the newest stream: what an older one was told, this client may never have heard.
        """
        asked: dict[str, StreamRecord] = {}
        may: dict[str, StreamRecord] = {}
        services: dict[str, StreamRecord] = {}
        for record in self._records_of(node):
            services.setdefault(record.service, record)
        for record in services.values():
            for url, subscription in record.stream.subscriptions.items():
                (asked if subscription.seen else may).setdefault(url, record)
        return {
            url: asked.get(url, may[url]) if url in may else asked[url] for url in TYPES if url in may or url in asked
        }

    def _is_current(self, record: StreamRecord) -> bool:
        same = (
            r
            for r in self._records_of(NodeKey(record.client.node, record.client.cluster))
            if r.service == record.service
        )
        return next(same, None) is record

    def _names(self, node: NodeKey, rule_sets: Collection[int] | None) -> Mapping[str, Collection[str]] | None:
        snapshot = self.snapshot(node)
        if snapshot is None:
            raise XdsError(f"{node}: has no snapshot yet")
        if rule_sets is None:
            return None
        names = {listener_name(key) for key in rule_sets}
        if absent := names - snapshot.types[LISTENER].resources.keys():
            raise XdsError(f"{node}: not in snapshot {snapshot.version}: {', '.join(sorted(absent))}")
        return {LISTENER: names, ROUTE: names}

    def _how_far(self, node: NodeKey, names: Mapping[str, Collection[str]] | None) -> Progress | None:
        newest = self._newest(node)
        if not newest:
            return None
        snapshot = self._published[node].snapshot
        parts = [
            record.stream.progress(snapshot, names, urls=[url for url, other in newest.items() if other is record])
            for record in dict.fromkeys(newest.values())
        ]
        return Progress(
            tuple(item for part in parts for item in part.missing),
            tuple(item for part in parts for item in part.refused),
        )

    def _acked(self, node: NodeKey, names: Mapping[str, Collection[str]] | None) -> bool:
        progress = self._how_far(node, names)
        if progress is None:
            return False
        if progress.refused:
            reasons = {error.message for _, _, error in progress.refused}
            resources = tuple(name for _, name, _ in progress.refused)
            raise NotAcceptedError(f"{node}: the proxy refused {', '.join(resources)}: {'; '.join(reasons)}", resources)
        return not progress.missing

    def _late(self, node: NodeKey, names: Mapping[str, Collection[str]] | None) -> str:
        progress = self._how_far(node, names)
        if progress is None:
            return "no proxy is connected"
        missing = progress.missing
        first = ", ".join(f"{TYPES[url].short} {name}" for url, name in missing[:5])
        return f"the proxy has not acknowledged {first}" + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")

    def _wake(self, node: NodeKey) -> None:
        records = self._records.values() if node == ANY_NODE else self._records_of(node)
        for record in records:
            self._wakers[record.stream.stream_id].set()
        self._advance()

    def _advance(self) -> None:
        done, self._progress = self._progress, asyncio.Event()
        done.set()

    def _answered(self, record: StreamRecord, kind: Kind, response: Response, size: int) -> None:
        timing = record.timings[response.type_url]
        timing.acked_at = time.time()
        timing.seconds = time.monotonic() - timing.began
        refused = kind is Kind.NACK
        timing.acks, timing.nacks = timing.acks + (not refused), timing.nacks + refused
        last = record.stream.subscriptions[response.type_url].last_error if refused else None
        self._emit(
            record,
            EventKind.NACK if refused else EventKind.ACK,
            type=TYPES[response.type_url].short,
            version=response.version,
            nonce=response.nonce,
            resources=last.resources[:MAX_NAMES] if last else (),
            count=len(last.resources) if last else len(response.resources),
            size=size,
            error=last.message if last else "",
            seconds=timing.seconds,
        )

    def _subscribed(self, record: StreamRecord, request: Request | DeltaRequest, kind: Kind, size: int) -> None:
        delta = isinstance(request, DeltaRequest)
        names = request.subscribe if isinstance(request, DeltaRequest) else request.names
        gone = request.unsubscribe if isinstance(request, DeltaRequest) else ()
        if kind is Kind.INITIAL and record.stream.subscriptions[request.type_url].wildcard:
            names = names or (WILDCARD,)
        if delta and not names and not gone:
            return
        self._emit(
            record,
            EventKind.SUBSCRIBE,
            type=TYPES[request.type_url].short,
            resources=names[:MAX_NAMES],
            count=len(names),
            removed=gone[:MAX_NAMES],
            size=size,
        )

    def _emit(self, record: StreamRecord, kind: EventKind, **fields: object) -> None:
        if self._on_event is not None:
            client = record.client
            base = {"node": client.node, "cluster": client.cluster, "stream": record.stream.stream_id}
            self._on_event(XdsEvent(time=time.time(), kind=kind, protocol=record.protocol, **base, **fields))  # type: ignore[arg-type]
