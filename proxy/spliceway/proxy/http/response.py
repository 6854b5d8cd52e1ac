"""Answers: where they end. They are relayed as they came, so that only their framing is read. Pure.

Source: RFC 9112, 6.3. An answer whose length two clients could read differently is refused (502).
"""

from __future__ import annotations

import re
from enum import Enum

import h11

from spliceway.policy.httpmatch import text

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_FIELD_LINE = rb"%b:[\t\x20-\x7e\x80-\xff]*+\r\n" % _TOKEN
_WHOLE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n((?:%b)*+)\r\n" % _FIELD_LINE)
_FRAMING = re.compile(rb"(?:\A|\n)(content-length|transfer-encoding|connection|upgrade):([^\r\n]*+)", re.IGNORECASE)
_HOP = re.compile(rb"^(?:connection|keep-alive|proxy-connection):.*\n", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
#: The end of a head whose lines may end in LF alone.
_LOOSE_END = re.compile(rb"\n\r?\n")

_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
MAX_LINE = 65536


class ResponseError(Exception):
    """An answer that can't be relayed. The message says what was found."""


class Framing(Enum):
    """How the body of an answer ends."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class ResponseHead:
    """The head of an answer. `raw`: as it is sent on; `length`: of the body if framing is LENGTH; `size`: as it came.

    `close`: the server closes the connection after it. `upgrade`: of a 101, what is spoken now, in lower case.
    """

    __slots__ = ("close", "framing", "length", "raw", "size", "status", "upgrade")

    def __init__(self, raw: bytes, status: int, framing: Framing, length: int, *, close: bool, upgrade: bytes) -> None:
        self.raw = raw
        self.size = len(raw)
        self.status = status
        self.framing = framing
        self.length = length
        self.close = close
        self.upgrade = upgrade

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} {self.framing.value} {self.length}>"


def head_end(data: bytes | bytearray, start: int) -> int:
    """Where the head at the beginning of `data` ends (after its empty line), 0 when it isn't there yet.

    `start`: how much of it was looked at before.
    """
    found = _LOOSE_END.search(data, max(0, start - 2))
    return 0 if found is None else found.end()


def read_response(raw: bytes, method: bytes, max_headers: int) -> ResponseHead:
    """Read the head of an answer to `method`. Raises ResponseError."""
    found = _WHOLE.fullmatch(raw)
    if found is None:
        raw = _rewritten(raw, method)
        found = _WHOLE.fullmatch(raw)
        if found is None:
            raise ResponseError("the head of the answer can't be read")
    version, status, fields = found.groups()
    if len(fields) > 8192 and fields.count(b"\n") > max_headers:
        raise ResponseError(f"the answer has more than {max_headers} headers")
    if version == b"1.1" and status == b"200" and method != b"HEAD" and (length := _plain_length(fields)) >= 0:
        return ResponseHead(raw, 200, Framing.LENGTH, length, close=False, upgrade=b"")
    return _framed(raw, method, version, int(status), fields)


def with_close(head: ResponseHead) -> bytes:
    """The head with `Connection: close`, whatever it said before."""
    line, _, rest = head.raw.partition(b"\r\n")
    return b"%b\r\nConnection: close\r\n%b" % (line, _HOP.sub(b"", rest))


def _plain_length(fields: bytes) -> int:
    """Content-Length where nothing else matters, as in most answers; -1 where `_framed` has to look closer."""
    lower = b"\n" + fields.lower()
    at = lower.find(b"\ncontent-length:")
    if (
        at < 0
        or lower.find(b"\ncontent-length:", at + 1) >= 0
        or b"\ntransfer-encoding:" in lower
        or b"\nupgrade:" in lower
        or lower.count(b"\nconnection:") != lower.count(b"\nconnection: keep-alive\r")
    ):
        return -1
    value = lower[at + 16 : lower.index(b"\r", at)].strip(b" \t")
    return int(value) if _LENGTH.fullmatch(value) else -1


def _framed(raw: bytes, method: bytes, version: bytes, status: int, fields: bytes) -> ResponseHead:
    lengths: list[bytes] = []
    codings: list[bytes] = []
    tokens: list[bytes] = []
    upgrade = b""
    for name, text_of in _FRAMING.findall(fields):
        key, value = name.lower(), text_of.strip(b" \t")
        if key == b"content-length":
            lengths.append(value)
        elif key == b"upgrade":
            upgrade = value.lower()
        elif key == b"connection":
            tokens += [token.strip() for token in value.lower().split(b",")]
        else:
            codings += [token.strip() for token in value.lower().split(b",")]
    close = b"close" in tokens or (version == b"1.0" and b"keep-alive" not in tokens)
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise ResponseError("Content-Length twice or not a number")
    if codings and (lengths or version == b"1.0"):
        raise ResponseError("Transfer-Encoding with Content-Length or HTTP/1.0")
    if b"chunked" in codings[:-1]:
        raise ResponseError("Transfer-Encoding with chunked not at its end")
    framing, length = Framing.LENGTH, int(lengths[0]) if lengths else 0
    if method == b"HEAD" or status < 200 or status in (204, 304):
        length = 0
    elif codings:
        framing = Framing.CHUNKED if codings[-1] == b"chunked" else Framing.CLOSE
    elif not lengths:
        framing = Framing.CLOSE
    return ResponseHead(raw, status, framing, length, close=close or framing is Framing.CLOSE, upgrade=upgrade)


def _rewritten(raw: bytes, method: bytes) -> bytes:
    """A head with bare LF or folded lines, as h11 understands it: client and proxy shall understand the same."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(raw) + 1)
    connection.send(h11.Request(method=b"GET", target=b"/", headers=[(b"host", b"x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise ResponseError(f"the answer is not HTTP: {error}") from None
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise ResponseError("the answer is not HTTP")
    lines = b"".join(b"%b: %b\r\n" % item for item in event.headers.raw_items())
    return b"HTTP/%b %d %b\r\n%b\r\n" % (event.http_version, event.status_code, event.reason, lines)


class ChunkFollower:
    """Finds the end of an answer in chunks. The bytes themselves are not touched."""

    __slots__ = ("_left", "_line", "_state", "done")

    def __init__(self) -> None:
        self._state = 0  # 0 size, 1 data, 2 the CRLF after data, 3 trailers
        self._left = 0
        self._line = b""
        self.done = False

    def __repr__(self) -> str:
        return f"<ChunkFollower {self._left} left{', done' if self.done else ''}>"

    def feed(self, data: memoryview) -> int:
        """Follow `data`; how many bytes of it belong to the answer (all of them until it is done).

        Raises ResponseError.
        """
        position, end = 0, len(data)
        while position < end and not self.done:
            if self._state == 1:
                step = min(self._left, end - position)
                position += step
                self._left -= step
                if not self._left:
                    self._state = 2
                continue
            # Lines are short: look at a little, not at all that follows.
            piece = bytes(data[position : position + 128])
            found = piece.find(b"\n")
            if found < 0:
                self._line += piece
                position += len(piece)
                if len(self._line) > MAX_LINE:
                    raise ResponseError(f"a line of a chunked answer with more than {MAX_LINE} bytes")
                continue
            line = (self._line + piece[:found]).removesuffix(b"\r")
            self._line = b""
            position += found + 1
            self._take(line)
        return position

    def _take(self, line: bytes) -> None:
        if self._state == 2:
            if line:
                raise ResponseError("a chunk that is longer than its size")
            self._state = 0
        elif self._state == 0:
            found = _SIZE.fullmatch(line)
            if found is None:
                raise ResponseError(f"the size of a chunk: {text(line[:40])}")
            self._left = int(found[1], 16)
            self._state = 1 if self._left else 3
        elif not line:
            self.done = True
