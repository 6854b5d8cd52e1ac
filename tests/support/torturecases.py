"""Requests that must be refused, and requests that must not be: tables with the section that says so.

Sections are of RFC 9112 unless they begin with another name: `9110` is RFC 9110, `http.md` the table of decisions that
every data path follows (where an RFC leaves a choice, the choice is that nothing has two meanings).
"""

from __future__ import annotations

from typing import NamedTuple

from support.stricthttp import MAX_HEAD

HOST = b"Host: api\r\n"
#: What rules of these tests let through.
ALLOWED_PATH = "/pub/.*"
BODY = b"hello world"


class Refused(NamedTuple):
    """A request, or the beginning of one, with the statuses that are right."""

    section: str
    data: bytes
    statuses: tuple[int, ...] = (400,)


def request(
    headers: bytes = b"", *, line: bytes = b"GET /pub/a HTTP/1.1", host: bytes = HOST, body: bytes = b""
) -> bytes:
    """One request. `headers` and `host` are whole lines."""
    return line + b"\r\n" + host + headers + b"\r\n" + body


def post(headers: bytes, body: bytes) -> bytes:
    """A POST with these headers behind Host."""
    return request(headers, line=b"POST /pub/a HTTP/1.1", body=body)


def chunked(body: bytes) -> bytes:
    """A POST with a body in chunks, as it is."""
    return post(b"Transfer-Encoding: chunked\r\n", body)


def _lines(section: str, table: dict[str, bytes], *statuses: int) -> dict[str, Refused]:
    return {name: Refused(section, request(line=line), statuses or (400,)) for name, line in table.items()}


def _headers(section: str, table: dict[str, bytes]) -> dict[str, Refused]:
    return {name: Refused(section, request(lines)) for name, lines in table.items()}


def _hosts(section: str, table: dict[str, bytes]) -> dict[str, Refused]:
    return {name: Refused(section, request(host=lines)) for name, lines in table.items()}


_REQUEST_LINES = _lines("3", {
    "two spaces before the target": b"GET  /pub/a HTTP/1.1",
    "two spaces behind the target": b"GET /pub/a  HTTP/1.1",
    "space first": b" GET /pub/a HTTP/1.1",
    "space last": b"GET /pub/a HTTP/1.1 ",
    "tab before the target": b"GET\t/pub/a HTTP/1.1",
    "tab behind the target": b"GET /pub/a\tHTTP/1.1",
    "vertical tab": b"GET\x0b/pub/a HTTP/1.1",
    "form feed": b"GET /pub/a\x0cHTTP/1.1",
    "no-break space": b"GET\xa0/pub/a HTTP/1.1",
    "no target": b"GET HTTP/1.1",
    "empty target": b"GET  HTTP/1.1",
    "no version": b"GET /pub/a",
    "no version, space": b"GET /pub/a ",
    "no method": b"/pub/a HTTP/1.1",
    "empty method": b" /pub/a HTTP/1.1",
    "empty line": b"",
    "method alone": b"GET",
    "four words": b"GET /pub/a HTTP/1.1 HTTP/1.1",
    "a space in the target": b"GET /pub/a b HTTP/1.1",
    "bare CR in the target": b"GET /pub/a\rb HTTP/1.1",
    "bare CR behind the version": b"GET /pub/a HTTP/1.1\r",
    "bare CR for a space": b"GET\r/pub/a HTTP/1.1",
    "bare LF in the target": b"GET /pub/a\nb HTTP/1.1",
    "NUL in the target": b"GET /pub/\0a HTTP/1.1",
    "NUL in the method": b"GE\0T /pub/a HTTP/1.1",
    "NUL behind the version": b"GET /pub/a HTTP/1.1\0",
    "a response": b"HTTP/1.1 200 OK",
    "a header": b"X: y",
})  # fmt: skip

_VERSIONS = _lines("2.3", {
    f"version {version!r}": b"GET /pub/a " + version
    for version in (
        *(b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/11", b"HTTP/1.1.1", b"HTTP/1.10", b"HTTP/01.1", b"HTTP/1,1"),
        *(b"http/1.1", b"Http/1.1", b"HTTP/ 1.1", b"HTTP /1.1", b"HTTP/+1.1", b"HTTP/-1.1", b"HTTP/1.x", b"HTTP/1.1x"),
        *(b"XHTTP/1.1", b"HTTPS/1.1", b"HTTP1.1", b"HTTP\\1.1", b"HTTP/1.\xb9", b"ICY/1.1", b"1.1"),
        *(b"HTTP/0.9", b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9"),
    )
}, 400, 505)  # fmt: skip

_METHODS = _lines(
    "3.1",
    {
        f"method {method!r}": method + b" /pub/a HTTP/1.1"
        for method in (
            b"get",
            b"Get",
            b"FOO",
            b"CONNECT",
            b"G(T",
            b"GET,",
            b"GET:",
            b'"GET"',
            b"GE\x7fT",
            b"G\xc3\x89T",
        )
    },
) | _lines("3.2.3", {"CONNECT": b"CONNECT api:80 HTTP/1.1", "CONNECT, a path's host": b"CONNECT /pub/a:80 HTTP/1.1"})

_TARGETS = _lines("3.2", {
    f"target {target!r}": b"GET " + target + b" HTTP/1.1"
    for target in (
        *(b"*", b"api:80", b"api", b"pub/a", b"./pub/a", b"?x=1", b"http:/pub/a", b"http:///pub/a", b"http:pub/a"),
        *(b"http://other/pub/a", b"http://u@api/pub/a", b"http://api@other/pub/a", b"http://api:80/pub/a"),
        *(b"http://api\\@other/pub/a", b"http://api.other/pub/a", b"ftp://api/pub/a", b"ws://api/pub/a"),
        b"http://api?/pub/a",
        *(b"/pub/a#b", b"/pub/\x01", b"/pub/\x7f", b"/pub/\xc3\xa9", b"/pub/\xff", b"\\pub\\a", b"%2fpub/a"),
        *(b"/pub/%00", b"/pub%2fa", b"/pub/%2F", b"/pub/%5c", b"/pub/%5C.."),
    )
}) | _lines("3.2.4", {"OPTIONS *": b"OPTIONS * HTTP/1.1"})  # fmt: skip

_LINE_ENDS = {
    "bare LF everywhere": Refused("2.2", b"GET /pub/a HTTP/1.1\nHost: api\n\n"),
    "bare LF behind the request line": Refused("2.2", b"GET /pub/a HTTP/1.1\nHost: api\r\n\r\n"),
    "bare LF behind Host": Refused("2.2", b"GET /pub/a HTTP/1.1\r\nHost: api\nX: y\r\n\r\n"),
    "bare LF behind the last header": Refused("2.2", b"GET /pub/a HTTP/1.1\r\nHost: api\r\nX: y\n\r\n"),
    "bare LF at the end": Refused("2.2", b"GET /pub/a HTTP/1.1\r\nHost: api\r\n\n"),
    "LF CR LF": Refused("2.2", b"GET /pub/a HTTP/1.1\r\nHost: api\n\r\n"),
    "CR CR LF": Refused("2.2", b"GET /pub/a HTTP/1.1\r\nHost: api\r\r\n\r\n"),
    "bare CR everywhere": Refused("2.2", b"GET /pub/a HTTP/1.1\rHost: api\r\r\r\n\r\n"),
    "bare CR for a line end": Refused("2.2", b"GET /pub/a HTTP/1.1\r\nHost: api\rX: y\r\n\r\n"),
    "LF CR": Refused("2.2", b"GET /pub/a HTTP/1.1\n\rHost: api\n\r\n\r\n"),
    "an empty line first": Refused("http.md", b"\r\n" + request()),
    "empty lines first": Refused("http.md", b"\r\n\r\n\r\n" + request()),
    "a bare LF first": Refused("http.md", b"\n" + request()),
    "space before the first header": Refused("2.2", b"GET /pub/a HTTP/1.1\r\n Host: api\r\n\r\n"),
    "tab before the first header": Refused("2.2", b"GET /pub/a HTTP/1.1\r\n\tX: y\r\nHost: api\r\n\r\n"),
    "a line of one space first": Refused("2.2", b"GET /pub/a HTTP/1.1\r\n \r\nHost: api\r\n\r\n"),
    "a line of one space last": Refused("5.2", request(b" \r\n")),
}  # fmt: skip

_FIELDS = _headers("5.2", {
    "folded with a space": b"X: a\r\n b\r\n",
    "folded with a tab": b"X: a\r\n\tb\r\n",
    "folded and empty": b"X: a\r\n \r\nY: b\r\n",
    "folded at once": b"X:\r\n a\r\n",
    "folded Content-Length": b"Content-Length:\r\n 5\r\n",
    "folded Transfer-Encoding": b"Transfer-Encoding:\r\n chunked\r\n",
    "folded into Transfer-Encoding": b"X: y\r\n Transfer-Encoding: chunked\r\n",
}) | _headers("5.1", {
    "space before the colon": b"X : y\r\n",
    "tab before the colon": b"X\t: y\r\n",
    "space before Content-Length's colon": b"Content-Length : 5\r\n",
    "space before Transfer-Encoding's colon": b"Transfer-Encoding : chunked\r\n",
    "tab before Transfer-Encoding's colon": b"Transfer-Encoding\t: chunked\r\n",
    "no colon": b"X\r\n",
    "no colon but a value": b"X y\r\n",
    "Content-Length without a colon": b"Content-Length 5\r\n",
    "colon alone": b":\r\n",
    "empty name": b": y\r\n",
    "space in the name": b"X Y: z\r\n",
    "space for a name": b" : y\r\n",
}) | _headers("5.1", {  # field-name = token
    f"byte 0x{byte:02x} in a name": b"X%cY: z\r\n" % byte
    for byte in (*range(32), *b' "(),/;<=>?@[\\]{}', 127, 128, 160, 255)
}) | _headers("5.1", {
    f"byte 0x{byte:02x} behind a name": b"Transfer-Encoding%c: chunked\r\n" % byte
    for byte in (0, 9, 11, 12, 32, 127, 133, 160)
}) | _headers("9110 5.5", {
    f"byte 0x{byte:02x} in a value": b"X: a%cb\r\n" % byte for byte in (*range(9), *range(10, 32), 127)
}) | _headers("9110 5.5", {
    f"byte 0x{byte:02x} at the end of a value": b"X: a%c\r\n" % byte for byte in (0, 1, 11, 12, 13, 31, 127)
}) | _headers("9110 5.5", {
    f"byte 0x{byte:02x} for a value": b"X:%c\r\n" % byte for byte in (0, 1, 10, 11, 13, 127)
})  # fmt: skip

_HOSTS = _hosts("3.2", {
    "no Host": b"",
    "two Hosts": b"Host: api\r\nHost: other\r\n",
    "two equal Hosts": b"Host: api\r\nHost: api\r\n",
    "two Hosts, one in capitals": b"Host: api\r\nHOST: other\r\n",
    "Host far from Host": b"Host: api\r\nX: y\r\nHost: other\r\n",
    "empty Host": b"Host:\r\n",
    "blank Host": b"Host: \t \r\n",
    "Host is a list": b"Host: api, other\r\n",
    "Host with userinfo": b"Host: api@other\r\n",
    "Host with a path": b"Host: api/pub\r\n",
    "Host with a query": b"Host: api?x\r\n",
    "Host with a fragment": b"Host: api#x\r\n",
    "Host with a backslash": b"Host: api\\other\r\n",
    "Host with a space": b"Host: api other\r\n",
    "Host with a tab": b"Host: api\tother\r\n",
    "Host in quotes": b'Host: "api"\r\n',
    "Host with a high byte": b"Host: \xc3\xa4pi\r\n",
    "space before Host's colon": b"Host : api\r\n",
    "folded Host": b"Host: api\r\n other\r\n",
    "1.0 with two Hosts": b"Host: api\r\nHost: other\r\n",
})  # fmt: skip

_LENGTHS = {
    f"Content-Length {value!r}": Refused("6.2", post(b"Content-Length:%b\r\n" % value, b"abc"))
    for value in (
        *(b" +3", b" -3", b" 0x3", b" 3 3", b" 3, 3", b" 3,3", b" 3,4", b" 3,", b" ,3", b" 3;", b" 3.0", b" 3e0"),
        *(b"", b" ", b" abc", b" 3abc", b" abc3", b' "3"', b" 1_0", b" \xb3", b" \xd9\xa3", b" 3\x0b", b" 3\0", b" -0"),
        *(b" 99999999999999999999", b" " + b"9" * 40, b" 18446744073709551619", b" 0003 ;", b" 3\t3"),
    )
}  # fmt: skip

_ENCODINGS = {
    f"Transfer-Encoding {value!r}": Refused(
        "6.1", post(b"Transfer-Encoding:%b\r\n" % value, b"3\r\nabc\r\n0\r\n\r\n"), (400, 501)
    )
    for value in (
        *(b" identity", b" gzip", b" gzip, chunked", b" chunked, gzip", b" chunked, chunked", b" chunked, identity"),
        *(b" identity, chunked", b" xchunked", b" chunkedx", b" chunked;q=1", b' "chunked"', b" chunked,"),
        *(b"", b" ", b" chun\tked", b" chun ked", b" chunked\x0b", b" \x0bchunked", b" chunked\0", b" chunked;"),
        *(b" ,chunked", b" chunked\x85", b" \xa0chunked", b" chunke\xe4", b" x", b" 'chunked'", b" chunked\r"),
    )
}  # fmt: skip

_CHUNKED_BODY = b"3\r\nabc\r\n0\r\n\r\n"
_FRAMES = {
    name: Refused("6.3", post(lines, _CHUNKED_BODY))
    for name, lines in {
        "Content-Length, then Transfer-Encoding": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding, then Content-Length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Content-Length 0 and Transfer-Encoding": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "empty Content-Length and Transfer-Encoding": b"Content-Length:\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length and an unknown encoding": b"Content-Length: 3\r\nTransfer-Encoding: x\r\n",
        "Content-Length and identity": b"Content-Length: 3\r\nTransfer-Encoding: identity\r\n",
        "two equal Content-Lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n",
        "two Content-Lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n",
        "two Content-Lengths, other case": b"Content-Length: 3\r\nCONTENT-LENGTH: 0\r\n",
        "Content-Length and an empty one": b"Content-Length: 3\r\nContent-Length:\r\n",
        "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "chunked, then identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "identity, then chunked": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "chunked and an empty one": b"Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n",
    }.items()
} | {
    f"1.0, chunked{', kept' * bool(kept)}": Refused(
        "6.1", request(b"Transfer-Encoding: chunked\r\n" + kept, line=b"POST /pub/a HTTP/1.0", body=_CHUNKED_BODY)
    )
    for kept in (b"", b"Connection: keep-alive\r\n")
}  # fmt: skip

_MARGIN = len(request(b"X: \r\n"))
_SIZES = {
    "101 headers": Refused("http.md", request(b"".join(b"X-%d: y\r\n" % number for number in range(100))), (431,)),
    "a large value": Refused("5.4", request(b"X: %b\r\n" % (b"y" * MAX_HEAD)), (431,)),
    "a large name": Refused("5.4", request(b"%b: y\r\n" % (b"X" * MAX_HEAD)), (431,)),
    "a long target": Refused("3", request(line=b"GET /pub/%b HTTP/1.1" % (b"a" * MAX_HEAD)), (431, 414)),
    "a long method": Refused("3", request(line=b"%b /pub/a HTTP/1.1" % (b"A" * MAX_HEAD)), (431, 400, 501)),
    "one byte too many": Refused("5.4", request(b"X: %b\r\n" % (b"y" * (MAX_HEAD + 1 - _MARGIN))), (431,)),
    "a head without an end": Refused("5.4", request(b"X: %b\r\n" % (b"y" * MAX_HEAD))[:-4], (431,)),
    "a line without an end": Refused("3", b"GET /pub/" + b"a" * (MAX_HEAD + 1), (431, 414, 400)),
    "many small headers": Refused("http.md", request(b"X: y\r\n" * 5000), (431,)),
}  # fmt: skip

#: Heads that nobody may take for a request, by name.
REFUSED: dict[str, Refused] = {
    **_REQUEST_LINES, **_VERSIONS, **_METHODS, **_TARGETS, **_LINE_ENDS, **_FIELDS, **_HOSTS, **_LENGTHS, **_ENCODINGS,
    **_FRAMES, **_SIZES,
}  # fmt: skip

#: Targets with a 403: whole requests, but two servers could read them differently, or no rule matches.
DENIED: dict[str, bytes] = {
    f"target {target!r}": request(line=b"GET " + target + b" HTTP/1.1")
    for target in (
        *(b"/pub/a;b", b"/pub/;", b"/pub/..;/private", b"/pub/%2e%2e;/private", b"/pub/%2e%2e/private", b"/pub/%2e"),
        *(b"/pub/%", b"/pub/%a", b"/pub/%zz", b"/pub/%25", b"/pub/%252e", b"/pub/%0a", b"/pub/%0d", b"/pub/%09"),
        *(b"/pub/%7f", b"/pub/%80", b"/pub/%c0%ae%c0%ae/private", b"/pub/%3b", b"/pub/%u002e"),
        *(b"/private", b"/", b"/pub", b"/PUB/a", b"/pub/../private", b"/pub/a/../../private", b"//private"),
        *(b"/pub/./../private", b"/pub\\..\\private", b"http://api/private", b"http://api", b"/?/pub/a", b"//pub"),
    )
}  # fmt: skip

#: Chunks behind a head that is allowed: the server may get the head, but never a whole request.
BAD_CHUNKS: dict[str, bytes] = {
    f"size {size!r}": size + b"\r\nabc\r\n0\r\n\r\n"
    for size in (
        *(b"", b"+3", b"-3", b"0x3", b"0X3", b" 3", b"3 ", b"\t3", b"3\t", b"g", b"3g", b"3 3", b"3,3", b"3.0"),
        *(b"\xb3", b"3\0", b"3\r", b"\r\n3", b"3_0", b"3h", b"#3", b"'3'", b"-0", b"0" * 17 + b"3"),
        *(b"f" * 17, b"1" + b"0" * 16),
    )
} | {
    f"extension {extension!r}": b"3" + extension + b"\r\nabc\r\n0\r\n\r\n"
    for extension in (
        *(b";a=\0", b";a=\x01", b";\x7f", b";a=b\rc", b";a=b\r", b";a=\n", b";a\nb", b';a="b', b';a="b\n"', b';a="\0"'),
        *(b";a=\xff", b";=b", b";(", b" a", b"a=b", b";a=b c", b":a", b",a"),
        b";a=" + b"b" * 20_000,
    )
} | {
    "size line ends in LF": b"3\nabc\r\n0\r\n\r\n",
    "extension ends in LF": b"3;a\nabc\r\n0\r\n\r\n",
    "data ends in LF": b"3\r\nabc\n0\r\n\r\n",
    "data ends in CR": b"3\r\nabc\r0\r\n\r\n",
    "data longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "data shorter than its size": b"3\r\nab\r\n0\r\n\r\n",
    "no line end behind data": b"3\r\nabc0\r\n\r\n",
    "two bytes for a line end": b"3\r\nabcXX0\r\n\r\n",
    "LF CR behind data": b"3\r\nabc\n\r0\r\n\r\n",
    "last size ends in LF": b"0\n\r\n",
    "body ends in LF": b"0\r\n\n",
    "last size is no size": b"3\r\nabc\r\n\r\n",
    "0x0": b"3\r\nabc\r\n0x0\r\n\r\n",
    "trailer without a colon": b"0\r\nX\r\n\r\n",
    "trailer ends in LF": b"0\r\nX: y\n\r\n",
    "trailers end in LF": b"0\r\nX: y\r\n\n",
    "folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "trailer without a name": b"0\r\n: y\r\n\r\n",
    "space before a trailer's colon": b"0\r\nX : y\r\n\r\n",
    "NUL in a trailer": b"0\r\nX: \0\r\n\r\n",
    "CR in a trailer": b"0\r\nX: a\rb\r\n\r\n",
    "a trailer that is a request": b"0\r\nGET /pub/b HTTP/1.1\r\nHost: api\r\n\r\n",
    "a large trailer": b"0\r\nX: " + b"y" * MAX_HEAD + b"\r\n\r\n",
}  # fmt: skip
