"""A client's connection, and the one to its server: the same pair from the first request to the end.

Requests are taken one after another; a pipelined one waits until the answer before it has been relayed. Two machines
run side by side (`states`): `asking` is where the client's bytes are, `answering` where the server's are. This is the
client's half; `serverside` is the other one, `pair` what both share.
"""

from __future__ import annotations

from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.http.body import ChunkError, ChunkReader
from spliceway.proxy.http.decision import Judged
from spliceway.proxy.http.head import CHUNKED, Head, HeadError, bad_first_line, bad_line_end, fault
from spliceway.proxy.relay.end import NOTHING, READ_SIZE, VIEW
from spliceway.proxy.relay.exchange import Exchange, refusal
from spliceway.proxy.relay.serverside import ServerSide
from spliceway.proxy.relay.states import MAX_HELD, MAX_SKIPPED, RELAYED, Answering, Asking

#: Bytes that are read at once, by where they belong: chunks may be tiny, and each costs some time.
_READ = {Asking.BODY: READ_SIZE, Asking.TUNNEL: READ_SIZE, Asking.CHUNKS: 32768}
_PREFACE = b"PRI * HTTP/2.0\r\n"
_TLS = b"\x16\x03"


class Connection(ServerSide):
    """See the module. Made by `Relay` for an accepted socket."""

    __slots__ = ()

    def _on_down(self) -> None:
        try:
            # Of what is not relayed at once no more is read than may be kept.
            count = self.down.read(min(_READ.get(self.asking, MAX_HELD), self.served.config.buffer_limit))
        except OSError:
            self._on_down_gone()
            return
        if count > 0:
            self.relay.tally.received += count
            self._take(VIEW[:count])
        elif count != NOTHING:
            self._on_down_eof()

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
            self.relay.holding.add(self)
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
            if self.down.full:
                self.down.pause()  # who doesn't read answers gets no more of them
                self.relay.holding.add(self)
                return
            held = self._held
            end = held.find(b"\r\n\r\n", self._looked)
            if end < 0:
                self._incomplete(held)
                return
            self._looked = 0
            raw, self._held = held[: end + 4], held[end + 4 :]
            self._held_since = self.relay.loop.time()
            self._begin(raw)
            if self._held:
                self._held_body()
        if self.down.eof:
            self._last_taken()

    def _last_taken(self) -> None:
        """The client sends no more, and what it had sent has been taken up."""
        if self.asking is Asking.ASKED:
            self._pass_on_eof()
        elif self.asking in RELAYED:
            self._shut_up()
        elif self.asking is Asking.SKIP or (self.asking is Asking.HEAD and not self._held):
            self._end()

    def _held_body(self) -> None:
        """Take what came together with the head."""
        if self.asking in (Asking.BODY, Asking.CHUNKS):
            body, self._held = self._held, b""
            self._body(memoryview(body))
        elif self.asking is Asking.SKIP:
            self._held = self._skip(memoryview(self._held))

    def _incomplete(self, held: bytes) -> None:
        """What of a head that has not ended yet tells already that it will be refused."""
        most = self.served.config.max_head_bytes
        if held.startswith(_TLS) or bad_line_end(held, self._looked) or bad_first_line(held, self._looked):
            self._refuse(HeadError(400, Reason.HTTP_MALFORMED, fault(held)), held)
        elif self._no_request(held):
            self._refuse(HeadError(400, Reason.HTTP_MALFORMED, "the first bytes are none of a request"), held)
        elif len(held) >= most:
            self._refuse(HeadError(431, Reason.HTTP_HEAD_TOO_LARGE, f"a head of more than {most} bytes"), held)
        else:
            self._looked = max(0, len(held) - 3)
            self.relay.holding.add(self)
            if self.down.eof:
                self._given_up()
            else:
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
            self._held = raw + self._held
            self._refuse(error, raw)
            return
        judged = judge.judge(head)
        if judged.decision.verdict is Verdict.DENY:
            if self.passes:
                self._held = raw + self._held
                self._refuse(HeadError(judged.status, judged.decision.reason, judged.decision.nearest_miss), raw)
            else:
                self._deny(head, judged)
            return
        self._asked = True
        relay.tally.allowed += 1
        relay.tally.up_rq += 1
        relay.tally.rq_active += 1
        if judged.decision.reason.denies:
            relay.tally.audited += 1
        self._exchange = Exchange(head, judged)
        self._last = self._last or head.close
        if head.length == CHUNKED:
            self.asking, self._chunks = Asking.CHUNKS, ChunkReader()
        else:
            self.asking, self._left = Asking.ASKED if not head.length else Asking.BODY, head.length
        self.answering = Answering.HEAD
        forward = judged.forward
        if head.length > 0 and self._held:
            forward += self._came_along()
        if self.asking is not Asking.ASKED:
            self._since = relay.loop.time()
            relay.wheel.watch(self)
        self._to_server(forward)

    def _came_along(self) -> bytes:
        """What of the body came together with the head: head and body are sent together, too."""
        body, self._held = self._held[: self._left], self._held[self._left :]
        self._left -= len(body)
        if self._exchange is not None:
            self._exchange.received += len(body)
        if not self._left:
            self.asking = Asking.ASKED
        return body

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
                if self.passes and self._chunks.whole:
                    unasked = HeadError(400, Reason.HTTP_MALFORMED, f"the body: {error}")
                    self._pass_on(unasked, *pieces, self._chunks.unread)
                else:
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
        elif self.asking is Asking.REST:
            self._shut_up()
        elif self.asking is Asking.HEAD and not self._exchange:
            self._given_up()
        elif self.asking is Asking.TUNNEL:
            self._shut_up()
            if self.up is not None and self.up.eof:
                self._end()
        else:
            self._pass_on_eof()
            self._since = self.relay.loop.time()
            self.relay.wheel.watch(self)

    def _given_up(self) -> None:
        """The client has ended between requests, or in the middle of a head."""
        if self.passes and self._held:
            self._refuse(HeadError(400, Reason.HTTP_MALFORMED, "no whole head before the end"), self._held)
        elif self.passes and not self._asked and self.up is not None:
            self._shut_up()  # the server may have something to say all the same
        else:
            self._end()

    def _pass_on_eof(self) -> None:
        """The client sends no more: the server shall know once it has the last request."""
        if not self._held:
            self._shut_up()

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
        elif self.asking is Asking.HEAD:
            self._idle()
            self._next()
            self._read_on()

    def _refuse(self, error: HeadError, raw: bytes) -> None:
        """What is no request that anybody could be asked about."""
        if raw.startswith(_PREFACE):
            error = HeadError(505, Reason.HTTP_2, "HTTP/2 is not spoken here")
        elif raw.startswith(_TLS):
            error = HeadError(0, Reason.HTTP_TLS, "TLS: the rules are for plain HTTP")
        relay = self.relay
        if self.passes:
            self._pass_on(error)
            return
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
        # What can't be understood ends the connection; what is only not allowed need not.
        close = judged.status != 403 or skip < 0 or self._last or head.close or self._ends_now()
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
