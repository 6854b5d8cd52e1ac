"""One client's ADS stream: its subscriptions, and the order in which changes go out. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import count

import msgspec

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.subscription import Kind, Refusal, Request, Response, Subscription
from spliceway.xds.protocol.typeurls import TYPES


class Progress(msgspec.Struct, frozen=True):
    """How far a client is with a snapshot: (type URL, name) still to be acknowledged, and refused ones with why."""

    missing: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str, Refusal], ...]


class AdsStream:
    """The state of one aggregated stream. Nonces are unique within it, and carry its id to be foreign elsewhere."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        counter = count(1)
        self.subscriptions: dict[str, Subscription] = {
            url: Subscription(info, lambda: f"{stream_id}-{next(counter)}") for url, info in TYPES.items()
        }
        #: Type URLs that were asked for and aren't served -> how often. Such a request is counted and not answered:
        #: an error would have to end the stream, and with it the other types.
        self.unsupported: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<AdsStream {self.stream_id} {list(self.subscriptions.values())}>"

    def receive(self, request: Request) -> Kind:
        """Apply one request and say what it meant."""
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            self.unsupported[request.type_url] = self.unsupported.get(request.type_url, 0) + 1
            return Kind.UNSUPPORTED
        return subscription.receive(request)

    def responses(self, snapshot: Snapshot) -> list[Response]:
        """What is to be sent now, at most one response for each type.

        Make before break: nothing of a later type goes out while an earlier one is unanswered, and what others refer
        to (clusters) is withdrawn when the types after it have been answered. What a client has from an earlier stream
        is not known, and not kept.
        """
        due = []
        for url, subscription in self.subscriptions.items():
            keep = subscription.info.referenced and not self._settled_after(url, snapshot)
            response = subscription.due(snapshot.types[url], keep)
            if response is not None:
                due.append(response)
            if subscription.pending is not None:
                break
        return due

    def progress(self, snapshot: Snapshot, names: Mapping[str, Collection[str]] | None = None) -> Progress:
        """How far the client is with `snapshot`, or with those `names` (type URL -> names) of it."""
        missing: list[tuple[str, str]] = []
        refused: list[tuple[str, str, Refusal]] = []
        for url, subscription in self.subscriptions.items():
            held = snapshot.types[url]
            asked = None if names is None else names.get(url, ())
            missing += [(url, name) for name in subscription.missing(held) if asked is None or name in asked]
            if subscription.last_error is not None:
                error = subscription.last_error
                refused += [(url, n, error) for n in subscription.refused(held) if asked is None or n in asked]
        return Progress(tuple(missing), tuple(refused))

    def _settled_after(self, url: str, snapshot: Snapshot) -> bool:
        order = list(self.subscriptions)
        later = (self.subscriptions[other] for other in order[order.index(url) + 1 :])
        return all(
            subscription.pending is None
            and not any(map(subscription.wants, subscription.missing(snapshot.types[subscription.info.url])))
            for subscription in later
            if subscription.active
        )
