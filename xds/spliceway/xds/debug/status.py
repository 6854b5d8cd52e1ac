"""What was sent to whom and acknowledged, as values for people and programs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import msgspec

from spliceway.xds.protocol.ledger import Ledger, Refusal
from spliceway.xds.protocol.snapshot import Resource, Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.typeurls import TYPES

#: So many names that a client asks for are listed, and of resources that it says it has and that don't exist.
MAX_NAMES, MAX_OTHERS = 10_000, 1_000
_WORST = ("NACK", "STALE", "NOT SENT", "SYNCED")


class Client(msgspec.Struct, frozen=True):
    """How a client calls itself: node id and cluster, its name (`envoy`), version and features.

    `warning`: why this build should not enforce policy, empty when nothing is known against it.
    """

    node: str
    cluster: str
    agent: str
    version: str
    features: tuple[str, ...] = ()
    warning: str = ""


class ResourceStatus(msgspec.Struct, frozen=True):
    """One resource at one client. `state` is one of SYNCED, STALE, NACK, NOT SENT, as istioctl calls them.

    `version`, `sent`, `acked`: what it shall have, was sent, and has acknowledged. `size` in bytes. `error`: what
    the client said when it refused it.
    """

    name: str
    state: str
    version: str
    sent: str
    acked: str
    size: int = 0
    error: str = ""


class TypeStatus(msgspec.Struct, frozen=True):
    """One type at one client: last sent, last acknowledged and last refused are three things.

    `state`: the worst of its resources. `count`, `size`: how many the client shall have, and their bytes. `sent_at`,
    `acked_at`: CLOCK_REALTIME in seconds; `seconds`: from the last acknowledged change to its acknowledgement.
    """

    type: str
    type_url: str
    state: str
    wildcard: bool
    names: tuple[str, ...]
    sent_version: str
    sent_nonce: str
    acked_version: str
    acked_nonce: str
    waiting: bool
    last_error: Refusal | None
    resources: tuple[ResourceStatus, ...]
    count: int = 0
    size: int = 0
    pushes: int = 0
    acks: int = 0
    nacks: int = 0
    sent_at: float | None = None
    acked_at: float | None = None
    seconds: float | None = None


class ClientStatus(msgspec.Struct, frozen=True):
    """One stream. `since` is CLOCK_REALTIME in seconds; `current`: the newest stream of its node for that service.

    `service`: ADS, or the short name of the one type that the stream may ask for; `protocol`: `sotw` or `delta`.
    """

    client: Client
    stream: str
    since: float
    current: bool
    snapshot: str
    types: tuple[TypeStatus, ...]
    unsupported: dict[str, int]
    service: str = "ADS"
    protocol: str = "sotw"
    peer: str = ""


class Timing(msgspec.Struct):
    """What happened when, of one type on one stream: see TypeStatus. `began`: monotonic time of the pushed change."""

    pushes: int = 0
    acks: int = 0
    nacks: int = 0
    sent_at: float | None = None
    acked_at: float | None = None
    began: float = 0.0
    seconds: float | None = None


class StreamRecord(msgspec.Struct, frozen=True, eq=False):
    """A stream with what is known of its client. `opened`: monotonic seconds."""

    client: Client
    stream: AdsStream
    since: float
    service: str = "ADS"
    peer: str = ""
    opened: float = 0.0
    timings: dict[str, Timing] = msgspec.field(default_factory=lambda: {url: Timing() for url in TYPES})

    @property
    def protocol(self) -> str:
        """Which variant of the protocol is spoken."""
        return "delta" if self.stream.delta else "sotw"


class Held(msgspec.Struct, frozen=True):
    """A resource at a client. `resource` None: it says that it has it, in a version that is not from here."""

    name: str
    version: str
    resource: Resource | None


def client_status(
    record: StreamRecord, snapshot: Snapshot | None, current: bool, *, resources: bool = True
) -> ClientStatus:
    """Status of one stream against its node's snapshot; without `resources` only sums."""
    return ClientStatus(
        client=record.client,
        stream=record.stream.stream_id,
        since=record.since,
        current=current,
        snapshot=snapshot.version if snapshot else "",
        types=tuple(
            type_status(item, snapshot, record.timings[url], resources=resources)
            for url, item in record.stream.subscriptions.items()
            if item.active
        ),
        unsupported=dict(record.stream.unsupported),
        service=record.service,
        protocol=record.protocol,
        peer=record.peer,
    )


def held_of(resources: Mapping[str, Resource]) -> dict[str, Held]:
    """Resources as values for a dump."""
    return {
        name: Held(name, resource.version or resource.digest, resource if resource.version else None)
        for name, resource in resources.items()
    }


def type_status(
    subscription: Ledger, snapshot: Snapshot | None, timing: Timing, *, resources: bool = True
) -> TypeStatus:
    """Status of one type; without `resources` only sums, and no size: that costs nothing even for many clients."""
    last = subscription.last_sent
    found = _resources(subscription, snapshot) if resources else ()
    return TypeStatus(
        type=subscription.info.short,
        type_url=subscription.info.url,
        state=min((item.state for item in found), key=_WORST.index, default=_summary(subscription)),
        wildcard=subscription.wildcard,
        names=tuple(sorted(islice(subscription.names, MAX_NAMES))) if resources else (),
        sent_version=last.version if last else "",
        sent_nonce=last.nonce if last else "",
        acked_version=subscription.acked_version,
        acked_nonce=subscription.acked_nonce,
        waiting=subscription.pending is not None,
        last_error=subscription.last_error,
        resources=found,
        count=len(found) if resources else len(subscription.sent),
        size=sum(item.size for item in found),
        pushes=timing.pushes,
        acks=timing.acks,
        nacks=timing.nacks,
        sent_at=timing.sent_at,
        acked_at=timing.acked_at,
        seconds=timing.seconds,
    )


def _resources(subscription: Ledger, snapshot: Snapshot | None) -> tuple[ResourceStatus, ...]:
    held = snapshot.types[subscription.info.url].resources if snapshot else {}
    ours = held.keys() if subscription.wildcard else held.keys() & subscription.names
    others = (subscription.sent.keys() | subscription.acked.keys()) - held.keys()
    result = []
    for name in sorted({*ours, *islice(others, MAX_OTHERS)}):
        shall, sent, acked = held.get(name), subscription.sent.get(name), subscription.acked.get(name)
        refusal = subscription.rejected.get(name)
        refused = shall is not None and refusal is not None and refusal.version == shall.version
        result.append(
            ResourceStatus(
                name,
                _state(shall, sent, acked, refused=refused),
                shall.version if shall else "",
                (sent.version or sent.digest) if sent else "",
                (acked.version or acked.digest) if acked else "",
                len(shall.body) if shall else 0,
                refusal.message if refused and refusal else "",
            )
        )
    return tuple(result)


def _state(shall: Resource | None, sent: Resource | None, acked: Resource | None, *, refused: bool) -> str:
    if refused:
        return "NACK"
    if sent is None and acked is None:
        return "NOT SENT"
    return "SYNCED" if acked == shall else "STALE"


def _summary(subscription: Ledger) -> str:
    if subscription.rejected:
        return "NACK"
    if subscription.last_sent is None:
        return "NOT SENT"
    return "STALE" if subscription.pending is not None else "SYNCED"
