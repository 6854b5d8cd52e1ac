"""What nobody can be asked about, on a connection whose rules are all in audit: it goes on as it came, unread.

Audit denies nothing, and TLS, HTTP/2, protocols in which the server speaks first and requests that no proxy takes work
without a proxy. So from there on the connection is a tunnel, and its record says what would have been refused. A tunnel
begins only where every byte that was taken has been sent on or is still held. Bodies in chunks are written anew on
their way, so that a server's odd answer in the middle of one is still refused. Once rules are enforced again (the kill
switch goes off), such connections are reset: nobody knows what they carry.
"""

from __future__ import annotations

import re
from abc import abstractmethod

import msgspec

from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.http.head import HeadError
from spliceway.proxy.relay.end import End
from spliceway.proxy.relay.exchange import refusal
from spliceway.proxy.relay.pair import Pair
from spliceway.proxy.relay.states import Answering, Asking

#: How long a client may take for the first line of a request, in seconds; others wait for the server by then.
PATIENCE = 1.0
#: What may still become the first line of a request, or HTTP/2's, or TLS.
_MAY_BE = re.compile(
    rb"(?:\x16|[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: [^\x00-\x20\x7f]*"
    rb"(?: (?:H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[01]\r?)?)?|2(?:\.(?:0\r?)?)?)?)?)?)?)?)?)?)?)\Z"
)


class Passing(Pair):
    """See the module. A part of `Connection`."""

    __slots__ = ()

    @property
    def passes(self) -> bool:
        """Whether all of its rules are in audit."""
        judge = self.served.judge
        return judge is not None and not judge.enforces

    def greet(self) -> None:
        """Connect to the server before anything is asked, where that is what happens without a proxy: it may begin."""
        if self.passes:
            self._connect()

    def _no_request(self, held: bytes) -> bool:
        """Whether what came of a first line, in audit, can't become one: whoever sent it may wait for an answer."""
        return self.passes and b"\r\n" not in held and _MAY_BE.match(held) is None

    def _head_patience(self) -> float:
        """How long the head that is held may take, in seconds; 0 for ever."""
        if self.passes and b"\r\n" not in self._held:
            return PATIENCE
        return self.served.config.headers_timeout

    def _pass_on(self, error: HeadError, *unsent: bytes | memoryview, answer: bytes | memoryview = b"") -> None:
        """Go on as a tunnel. `unsent`: what of the client's bytes is not sent yet, before those that are held."""
        relay, exchange = self.relay, self._exchange
        relay.tally.audited += 1
        relay.tally.unread += 1
        relay.unread.add(self)
        if exchange is None:
            record = refusal(self.ends, self.served.number, error.reason, error.why, raw=self._held)
        else:
            self._exchange = None
            relay.tally.rq_active -= 1
            record = exchange.record(
                self.ends, self.served.number, reason=error.reason, details=error.why, upstream=self._up_local
            )
        relay.record(msgspec.structs.replace(record, verdict=Verdict.ALLOW))
        self.asking, self.answering = Asking.TUNNEL, Answering.TUNNEL
        self._chunks = self._follower = None
        self._got = b""
        self._since = relay.loop.time()
        held, self._held = self._held, b""
        if answer:
            self._to_client(answer)
        self._to_server(*unsent, *([held] if held else []))
        if self.asking is not Asking.TUNNEL:
            return  # there is no way to the server
        if self.down.eof:
            self._shut_up()
        else:
            self._read_on()
        if self.up is not None and self.up.eof:
            self.down.shut_down()
        relay.wheel.watch(self)

    def _answer_passes(self, why: str, data: bytes | memoryview) -> bool:
        """An answer that can't be relayed as one: whether it goes on unread. `data`: what is not sent yet of it."""
        # A body in chunks is not sent as it came, so that nothing could follow it as it comes.
        if not self.passes or self.asking not in (Asking.ASKED, Asking.BODY):
            return False
        self._pass_on(HeadError(0, Reason.HTTP_MALFORMED, f"the answer: {why}"), answer=data)
        return True

    @abstractmethod
    def _connect(self) -> End | None:
        """Begin to connect to the server; None when that failed at once, and is told."""

    @abstractmethod
    def _to_server(self, *pieces: bytes | memoryview) -> None:
        """Send on what the client has sent."""

    @abstractmethod
    def _to_client(self, data: bytes | memoryview) -> None:
        """Send on what the server has sent."""

    @abstractmethod
    def _shut_up(self) -> None:
        """Pass on that the client sends no more."""
