"""A client's connection, and the one to its server: the same pair from the first request to the end.

Requests are taken one after another; a pipelined one waits until the answer before it has been relayed. Two machines
run side by side: `asking` is where the client's bytes are, `answering` where the server's are.

    asking      HEAD → BODY | CHUNKS → ASKED → HEAD …      SKIP: the body of a denied request      LINGER: the end
    answering   NONE → HEAD → BODY | CHUNKS | TO_END → NONE …      both: TUNNEL after an upgrade

What happens at the ends (docs/proxy.md, «How connections end»): a FIN is passed on as a FIN, whoever sends it, unless
it cuts an answer short: then the client gets a RST, as it does whenever bytes are lost.
"""

from __future__ import annotations

import errno
import os
import socket
from enum import Enum
from typing import TYPE_CHECKING, Any

from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.http.answers import answer
from spliceway.proxy.http.body import ChunkError, ChunkReader
from spliceway.proxy.http.decision import Judged
from spliceway.proxy.http.head import CHUNKED, Head, HeadError, bare_line_feed
from spliceway.proxy.http.response import (
    ChunkFollower,
    Framing,
    ResponseError,
    ResponseHead,
    head_end,
    read_response,
    with_close,
)
from spliceway.proxy.relay import sockets
from spliceway.proxy.relay.end import NOTHING, VIEW, End
from spliceway.proxy.relay.exchange import Ends, Exchange, refusal, shown

if TYPE_CHECKING:
    from spliceway.proxy.relay.relay import Relay, Served

#: Bytes of pipelined requests that wait for their turn; then the client must wait, too.
MAX_HELD = 65536
#: The longest body of a denied request that is read and thrown away to keep the connection.
MAX_SKIPPED = 65536
#: How long a client may still send, after our FIN, what is thrown away: seconds.
LINGER = 2.0
#: How often a client that has half-closed is looked at while it waits for an answer: seconds.
_LOOK = 5.0
_NEVER = float("inf")
_PREFACE = b"PRI * HTTP/2.0\r\n"


class Asking(Enum):
    """Where the client's bytes are."""

    HEAD = "head"
    BODY = "body"
    CHUNKS = "chunks"
    ASKED = "asked"
    SKIP = "skip"
    TUNNEL = "tunnel"
    LINGER = "linger"
    CLOSED = "closed"


class Answering(Enum):
    """Where the server's bytes are."""

    NONE = "none"
    HEAD = "head"
    BODY = "body"
    CHUNKS = "chunks"
    TO_END = "to the end"
    TUNNEL = "tunnel"


class Connection:
    """See the module. Made by `Relay` for an accepted socket."""

    __slots__ = (
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
        self._connect_since = _NEVER
        self._up_local = ("", 0)
        self._last = False
        self.down = End(relay.loop, sock, self._on_down, self._on_down_drained, self._on_down_gone)
        self.down.resume()
        relay.wheel.watch(self)

    def __repr__(self) -> str:
        return f"<Connection {self.ends.number} {self.asking.value}/{self.answering.value}>"

    # The client's bytes.

    def _on_down(self) -> None:
        try:
            count = self.down.read()
        except OSError:
            self._on_down_gone()
            return
        try:
            if count > 0:
                self.relay.tally.received += count
                self._take(VIEW[:count])
            elif count != NOTHING:
                self._on_down_eof()
        except Exception as error:
            self.relay.on_error(self, error)

    def _take(self, data: memoryview) -> None:
        asking = self.asking
        if asking is Asking.HEAD:
            if not self._held:
                self._held_since = self.relay.loop.time()
            self._held += data
            self._next()
        elif asking is Asking.BODY or asking is Asking.CHUNKS:
            self._body(data)
        elif asking is Asking.ASKED:
            self._hold(data)
        elif asking is Asking.TUNNEL:
            assert self.up is not None
            self._since = self.relay.loop.time()
            self._to_server(data)
        elif asking is Asking.SKIP:
            self._held = self._skip(data)
            self._next()

    def _hold(self, data: memoryview | bytes) -> None:
        """Keep what belongs to the next request."""
        if data:
            self._held += data
            if len(self._held) > MAX_HELD:
                self.down.pause()

    def _next(self) -> None:
        """Take up requests from what is held, until one is under way or more bytes are needed."""
        if self._busy:
            return  # the loop below goes on with it: thousands of small requests may come at once
        self._busy = True
        try:
            self._take_up()
        finally:
            self._busy = False

    def _take_up(self) -> None:
        while self.asking is Asking.HEAD and self._held:
            held = self._held
            end = held.find(b"\r\n\r\n", self._looked)
            if end < 0:
                self._incomplete(held)
                return
            self._looked = 0
            raw, self._held = held[: end + 4], held[end + 4 :]
            self._held_since = self.relay.loop.time()
            self._begin(raw)
            if self._held and (self.asking is Asking.BODY or self.asking is Asking.CHUNKS):
                body, self._held = self._held, b""
                self._body(memoryview(body))
            elif self._held and self.asking is Asking.SKIP:
                self._held = self._skip(memoryview(self._held))

    def _incomplete(self, held: bytes) -> None:
        """What of a head that has not ended yet tells already that it will be refused."""
        most = self.served.config.max_head_bytes
        if held.startswith(b"\x16\x03"):
            self._refuse(HeadError(0, Reason.HTTP_TLS, "TLS: the rules are for plain HTTP"), held)
        elif bare_line_feed(held):
            self._refuse(HeadError(400, Reason.HTTP_MALFORMED, "a line that ends in LF alone"), held)
        elif len(held) >= most:
            self._refuse(HeadError(431, Reason.HTTP_HEAD_TOO_LARGE, f"a head of more than {most} bytes"), held)
        else:
            self._looked = max(0, len(held) - 3)
            if self.down.eof:
                self._end()  # the client has given up in the middle of a head
            elif self.slot < 0 or self._looked:
                self.relay.wheel.watch(self)

    def _begin(self, raw: bytes) -> None:
        """Judge one request, and send it on or answer it."""
        relay, served = self.relay, self.served
        judge = served.judge
        if judge is None:
            self._reset()  # its listener has gone
            return
        relay.tally.rq += 1
        try:
            head = relay.head(raw, served.config)
        except HeadError as error:
            self._refuse(error, raw)
            return
        judged = judge.judge(head)
        if judged.decision.verdict is Verdict.DENY:
            self._deny(head, judged)
            return
        relay.tally.allowed += 1
        relay.tally.rq_active += 1
        if judged.decision.reason.denies:
            relay.tally.audited += 1
        self._exchange = Exchange(head, judged)
        self._last = self._last or head.close
        if head.length == CHUNKED:
            self.asking, self._chunks = Asking.CHUNKS, ChunkReader()
        elif head.length:
            self.asking, self._left = Asking.BODY, head.length
        else:
            self.asking = Asking.ASKED
        self.answering = Answering.HEAD
        if self.asking is not Asking.ASKED:
            self._since = relay.loop.time()
            relay.wheel.watch(self)
        self._to_server(judged.forward)
        if self.down.eof:
            self._pass_on_eof()

    def _body(self, data: memoryview) -> None:
        """Bytes of the request's body, and perhaps of the next request."""
        self._since = self.relay.loop.time()
        if self.asking is Asking.BODY:
            used = min(len(data), self._left)
            self._left -= used
            done = not self._left
            self._to_server(data[:used])
        else:
            pieces: list[bytes | memoryview] = []
            assert self._chunks is not None
            try:
                used = self._chunks.feed(data, pieces)
            except ChunkError as error:
                self._bad_body(str(error))
                return
            done = self._chunks.done
            self._to_server(*pieces)
        if self._exchange is not None:
            self._exchange.received += used
        if done and self.asking in (Asking.BODY, Asking.CHUNKS):
            self._chunks = None
            self.asking = Asking.ASKED
            if used < len(data):
                self._hold(bytes(data[used:]))
            if self.answering is Answering.NONE:
                self._cycle()  # the answer came before the end of the body
            elif self.down.eof:
                self._pass_on_eof()

    def _bad_body(self, why: str) -> None:
        """Chunks that can be read in two ways: the server has had what came before, and must see that it is cut."""
        exchange = self._exchange
        self._drop_up()
        if self.answering is Answering.HEAD and exchange is not None:
            exchange.status = 400
            self._say(400, b"Bad request", exchange.head)
            self._over(Reason.HTTP_MALFORMED, f"the body: {why}")
            self._finish()
        else:
            self._over(Reason.HTTP_MALFORMED, f"the body: {why}")
            self._reset()

    def _skip(self, data: memoryview) -> bytes:
        """Throw away the body of a denied request; what comes after it."""
        used = min(len(data), self._left)
        self._left -= used
        if not self._left:
            self.asking = Asking.HEAD
            self._idle()
        return bytes(data[used:])

    def _on_down_eof(self) -> None:
        if self.asking in (Asking.LINGER, Asking.SKIP, Asking.CLOSED):
            self._end()
        elif self.asking is Asking.HEAD and not self._exchange:
            self._end()  # between requests, or in the middle of a head
        elif self.asking is Asking.TUNNEL:
            self._shut_up()
            if self.up is not None and self.up.eof:
                self._end()
        else:
            self._pass_on_eof()
            self._since = self.relay.loop.time()
            self.relay.wheel.watch(self)

    def _pass_on_eof(self) -> None:
        """The client sends no more: the server shall know once it has the last request."""
        if self.asking in (Asking.BODY, Asking.CHUNKS) or not self._held:
            self._shut_up()

    def _shut_up(self) -> None:
        if self.up is not None:
            self.up.shut_down()

    def _on_down_gone(self) -> None:
        """The client has reset the connection, or is not there any more."""
        self._over(None, "downstream_remote_disconnect", ("downstream_connection_termination",))
        self._reset()

    def _on_down_drained(self) -> None:
        if self.asking is Asking.LINGER:
            if self.down.eof:
                self._close(reset=False)
            else:
                self._since = self.relay.loop.time()
                self.relay.wheel.watch(self)
            return
        if self.up is not None:
            self.up.resume()
        if self.asking is Asking.ASKED and self.answering is Answering.NONE:
            self._cycle()

    # To the server.

    def _to_server(self, *pieces: bytes | memoryview) -> None:
        up = self.up
        if up is None:
            up = self._connect()
            if up is None:
                return
        if self._exchange is not None:
            self._exchange.up_sent += sum(map(len, pieces))
        if len(pieces) == 1:
            up.write(pieces[0])
        elif pieces:
            up.write_pieces(pieces)
        if up.full and self.asking is not Asking.ASKED:
            self.down.pause()

    def _connect(self) -> End | None:
        relay, ends = self.relay, self.ends
        try:
            sock = sockets.upstream(self.family, ends.source, self.served.config.upstream_mark)
        except OSError as error:
            self._unconnected(error.errno or 0)
            return None
        code = sock.connect_ex((ends.destination, ends.destination_port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._unconnected(code)
            return None
        self.up = up = End(relay.loop, sock, self._on_up, self._on_up_drained, self._on_up_broken, connecting=True)
        relay.tally.up_active += 1
        relay.loop.add_writer(sock.fileno(), self._on_connected)
        self._connect_since = relay.loop.time()
        relay.wheel.watch(self)
        return up

    def _on_connected(self) -> None:
        up, relay = self.up, self.relay
        if up is None:
            return
        relay.loop.remove_writer(up.sock.fileno())
        code = up.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._connect_since = _NEVER
        if code:
            self._drop_up()
            self._unconnected(code)
            return
        relay.tally.connected += 1
        self._up_local = up.sock.getsockname()[:2]
        up.connected()
        up.resume()
        if not up.full:
            self._on_up_drained()

    def _unconnected(self, code: int) -> None:
        """There is no way to the server: the client has a connection already, so that it gets an answer."""
        tally = self.relay.tally
        tally.connect_failed += 1
        if code == errno.EADDRNOTAVAIL:
            tally.no_port += 1
        why = "timed out" if code == errno.ETIMEDOUT else os.strerror(code)
        exchange = self._exchange
        if exchange is None:
            self._reset()
            return
        exchange.status = 503
        self._last = self._last or self.asking is not Asking.ASKED
        self._say(503, b"Upstream connection failed: %b" % why.encode(), exchange.head)
        self.answering = Answering.NONE
        self._over(None, f"upstream_connect_failed[{why}]", ("upstream_connection_failure",))
        if self._last:
            self._finish()
        else:
            self._cycle()

    def _on_up_drained(self) -> None:
        if not self.down.eof and len(self._held) <= MAX_HELD and self.asking is not Asking.CLOSED:
            self._since = self.relay.loop.time()
            self.down.resume()

    # The server's bytes.

    def _on_up(self) -> None:
        up = self.up
        assert up is not None
        try:
            count = up.read()
        except OSError:
            self._on_up_gone()
            return
        try:
            if count > 0:
                self.relay.tally.up_received += count
                self._took(VIEW[:count])
            elif count != NOTHING:
                self._on_up_eof()
        except Exception as error:
            self.relay.on_error(self, error)

    def _took(self, data: memoryview) -> None:
        answering = self.answering
        if self._exchange is not None:
            self._exchange.up_received += len(data)
        if answering is Answering.HEAD:
            self._answer_heads(bytes(data) if not self._got else self._got + data)
        elif answering is Answering.NONE:
            # Nobody has asked: whatever it is, the client must not take it for an answer to its next request.
            self._finish()
        elif answering is Answering.TUNNEL:
            self._since = self.relay.loop.time()
            self._to_client(data)
        else:
            try:
                used = self._answer_body(data)
            except ResponseError:
                self._broken_answer()
                return
            self._to_client(data[:used])
            self._maybe_answered(used < len(data))

    def _answer_heads(self, data: bytes) -> None:
        """Interim answers, and the head of the final one with what of its body came along."""
        exchange = self._exchange
        assert exchange is not None
        cluster = self.relay.cluster
        while True:
            end = head_end(data, self._got_looked)
            if not end:
                if len(data) > cluster.max_head_bytes:
                    self._bad_answer("a head that is too long")
                    return
                self._got, self._got_looked = data, len(data)
                return
            self._got, self._got_looked = b"", 0
            raw = data[:end]
            try:
                head = read_response(raw, exchange.head.request.method, cluster.max_headers)
            except ResponseError as error:
                self._bad_answer(str(error))
                return
            if head.status >= 200 or head.status == 101:
                break
            if exchange.head.request.version != "1.0":  # RFC 9110, 15.2
                self._to_client(head.raw)
            data = data[end:]
            if not data:
                return
        if head.status == 101:
            self._upgraded(head, data[end:])
        else:
            self._final(head, data, end, as_it_came=head.raw is raw)

    def _final(self, head: ResponseHead, data: bytes, end: int, *, as_it_came: bool) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.status = head.status
        if self.relay.draining or self._aged():
            self._last = True
        raw = with_close(head) if self._last and not head.close else head.raw
        self._last = self._last or head.close
        if head.framing is Framing.LENGTH:
            self.answering, self._unanswered = Answering.BODY, head.length
        elif head.framing is Framing.CHUNKED:
            self.answering, self._follower = Answering.CHUNKS, ChunkFollower()
        else:
            self.answering = Answering.TO_END
        body = memoryview(data)[end:]
        try:
            used = self._answer_body(body)
        except ResponseError:
            self._broken_answer()
            return
        if as_it_came and raw is head.raw and used == len(body):
            self._to_client(data)
        elif used:
            self._to_client(raw + body[:used])
        else:
            self._to_client(raw)
        self._maybe_answered(used < len(body))

    def _answer_body(self, data: memoryview) -> int:
        """How much of `data` belongs to the answer. Raises ResponseError."""
        if self.answering is Answering.BODY:
            used = min(len(data), self._unanswered)
            self._unanswered -= used
            return used
        if self.answering is Answering.CHUNKS:
            assert self._follower is not None
            return self._follower.feed(data)
        return len(data)

    def _maybe_answered(self, surplus: bool) -> None:
        if self.answering is Answering.BODY:
            done = not self._unanswered
        else:
            done = self.answering is Answering.CHUNKS and self._follower is not None and self._follower.done
        if done:
            self._last = self._last or surplus  # more than was asked for
            self._answered()

    def _upgraded(self, head: ResponseHead, rest: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        if exchange.head.upgrade != b"websocket" or head.upgrade != b"websocket" or self.asking is not Asking.ASKED:
            self._bad_answer("an upgrade that was not asked for")
            return
        exchange.status = 101
        self.relay.tally.tunnels += 1
        self.relay.count_status(101)
        self._since = self.relay.loop.time()
        self.asking, self.answering = Asking.TUNNEL, Answering.TUNNEL
        self._to_client(head.raw + rest)
        held, self._held = self._held, b""
        if held:
            self._to_server(held)
        if self.down.eof:
            self._shut_up()
        elif not (self.up and self.up.full):
            self.down.resume()
        self.relay.wheel.watch(self)

    def _to_client(self, data: bytes | memoryview) -> None:
        down = self.down
        if self._exchange is not None:
            self._exchange.sent += len(data)
        self.relay.tally.sent += len(data)
        down.write(data)
        if down.full and self.up is not None:
            self.up.pause()

    def _answered(self) -> None:
        """The answer has ended."""
        exchange = self._exchange
        self.answering = Answering.NONE
        self._follower = None
        if exchange is not None:
            self.relay.count_status(exchange.status)
        self._over(None, "via_upstream")
        if self._last:
            self._finish()
        elif self.asking is Asking.ASKED and not self.down.full:
            self._cycle()

    def _cycle(self) -> None:
        """On to the next request, if there is one."""
        if self.down.full:
            return  # when the client has taken its answer
        self.asking = Asking.HEAD
        self._idle()
        if self.down.eof and not self._held:
            self._finish()
            return
        if self.up is not None and self.up.eof:
            self._finish()
            return
        if self._held:
            self._next()
        open_still = self.asking not in (Asking.LINGER, Asking.CLOSED)
        if open_still and len(self._held) <= MAX_HELD and not (self.up and self.up.full):
            self.down.resume()

    def _idle(self) -> None:
        self._since = self.relay.loop.time()
        if self.slot < 0:
            self.relay.wheel.watch(self)

    # What goes wrong with the server.

    def _bad_answer(self, why: str) -> None:
        """Nothing of the answer has gone out: the client is told."""
        exchange = self._exchange
        assert exchange is not None
        self._drop_up()
        exchange.status = 502
        self._say(502, b"Upstream answered what can't be relayed", exchange.head)
        self._over(None, f"upstream_protocol_error[{why}]", ("upstream_protocol_error",))
        self._finish()

    def _broken_answer(self) -> None:
        """A part of the answer has gone out, and how it goes on can't be read."""
        self._over(None, "upstream_protocol_error", ("upstream_protocol_error",))
        self._reset()

    def _on_up_eof(self) -> None:
        if self.answering is Answering.TUNNEL:
            self.down.shut_down()
            if self.down.eof:
                self._end()
        elif self.answering is Answering.TO_END:
            self._last = True
            self._answered()
        elif self.answering is Answering.NONE:
            if self.asking is not Asking.ASKED:
                self._finish()
        elif self.answering is Answering.HEAD:
            self.relay.tally.up_reset += 1
            self._over(None, "upstream_closed_before_answer", ("upstream_connection_termination",))
            self._finish()
        else:
            self.relay.tally.up_reset += 1
            self._over(None, "upstream_closed_in_answer", ("upstream_connection_termination",))
            self._reset()

    def _on_up_gone(self) -> None:
        if self.answering is Answering.NONE and self.asking is not Asking.TUNNEL:
            self._drop_up()
            self._finish()
            return
        self.relay.tally.up_reset += 1
        self._over(None, "upstream_reset", ("upstream_remote_reset",))
        self._reset()

    def _on_up_broken(self) -> None:
        """Writing failed. What the server has said before may still be there to read, and reading tells the rest."""
        if self.up is not None:
            self.up.resume()
            if self.asking in (Asking.BODY, Asking.CHUNKS):
                self.down.resume()

    # The proxy's own answers.

    def _refuse(self, error: HeadError, raw: bytes) -> None:
        """What is no request that anybody could be asked about."""
        if raw.startswith(_PREFACE):
            error = HeadError(505, Reason.HTTP_2, "HTTP/2 is not spoken here")
        relay = self.relay
        relay.tally.refused[error.reason] += 1
        sent = 0
        if error.status:
            sent = self._local(error.status, error.why.encode("latin-1", "replace"), head=False, close=True)
        relay.record(
            refusal(self.ends, self.served.number, error.reason, error.why, status=error.status, raw=raw, sent=sent)
        )
        self._held = b""
        if error.status:
            self._finish()
        else:
            self._reset()

    def _deny(self, head: Head, judged: Judged) -> None:
        relay, config = self.relay, self.served.config
        relay.tally.denied += 1
        relay.tally.refused[judged.decision.reason] += 1
        skip = head.length if 0 <= head.length <= MAX_SKIPPED and not head.expect else -1
        close = self._last or head.close or skip < 0 or relay.draining or bool(head.upgrade) or self._aged()
        if judged.status == 403:
            body = config.denied.get(judged.decision.reason.label, config.denied_body)
        else:
            body = judged.decision.nearest_miss.encode("latin-1", "replace")
        exchange = Exchange(head, judged)
        exchange.status = judged.status
        exchange.sent = self._local(judged.status, body, head=head.request.method == b"HEAD", close=close)
        relay.record(exchange.record(self.ends, self.served.number, details=judged.decision.reason.label))
        if close:
            self._held = b""
            self._finish()
        elif skip:
            self.asking, self._left = Asking.SKIP, skip
            self._since = relay.loop.time()
            relay.wheel.watch(self)
        else:
            self._idle()

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

    # Ends.

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

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self._exchange is None

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

    def reset(self) -> None:
        """End it with a RST."""
        self._reset()

    def finish(self) -> None:
        """End it with a FIN if nothing is under way, else with a RST."""
        if self._exchange is None and self.asking in (Asking.HEAD, Asking.LINGER):
            self._finish()
        else:
            self._reset()

    def _close(self, *, reset: bool) -> None:
        if self.asking is Asking.CLOSED:
            return
        self.asking = Asking.CLOSED
        self.down.close(reset=reset)
        self.relay.gone(self)

    def _drop_up(self, *, reset: bool = False) -> None:
        up, self.up = self.up, None
        if up is not None:
            self._connect_since = _NEVER
            self.relay.tally.up_active -= 1
            self.relay.tally.up_sent += up.sent
            up.close(reset=reset)
        self._up_local = ("", 0)

    # Timeouts.

    def _aged(self) -> bool:
        age = self.relay.limits.connection_age
        return age > 0 and self.relay.loop.time() - self.born > age

    def due(self) -> float:
        """When something is to be done."""
        relay, config = self.relay, self.served.config
        asking = self.asking
        if asking is Asking.CLOSED:
            return _NEVER
        due = _NEVER
        if self._connect_since != _NEVER:
            due = self._connect_since + relay.cluster.connect_timeout
        if asking is Asking.LINGER:
            # A slow reader may take what it was sent as slowly as any other.
            return self._since + (relay.limits.body_idle or 3600.0 if self.down.full else LINGER)
        if asking is Asking.HEAD:
            if self._held:
                return min(due, self._held_since + (config.headers_timeout or _NEVER))
            due = min(due, self._since + (config.idle_timeout or _NEVER))
            if relay.limits.connection_age:
                due = min(due, self.born + relay.limits.connection_age)
        elif asking in (Asking.BODY, Asking.CHUNKS, Asking.SKIP):
            due = min(due, self._since + (relay.limits.body_idle or _NEVER))
        elif asking is Asking.TUNNEL:
            due = min(due, self._since + (relay.limits.tunnel_idle or _NEVER))
        elif self.down.eof:
            due = min(due, self._since + _LOOK)
        return due

    def expire(self, now: float) -> None:
        """Something is due."""
        relay = self.relay
        if self._connect_since != _NEVER and now >= self._connect_since + relay.cluster.connect_timeout:
            relay.tally.connect_timeout += 1
            self._drop_up()
            self._unconnected(errno.ETIMEDOUT)
        elif self.asking is Asking.LINGER:
            self._close(reset=self.down.full)
        elif self.asking is Asking.HEAD and self._held:
            error = HeadError(408, Reason.HTTP_TIMEOUT, "the head did not come in time")
            self._refuse(error, self._held)
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
        elif self.asking is Asking.ASKED and not sockets.is_closed(self.down.sock):
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
