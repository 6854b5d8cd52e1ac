"""What was sent to whom and acknowledged, as values for people and programs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
from google.protobuf.any_pb2 import Any
from google.protobuf.json_format import MessageToDict

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.stream import AdsStream
from spliceway.xds.protocol.subscription import Refusal, Subscription
from spliceway.xds.protocol.typeurls import TYPES

#: What `dump_resources` shows instead of a value of a Secret.
HIDDEN = "(secret)"


class Client(msgspec.Struct, frozen=True):
    """How a client calls itself: node id and cluster, its name (`envoy`) and version."""

    node: str
    cluster: str
    agent: str
    version: str


class ResourceStatus(msgspec.Struct, frozen=True):
    """One resource at one client. `state` is one of SYNCED, STALE, NACK, NOT SENT, as istioctl calls them."""

    name: str
    state: str
    version: str
    sent: str
    acked: str


class TypeStatus(msgspec.Struct, frozen=True):
    """One type at one client: last sent, last acknowledged and last refused are three things."""

    type: str
    type_url: str
    wildcard: bool
    names: tuple[str, ...]
    sent_version: str
    sent_nonce: str
    acked_version: str
    acked_nonce: str
    waiting: bool
    last_error: Refusal | None
    resources: tuple[ResourceStatus, ...]


class ClientStatus(msgspec.Struct, frozen=True):
    """One stream. `since` is CLOCK_REALTIME in seconds; `current`: the newest stream of its node."""

    client: Client
    stream: str
    since: float
    current: bool
    snapshot: str
    types: tuple[TypeStatus, ...]
    unsupported: dict[str, int]


class StreamRecord(msgspec.Struct, frozen=True):
    """A stream with what is known of its client."""

    client: Client
    stream: AdsStream
    since: float


def client_status(record: StreamRecord, snapshot: Snapshot | None, current: bool) -> ClientStatus:
    """Status of one stream against its node's snapshot."""
    return ClientStatus(
        client=record.client,
        stream=record.stream.stream_id,
        since=record.since,
        current=current,
        snapshot=snapshot.version if snapshot else "",
        types=tuple(_type_status(item, snapshot) for item in record.stream.subscriptions.values() if item.active),
        unsupported=dict(record.stream.unsupported),
    )


def dump_resources(
    snapshot: Snapshot, types: Collection[str] = (), names: Collection[str] = ()
) -> Iterable[dict[str, object]]:
    """Every resource as JSON: `type`, `name`, `version`, `resource`; only those short types and names, if given.

    Values of Secrets are replaced by `HIDDEN`.
    """
    for url, held in snapshot.types.items():
        if types and TYPES[url].short not in types:
            continue
        for resource in held.resources.values():
            if names and resource.name not in names:
                continue
            body = MessageToDict(Any(type_url=url, value=resource.body), preserving_proto_field_name=True)
            shown = _hide(body, snapshot.secrets.get(resource.name, frozenset()))
            yield {"type": TYPES[url].short, "name": resource.name, "version": resource.version, "resource": shown}


def _hide(value: object, secrets: frozenset[str]) -> object:
    if isinstance(value, dict) and secrets:
        return {key: _hide(item, secrets) for key, item in value.items()}
    if isinstance(value, list) and secrets:
        return [_hide(item, secrets) for item in value]
    return HIDDEN if isinstance(value, str) and value in secrets else value


def _type_status(subscription: Subscription, snapshot: Snapshot | None) -> TypeStatus:
    last = subscription.last_sent
    return TypeStatus(
        type=subscription.info.short,
        type_url=subscription.info.url,
        wildcard=subscription.wildcard,
        names=tuple(sorted(subscription.names)),
        sent_version=last.version if last else "",
        sent_nonce=last.nonce if last else "",
        acked_version=subscription.acked_version,
        acked_nonce=subscription.acked_nonce,
        waiting=subscription.pending is not None,
        last_error=subscription.last_error,
        resources=_resources(subscription, snapshot),
    )


def _resources(subscription: Subscription, snapshot: Snapshot | None) -> tuple[ResourceStatus, ...]:
    held = snapshot.types[subscription.info.url].resources if snapshot else {}
    wanted = sorted(name for name in held.keys() | subscription.sent.keys() if subscription.wants(name))
    result = []
    for name in wanted:
        version = held[name].version if name in held else ""
        sent = subscription.sent[name].version if name in subscription.sent else ""
        acked = subscription.acked.get(name, "")
        refused = subscription.rejected.get(name, "")
        result.append(ResourceStatus(name, _state(version, sent, acked, refused), version, sent, acked))
    return tuple(result)


def _state(version: str, sent: str, acked: str, refused: str) -> str:
    if refused and refused == version:
        return "NACK"
    if not sent:
        return "NOT SENT"
    return "SYNCED" if acked == version else "STALE"
