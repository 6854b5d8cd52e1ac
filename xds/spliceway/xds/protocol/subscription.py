"""One client's subscription to one resource type: the state-of-the-world ACK/NACK machine. No I/O, no clock.

Sources: Envoy's xDS protocol page («ACK/NACK and resource type instance version», «Subscribing to resources») and the
issues named beside the rules in docs/xds.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum

import msgspec

from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.typeurls import TypeInfo

WILDCARD = "*"


class Request(msgspec.Struct, frozen=True):
    """A DiscoveryRequest without its node. `error` is the message of `error_detail`, None when there is none."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None


class Response(msgspec.Struct, frozen=True):
    """A DiscoveryResponse to be sent."""

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...]


class Refusal(msgspec.Struct, frozen=True):
    """A NACK: what was refused (version and nonce of the response, names in it) and the client's message."""

    version: str
    nonce: str
    resources: tuple[str, ...]
    message: str


class Kind(Enum):
    """What a request means."""

    INITIAL = "initial"
    ACK = "ack"
    NACK = "nack"
    SUBSCRIBE = "subscribe"
    STALE = "stale"
    UNSUPPORTED = "unsupported"


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


class Subscription:
    """State of one type on one stream: last sent, last acknowledged and last refused are three things."""

    def __init__(self, info: TypeInfo, next_nonce: Callable[[], str]) -> None:
        self.info = info
        self.names: frozenset[str] = frozenset()
        self.wildcard = False
        self.sent: dict[str, Resource] = {}
        self.acked: dict[str, str] = {}
        self.rejected: dict[str, str] = {}
        self.last_sent: Response | None = None
        self.acked_version = ""
        self.acked_nonce = ""
        self.last_error: Refusal | None = None
        self.pending: Response | None = None
        self._next_nonce = next_nonce
        self._seen = False
        self._explicit = False
        # Names that came back refused together with others, and are now sent one by one to find the bad one.
        self._alone: set[str] = set()

    def __repr__(self) -> str:
        what = WILDCARD if self.wildcard else f"{len(self.names)} names"
        state = f"waiting for {self.pending.nonce}" if self.pending else "settled"
        return f"<Subscription {self.info.short} {what}, {state}, acked {self.acked_version!r}>"

    @property
    def active(self) -> bool:
        """Whether the client has asked for anything, ever, and still wants something."""
        return self._seen and (self.wildcard or bool(self.names))

    def wants(self, name: str) -> bool:
        """Whether the client subscribes to that name."""
        return self.wildcard or name in self.names

    def receive(self, request: Request) -> Kind:
        """Apply a request and say what it meant."""
        kind = KINDS[self._nonce(request.nonce), request.error is not None]
        self._seen = True
        if kind is Kind.STALE:
            return kind
        if kind is Kind.ACK:
            self._acknowledge()
        elif kind is Kind.NACK:
            self._refuse(request.error or "")
        self._subscribe(request.names)
        return kind

    def due(self, held: TypeSet, keep: bool = False) -> Response | None:
        """The next response, recorded as sent; None when one is outstanding or the client has everything.

        `keep`: what is gone from `held` but was sent stays for now, because others still refer to it.
        """
        if self.pending is not None or not self._seen:
            return None
        wanted = self._wanted(held)
        response = self._full(wanted, held.version, keep) if self.info.full_set else self._partial(wanted, held.version)
        if response is not None:
            self.pending = self.last_sent = response
        return response

    def missing(self, held: TypeSet) -> tuple[str, ...]:
        """Names whose state at the client is not known to be that of `held`: not acknowledged, or not yet removed.

        `*` stands for whatever the client may have kept from before.
        """
        target = {name: resource.version for name, resource in held.resources.items()}
        late = {name for name, version in target.items() if self.acked.get(name) != version}
        if self.info.full_set:
            late |= self.acked.keys() - target.keys()
            # Before the first answer nobody knows what the client still has from an earlier stream.
            late |= set() if self.acked_nonce else {WILDCARD}
        return tuple(sorted(late))

    def refused(self, held: TypeSet) -> tuple[str, ...]:
        """Names of `held` that the client has refused in this very version, and that won't be tried again."""
        if self.info.full_set and self._wanted(held) != self.sent:
            return ()
        return tuple(
            sorted(name for name, resource in held.resources.items() if self.rejected.get(name) == resource.version)
        )

    def _wanted(self, held: TypeSet) -> dict[str, Resource]:
        return {name: resource for name, resource in held.resources.items() if self.wants(name)}

    def _nonce(self, nonce: str) -> _Nonce:
        if not self._seen:
            return _Nonce.FIRST
        if self.last_sent is not None and nonce != self.last_sent.nonce:
            return _Nonce.OTHER
        return _Nonce.PENDING if self.pending else _Nonce.SETTLED

    def _acknowledge(self) -> None:
        assert self.pending is not None
        answered = {resource.name: resource.version for resource in self.pending.resources}
        if self.info.full_set:
            self.acked, self.rejected = answered, {}
        else:
            self.acked.update(answered)
            self.rejected = {name: version for name, version in self.rejected.items() if name not in answered}
        self.acked_version, self.acked_nonce = self.pending.version, self.pending.nonce
        self.pending = None

    def _refuse(self, message: str) -> None:
        assert self.pending is not None
        fresh = {r.name: r.version for r in self.pending.resources if self.acked.get(r.name) != r.version}
        if self.info.one_each and len(self.pending.resources) > 1:
            self._split(message)
            return
        if self.info.full_set:
            # Of a full set the client applies the good ones (Envoy issue 6024), and its message names the bad ones.
            named = {name: version for name, version in fresh.items() if _mentions(message, name)} or fresh
            self.acked.update({name: version for name, version in fresh.items() if name not in named})
            fresh = named
        self.rejected.update(fresh)
        self.last_error = Refusal(self.pending.version, self.pending.nonce, tuple(fresh), message)
        self.pending = None

    def _split(self, message: str) -> None:
        """After a NACK of several, of which one may have held back the rest: none is refused yet, each comes alone."""
        assert self.pending is not None
        together = {resource.name for resource in self.pending.resources}
        self._alone |= together
        self.sent = {name: resource for name, resource in self.sent.items() if name not in together}
        self.last_error = Refusal(self.pending.version, self.pending.nonce, (), message)
        self.pending = None

    def _subscribe(self, names: tuple[str, ...]) -> None:
        """Set what the client wants; forget what it no longer has, so that asking again is answered again."""
        explicit = frozenset(names) - {WILDCARD}
        # An empty list is «everything» only for full-set types, and only until the client has ever named something.
        self.wildcard = WILDCARD in names or (self.info.full_set and not names and not self._explicit)
        self._explicit = self._explicit or bool(names)
        self.names = explicit
        self.sent = {name: resource for name, resource in self.sent.items() if self.wants(name)}
        self.acked = {name: version for name, version in self.acked.items() if self.wants(name)}
        self.rejected = {name: version for name, version in self.rejected.items() if self.wants(name)}

    def _full(self, wanted: dict[str, Resource], version: str, keep: bool) -> Response | None:
        if keep and (kept := {name: old for name, old in self.sent.items() if name not in wanted}):
            wanted = kept | wanted
            version = f"{version}+kept"
        if self.last_sent is not None and wanted == self.sent:
            return None
        if not wanted and not self.active:
            return None
        self.sent, self.rejected = dict(wanted), {}
        return Response(self.info.url, version, self._next_nonce(), tuple(wanted.values()))

    def _partial(self, wanted: dict[str, Resource], version: str) -> Response | None:
        # What is gone is forgotten, so that it is sent again when it comes back. Nothing tells the client: in types
        # that aren't full sets, absence means nothing, and the resource that referred to it says so.
        for name in self.sent.keys() - wanted.keys():
            del self.sent[name]
            self.acked.pop(name, None)
            self.rejected.pop(name, None)
        self._alone &= wanted.keys()
        changed = [resource for name, resource in wanted.items() if self.sent.get(name) != resource]
        if not changed:
            return None
        if self.info.one_each:
            # What the client has nothing of may come together; what it has waits for nobody else's mistake.
            new = [r for r in changed if r.name not in self.acked and r.name not in self._alone]
            changed = new if len(new) > 1 else changed[:1]
            version = changed[0].version if len(changed) == 1 else version
            self._alone -= {resource.name for resource in changed}
        self.sent.update({resource.name: resource for resource in changed})
        return Response(self.info.url, version, self._next_nonce(), tuple(changed))


def _mentions(message: str, name: str) -> bool:
    """Whether the name stands in the message by itself: `rule-set-1` does not in `rule-set-12`."""
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", message) is not None
