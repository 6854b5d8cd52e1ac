"""Where the embedded proxy and Envoy differ: docs/proxy.md has the same rows, and a test compares them.

`DIFFERENCES` are about what each makes of a request, `sent.SENT` about the head that the server gets. A row is known by
a look at the raw request, and by the statuses that each side may then have; whatever no row covers is a fault. Only a
row that is marked `laxer` covers a request that Envoy refuses and the embedded proxy lets pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from functools import cached_property
from typing import NamedTuple

from support.differential import Outcome
from support.sent import as_sent, by_envoy


class _Any:
    def __contains__(self, item: object) -> bool:
        return True


ANY = _Any()
_REFUSED = frozenset((400,))
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_STRICT_LINE = re.compile(rb"%b [^\x00-\x20\x7f]+ HTTP/1\.[01]\Z" % _TOKEN)
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+=%:\[\]-]+")


class Odd:
    """A loose look at a raw request: whatever a part of it could be meant as."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        found = re.search(rb"\r?\n\r*\n|\r\r", raw)
        self.head = raw[: found.start()] if found else raw
        self.body = raw[found.end() :] if found else b""
        self.line, *self.lines = re.split(rb"\r*\n", self.head)

    @cached_property
    def words(self) -> list[bytes]:
        """Method, target and version, as far as they are there."""
        return [*self.line.split(None, 2), b"", b"", b""][:3]

    @cached_property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case and values, whatever stands around them."""
        return [
            (name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in self.lines)
        ]

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header."""
        return [value for key, value in self.fields if key == name]

    @property
    def path(self) -> bytes:
        """What stands before `?` in the target."""
        return self.words[1].split(b"?")[0]

    @property
    def nominated(self) -> set[bytes]:
        """What Connection names."""
        return {token.strip().lower() for value in self.values(b"connection") for token in value.split(b",")}


class Difference(NamedTuple):
    """A row. `request`, `embedded`, `envoy` and `why` are its texts; `found` knows such requests, `example` is one.

    `statuses`: what the embedded proxy and Envoy may answer then, 0 for nothing. `laxer`: the embedded proxy may let
    pass what Envoy refuses. `later`: about what follows a request that both treat alike.
    """

    request: str
    embedded: str
    envoy: str
    why: str
    example: bytes
    found: Callable[[Odd], object]
    statuses: tuple[Container[int], Container[int]] = (_REFUSED, ANY)
    laxer: bool = False
    later: bool = False


def _own_host(odd: Odd) -> bool:
    found = re.match(rb"https?://([^/?#]*)", odd.words[1], re.IGNORECASE)
    return found is not None and [found[1].lower()] == [value.lower() for value in odd.values(b"host")]


def _broken_body(odd: Odd) -> bool:
    return b"chunked" in b"".join(odd.values(b"transfer-encoding")).lower()


def _nominates(odd: Odd) -> bool:
    free = {b"close", b"keep-alive", b"te", b"upgrade", b"http2-settings", b"proxy-connection", b"trailer", b""}
    return bool(
        odd.nominated - free & {name for name, _ in odd.fields}
        | odd.nominated & {b"host", b"content-length", b"transfer-encoding"}
    )


DIFFERENCES = (
    Difference(
        "a line that ends in LF alone",
        "400",
        "accepted, sent on with CRLF",
        "RFC 9112, 2.2 lets a recipient take it for an end of line; those that don't see one line where we see two",
        b"GET / HTTP/1.1\nHost: api\n\n",
        lambda odd: re.search(rb"(?<!\r)\n", odd.raw),
    ),
    Difference(
        "CR that is not part of a line's end",
        "400",
        "accepted in values and in the request line",
        "servers differ in whether it ends a line",
        b"GET / HTTP/1.1\r\nHost: api\r\nx-a: 1\rx-b: 2\r\n\r\n",
        lambda odd: re.search(rb"\r(?!\n)", odd.raw),
        (frozenset((400, 0)), ANY),
    ),
    Difference(
        "a folded header",
        "400",
        "accepted, unfolded",
        "RFC 9112, 5.2: obsolete; a server may take the second line for a header",
        b"GET / HTTP/1.1\r\nHost: api\r\nx-a: 1\r\n 2\r\n\r\n",
        lambda odd: re.search(rb"\n[ \t]", odd.head),
    ),
    Difference(
        "a request line with an empty line before it, more than one space, a tab, or another version than 1.0 and 1.1",
        "400",
        "accepted, written anew",
        "RFC 9112, 3: lenient reading is where request smuggling begins",
        b"GET  / HTTP/1.1\r\nHost: api\r\n\r\n",
        lambda odd: (
            odd.raw[:1] in b"\r\n" or odd.body[:2] == b"\r\n" or not _STRICT_LINE.match(odd.line.removesuffix(b"\r"))
        ),
    ),
    Difference(
        "Transfer-Encoding on HTTP/1.0",
        "400",
        "accepted, framed anew",
        "RFC 9112, 6.1: such framing is faulty; Envoy takes the header away before any filter sees it",
        b"POST / HTTP/1.0\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        lambda odd: odd.words[2].startswith(b"HTTP/1.0") and odd.values(b"transfer-encoding"),
    ),
    Difference(
        "Transfer-Encoding other than `chunked`, or twice",
        "400",
        "501 where it does not know the coding",
        "both refuse; only chunks end by themselves",
        b"POST / HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: gzip\r\n\r\n",
        lambda odd: [value.lower() for value in odd.values(b"transfer-encoding")] not in ([], [b"chunked"]),
    ),
    Difference(
        "no Host, two, an empty one, or one with userinfo, a list or a path",
        "400",
        "403 by the filter in front of the rules, or 400",
        "both refuse",
        b"GET / HTTP/1.1\r\nHost: api\r\nHost: api\r\n\r\n",
        lambda odd: len(odd.values(b"host")) != 1 or not all(map(_HOST.fullmatch, odd.values(b"host"))),
    ),
    Difference(
        "`*`, or a target with a scheme and another host than Host",
        "400",
        "404, or 403 by the filter in front of the rules",
        "both refuse; `allow_absolute_url` is off, since the target would override Host",
        b"GET http://other/ HTTP/1.1\r\nHost: api\r\n\r\n",
        lambda odd: not odd.words[1].startswith(b"/"),
    ),
    Difference(
        "a target with scheme `http` or `https` and the same host as Host",
        "judged and sent on in origin form",
        "404",
        "RFC 9112, 3.2.2 wants it accepted; it names what Host names, so that nothing can be mistaken",
        b"GET http://api/ HTTP/1.1\r\nHost: api\r\n\r\n",
        _own_host,
        (ANY, frozenset((404,))),
        laxer=True,
    ),
    Difference(
        "`%2e` in a path",
        "403 (`http-ambiguous`)",
        "resolved before any filter sees it",
        "what Envoy matches is what it sends on, so that is safe, too; it can't be told to refuse",
        b"GET /%2e/a HTTP/1.1\r\nHost: api\r\n\r\n",
        lambda odd: b"%2e" in odd.path.lower(),
        (frozenset((403, 200)), ANY),
    ),
    Difference(
        "an ambiguous segment that `..` takes away: `/%2561/..`",
        "403 (`http-ambiguous`)",
        "resolved before any filter sees it",
        "as above",
        b"GET /%2561/.. HTTP/1.1\r\nHost: api\r\n\r\n",
        lambda odd: re.search(rb"[;%].*[/\\]\.\.(?:[/\\]|\Z)", odd.path),
        (frozenset((403, 200)), ANY),
    ),
    Difference(
        "Connection that names a header of the request that is not about the connection, such as Host",
        "400",
        "the header is taken away before the rules see it; Host: 400",
        "a server that is a proxy itself would act on another request than the one that was judged",
        b"GET / HTTP/1.1\r\nHost: api\r\nConnection: x-a\r\nx-a: 1\r\n\r\n",
        _nominates,
    ),
    Difference(
        "the method `QUERY`",
        "400",
        "accepted with a Content-Type, else 400",
        "newer than the methods that policy knows",
        b"QUERY / HTTP/1.1\r\nHost: api\r\nContent-Type: text/plain\r\n\r\n",
        lambda odd: odd.words[0] == b"QUERY",
    ),
    Difference(
        "`CONNECT` with Transfer-Encoding",
        "400",
        "501",
        "both refuse",
        b"CONNECT /a HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        lambda odd: odd.words[0] == b"CONNECT" and odd.values(b"transfer-encoding"),
        (_REFUSED, frozenset((501,))),
    ),
    Difference(
        "a denied request with `Content-Type: application/grpc`",
        "403",
        "200 with `grpc-status: 7`",
        "Envoy speaks gRPC in its own answers; the embedded proxy passes on no HTTP/2, and so no gRPC",
        b"DELETE /denied HTTP/1.1\r\nHost: api\r\nContent-Type: application/grpc\r\n\r\n",
        lambda odd: b"application/grpc" in odd.values(b"content-type"),
        (frozenset((403, 400)), frozenset((200,))),
    ),
    Difference(
        "a head that is too large",
        "431 (`http-head-too-large`)",
        "431 (`http-malformed`)",
        "Envoy's access log does not tell it from other heads that it can't read",
        b"GET / HTTP/1.1\r\nHost: api\r\nx-a: %b\r\n\r\n" % (b"v" * 70_000),
        lambda odd: len(odd.head) > 60_000 or len(odd.lines) >= 100,
        (frozenset((431, 400)), frozenset((431, 400))),
    ),
    Difference(
        "chunks with a size, extension, end or trailer that is not as RFC 9112, 7.1 has it",
        "400; where the head has reached the server already, the body there never ends",
        "the same for most; accepts more bytes than the size says, and anything as an extension",
        "bodies are not held back until their end",
        b"POST / HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n12345\r\n0\r\n\r\n",
        _broken_body,
    ),
    Difference(
        "`Upgrade: websocket` in a request with a body",
        "the body goes on",
        "the body waits until the server has agreed to the upgrade",
        "it has been judged, and the server may want it before it answers",
        b"POST / HTTP/1.1\r\nHost: api\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n1",
        lambda odd: b"upgrade" in odd.nominated and b"websocket" in odd.values(b"upgrade") and odd.body,
        (ANY, frozenset((0,))),
        laxer=True,
    ),
    Difference(
        "a further request after a denied one with a body",
        "answered on the same connection",
        "the connection is closed after the 403",
        "a small body is skipped ([above](#what-it-does-with-a-request))",
        b"POST /denied HTTP/1.1\r\nHost: api\r\nContent-Length: 1\r\n\r\n1GET /pub HTTP/1.1\r\nHost: api\r\n\r\n",
        lambda odd: odd.values(b"content-length") or odd.values(b"transfer-encoding"),
        (ANY, frozenset((0,))),
        laxer=True,
        later=True,
    ),
    Difference(
        "bytes after a request that can't be the begin of another",
        "400 when a whole head or line has come",
        "400 at once",
        "a head is read when it is whole",
        b"GET / HTTP/1.1\r\nHost: api\r\n\r\n12345",
        lambda odd: odd.body,
        (frozenset((0,)), frozenset((0, 400))),
        later=True,
    ),
)


def same(embedded: Outcome, envoy: Outcome) -> bool:
    """Whether status, verdict, reason, rule and what arrived are the same, but for the rows of SENT."""
    if (embedded.statuses, embedded.flows) != (envoy.statuses, envoy.flows):
        return False
    ambiguous = any(reason == "http-ambiguous" for _, reason, _ in embedded.flows)  # in audit, the last row of SENT
    ours, theirs = [by_envoy(one) for one in embedded.arrived], [as_sent(one) for one in envoy.arrived]
    return [one[ambiguous:] for one in ours] == [one[ambiguous:] for one in theirs]


def explained(
    raw: bytes, embedded: Outcome, envoy: Outcome, rows: Iterable[Difference] = DIFFERENCES
) -> Difference | None:
    """The first row that covers the difference between these outcomes."""
    odd = Odd(raw)
    laxer = _whole(embedded) > _whole(envoy)
    place = next(
        (i for i, pair in enumerate(zip(*map(_answers, (embedded, envoy)), strict=True)) if pair[0] != pair[1]), None
    )
    if place is None:
        return None  # only what arrived differs, and no row is about that
    ours, theirs = (_answers(one)[place][0] for one in (embedded, envoy))
    for row in rows:
        fits = ours in row.statuses[0] and theirs in row.statuses[1] and (place > 0 or not row.later)
        if fits and (row.laxer or not laxer) and row.found(odd):
            return row
    return None


def _answers(outcome: Outcome) -> list[tuple[int, tuple[str, str, int] | None]]:
    """Status and flow of each of the first answers; 0 and None for none."""
    statuses, flows = outcome.statuses[:3], outcome.flows[:3]
    return list(zip((*statuses, 0, 0, 0)[:3], (*flows, None, None, None)[:3], strict=True))


def _whole(outcome: Outcome) -> int:
    return sum(one.body is not None for one in outcome.arrived)
