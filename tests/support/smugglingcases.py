"""Attempts to get a second request past a proxy: what one server takes for a body, another one takes for a request.

The hidden request asks for /private, which no rule allows. Sources: Linhart et al. 2005, «HTTP Request Smuggling»;
Kettle 2019, 2022 and 2025 («HTTP Desync Attacks», «Browser-Powered Desync Attacks», «HTTP/1.1 must die»); Maas 2025,
«Funky chunks».
"""

from __future__ import annotations

from support.torturecases import HOST, chunked, post, request

HIDDEN = request(line=b"GET /private/hidden HTTP/1.1")
_SIZE = b"%x" % len(HIDDEN)
_TE = b"Transfer-Encoding: chunked\r\n"
#: For one that sees chunks the body ends at once and the hidden request follows; for another all is the body.
_EMPTY_THEN = b"0\r\n\r\n" + HIDDEN
#: The reverse: the hidden request is in a chunk.
_IN_A_CHUNK = _SIZE + b"\r\n" + HIDDEN + b"\r\n0\r\n\r\n"


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


_TWO_FRAMINGS = {
    "CL.TE": post(_length(_EMPTY_THEN) + _TE, _EMPTY_THEN),
    "CL.TE, other order": post(_TE + _length(_EMPTY_THEN), _EMPTY_THEN),
    "TE.CL": post(b"Content-Length: 4\r\n" + _TE, _IN_A_CHUNK),
    "TE.CL, other order": post(_TE + b"Content-Length: 4\r\n", _IN_A_CHUNK),
    "TE.0": post(b"Content-Length: 0\r\n" + _TE, _IN_A_CHUNK),
    "CL.CL, first": post(b"Content-Length: 0\r\n" + _length(HIDDEN), HIDDEN),
    "CL.CL, last": post(_length(HIDDEN) + b"Content-Length: 0\r\n", HIDDEN),
    "CL list": post(b"Content-Length: 0, %d\r\n" % len(HIDDEN), HIDDEN),
    "CL, then an empty one": post(_length(HIDDEN) + b"Content-Length:\r\n", HIDDEN),
    "CL of 2^64": post(b"Content-Length: %d\r\n" % (2**64), HIDDEN),
    "CL of 2^32": post(b"Content-Length: %d\r\n" % (2**32), HIDDEN),
    "CL of 2^63": post(b"Content-Length: %d\r\n" % (2**63), HIDDEN),
    "TE on 1.0": request(_length(_EMPTY_THEN) + _TE, line=b"POST /pub/a HTTP/1.0", body=_EMPTY_THEN),
    "TE on 1.0, alone": request(
        _TE + b"Connection: keep-alive\r\n", line=b"POST /pub/a HTTP/1.0", body=_IN_A_CHUNK
    ),
}  # fmt: skip

#: One reads chunked, another does not. With Content-Length and without, chunked for real and not.
_OBFUSCATED = (*(
    b"Transfer-Encoding" + rest
    for rest in (
        *(b": xchunked", b" : chunked", b"\t: chunked", b":chunked ", b":\tchunked", b":\x0bchunked", b": \x0cchunked"),
        *(b": chunked\x0b", b": chunked\0", b":\0chunked", b": chun\0ked"),
        *(b": chunked;q=1", b': "chunked"', b": 'chunked'"),
        *(b": chunked, identity", b": identity, chunked", b": gzip, chunked"),
        *(b": chunked, cow", b": chunked,", b": ,chunked"),
        *(b":\r\n chunked", b":\r\n\tchunked", b": x\r\n chunked", b":\n chunked", b": chunked\r", b":\rchunked"),
        *(b": chunked\r\nTransfer-Encoding: x", b": x\r\nTransfer-Encoding: chunked", b".: chunked", b"\0: chunked"),
        *(b"\x0b: chunked", b"\xa0: chunked", b": chunk\xc3\xa9d", b": \xef\xbb\xbfchunked", b"; chunked", b" chunked"),
        *(b": chunked\nX: y", b"\r\n: chunked", b"\r: chunked", b"\n: chunked", b": CHUNKED\r\n x"),
    )
), *(
    *(b"Transfer_Encoding: chunked", b"transfer encoding: chunked", b" Transfer-Encoding: chunked"),
    *(b"\tTransfer-Encoding: chunked", b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked"),
    *(b"X: y\r\n Transfer-Encoding: chunked", b"X:\0\r\nTransfer-Encoding : chunked"),
    b"\xef\xbc\xb4ransfer-Encoding: chunked",
    *(b"Transfer-Encodin\xc4\xa1: chunked", b"\xef\xbb\xbfTransfer-Encoding: chunked", b"TE: chunked"),
    *(b"X-Transfer-Encoding: chunked", b"Transfer-Encoding-: chunked", b"\"Transfer-Encoding\": chunked"),
    *(b"Transfer\\-Encoding: chunked", b"Transfer-Encoding:: chunked", b":Transfer-Encoding: chunked"),
))  # fmt: skip
_ENCODINGS = {
    f"{kind} {line!r}": post(line + b"\r\n" + (_length(body) if kind == "CL." else b""), body)
    for line in _OBFUSCATED
    for kind, body in (("CL.", _EMPTY_THEN), ("TE.", _IN_A_CHUNK))
}

#: One reads a length, another does not: the hidden request is a body, or a request that is judged.
_LENGTHS = {
    f"CL.0 {line!r}": post(line + b"\r\n", HIDDEN)
    for size in (b"%d" % len(HIDDEN),)
    for line in (
        *(b"Content-Length: " + size, b"content-length: " + size),
        *(b"Content-Length : " + size, b"Content_Length: " + size),
        *(b"Content-Length\t: " + size, b"Content-Length:\r\n " + size, b"X: y\r\n Content-Length: " + size),
        *(b"Content-Length\0: " + size, b"Content-Length: \x0b" + size),
        *(b"Content-Length: +" + size, b" Content-Length: " + size),
        *(b"Content-Length: 0" + size, b"Content-Length: 0x" + size),
        *(b"Content-Length: " + size + b";", b"Content-Length. : 1"),
        *(b"Content-Length: -" + size, b"Content-Length: " + size + b" 0", b"Content-Length: " + size + b"\0"),
        *(b"Content-Length: " + size + b"\nX: y", b"X: y\nContent-Length: " + size, b"X: y\rContent-Length: " + size),
        *(b"Content-Length:" + size + b"\t", b"\xef\xbb\xbfContent-Length: " + size, b"X-Content-Length: " + size),
        b"Connection: Content-Length\r\nContent-Length: " + size,
        b"Content-Length: " + size + b"\r\nConnection: content-length",
        b"Content-Length: " + size + b"\r\nExpect: 100-continue",
        b"Content-Length: " + size + b"\r\nExpect: y 100-continue",
        b"Content-Length: " + size + b"\r\nExpect: 100-Continue",
        b"Content-Length: " + size + b"\r\nExpect:\r\n 100-continue",
        *(b"Content-Length: " + size + b"\r\nUpgrade: websocket\r\nConnection: Upgrade",),
        b"Content-Length: " + size + b"\r\nContent-Encoding: gzip",
        b"Content-Length: " + size + b"\r\nTrailer: Content-Length",
    )
} | {
    f"{method.decode()} with a body": request(_length(HIDDEN), line=method + b" /pub/a HTTP/1.1", body=HIDDEN)
    for method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"PUT")
} | {
    f"{method.decode()} with chunks": request(_TE, line=method + b" /pub/a HTTP/1.1", body=_IN_A_CHUNK)
    for method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"PUT")
}  # fmt: skip

_CHUNKS = {
    f"chunks {body[:24]!r} {number}": chunked(body)
    for number, body in enumerate((
        *(_IN_A_CHUNK, _EMPTY_THEN, b"0" + _IN_A_CHUNK, _SIZE.upper() + _IN_A_CHUNK[len(_SIZE) :]),
        # Funky chunks: TERM.EXT, EXT.TERM, TERM.SPILL, SPILL.TERM, ONE.TWO, TWO.ONE, ZERO.TWO, TWO.ZERO
        *(b"2;\nxx\r\n" + _IN_A_CHUNK, b"2;\n\r\nxx\r\n" + _EMPTY_THEN),
        *(b"2;\rxx\r\n" + _IN_A_CHUNK, b"2\nxx\r\n" + _EMPTY_THEN),
        b"5\r\nAAAAAXX2\r\n45\r\n" + _EMPTY_THEN,
        *(b"5\r\nAAAAA\r2\r\n45\r\n" + _EMPTY_THEN, b"5\r\nAAAAA\n" + _EMPTY_THEN),
        *(b"5\r\nAAAAA" + _EMPTY_THEN, b"5\r\nAAAAA\r\n\r\n" + _EMPTY_THEN, b"5\rAAAAA\r\n" + _EMPTY_THEN),
        *(b"0;a=b\n\r\n" + HIDDEN, b"0;\r\n\n" + HIDDEN, b"0\n\n" + HIDDEN, b"0\r\n\r" + HIDDEN, b"0\r\r\n" + HIDDEN),
        *(b'0;a="\r\n\r\n' + HIDDEN + b'"\r\n\r\n', b'1;a="\r\nx\r\n' + _EMPTY_THEN, b"1 ;a\r\nx\r\n" + _EMPTY_THEN),
        *(b"-1\r\n" + _EMPTY_THEN, b"+0\r\n\r\n" + HIDDEN, b"0x0\r\n\r\n" + HIDDEN),
        *(b" 0\r\n\r\n" + HIDDEN, b"0 \r\n\r\n" + HIDDEN),
        *(b"\r\n0\r\n\r\n" + HIDDEN, b"g\r\n\r\n" + HIDDEN, b"\r\n\r\n" + HIDDEN),
        *(b"0_0\r\n\r\n" + HIDDEN, b"0\0\r\n\r\n" + HIDDEN),
        *(b"1" + b"0" * 16 + b"\r\n\r\n" + HIDDEN, b"f" * 16 + b"\r\n" + _EMPTY_THEN, b"100000000\r\n" + _EMPTY_THEN),
        *(b"10000000000000001\r\nx\r\n" + _EMPTY_THEN, b"0\r\nContent-Length: 99\r\n\r\n" + HIDDEN),
        *(b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + _EMPTY_THEN, b"0\r\nX: y\n\n" + HIDDEN, b"0\r\n" + HIDDEN),
        *(b"0\r\nX: y\r\n z\r\n\r\n" + HIDDEN, b"0\r\n X: y\r\n\r\n" + HIDDEN, b"0\r\nHost: other\r\n\r\n" + HIDDEN),
        *(b"0\r\nX\r\n\r\n" + HIDDEN, b"0\r\n:\r\n\r\n" + HIDDEN),
        *(b"0\r\nX : y\r\n\r\n" + HIDDEN, b"0\r\nX: \0\r\n\r\n" + HIDDEN),
    ))
}  # fmt: skip

_DENIED = {
    "behind a denied GET": request(line=b"GET /private HTTP/1.1") + HIDDEN,
    "in the body of a denied POST": post(_length(HIDDEN), HIDDEN).replace(b"/pub/a", b"/private"),
    "allowed, in the body of a denied POST": post(b"Content-Length: 34\r\n", request())
    .replace(b"/pub/a", b"/private", 1),
    "allowed, in the chunks of a denied POST": chunked(b"22\r\n%b\r\n0\r\n\r\n" % request())
    .replace(b"/pub/a", b"/private", 1),
    "allowed, behind the chunks of a denied POST": chunked(b"0\r\n\r\n" + request()).replace(b"/pub/a", b"/private", 1),
    "allowed, for the body of a denied Expect": post(b"Expect: 100-continue\r\nContent-Length: 34\r\n", request())
    .replace(b"/pub/a", b"/private", 1),
    "allowed, half in the body of a denied POST": post(b"Content-Length: 5\r\n", b"12345" + HIDDEN)
    .replace(b"/pub/a", b"/private", 1),
    "in a large body that is denied": post(_length(HIDDEN * 2000), HIDDEN * 2000).replace(b"/pub/a", b"/private", 1),
    "allowed, in a large body that is denied": post(_length(request() * 3000), request() * 3000)
    .replace(b"/pub/a", b"/private", 1),
}  # fmt: skip

_TARGETS = {
    f"target {target!r}": request(line=b"GET " + target + b" HTTP/1.1") + HIDDEN
    for target in (
        *(b"http://api/private", b"http://other/pub/a", b"http://api/pub/../private", b"http://api:80/pub/a"),
        *(b"http://u@api/pub/a", b"http://api@other/pub/a", b"HTTP://api/private", b"//api/private", b"///private"),
        *(b"/pub/../private", b"/pub/..;/private", b"/pub/%2e%2e/private"),
        *(b"/pub\\..\\private", b"/pub/%2e%2e%2fprivate"),
        *(b"/pub/a HTTP/1.1\r\nX: y\r\n\r\nGET /private", b"/pub/a%20HTTP/1.1%0d%0aX:%20y", b"/pub/a\tHTTP/1.1\tx"),
        *(b"/private?/pub/a", b"/private#/pub/a", b"?/pub/a", b"*", b"/pub/a\0/../private", b"/pub/a/..\0/../private"),
    )
}  # fmt: skip

_HOSTS = {
    f"hosts {lines!r}": b"GET /pub/a HTTP/1.1\r\n" + lines + b"\r\n" + HIDDEN
    for lines in (
        *(b"Host: api\r\nHost: other\r\n", b"Host: api\r\nhost: other\r\n", b"Host: api\r\n Host: other\r\n"),
        *(b"Host : api\r\n", b"Host: api, other\r\n", b"Host: api\r\nX: y\nHost: other\r\n", b"Host: api@other\r\n"),
        b"Connection: Host\r\nHost: api\r\n",
        *(b"Host: api\r\nConnection: close, host\r\n", b"Host: api\r\nX-Host: other\r\n"),
        *(b"Host: api\tother\r\n", b"Host: api other\r\n", b"Host: api/private\r\n", b"\xef\xbb\xbfHost: api\r\n", b""),
    )
}  # fmt: skip

_PROTOCOLS = {
    "HTTP/2 preface behind a request": request() + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "HTTP/2 preface with an allowed target": b"PRI /pub/a HTTP/1.1\r\n" + HOST + b"\r\nSM\r\n\r\n" + HIDDEN,
    "h2c upgrade": request(
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    ) + HIDDEN,
    "h2c upgrade, settings not nominated": request(
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    ) + HIDDEN,
    "upgrade without Connection": request(b"Upgrade: switch\r\n") + HIDDEN,
    "upgrade that is refused": request(b"Connection: Upgrade\r\nUpgrade: websocket\r\n") + HIDDEN,
    "upgrade that is denied": request(
        b"Connection: Upgrade\r\nUpgrade: switch\r\n", line=b"GET /private HTTP/1.1"
    ) + HIDDEN,
    "upgrade, obfuscated": request(b"Connection: Upgrade\r\nUpgrade : switch\r\n") + HIDDEN,
    "upgrade on 1.0": request(b"Connection: Upgrade\r\nUpgrade: switch\r\n", line=b"GET /pub/a HTTP/1.0") + HIDDEN,
    "CONNECT": b"CONNECT api:80 HTTP/1.1\r\nHost: api:80\r\n\r\n" + HIDDEN,
    "CONNECT with an allowed target": request(line=b"CONNECT /pub/a HTTP/1.1") + HIDDEN,
    "HTTP/0.9": b"GET /pub/a\r\n" + HIDDEN,
    "an empty line between": request() + b"\r\n" + HIDDEN,
    "bare LF between": request()[:-2] + b"\n" + HIDDEN,
    "LF LF": b"GET /pub/a HTTP/1.1\nHost: api\n\n" + HIDDEN,
    "close, then more": request(b"Connection: close\r\n") + HIDDEN,
    "1.0, then more": request(line=b"GET /pub/a HTTP/1.0") + HIDDEN,
    "Keep-Alive nominated": request(b"Connection: Transfer-Encoding\r\n" + _TE, body=_IN_A_CHUNK),
    "X-HTTP-Method-Override": request(b"X-HTTP-Method-Override: PUT\r\nX-Original-URL: /pub/b\r\n") + HIDDEN,
}  # fmt: skip

#: All attempts by name; each begins a connection.
ATTEMPTS: dict[str, bytes] = {
    **_TWO_FRAMINGS, **_ENCODINGS, **_LENGTHS, **_CHUNKS, **_DENIED, **_TARGETS, **_HOSTS, **_PROTOCOLS,
}  # fmt: skip
