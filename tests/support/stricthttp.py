"""A strict reader of HTTP/1.1 requests for tests, written from RFC 9112 and 9110: independent of h11 and of the proxy.

It accepts what has one meaning and nothing else, and says what must become of a stream of bytes under a rule set.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.table import RuleSet
from spliceway.policy.verdict import Reason, Verdict

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]+) HTTP/(1\.[01])" % _TOKEN)
_FIELD = re.compile(
    rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*" % _TOKEN
)
_EXTENSION = rb"[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})((?:%b)*)" % _EXTENSION)
_LENGTH = re.compile(rb"[0-9]{1,19}")
_END = b"\r\n\r\n"

MAX_HEAD, MAX_HEADERS, MAX_CHUNK_LINE = 64 * 1024, 100, 16 * 1024
#: A denied request's body up to this length is skipped; behind a longer one the connection is closed.
MAX_SKIPPED = 64 * 1024


class MalformedError(Exception):
    """What a recipient must not accept; `status` is the answer."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


class Head(NamedTuple):
    """Head of a request; values without margins, `end` is where the body begins."""

    method: bytes
    target: bytes
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    end: int

    @property
    def line(self) -> str:
        """Method and target."""
        return f"{self.method.decode('latin-1')} {self.target.decode('latin-1')}"

    def values(self, name: bytes) -> list[bytes]:
        """Values of a header; `name` is in lower case."""
        return [value for key, value in self.headers if key.lower() == name]

    def listed(self, name: bytes) -> set[bytes]:
        """Members of a header that is a list of tokens, in lower case."""
        return {item.strip(b" \t").lower() for value in self.values(name) for item in value.split(b",")} - {b""}


class Request(NamedTuple):
    """A whole request; `end` is where the next one begins."""

    head: Head
    body: bytes
    end: int

    @property
    def line(self) -> str:
        """Method and target."""
        return self.head.line

    @property
    def meaning(self) -> tuple[object, ...]:
        """What must be the same on both sides of a proxy: all but framing and what is said hop by hop."""
        return self.head.method, self.head.target, end_to_end(self.head), self.body


def end_to_end(head: Head) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that travel to the server, in order, names in the case in which they came."""
    return tuple(pair for pair in head.headers if pair[0].lower() not in _HOP_BY_HOP)


_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"))
_HOP_BY_HOP |= {b"trailer"}
#: What Connection may name: what is not one of these is a header that counts.
_MAY_BE_NAMED = (_HOP_BY_HOP - {b"connection", b"transfer-encoding"}) | {b"close", b"http2-settings", b"trailers"}


def parse_head(data: bytes) -> Head | None:
    """The head at the beginning of `data`, None when it is not whole. Raises MalformedError."""
    stop = data.find(_END)
    if stop < 0:
        if len(data) > MAX_HEAD:
            raise MalformedError("head too large", 431)
        return None
    if stop + len(_END) > MAX_HEAD:
        raise MalformedError("head too large", 431)
    first, *lines = data[:stop].split(b"\r\n")
    if not (found := _LINE.fullmatch(first)):
        raise MalformedError(f"request line {first!r}")
    fields = [_FIELD.fullmatch(line) for line in lines]
    if None in fields:
        raise MalformedError(f"header {lines[fields.index(None)]!r}")
    if len(fields) > MAX_HEADERS:
        raise MalformedError("too many headers", 431)
    headers = tuple((field[1], field[2]) for field in fields if field)
    return Head(found[1], found[2], found[3].decode(), headers, stop + len(_END))


def parse_request(data: bytes) -> Request | None:
    """The request at the beginning of `data`, None when it is not whole. Raises MalformedError."""
    head = parse_head(data)
    if head is None:
        return None
    body = parse_body(head, data)
    return None if body is None else Request(head, *body)


def parse_body(head: Head, data: bytes) -> tuple[bytes, int] | None:
    """Body and where it ends, None when it is not whole. Raises MalformedError."""
    lengths, encodings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if len(lengths) + len(encodings) > 1:
        raise MalformedError("framed twice")
    if encodings:
        if head.version == "1.0" or encodings[0].lower() != b"chunked":
            raise MalformedError("Transfer-Encoding")
        return _parse_chunks(data, head.end)
    if not lengths:
        return b"", head.end
    if not _LENGTH.fullmatch(lengths[0]):
        raise MalformedError("Content-Length")
    end = head.end + int(lengths[0])
    return (data[head.end : end], end) if len(data) >= end else None


def parse_all(data: bytes) -> tuple[list[Request], bytes]:
    """All requests of a connection, and what follows the last whole one. Raises MalformedError."""
    found: list[Request] = []
    while request := parse_request(data):
        found.append(request)
        data = data[request.end :]
    return found, data


def _parse_chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    body = b""
    while True:
        stop = data.find(b"\n", at)
        if stop < 0:
            return None
        if data[stop - 1 : stop] != b"\r" or not (found := _CHUNK.fullmatch(data[at : stop - 1])):
            raise MalformedError(f"chunk {data[at : stop + 1]!r}")
        if stop - at > MAX_CHUNK_LINE:
            raise MalformedError("chunk extension too large")
        size, at = int(found[1], 16), stop + 1
        if not size:
            return _parse_trailers(data, at, body)
        if data[at + size : at + size + 2] not in (b"\r\n", b"\r", b""):
            raise MalformedError("chunk without end")
        if len(data) < at + size + 2:
            return None
        body += data[at : at + size]
        at += size + 2


def _parse_trailers(data: bytes, at: int, body: bytes) -> tuple[bytes, int] | None:
    while True:
        stop = data.find(b"\n", at)
        if (stop if stop >= 0 else len(data)) - at > MAX_HEAD:
            raise MalformedError("trailer too large")
        if stop < 0:
            return None
        if data[stop - 1 : stop] != b"\r":
            raise MalformedError("trailer ends in a bare LF")
        line, at = data[at : stop - 1], stop + 1
        if not line:
            return body, at
        if not _FIELD.fullmatch(line):
            raise MalformedError(f"trailer {line!r}")


class Outcome(NamedTuple):
    """What must become of one request.

    `status` of the answer (200: passed on, 0: none), the `request` that the server gets, whether the connection is
    closed then. `begun`: the head that the server may have got of a request whose body is malformed, or not whole.
    """

    status: int
    request: Request | None = None
    closes: bool = False
    begun: Head | None = None


def outcomes(data: bytes, rule_set: RuleSet) -> list[Outcome]:
    """What must become of what a client sent, from the contract of the embedded proxy and `policy.http.decide`.

    A head that is not whole has no outcome. `request` has the target in the form in which it is sent on.
    """
    found: list[Outcome] = []
    while data and not (found and found[-1].closes):
        try:
            step = _next(data, rule_set)
        except MalformedError as error:
            return [*found, Outcome(error.status, closes=True)]
        if step is None:
            break
        outcome, end = step
        found.append(outcome)
        data = data[end:]
    return found


def _next(data: bytes, rule_set: RuleSet) -> tuple[Outcome, int] | None:
    head = parse_head(data)
    if head is None:
        return None
    if (head.listed(b"connection") - _MAY_BE_NAMED) & {name.lower() for name, _ in head.headers}:
        return Outcome(400, closes=True), len(data)  # the next proxy would take away what was judged
    decision = decide(HttpRequest(head.method, head.target, head.headers, head.version), rule_set)
    if decision.verdict is Verdict.DENY and decision.reason is Reason.HTTP_MALFORMED:
        return Outcome(400, closes=True), len(data)
    if decision.verdict is Verdict.DENY and not _skippable(head):
        return Outcome(decision.status, closes=True), len(data)
    begun = head._replace(target=decision.path or head.target)
    try:
        body = parse_body(head, data)
    except MalformedError as error:
        return Outcome(error.status, closes=True, begun=begun), len(data)
    if body is None:
        # A denied request is answered before its body is there.
        denied = decision.verdict is Verdict.DENY
        return Outcome(decision.status) if denied else Outcome(0, None, closes=True, begun=begun), len(data)
    if decision.verdict is Verdict.DENY:
        return Outcome(decision.status, closes=_last(head)), body[1]
    return Outcome(200, Request(begun, *body), _last(head)), body[1]


def _skippable(head: Head) -> bool:
    lengths = head.values(b"content-length")
    waits = any(value.lower() == b"100-continue" for value in head.values(b"expect"))
    plain = not head.values(b"transfer-encoding") and not waits
    return plain and (not lengths or int(lengths[0]) <= MAX_SKIPPED)


def _last(head: Head) -> bool:
    options = head.listed(b"connection")
    return b"close" in options or (head.version == "1.0" and b"keep-alive" not in options)
