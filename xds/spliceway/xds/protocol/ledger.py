"""What one client was sent of one type, what it acknowledged and what it refused: common to both protocol variants.

Last sent, last acknowledged and last refused are three things. No I/O; times are given, in seconds of any clock.
Sources: Envoy's xDS protocol page («ACK/NACK and resource type instance version», «Time to live»), and the issues named
beside the rules in docs/xds.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

import msgspec

from spliceway.xds.protocol.refusal import LOOKED_AT, about, mentions, shown_message, without_secrets
from spliceway.xds.protocol.snapshot import Resource, TypeSet
from spliceway.xds.protocol.typeurls import TypeInfo

WILDCARD = "*"
_NEVER = float("inf")


class Response(msgspec.Struct, frozen=True):
    """A response to be sent. `removed` is of the incremental variant.

    `changed`: names of `resources` whose content is new for the client. `heartbeat`: the client has these already and
    is only told that they are still there; `bare`: without their content.
    """

    type_url: str
    version: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()
    changed: frozenset[str] = frozenset()
    heartbeat: bool = False
    bare: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """A NACK: what was refused (version and nonce of the response, names in it) and the client's message."""

    version: str
    nonce: str
    resources: tuple[str, ...]
    message: str


class Rejected(msgspec.Struct, frozen=True):
    """A resource that the client refused: its version, and what the client said."""

    version: str
    message: str


class Kind(Enum):
    """What a request means."""

    INITIAL = "initial"
    ACK = "ack"
    NACK = "nack"
    SUBSCRIBE = "subscribe"
    STALE = "stale"
    UNSUPPORTED = "unsupported"


class Ledger:
    """State of one type on one stream."""

    def __init__(self, info: TypeInfo, next_nonce: Callable[[], str], *, ttl: bool = False) -> None:
        """`ttl`: the client can forget resources by itself, so that it needs heartbeats."""
        self.info = info
        self.names: set[str] = set()
        self.wildcard = False
        #: The last of each name that the client was sent, or says it has.
        self.sent: dict[str, Resource] = {}
        self.acked: dict[str, Resource] = {}
        #: What the client refused, and what won't be tried again.
        self.rejected: dict[str, Rejected] = {}
        self.last_sent: Response | None = None
        self.acked_version = ""
        self.acked_nonce = ""
        self.last_error: Refusal | None = None
        self.pending: Response | None = None
        self._next_nonce = next_nonce
        self._ttl = ttl
        self._seen = False
        # Names that came back refused together with others, and are now sent one by one to find the bad one.
        self._alone: set[str] = set()
        # The last edit that was sent alone: those after it have their turn.
        self._turn = ""
        # Name -> when the client has to hear of it again, of what it has acknowledged.
        self._beats: dict[str, float] = {}
        self._pushed_at = 0.0

    def __repr__(self) -> str:
        what = WILDCARD if self.wildcard else f"{len(self.names)} names"
        state = f"waiting for {self.pending.nonce}" if self.pending else "settled"
        return f"<{type(self).__name__} {self.info.short} {what}, {state}, acked {self.acked_version!r}>"

    @property
    def active(self) -> bool:
        """Whether the client has asked for anything, ever, and still wants something."""
        return self._seen and (self.wildcard or bool(self.names))

    @property
    def seen(self) -> bool:
        """Whether there was any request for the type."""
        return self._seen

    def wants(self, name: str) -> bool:
        """Whether the client subscribes to that name."""
        return self.wildcard or name in self.names

    def has(self, name: str) -> bool:
        """Whether the client has acknowledged the last of that name that it was sent, and is to get no other soon."""
        sent = self.sent.get(name)
        pending = self.pending.resources if self.pending is not None else ()
        return sent is not None and self.acked.get(name) == sent and all(other.name != name for other in pending)

    def due(
        self,
        held: TypeSet,
        keep: Callable[[], bool] = lambda: False,
        now: float = 0.0,
        without: frozenset[str] = frozenset(),
    ) -> Response | None:
        """The next response, recorded as sent; None when one is outstanding or the client has everything.

        `keep`: whether what is gone from `held` but was sent stays for now, because others still refer to it.
        `without`: clusters that the client has not got yet; what sends traffic there waits for them.
        """
        if self.pending is not None or not self._seen:
            return None
        response = self._next(held, keep, without)
        if response is not None:
            self._pushed(response, now)
        return response

    def heartbeat(self, now: float) -> Response | None:
        """What the client has to be reminded of before it forgets it, recorded as sent."""
        if not self._beats or self.pending is not None or self.next_beat() > now:
            return None
        due = [name for name, at in self._beats.items() if at <= now]
        for name in due:
            del self._beats[name]
        resources = tuple(self.acked[name] for name in due if name in self.acked)
        if not resources:
            return None
        response = self._reminder(resources)
        self._pushed(response, now)
        return response

    def next_beat(self) -> float:
        """When `heartbeat` has something to say at the earliest; infinity for never."""
        return min(self._beats.values()) if self._beats else _NEVER

    def forget(self, names: Iterable[str]) -> None:
        """Send these again, although nothing changed: the client has lost them."""
        raise NotImplementedError

    def missing(self, held: TypeSet) -> tuple[str, ...]:
        """Names whose state at the client is not known to be that of `held`: not acknowledged, or not yet removed.

        `*` stands for whatever the client may have kept from before.
        """
        acked = self.acked
        late = {name for name, resource in held.resources.items() if acked.get(name) != resource}
        if self.info.full_set:
            late |= acked.keys() - held.resources.keys()
            # Before the first answer nobody knows what the client still has from an earlier stream.
            late |= set() if self.acked_nonce else {WILDCARD}
        return tuple(sorted(late))

    def refused(self, held: TypeSet) -> tuple[str, ...]:
        """Names of `held` that the client has refused in this very version, and that won't be tried again."""
        return tuple(
            sorted(
                name
                for name, refusal in self.rejected.items()
                if (resource := held.resources.get(name)) is not None and resource.version == refusal.version
            )
        )

    def _next(self, held: TypeSet, keep: Callable[[], bool], without: frozenset[str]) -> Response | None:
        raise NotImplementedError

    def _reminder(self, resources: tuple[Resource, ...]) -> Response:
        """Of what the client has, without the content and in the version that it acknowledged."""
        return Response(self.info.url, self.acked_version, self._next_nonce(), resources, heartbeat=True, bare=True)

    def _pushed(self, response: Response, now: float) -> None:
        self.pending = self.last_sent = response
        self._pushed_at = now

    def _schedule(self, names: Iterable[str], since: float, *, again: bool = True) -> None:
        """Plan when the client has to hear of these; `again`: also of those for which there is a plan."""
        for name in names if self._ttl else ():
            held = self.acked.get(name)
            if held is None or held.ttl is None:
                self._beats.pop(name, None)
            elif again or name not in self._beats:
                self._beats[name] = since + held.ttl / 2

    def _batch(self, changed: list[Resource]) -> list[Resource]:
        """Which of these go into one response, so that a refusal of one doesn't hold back others.

        What the client has nothing of, or this very content, may come together; what it has otherwise, and lives by,
        comes first and alone where the type asks for that. One that changes all the time is not sent twice before the
        others had their turn.
        """
        if self.info.full_set or len(changed) == 1:
            if self._alone:
                self._alone -= {resource.name for resource in changed}
            self._turn = ""
            return changed
        edited = [r for r in changed if self._edits(r)] if self.info.one_each else []
        other = [r for r in changed if not self._edits(r)] if edited else changed
        together = [r for r in other if r.name not in self._alone]
        chosen = [r for r in edited if r.name > self._turn][:1] or together or other[:1] or edited[:1]
        self._turn = chosen[0].name if edited and self._edits(chosen[0]) else ""
        self._alone -= {resource.name for resource in chosen}
        return chosen

    def _edits(self, resource: Resource) -> bool:
        return self.acked.get(resource.name, resource) != resource

    def _answered(self, message: str | None) -> None:
        """Take in the client's answer to what is pending; `message`: why it refuses, None for an ACK."""
        pending = self.pending
        assert pending is not None
        if message is None:
            self._acknowledge(pending)
        else:
            self._refuse(pending, message)
        self._schedule((resource.name for resource in pending.resources), self._pushed_at, again=message is None)
        self.pending = None

    def _acknowledge(self, pending: Response) -> None:
        if not pending.heartbeat:
            for resource in pending.resources:
                self.rejected.pop(resource.name, None)
                self.acked[resource.name] = resource
            self._dropped(pending)
        self.acked_version, self.acked_nonce = pending.version, pending.nonce

    def _refuse(self, pending: Response, message: str) -> None:
        if pending.heartbeat:
            self.last_error = Refusal(pending.version, pending.nonce, (), shown_message(message, _secrets(pending)))
            return
        # What is withdrawn is not what a client refuses.
        self._dropped(pending)
        fresh = {r.name: r for r in pending.resources if self.acked.get(r.name) != r and self.wants(r.name)}
        if len(pending.resources) > 1 and not self.info.full_set:
            self._split(pending, message)
            return
        readable = len(message) * len(fresh) <= LOOKED_AT
        if self.info.full_set and readable:
            # Of these the client applies the good ones (Envoy issue 6024), and its message names the bad ones.
            named = {name: resource for name, resource in fresh.items() if mentions(message, name)} or fresh
            fresh = self._blamed(pending, fresh, named, message)
        shown = shown_message(message, _secrets(pending))
        hidden = without_secrets(message, _secrets(pending)) if readable else shown
        self.rejected.update({name: Rejected(held.version, about(hidden, name)) for name, held in fresh.items()})
        self.last_error = Refusal(pending.version, pending.nonce, tuple(fresh), shown)

    def _blamed(
        self, pending: Response, fresh: dict[str, Resource], named: dict[str, Resource], message: str
    ) -> dict[str, Resource]:
        """What counts as refused of a full-set type; `named`: those of the `fresh` ones that are in the message."""
        raise NotImplementedError

    def _dropped(self, pending: Response) -> None:
        """Forget what the client no longer has after this response."""
        for name in pending.removed:
            self.acked.pop(name, None)
            self.rejected.pop(name, None)
            self._beats.pop(name, None)

    def _split(self, pending: Response, message: str) -> None:
        """After a NACK of several, of which one may have held back the rest: none is refused yet, each comes alone."""
        together = {resource.name for resource in pending.resources}
        self._alone |= together
        self.forget(together)
        self.last_error = Refusal(pending.version, pending.nonce, (), shown_message(message, _secrets(pending)))

    def _unwanted(self) -> None:
        """Forget what the client no longer subscribes to, so that asking again is answered again."""
        if self.wildcard:
            return
        for name in (self.sent.keys() | self.acked.keys() | self.rejected.keys()) - self.names:
            self._lose(name)

    def _lose(self, name: str) -> None:
        self.sent.pop(name, None)
        self.acked.pop(name, None)
        self.rejected.pop(name, None)
        self._beats.pop(name, None)


def _secrets(response: Response) -> set[str]:
    return {text for resource in response.resources for text in resource.secrets if text}
