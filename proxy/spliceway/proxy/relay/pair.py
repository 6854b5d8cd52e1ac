"""A client's connection and the one to its server, as one thing that begins, times out and ends.

How it ends (docs/proxy.md, «How connections end»): a FIN is passed on as a FIN, whoever sends it, unless it cuts an
answer short: then the client gets a RST, as it does whenever bytes are lost.
"""

from __future__ import annotations

import errno
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from spliceway.policy.verdict import Reason
from spliceway.proxy.http.answers import answer
from spliceway.proxy.http.body import ChunkReader
from spliceway.proxy.http.head import Head, HeadError
from spliceway.proxy.http.response import ChunkFollower
from spliceway.proxy.relay import sockets
from spliceway.proxy.relay.end import End
from spliceway.proxy.relay.exchange import Ends, Exchange, shown
from spliceway.proxy.relay.states import LINGER, LOOK, MAX_HELD, NEVER, RELAYED, Answering, Asking

if TYPE_CHECKING:
    from spliceway.proxy.relay.relay import Relay, Served


class Pair(ABC):
    """What both directions share: the ends, the request that is under way, and how all of it is over."""

    __slots__ = (
        "_asked",
        "_busy",
        "_chunks",
        "_connect_since",
        "_exchange",
        "_follower",
        "_got",
        "_got_looked",
        "_held",
        "_held_since",
        "_last",
        "_left",
        "_looked",
        "_since",
        "_unanswered",
        "_up_local",
        "answering",
        "asking",
        "born",
        "down",
        "ends",
        "family",
        "relay",
        "served",
        "slot",
        "up",
    )

    def __init__(self, relay: Relay, served: Served, sock: socket.socket, ends: Ends) -> None:
        self.relay = relay
        self.served = served
        self.ends = ends
        self.family = sock.family
        self.slot = -1
        self.born = self._since = relay.loop.time()
        self.asking = Asking.HEAD
        self.answering = Answering.NONE
        self.up: End | None = None
        self._asked = False  # there was a request
        self._busy = False
        self._held = b""
        self._looked = 0
        self._held_since = 0.0
        self._got = b""
        self._got_looked = 0
        self._left = 0  # of the request's body
        self._unanswered = 0  # of the answer's body
        self._chunks: ChunkReader | None = None
        self._follower: ChunkFollower | None = None
        self._exchange: Exchange | None = None
        self._connect_since = NEVER
        self._up_local = ("", 0)
        self._last = False
        self.down = End(relay.poller, sock, self._on_down, self._on_down_drained, self._on_down_gone)
        relay.wheel.watch(self)

    def __repr__(self) -> str:
        return f"<Connection {self.ends.number} {self.asking.value}/{self.answering.value}>"

    def _read_on(self) -> None:
        """Read from the client, unless there is no room for what comes."""
        if self.asking is Asking.ASKED:
            room = len(self._held) <= MAX_HELD
        elif self.asking in RELAYED:
            room = self.up is None or not self.up.full
        elif self.asking is Asking.HEAD:
            room = not self.down.full
        else:
            room = self.asking is not Asking.CLOSED
        if room:
            self.down.resume()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._exchange is None

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent or understood. Whoever leaves some adds the connection to `relay.holding`."""
        return len(self._held) + len(self._got) + self.down.pending + (self.up.pending if self.up else 0)

    def described(self) -> dict[str, Any]:
        """It, for people."""
        exchange, ends = self._exchange, self.ends
        asked = f"{exchange.head.request.method.decode()} {shown(exchange.head.target)}" if exchange else ""
        return {
            "number": ends.number,
            "source": ends.source,
            "sourcePort": ends.source_port,
            "destination": ends.destination,
            "destinationPort": ends.destination_port,
            "listener": self.served.config.name,
            "asking": self.asking.value,
            "answering": self.answering.value,
            "request": asked,
            "seconds": round(self.relay.loop.time() - self.born, 3),
            "receivedBytes": self.down.received,
            "sentBytes": self.down.sent,
            "unsentBytes": self.down.pending,
        }

    def reset(self, why: Reason | None = None, details: str = "reset") -> None:
        """End it with a RST; `why` stands in the record of what was under way."""
        self._over(why, details, ("local_reset",))
        self._reset()

    def finish(self) -> None:
        """End it with a FIN if nothing is under way, else with a RST."""
        if self._exchange is None and self.asking in (Asking.HEAD, Asking.LINGER):
            self._finish()
        else:
            self._reset()

    def _over(self, reason: Reason | None, details: str, flags: tuple[str, ...] = ()) -> None:
        """The request that is under way, if any, is one no more."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        relay = self.relay
        relay.tally.rq_active -= 1
        if reason is not None:
            relay.tally.refused[reason] += 1
        decision = exchange.judged.decision
        plain = reason is None and not flags and not decision.reason.denies and not exchange.judged.mismatches
        if plain and not relay.sampled():
            return
        relay.record(
            exchange.record(
                self.ends, self.served.number, reason=reason, details=details, flags=flags, upstream=self._up_local
            )
        )

    def _finish(self) -> None:
        """Send what is unsent, then a FIN, and give the client a moment to read it before the socket is closed."""
        if self.asking is Asking.CLOSED:
            return
        self._over(None, "ended")
        self._drop_up(reset=self.asking in (Asking.BODY, Asking.CHUNKS))
        self._held = b""
        self.asking, self.answering = Asking.LINGER, Answering.NONE
        self.down.shut_down()
        if self.down.eof and self.down.shut:
            self._end()
            return
        # What still comes is read and thrown away: closing with unread bytes is a RST, which may overtake the answer.
        self.down.resume()
        self._since = self.relay.loop.time()
        self.relay.wheel.watch(self)

    def _end(self) -> None:
        """Nothing is left to be said."""
        if self.down.full:
            self.down.shut_down()
            self.asking, self.answering = Asking.LINGER, Answering.NONE
            self._drop_up()
            self._since = self.relay.loop.time()
            self.relay.wheel.watch(self)
            return
        if self.asking is Asking.TUNNEL:
            self._over(None, "via_upstream")
        self._over(None, "downstream_remote_disconnect", ("downstream_connection_termination",))
        self._drop_up()
        self._close(reset=False)

    def _reset(self) -> None:
        self._over(None, "reset", ("local_reset",))
        self._drop_up(reset=True)
        self._close(reset=True)

    def _close(self, *, reset: bool) -> None:
        if self.asking is Asking.CLOSED:
            return
        self.asking = Asking.CLOSED
        self.down.close(reset=reset)
        self.relay.gone(self)

    def _drop_up(self, *, reset: bool = False) -> None:
        up, self.up = self.up, None
        if up is not None:
            self._connect_since = NEVER
            self.relay.tally.up_active -= 1
            self.relay.tally.up_sent += up.sent
            up.close(reset=reset)
        self._up_local = ("", 0)

    def _say(self, status: int, body: bytes, head: Head) -> None:
        """An answer instead of the server's."""
        if status != 503 or self._last:
            self._last = True
        exchange = self._exchange
        sent = self._local(status, body, head=head.request.method == b"HEAD", close=self._last)
        if exchange is not None:
            exchange.sent += sent

    def _local(self, status: int, body: bytes, *, head: bool, close: bool) -> int:
        data = answer(status, body, close=close, head=head)
        self.relay.count_status(status)
        self.relay.tally.sent += len(data)
        self.down.write(data)
        return len(data)

    def _ends_now(self) -> bool:
        """Whether an answer must be the last, though nothing in it or its request says so. True: it will be."""
        if self.relay.draining:
            return True
        if self._aged():
            self.relay.tally.cx_aged += 1
            return True
        return False

    def _aged(self) -> bool:
        age = self.relay.limits.connection_age
        return age > 0 and self.relay.loop.time() - self.born > age

    def due(self) -> float:
        """When something is to be done."""
        relay, config = self.relay, self.served.config
        asking = self.asking
        if asking is Asking.CLOSED:
            return NEVER
        due = NEVER
        if self._connect_since != NEVER:
            due = self._connect_since + relay.cluster.connect_timeout
        if asking is Asking.LINGER:
            # A slow reader may take what it was sent as slowly as any other.
            return self._since + (relay.limits.body_idle or 3600.0 if self.down.full else LINGER)
        if asking is Asking.HEAD:
            if self._held and not self.down.full:
                return min(due, self._held_since + (self._head_patience() or NEVER))
            due = min(due, self._since + (config.idle_timeout or NEVER))
            if relay.limits.connection_age:
                due = min(due, self.born + relay.limits.connection_age)
        elif asking in (Asking.BODY, Asking.CHUNKS, Asking.SKIP):
            due = min(due, self._since + (relay.limits.body_idle or NEVER))
        elif asking is Asking.TUNNEL:
            due = min(due, self._since + (relay.limits.tunnel_idle or NEVER))
        elif self.down.eof:
            due = min(due, self._since + LOOK)
        return due

    def expire(self, now: float) -> None:
        """Something is due."""
        relay = self.relay
        if self._connect_since != NEVER and now >= self._connect_since + relay.cluster.connect_timeout:
            relay.tally.connect_timeout += 1
            self._drop_up()
            self._unconnected(errno.ETIMEDOUT)
        elif self.asking is Asking.LINGER:
            self._close(reset=self.down.full)
        elif self.asking is Asking.HEAD and self._held and not self.down.full:
            self._refuse(HeadError(408, Reason.HTTP_TIMEOUT, "the head did not come in time"), self._held)
        elif self.asking is Asking.HEAD:
            if self._aged():
                relay.tally.cx_aged += 1
            else:
                relay.tally.cx_idle += 1
            self._finish()
        elif self.asking in (Asking.BODY, Asking.CHUNKS) and self.up is not None and self.up.full:
            self._since = now  # it is the server that does not read
            relay.wheel.watch(self)
        elif self.asking in (Asking.BODY, Asking.CHUNKS):
            self._late_body()
        elif self.asking in (Asking.ASKED, Asking.REST) and not sockets.is_closed(self.down.sock):
            self._since = now
            relay.wheel.watch(self)
        else:
            self._over(None, "idle", ("stream_idle_timeout",))
            self._reset()

    def _late_body(self) -> None:
        exchange = self._exchange
        if exchange is None or self.answering is not Answering.HEAD:
            self._over(Reason.HTTP_TIMEOUT, "the body did not come in time")
            self._reset()
            return
        exchange.status = 408
        self._say(408, b"Request timeout", exchange.head)
        self._over(Reason.HTTP_TIMEOUT, "the body did not come in time")
        self._finish()

    @abstractmethod
    def _on_down(self) -> None:
        """Something can be read from the client."""

    @abstractmethod
    def _on_down_drained(self) -> None:
        """All that the client was sent has gone out."""

    @abstractmethod
    def _on_down_gone(self) -> None:
        """The client is not there any more."""

    @abstractmethod
    def _head_patience(self) -> float:
        """How long a head may take, in seconds; 0 for ever."""

    @abstractmethod
    def _refuse(self, error: HeadError, raw: bytes) -> None:
        """Refuse what is no request that a rule could be asked about."""

    @abstractmethod
    def _unconnected(self, code: int) -> None:
        """There is no way to the server."""
