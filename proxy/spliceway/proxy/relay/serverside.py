"""The server's half of a connection: connecting, and relaying answers as they come."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod

from spliceway.policy.verdict import Reason
from spliceway.proxy.http.head import HeadError
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
from spliceway.proxy.relay.end import NOTHING, READ_SIZE, VIEW, End
from spliceway.proxy.relay.passing import Passing
from spliceway.proxy.relay.states import NEVER, Answering, Asking

#: Bytes that are read at once of an answer in chunks, each of which costs some time.
_CHUNKED_READ = 65536
#: How an answer begins.
_ANSWER = b"HTTP/1."


class ServerSide(Passing):
    """See the module. `Connection` is the other half."""

    __slots__ = ()

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
        if up.full:
            self.relay.holding.add(self)
            if self.asking is not Asking.ASKED:
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
        self.up = up = End(
            relay.poller, sock, self._on_up, self._on_up_drained, self._on_up_broken, self._on_connected, patient=True
        )
        relay.tally.up_active += 1
        self._connect_since = relay.loop.time()
        relay.wheel.watch(self)
        return up

    def _on_connected(self, code: int) -> None:
        up = self.up
        assert up is not None
        self._connect_since = NEVER
        if code:
            self._drop_up()
            self._unconnected(code)
            return
        self.relay.tally.connected += 1
        self._up_local = up.sock.getsockname()[:2]
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
        self._since = self.relay.loop.time()
        self._read_on()

    def _on_up(self) -> None:
        up = self.up
        assert up is not None
        try:
            most = _CHUNKED_READ if self.answering is Answering.CHUNKS else READ_SIZE
            count = up.read(min(most, self.relay.cluster.buffer_limit))
        except OSError:
            self._on_up_gone()
            return
        if count > 0:
            self.relay.tally.up_received += count
            self._took(VIEW[:count])
        elif count != NOTHING:
            self._on_up_eof()

    def _took(self, data: memoryview) -> None:
        answering = self.answering
        if self._exchange is not None:
            self._exchange.up_received += len(data)
        if answering is Answering.HEAD:
            self._answer_heads(bytes(data) if not self._got else self._got + data)
        elif answering is Answering.NONE:
            if self.asking is Asking.HEAD and not self._asked and self.passes:
                error = HeadError(0, Reason.HTTP_MALFORMED, "the server speaks first")
                self._pass_on(error, answer=data)
                return
            # Nobody has asked: whatever it is, the client must not take it for an answer to its next request.
            self._finish()
        elif answering is Answering.TUNNEL:
            self._since = self.relay.loop.time()
            self._to_client(data)
        else:
            try:
                used = self._answer_body(data)
            except ResponseError:
                self._broken_answer(data)
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
            if (end or len(data)) > cluster.max_head_bytes:
                self._bad_answer("a head that is too long", data)
                return
            if not end:
                if not data.startswith(_ANSWER[: len(data)]) and self._answer_passes("no HTTP", data):
                    return
                self._got, self._got_looked = data, len(data)
                self.relay.holding.add(self)
                return
            self._got, self._got_looked = b"", 0
            raw = data[:end]
            try:
                head = read_response(raw, exchange.head.request.method, cluster.max_headers)
            except ResponseError as error:
                self._bad_answer(str(error), data)
                return
            if head.status >= 200 or head.status == 101:
                break
            exchange.wanted = exchange.wanted or head.status == 100
            if exchange.head.request.version != "1.0":  # RFC 9110, 15.2
                self._to_client(head.raw)
            data = data[end:]
            if not data:
                return
        if head.status == 101:
            self._upgraded(head, data, end)
        else:
            self._final(head, data, end, as_it_came=head.raw is raw)

    def _final(self, head: ResponseHead, data: bytes, end: int, *, as_it_came: bool) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.status = head.status
        if self.asking in (Asking.BODY, Asking.CHUNKS):
            # What of the body is still to come the server may take for a request: this connection has no next one.
            self._last = True
            if exchange.head.expect and not exchange.wanted:
                self.asking = Asking.REST
        elif not (self._last or head.close):
            self._last = self._ends_now()
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
            self._broken_answer(raw + body)
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

    def _upgraded(self, head: ResponseHead, data: bytes, end: int) -> None:
        exchange = self._exchange
        assert exchange is not None
        if exchange.head.upgrade != b"websocket" or head.upgrade != b"websocket" or self.asking is not Asking.ASKED:
            self._bad_answer("an upgrade that was not asked for", data)
            return
        exchange.status = 101
        self.relay.tally.tunnels += 1
        self.relay.count_status(101)
        if self.passes and exchange.judged.decision.reason.denies:
            self.relay.unread.add(self)  # no rule has let it begin
        self._since = self.relay.loop.time()
        self.asking, self.answering = Asking.TUNNEL, Answering.TUNNEL
        self._to_client(head.raw + data[end:])
        held, self._held = self._held, b""
        if held:
            self._to_server(held)
        if self.down.eof:
            self._shut_up()
        else:
            self._read_on()
        self.relay.wheel.watch(self)

    def _to_client(self, data: bytes | memoryview) -> None:
        down = self.down
        if self._exchange is not None:
            self._exchange.sent += len(data)
        self.relay.tally.sent += len(data)
        down.write(data)
        if down.full:
            self.relay.holding.add(self)
            if self.up is not None:
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
        self._read_on()

    def _idle(self) -> None:
        self._since = self._held_since = self.relay.loop.time()
        self.relay.wheel.watch(self)

    def _bad_answer(self, why: str, data: bytes) -> None:
        """Nothing of the answer (`data`, so far) has gone out: the client is told."""
        if self._answer_passes(why, data):
            return
        exchange = self._exchange
        assert exchange is not None
        self._drop_up()
        exchange.status = 502
        self._say(502, b"Upstream answered what can't be relayed", exchange.head)
        self._over(None, f"upstream_protocol_error[{why}]", ("upstream_protocol_error",))
        self._finish()

    def _broken_answer(self, data: bytes | memoryview) -> None:
        """A part of the answer has gone out, and how it goes on (`data`) can't be read."""
        if self._answer_passes("where it ends", data):
            return
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
            if self._got and self._answer_passes("no whole head", self._got):
                return
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
        if self.up is None or self.up.eof:
            self._over(None, "upstream_reset", ("upstream_remote_reset",))
            self._reset()
            return
        self.up.resume()
        if self.asking in (Asking.BODY, Asking.CHUNKS):
            self.down.resume()

    def _shut_up(self) -> None:
        if self.up is not None:
            self.up.shut_down()

    @abstractmethod
    def _next(self) -> None:
        """Take up the next request, if it is there."""
