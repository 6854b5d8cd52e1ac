"""The head of a request: scanned as it came, read by h11, and refused when the two don't agree.

h11 reads bare LF, folded lines and lists of equal lengths as something else than they are, and never says so. What it
makes of a head is used only where a strict reading of the raw bytes (RFC 9112, 2.2 to 5.2) gives the very same.
Sources: RFC 9112, RFC 9110; `shared/design/http.md`, its table, is in docs/proxy.md.
"""

from __future__ import annotations

import re
from typing import Any

import h11
from h11 import _readers, _receivebuffer

from spliceway.policy.http import framed_target
from spliceway.policy.httpmatch import HttpRequest, text
from spliceway.policy.httppath import TargetError
from spliceway.policy.verdict import Reason

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_LINE = rb"(%b+) ([^\x00-\x20\x7f]+) HTTP/(1\.[01])\r\n" % _TOKEN
_FIELD = rb"(%b+):[ \t]*+(|[\x21-\x7e\x80-\xff](?:%b*[\x21-\x7e\x80-\xff])?)[ \t]*+\r\n" % (_TOKEN, _VALUE)
_WHOLE = re.compile(_LINE + rb"(?:%b+:%b*+\r\n)*+\r\n" % (_TOKEN, _VALUE))
_FIRST = re.compile(_LINE)
_FIELDS = re.compile(_FIELD)
_BAD_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_BARE_LF = re.compile(rb"(?<!\r)\n")

#: Headers that say how the message is framed, or what becomes of the connection.
_NOTED = frozenset((b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"))
#: The length of a body in chunks.
CHUNKED = -1

#: What `Connection` may name: it belongs to the one connection, or changes nothing of the message.
_MAY_BE_NAMED = frozenset(
    (b"", b"close", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"trailers", b"upgrade")
)

#: Why a head is refused, tried in this order; the first that is found is told.
_FAULTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\A\r?\n"), "an empty line before the request"),
    (_BARE_LF, "a line that ends in LF alone"),
    (re.compile(rb"\r(?!\n)"), "CR that ends no line"),
    (re.compile(rb"\x00"), "NUL"),
    (re.compile(rb"\A(?!%b+ )" % _TOKEN), "no method at the beginning"),
    (
        re.compile(rb"\A(?!%b+ [^\x00-\x20\x7f]+ HTTP/1\.[01]\r\n)" % _TOKEN),
        "no METHOD TARGET HTTP/1.1 at the beginning",
    ),
    (re.compile(rb"\r\n[ \t]"), "a folded line"),
    (re.compile(rb"\r\n[^\r\n:]*[ \t]:"), "a space before the colon"),
    (re.compile(rb"\r\n(?!\r\n|%b+:)(?=.)" % _TOKEN), "a header without a proper name"),
)


class HeadError(Exception):
    """A head that is refused before any rule is asked. `status`: of the answer; `why`: for people."""

    def __init__(self, status: int, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.reason = reason
        self.why = why


class Head:
    """A request's head, accepted. Never changed, but for what `decision` remembers in it.

    `request`: method, target as it came, headers as they came (names in their case); `target`: `/path?query` of it, not
    normalised. `authority`: the Host. `length`: of the body, CHUNKED for chunks. `close`: the client wants the
    connection closed after the answer. `expect`: it waits for a 100. `upgrade`: what it wants to speak, in lower case,
    empty for nothing. `size`: bytes of the head.
    """

    __slots__ = ("authority", "close", "expect", "judge", "judged", "length", "request", "size", "target", "upgrade")

    def __init__(self, request: HttpRequest, target: bytes, *, size: int, authority: bytes) -> None:
        self.request = request
        self.target = target
        self.size = size
        self.authority = authority
        self.length = 0
        self.close = False
        self.expect = False
        self.upgrade = b""
        self.judge: Any = None
        self.judged: Any = None

    def __repr__(self) -> str:
        return f"<Head {text(self.request.method)} {text(self.request.path)} length={self.length}>"


def read_head(raw: bytes, max_headers: int) -> Head:
    """Read a head, from the first byte of the method to the empty line. Raises HeadError."""
    found = _WHOLE.fullmatch(raw)
    if found is None:
        raise HeadError(400, Reason.HTTP_MALFORMED, fault(raw))
    fields = _FIELDS.findall(raw, found.end(3) + 2)
    if len(fields) > max_headers:
        raise HeadError(431, Reason.HTTP_HEAD_TOO_LARGE, f"more than {max_headers} headers")
    method, target, version = found.groups()
    head = _framed(HttpRequest(method, target, tuple(fields), version.decode()), len(raw))
    if not target.isascii():
        beyond = next(byte for byte in target if byte > 0x7E)
        raise HeadError(400, Reason.HTTP_MALFORMED, f"byte 0x{beyond:02x} in the target")
    if head.length == CHUNKED:
        # So h11 has it, and so it is sent on with our chunks.
        fields = _lowered(fields)
        head.request = HttpRequest(method, target, tuple(fields), version.decode())
    event = by_h11(raw)
    if event.method != method or event.target != target or event.http_version != version:
        raise HeadError(400, Reason.HTTP_MALFORMED, "the request line can be read in two ways")
    # h11 turns `Content-Length: 5, 5` into 5 and drops a second one that is equal, among others.
    if event.headers.raw_items() != fields:
        raise HeadError(400, Reason.HTTP_MALFORMED, "the headers can be read in two ways")
    return head


def check_nominated(tokens: list[bytes], request: HttpRequest) -> None:
    """Refuse a Connection header that names a header which counts.

    Whoever reads it next as a proxy takes that header away (RFC 9110, 7.6.1), and so acts on another request than the
    one that was judged; with Content-Length the body becomes a request of its own. Raises HeadError.
    """
    named = {token for token in tokens if token not in _MAY_BE_NAMED}
    if named and (found := named & {name.lower() for name, _ in request.headers}):
        raise HeadError(400, Reason.HTTP_MALFORMED, f"Connection names {text(min(found))}")


def bad_first_line(data: bytes, start: int = 0) -> bool:
    """Whether the first line has come to its end, from `start` on, and is none of HTTP/1."""
    end = data.find(b"\r\n")
    return end >= start and _FIRST.match(data) is None


def bad_line_end(data: bytes, start: int = 0) -> bool:
    """Whether there is an LF or a CR by itself, from `start` on: such a head may never have an end."""
    return _BAD_END.search(data, start) is not None


def fault(raw: bytes) -> str:
    """What is wrong with a head that is no head, for people."""
    for pattern, what in _FAULTS:
        if pattern.search(raw):
            return what
    return "a character that no head may have"


def by_h11(raw: bytes) -> h11.Request:
    """What h11 makes of a head. Raises HeadError."""
    try:
        event = _read_by_h11(raw)
    except h11.ProtocolError as error:
        raise HeadError(400, Reason.HTTP_MALFORMED, str(error)) from None
    if not isinstance(event, h11.Request):
        raise HeadError(400, Reason.HTTP_MALFORMED, "no request")
    return event


def read_by_connection(raw: bytes) -> object:
    """A head as h11's public interface reads it. Raises h11.ProtocolError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(raw) + 1)
    connection.receive_data(raw)
    return connection.next_event()


def read_by_reader(raw: bytes) -> object:
    """The same by h11's reader alone: the state of a connection around it would be made and thrown away for each head.

    Raises h11.ProtocolError.
    """
    buffer = _receivebuffer.ReceiveBuffer()
    buffer += raw
    return _readers.maybe_read_from_IDLE_client(buffer)


# It is not public, so that a newer h11 may have it no more.
_quick = hasattr(_readers, "maybe_read_from_IDLE_client") and hasattr(_receivebuffer, "ReceiveBuffer")
_read_by_h11 = read_by_reader if _quick else read_by_connection


def _framed(request: HttpRequest, size: int) -> Head:
    """What the headers say of the message and the connection. Raises HeadError."""
    noted: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        lower = name.lower()
        if lower in _NOTED:
            noted.setdefault(lower, []).append(value)
    none: list[bytes] = []
    hosts, lengths, codings = (noted.get(name, none) for name in (b"host", b"content-length", b"transfer-encoding"))
    try:
        target = framed_target(request, hosts, lengths, codings)
    except TargetError as error:
        raise HeadError(400, error.reason, error.why) from None
    head = Head(request, target, size=size, authority=hosts[0])
    if lengths:
        head.length = int(lengths[0])
    elif codings:
        head.length = CHUNKED
    tokens = [token.strip(b" \t") for value in noted.get(b"connection", none) for token in value.lower().split(b",")]
    if tokens:
        check_nominated(tokens, request)
    head.close = b"close" in tokens or (request.version == "1.0" and b"keep-alive" not in tokens)
    head.expect = any(value.lower() == b"100-continue" for value in noted.get(b"expect", none))
    if b"upgrade" in tokens and (upgrades := noted.get(b"upgrade")):
        if len(upgrades) > 1:
            raise HeadError(400, Reason.HTTP_MALFORMED, "more than one Upgrade header")
        head.upgrade = upgrades[0].lower()
    return head


def _lowered(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Fields with transfer codings in lower case."""
    return [(name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in fields]
