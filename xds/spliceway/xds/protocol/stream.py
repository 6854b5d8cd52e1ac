"""One client's stream: its subscriptions, and the order in which changes go out. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import count

import msgspec

from spliceway.xds.protocol.delta import DeltaRequest, DeltaSubscription
from spliceway.xds.protocol.ledger import Kind, Ledger, Refusal, Response
from spliceway.xds.protocol.references import no_endpoints
from spliceway.xds.protocol.snapshot import Resource, Snapshot, TypeSet
from spliceway.xds.protocol.subscription import Request, Subscription
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, TYPES

#: So many different type URLs that aren't served are remembered of one stream, and so many characters of each.
MAX_UNSUPPORTED, MAX_URL = 32, 200
_NEVER = float("inf")


class Progress(msgspec.Struct, frozen=True):
    """How far a client is with a snapshot: (type URL, name) still to be acknowledged, and refused ones with why."""

    missing: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str, Refusal], ...]


class AdsStream:
    """The state of one stream. Nonces are unique within it, and carry its id to be foreign elsewhere."""

    def __init__(
        self, stream_id: str, urls: Iterable[str] = tuple(TYPES), *, delta: bool = False, ttl: bool = False
    ) -> None:
        """`urls`: the types that the stream may ask for; `delta`: the incremental variant.

        `ttl`: the client can forget resources by itself, and wants to be reminded.
        """
        self.stream_id = stream_id
        self.delta = delta
        self.ttl = ttl
        counter = count(1)
        kind = DeltaSubscription if delta else Subscription
        self.subscriptions: dict[str, Ledger] = {
            url: kind(TYPES[url], lambda: f"{stream_id}-{next(counter)}", ttl=ttl) for url in urls
        }
        #: Type URLs that were asked for and aren't served -> how often. Such a request is counted and not answered:
        #: an error would have to end the stream, and with it the other types.
        self.unsupported: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<AdsStream {self.stream_id} {list(self.subscriptions.values())}>"

    def receive(self, request: Request | DeltaRequest) -> Kind:
        """Apply one request (of the stream's own variant) and say what it meant."""
        subscription = self.subscriptions.get(request.type_url)
        if isinstance(subscription, DeltaSubscription) and isinstance(request, DeltaRequest):
            return subscription.receive(request)
        if isinstance(subscription, Subscription) and isinstance(request, Request):
            return subscription.receive(request)
        url = request.type_url[:MAX_URL]
        if url in self.unsupported or len(self.unsupported) < MAX_UNSUPPORTED:
            self.unsupported[url] = self.unsupported.get(url, 0) + 1
        return Kind.UNSUPPORTED

    def responses(self, snapshot: Snapshot, now: float = 0.0) -> list[Response]:
        """What is to be sent now, at most one response for each type; `now` in seconds of a clock that never goes back.

        Make before break. The order is that of the types, but no type waits for the answer to another as a whole: Envoy
        answers clusters only when all of them have their endpoints and certificates. What sends traffic to a cluster
        waits until the client has that, and clusters are withdrawn when the types after them have been answered. What
        a client has from an earlier stream in the state-of-the-world variant is not known, and not kept.
        """
        due = []
        without: frozenset[str] = frozenset()
        for url, subscription in self.subscriptions.items():

            def keep(url: str = url) -> bool:
                return TYPES[url].referenced and not self._let_go(url, snapshot)

            response = subscription.due(self._held(url, snapshot), keep, now, without) or subscription.heartbeat(now)
            if response is not None:
                due.append(response)
            if url == CLUSTER:
                without = self._without(snapshot)
                if response is not None:
                    self._warm(response)
        return due

    def next_beat(self) -> float:
        """When there is something to say even if nothing changes; infinity for never."""
        return min(subscription.next_beat() for subscription in self.subscriptions.values()) if self.ttl else _NEVER

    def progress(
        self,
        snapshot: Snapshot,
        names: Mapping[str, Collection[str]] | None = None,
        urls: Collection[str] | None = None,
    ) -> Progress:
        """How far the client is with `snapshot`, with those `names` (type URL -> names) of it, with those types."""
        missing: list[tuple[str, str]] = []
        refused: list[tuple[str, str, Refusal]] = []
        for url, subscription in self.subscriptions.items():
            if urls is not None and url not in urls:
                continue
            held = snapshot.types[url]
            asked = None if names is None else names.get(url, ())
            missing += [(url, name) for name in subscription.missing(held) if asked is None or name in asked]
            if subscription.last_error is not None:
                error = subscription.last_error
                refused += [(url, n, error) for n in subscription.refused(held) if asked is None or n in asked]
        return Progress(tuple(missing), tuple(refused))

    def _without(self, snapshot: Snapshot) -> frozenset[str]:
        """Clusters that the client shall have and can't use yet, not even in an earlier version."""
        clusters = self.subscriptions[CLUSTER]
        if not clusters.active or (clusters.pending is None and not clusters.rejected):
            return frozenset()
        names = filter(clusters.wants, snapshot.types[CLUSTER].resources)
        return frozenset(name for name in names if not self._usable(clusters, name))

    def _usable(self, clusters: Ledger, name: str) -> bool:
        sent = clusters.sent.get(name)
        if sent is None or name in clusters.acked:
            return sent is not None  # otherwise it was withdrawn, and the client may not have read that yet
        if name in clusters.rejected:
            return False
        # A client reads in the order of the stream and answers late, Envoy only when the last of its clusters is ready.
        # So this one may be there already; that its endpoints were acknowledged says as much.
        endpoints = self.subscriptions.get(ENDPOINT)
        return sent.at_once and (
            not sent.endpoints or (endpoints is not None and all(map(endpoints.has, sent.endpoints)))
        )

    def _held(self, url: str, snapshot: Snapshot) -> TypeSet:
        """What there is of a type, and no endpoints for clusters that wait for some which don't exist.

        Envoy answers clusters only when all of them have their endpoints, and the state of the world has no way to say
        that there are none: one such cluster would stop every later change, also the one that takes it away.
        """
        held = snapshot.types[url]
        clusters, endpoints = self.subscriptions.get(CLUSTER), self.subscriptions[url]
        if url != ENDPOINT or not isinstance(endpoints, Subscription) or clusters is None or clusters.pending is None:
            return held
        names = {name for cluster in clusters.sent.values() for name in cluster.endpoints}
        # Not what it was given: a cluster that is about to go is in use with the endpoints that it has.
        absent = sorted(filter(endpoints.wants, names - held.resources.keys() - endpoints.given))
        if not absent:
            return held
        version = f"{held.version}+none"
        none = {name: Resource.of(ENDPOINT, name, version, no_endpoints(name)) for name in absent}
        return TypeSet(held.version, {**held.resources, **none})

    def _warm(self, response: Response) -> None:
        """A cluster that changed waits for its endpoints again, also if they are the same (go-control-plane 1001)."""
        endpoints = self.subscriptions.get(ENDPOINT)
        if endpoints is not None and not response.heartbeat:
            endpoints.forget(
                name for cluster in response.resources if cluster.name in response.changed for name in cluster.endpoints
            )

    def _let_go(self, url: str, snapshot: Snapshot) -> bool:
        """Whether the client needs no more of a type than the snapshot has: all that may refer to it is settled.

        That is every type after it, and for endpoints also the clusters.
        """
        order = list(self.subscriptions)
        others = [other for other in order if order.index(other) > order.index(url) or other == CLUSTER != url]
        return all(
            subscription.pending is None
            and not any(map(subscription.wants, subscription.missing(snapshot.types[subscription.info.url])))
            for subscription in map(self.subscriptions.__getitem__, others)
            if subscription.active
        )
