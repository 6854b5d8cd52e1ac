"""One client's subscription to one resource type in the incremental variant (delta xDS). No I/O, no clock.

Sources: Envoy's xDS protocol page («Incremental xDS», «Subscribing to resources», «Resource removals»), the comments of
DeltaDiscoveryRequest and DeltaDiscoveryResponse, and the issues named beside the rules in docs/xds.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from spliceway.xds.protocol.ledger import WILDCARD, Kind, Ledger, Response
from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.typeurls import TypeInfo


class DeltaRequest(msgspec.Struct, frozen=True):
    """A DeltaDiscoveryRequest without its node.

    `initial`: name -> digest of what the client has from an earlier stream; counts in the first request of a type only.
    `error` is the message of `error_detail`, None when there is none.
    """

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial: Mapping[str, str] = {}
    nonce: str = ""
    error: str | None = None


#: (answers what is pending, has error_detail) -> meaning of a request that has a nonce.
ANSWERS: Mapping[tuple[bool, bool], Kind] = {
    (True, False): Kind.ACK,
    (True, True): Kind.NACK,
    (False, False): Kind.STALE,
    (False, True): Kind.STALE,
}


class DeltaSubscription(Ledger):
    """State of one type on one stream. What changes is subscribed to whatever the nonce says, also a stale one."""

    def __init__(self, info: TypeInfo, next_nonce: Callable[[], str], *, ttl: bool = False) -> None:
        super().__init__(info, next_nonce, ttl=ttl)
        # Names that the client must hear of, whatever it is thought to have.
        self._owed: set[str] = set()
        self._owed_all = False
        # The first wildcard request gets an answer even if there is nothing: the client waits for it.
        self._greet = False
        self._initial: Mapping[str, str] = {}
        # Names to be looked at, and the serial of the set up to which that is complete (0: look at all).
        self._dirty: set[str] = set()
        self._seen_serial = 0

    def receive(self, request: DeltaRequest) -> Kind:
        """Apply a request and say what it meant."""
        first, self._seen = not self._seen, True
        if first:
            self._begin(request)
            return Kind.INITIAL
        kind = Kind.SUBSCRIBE
        if request.nonce:
            pending = self.pending is not None and request.nonce == self.pending.nonce
            kind = ANSWERS[pending, request.error is not None]
            if pending:
                self._answered(request.error)
        self._change(request.subscribe, request.unsubscribe)
        return kind

    def has(self, name: str) -> bool:
        """Whether the client has acknowledged the last of that name that it was sent, and is to get no other soon."""
        return name not in self._owed and super().has(name)

    def forget(self, names: Iterable[str]) -> None:
        """Send these again, although nothing changed: the client has lost them."""
        again = {name for name in names if name in self.sent}
        self._owed |= again
        self._dirty |= again

    def _begin(self, request: DeltaRequest) -> None:
        # No names in the very first request is everything, as it was before there was a `*`.
        self.wildcard = WILDCARD in request.subscribe or (self.info.full_set and not request.subscribe)
        self._greet = self.wildcard
        self._initial = request.initial
        self._add(set(request.subscribe) - {WILDCARD})

    def _change(self, subscribe: tuple[str, ...], unsubscribe: tuple[str, ...]) -> None:
        for name in unsubscribe:
            self._leave(name)
        if WILDCARD in subscribe:
            self.wildcard = self._owed_all = self._greet = True
            self._seen_serial = 0
        self._add(set(subscribe) - {WILDCARD})

    def _add(self, names: set[str]) -> None:
        self.names |= names
        # «The server must still provide those resources»: the client may have forgotten them (Envoy issue 22418).
        self._owed |= names
        self._dirty |= names

    def _leave(self, name: str) -> None:
        if name == WILDCARD:
            self.wildcard = self._owed_all = self._greet = False
            self._unwanted()
        elif name in self.names:
            self.names.discard(name)
            if self.wildcard:
                # Still part of everything, or gone: the client can't know which, and has to be told.
                self._owed.add(name)
                self._dirty.add(name)
            else:
                self._lose(name)

    def _lose(self, name: str) -> None:
        super()._lose(name)
        self._owed.discard(name)
        self._alone.discard(name)

    def _unwanted(self) -> None:
        super()._unwanted()
        if not self.wildcard:
            self._owed &= self.names
            self._alone &= self.names

    def _acknowledge(self, pending: Response) -> None:
        super()._acknowledge(pending)
        if not self.wildcard:
            # It may have been unsubscribed from while it was on its way.
            for resource in pending.resources:
                if resource.name not in self.names:
                    self._lose(resource.name)

    def _blamed(
        self, pending: Response, fresh: dict[str, Resource], named: dict[str, Resource], message: str
    ) -> dict[str, Resource]:
        # Whether it has applied the others is not certain: its message may be cut, or something could not even be
        # decoded. And it doesn't note what it did: after a reconnect it would tell of what it had before. So all but
        # what it names is said once more, and counts when that is acknowledged.
        others = {*(fresh.keys() - named.keys()), *(filter(self.wants, pending.removed) if fresh else ())}
        self._owed |= others
        self._dirty |= others
        return named

    def _look(self, held: TypeSet) -> None:
        """Note which names may differ from what the client has."""
        if held.serial == self._seen_serial:
            return
        if self._seen_serial and held.base == self._seen_serial:
            self._dirty |= held.changed if self.wildcard else held.changed & self.names
        else:
            self._dirty |= (held.resources.keys() | self.sent.keys()) if self.wildcard else self.names
        if self._owed_all:
            self._owed |= held.resources.keys()
            self._owed_all = False
        self._seen_serial = held.serial

    def _recall(self, held: TypeSet) -> None:
        """Take over what the client says it has from an earlier stream, perhaps another agent's."""
        for name, digest in self._initial.items():
            if not self.wants(name):
                continue
            ours = held.resources.get(name)
            known = ours if ours is not None and ours.digest == digest else Resource.foreign(name, digest)
            self.sent[name] = self.acked[name] = known
            self._dirty.add(name)
        # How much of their time is gone nobody knows.
        self._schedule(self._initial, float("-inf"))
        self._initial = {}

    def _next(self, held: TypeSet, keep: Callable[[], bool], without: frozenset[str]) -> Response | None:
        if self._initial:
            self._recall(held)
        self._look(held)
        if not self._dirty and not self._greet:
            return None
        changed: list[Resource] = []
        gone: list[str] = []
        later: set[str] = set()
        for name in sorted(self._dirty):
            ours = held.resources.get(name)
            if not self.wants(name):
                continue
            if ours is None:
                if name in self.sent or name in self._owed:
                    gone.append(name)
            elif name in self._owed or self.sent.get(name) != ours:
                if ours.clusters.isdisjoint(without):
                    changed.append(ours)
                else:
                    later.add(name)
        if gone and keep():
            later |= {name for name in gone if name not in self._owed}
            gone = [name for name in gone if name in self._owed]
        chosen = self._batch(changed) if changed else []
        self._dirty = later | {resource.name for resource in changed} - {resource.name for resource in chosen}
        if not chosen and not gone and not self._greet:
            return None
        return self._response(held.version, chosen, gone)

    def _response(self, version: str, chosen: list[Resource], gone: list[str]) -> Response:
        new = frozenset(resource.name for resource in chosen if self.acked.get(resource.name) != resource)
        for resource in chosen:
            self.sent[resource.name] = resource
            self.rejected.pop(resource.name, None)
        for name in gone:
            self.sent.pop(name, None)
        self._owed -= {*gone, *(resource.name for resource in chosen)}
        self._greet = False
        return Response(self.info.url, version, self._next_nonce(), tuple(chosen), tuple(gone), new)
