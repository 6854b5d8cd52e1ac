"""Requests that every recipient must accept, so that strictness has an other side: tables with the section."""

from __future__ import annotations

from support.stricthttp import MAX_HEAD
from support.torturecases import BODY, chunked, post, request

_TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_METHODS = (
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS PATCH "
    b"POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK UNSUBSCRIBE"
).split()

#: Each is one request, by name; the server must get it with the same method, path, headers and body.
ACCEPTED: dict[str, bytes] = {
    "plain": request(),
    "a name of every tchar (5.1)": request(_TCHAR + b": y\r\n"),
    "names of one tchar (5.1)": request(b"".join(b"%c: y\r\n" % byte for byte in _TCHAR)),
    "obs-text in a value (9110 5.5)": request(b"X: " + bytes(range(0x80, 0x100)) + b"\r\n"),
    "every printable in a value (9110 5.5)": request(b"X: " + bytes(range(0x21, 0x7F)) + b"\r\n"),
    "empty values (9110 5.5)": request(b"X:\r\nY: \r\nZ:\t \t\r\n"),
    "white space around a value (5.1)": request(b"A:b\r\nC: d\r\nE:\tf\r\nG: \t h\t \r\nI:j \r\n"),
    "white space in a value (9110 5.5)": request(b"X: a  b\t\tc \t d\r\n"),
    "colons and commas in a value (9110 5.5)": request(b"X: a: b, c;d=\"e\" (f)\r\nY: ::\r\n"),
    "a header twice (9110 5.3)": request(b"X: a\r\nY: b\r\nX: c\r\nx: d\r\n"),
    "names in any case (9110 5.1)": b"GET /pub/a HTTP/1.1\r\nhOST: api\r\nACCEPT: */*\r\nx-lower: 1\r\n\r\n",
    "Host is not first (3.2)": b"GET /pub/a HTTP/1.1\r\nX: y\r\nHost: api\r\n\r\n",
    "Host with a port (3.2)": request(host=b"Host: api:8080\r\n"),
    "Host is an IPv6 address (3.2)": request(host=b"Host: [fd00::1]:80\r\n"),
    "Host in capitals, with a dot (3.2)": request(host=b"Host: API.Example.\r\n"),
    "absolute form (3.2.2)": request(line=b"GET http://api/pub/a?b HTTP/1.1"),
    "absolute form in capitals (3.2.2)": request(line=b"GET HTTP://API/pub/a HTTP/1.1"),
    "a query (3.2.1)": request(line=b"GET /pub/a?b=c&d=/../e%2f;x?y HTTP/1.1"),
    "escapes (3.2.1)": request(line=b"GET /pub/%20%C3%A9?%zz HTTP/1.1".replace(b"%C3%A9", b"%2A")),
    "an encoded letter (http.md)": request(line=b"GET /%70ub/%7e HTTP/1.1"),
    "dots and slashes (http.md)": request(line=b"GET //pub/.//b/../a HTTP/1.1"),
    "characters that are escaped (http.md)": request(line=b"GET /pub/<\">{}|^` HTTP/1.1"),
    "Content-Length 0 (6.2)": post(b"Content-Length: 0\r\n", b""),
    "Content-Length (6.2)": post(b"Content-Length: 11\r\n", BODY),
    "Content-Length in white space (6.2)": post(b"Content-Length:\t 11 \r\n", BODY),
    "Content-Length with leading zeros (6.2)": post(b"Content-Length: 0011\r\n", BODY),
    "a body of all bytes (6.2)": post(b"Content-Length: 256\r\n", bytes(range(256))),
    "a body that is a request (6.2)": post(b"Content-Length: %d\r\n" % len(request()), request()),
    "GET with a body (9110 9.3.1)": request(b"Content-Length: 11\r\n", body=BODY),
    "DELETE with chunks (6.1)": request(
        b"Transfer-Encoding: chunked\r\n", line=b"DELETE /pub/a HTTP/1.1", body=b"b\r\nhello world\r\n0\r\n\r\n"
    ),
    "chunked in capitals (7)": post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"b\r\nhello world\r\n0\r\n\r\n"),
    "no body in chunks (7.1)": chunked(b"0\r\n\r\n"),
    "an unknown expectation (9110 10.1.1)": request(b"Expect: something\r\n"),
    "TE (9110 10.1.4)": request(b"TE: trailers\r\nConnection: TE\r\n"),
    "Upgrade that nobody asked about (9110 7.8)": request(b"Upgrade: foo/2\r\n"),
    "Connection: keep-alive (9.3)": request(b"Connection: keep-alive\r\n"),
    "1.0 that is kept (9.3)": request(b"Connection: keep-alive\r\n", line=b"GET /pub/a HTTP/1.0"),
    "100 headers (http.md)": request(b"".join(b"X-%d: y\r\n" % number for number in range(99))),
    "64 KiB of head (http.md)": request(b"X: %b\r\n" % (b"y" * (MAX_HEAD - len(request(b"X: \r\n"))))),
    **{f"method {method.decode()}": request(line=method + b" /pub/a HTTP/1.1") for method in _METHODS},
}  # fmt: skip

_ONE_BY_ONE = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
#: Bodies in chunks that all are BODY.
CHUNKS: dict[str, bytes] = {
    "one chunk": b"b\r\nhello world\r\n0\r\n\r\n",
    "bytes": _ONE_BY_ONE + b"0\r\n\r\n",
    "two chunks": b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "capitals": b"B\r\nhello world\r\n0\r\n\r\n",
    "leading zeros": b"000b\r\nhello world\r\n0000\r\n\r\n",
    "eight digits": b"0000000b\r\nhello world\r\n00000000\r\n\r\n",
    "extensions": b"5;a\r\nhello\r\n6;b=c\r\n world\r\n0;d\r\n\r\n",
    "extensions in quotes": b'5;a="b;c"\r\nhello\r\n6;d="\\"e\\\\";f\r\n world\r\n0\r\n\r\n',
    "a trailer": b"b\r\nhello world\r\n0\r\nX-Trailer: y\r\n\r\n",
    "trailers": b"b\r\nhello world\r\n0\r\nX-Trailer: y\r\nX-Empty:\r\nx-trailer: z\r\n\r\n",
    "trailers that frame": b"b\r\nhello world\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\nHost: other\r\n\r\n",
}  # fmt: skip
