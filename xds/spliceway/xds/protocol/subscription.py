"""One client's subscription to one resource type in the state-of-the-world variant. No I/O, no clock.

Sources: Envoy's xDS protocol page («Subscribing to resources», «How the client specifies what resources to return»)
and the issues named beside the rules in docs/xds.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum

import msgspec

from spliceway.xds.protocol.ledger import WILDCARD, Kind, Ledger, Response
from spliceway.xds.protocol.refusal import names_all
from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.typeurls import TypeInfo


class Request(msgspec.Struct, frozen=True):
    """A DiscoveryRequest without its node. `error` is the message of `error_detail`, None when there is none."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None


class _Nonce(Enum):
    """How a request's nonce relates to what was sent on this stream."""

    FIRST = "first request for the type: whatever it says comes from another stream"
    PENDING = "of the response that is still unanswered"
    SETTLED = "of the response that was already answered, or any while none was sent"
    OTHER = "of an earlier response, or not ours"


#: (nonce, has error_detail) -> meaning. A NACK is error_detail and nothing else; versions are not looked at.
KINDS: Mapping[tuple[_Nonce, bool], Kind] = {
    (_Nonce.FIRST, False): Kind.INITIAL,
    (_Nonce.FIRST, True): Kind.INITIAL,
    (_Nonce.PENDING, False): Kind.ACK,
    (_Nonce.PENDING, True): Kind.NACK,
    (_Nonce.SETTLED, False): Kind.SUBSCRIBE,
    (_Nonce.SETTLED, True): Kind.SUBSCRIBE,
    (_Nonce.OTHER, False): Kind.STALE,
    (_Nonce.OTHER, True): Kind.STALE,
}


class Subscription(Ledger):
    """State of one type on one stream."""

    def __init__(self, info: TypeInfo, next_nonce: Callable[[], str], *, ttl: bool = False) -> None:
        super().__init__(info, next_nonce, ttl=ttl)
        #: Names that the client asks for and has been sent on this stream, whether they still exist or not.
        self.given: set[str] = set()
        self._explicit = False

    def receive(self, request: Request) -> Kind:
        """Apply a request and say what it meant."""
        kind = KINDS[self._nonce(request.nonce), request.error is not None]
        self._seen = True
        if kind is Kind.STALE:
            return kind
        if kind in (Kind.ACK, Kind.NACK):
            self._answered(request.error)
        self._subscribe(request.names)
        return kind

    def forget(self, names: Iterable[str]) -> None:
        """Send these again, although nothing changed: the client has lost them."""
        for name in names:
            self.sent.pop(name, None)
            self.given.discard(name)

    def refused(self, held: TypeSet) -> tuple[str, ...]:
        """Names of `held` that the client has refused in this very version, and that won't be tried again."""
        if self.info.full_set and self.rejected and self._wanted(held) != self.sent:
            return ()
        return super().refused(held)

    def _wanted(self, held: TypeSet) -> dict[str, Resource]:
        if self.wildcard:
            return dict(held.resources)
        return {name: held.resources[name] for name in sorted(self.names & held.resources.keys())}

    def _nonce(self, nonce: str) -> _Nonce:
        if not self._seen:
            return _Nonce.FIRST
        if self.last_sent is not None and nonce != self.last_sent.nonce:
            return _Nonce.OTHER
        return _Nonce.PENDING if self.pending else _Nonce.SETTLED

    def _acknowledge(self, pending: Response) -> None:
        self._leave_out(pending)
        super()._acknowledge(pending)

    def _leave_out(self, pending: Response) -> None:
        """Forget what a whole set leaves out: it is gone."""
        if self.info.full_set and not pending.heartbeat:
            names = {resource.name for resource in pending.resources}
            for kept in (self.acked, self.rejected, self._beats):
                for name in kept.keys() - names:
                    kept.pop(name)

    def _blamed(
        self, pending: Response, fresh: dict[str, Resource], named: dict[str, Resource], message: str
    ) -> dict[str, Resource]:
        if not names_all(message):
            return fresh
        self._leave_out(pending)
        self.acked.update({name: resource for name, resource in fresh.items() if name not in named})
        return named

    def _subscribe(self, names: tuple[str, ...]) -> None:
        # An empty list is «everything» only for full-set types, and only until the client has ever named something.
        self.wildcard = WILDCARD in names or (self.info.full_set and not names and not self._explicit)
        self._explicit = self._explicit or bool(names)
        self.names = set(names) - {WILDCARD}
        if not self.wildcard:
            self.given &= self.names
        self._unwanted()

    def _reminder(self, resources: tuple[Resource, ...]) -> Response:
        if not self.info.full_set:
            return super()._reminder(resources)
        # «The server must include the complete state of the world»: Envoy takes reminders out of a response before it
        # looks at what is in the set, and deletes what isn't (seen in Envoy 1.40).
        whole = tuple(self.acked.values())
        return Response(self.info.url, self.acked_version, self._next_nonce(), whole, heartbeat=True)

    def _next(self, held: TypeSet, keep: Callable[[], bool], without: frozenset[str]) -> Response | None:
        wanted = self._wanted(held)
        if self.info.full_set:
            return self._full(wanted, held.version, keep, without)
        return self._partial(wanted, held.version, without)

    def _full(
        self, wanted: dict[str, Resource], version: str, keep: Callable[[], bool], without: frozenset[str]
    ) -> Response | None:
        gone = sorted(self.acked.keys() - wanted.keys())
        if gone and keep():
            # As the client has it, and not as it has refused it.
            wanted = {name: self.acked[name] for name in gone} | wanted
            version = f"{version}+kept"
        if self.last_sent is not None and wanted == self.sent:
            return None
        if not wanted and not self.active:
            return None
        if without:
            new = (resource for name, resource in wanted.items() if self.sent.get(name) != resource)
            if not all(resource.clusters.isdisjoint(without) for resource in new):
                return None
        # Not «what was not sent»: what was refused once may be accepted now that it comes again with others.
        changed = frozenset(name for name, resource in wanted.items() if self.acked.get(name) != resource)
        self.sent, self.rejected = wanted, {}
        return Response(self.info.url, version, self._next_nonce(), tuple(wanted.values()), changed=changed)

    def _partial(self, wanted: dict[str, Resource], version: str, without: frozenset[str]) -> Response | None:
        # What is gone is forgotten, so that it is sent again when it comes back. Nothing tells the client: in types
        # that aren't full sets, absence means nothing, and the resource that referred to it says so.
        for name in self.sent.keys() - wanted.keys():
            self._lose(name)
        self._alone &= wanted.keys()
        changed = [
            resource
            for name, resource in wanted.items()
            if self.sent.get(name) != resource and resource.clusters.isdisjoint(without)
        ]
        if not changed:
            return None
        chosen = self._batch(changed)
        version = chosen[0].version if len(chosen) == 1 else version
        self.sent.update({resource.name: resource for resource in chosen})
        names = frozenset(resource.name for resource in chosen)
        self.given |= names
        return Response(self.info.url, version, self._next_nonce(), tuple(chosen), changed=names)
