"""The parts that odd requests are put together from: plain ones, and those that have brought servers into trouble.

Items stand with two spaces or more between them, `(empty)` for nothing at all; `N` in a body becomes another request.
"""

from __future__ import annotations

import re


def _items(text: str) -> tuple[bytes, ...]:
    found = re.split(r" {2,}|\n", text)
    return tuple(
        b"" if item == "(empty)" else item.encode().decode("unicode_escape").encode("latin-1") for item in found if item
    )


METHODS = _items("GET  GET  GET  HEAD  POST  PUT  DELETE  OPTIONS")
ODD_METHODS = _items(
    r"""
    PROPFIND  PURGE  TRACE  M-SEARCH  CONNECT  get  Get  FOO  GETS  PRI  QUERY  G\x00ET  G\xc9T  G(T  ACL,GET
    """
)
PATHS = _items(
    r"""
    /  /pub  /pub/a  /pub/a/b  /a  /a/1  /b?q=1  /private  /open
    """
)
PIECES = _items(
    r"""
    /  /  /  pub  pub  a  b  private  open  ..  ..  .  ...  .a  ..a  //  ///  %2e  %2E%2e  .%2e  %70ub  %41  %7e  ~  %2f
    %2F  %5c  \\  ;  ;x=1  ..;  .;  %3b  %zz  %  %2  %25  %252e  %00  %0a  %7f  %80  %c3%a9  %20  %21  %3a  %40  +  :  @
    !  $  &  '  (  )  *  ,  =  <  >  "  {  }  |  ^  `  #  #f  \xe9  \xc3\xa9  \x7f  \x01  \t  [  ]  %5B  %u002e  \x80
    """
)
QUERIES = _items(
    r"""
    ?  ?q=1  ?q=%2e%2e/  ?a;b  ?x=/../y  ??x  ?a#b  ?%00  ?\xe9  ?{}  ?//.  ?%zz  ?\\  ?"<>  ?^`
    """
)
TARGETS = _items(
    r"""
    *  api:80  api  pub  ?q=1  //api/pub  ///pub  //pub//a  http://api/pub  http://api/pub/../private  HTTP://API/pub
    http://other/pub  https://api/pub  http://api  http://api?q=1  http://u@api/pub  http://api:80/pub  ftp://api/
    http:///pub  http:/pub  http:pub  /http://api/  http://api/pub#x  http://api\\@other/pub  ws://api/pub  (empty)
    """
)
ODD_VERSIONS = _items(
    r"""
    HTTP/1.2  HTTP/1.9  HTTP/0.9  HTTP/2.0  HTTP/2  HTTP/1  http/1.1  HTTP/1.10  HTTP/01.1  HTTP/1,1  HTP/1.1  HTTPS/1.1
    HTTP/1.1 x  (empty)  HTTP/ 1.1  HTTP/1.1\x00  ICE/1.0  RTSP/1.0
    """
)
HOSTS = _items(
    r"""
    api  api  api  web  api:80
    """
)
ODD_HOSTS = _items(
    r"""
    API  api.  api:8080  api:  :80  a@b  a,b  [::1]  [::1]:80  [::1  api/x  api?x  api#x  api\\x  caf\xe9  a%41  api;x
    *  .  -  _  a_b  (empty)  a b  api\t  \x20api\x20  api\x00  "api"  <api>  api api  \tapi
    """
)
HEADERS = _items(
    r"""
    x-a: 1  x-a: 1  X-A: 1  x-a: 2  x-b: 1  X-B: a,b  x-b: a, b  x-a:1  x-a:  x-c:\x20  Accept: */*  User-Agent: odd
    Cookie: a=1  Content-Type: text/plain  Authorization: b
    """
)
ODD_HEADERS = _items(
    r"""
    x-a : 1  x-a\t: 1  \x20x-a: 1  \tx-a: 1  x-a:\t1  x-a: 1\x20  x-a: 1\t\x20  x-a:\x20\x201  x-a: 1\r\n 2  x-a:\r\n 1
    x-a: 1\r\n\t2  x-a: 1\n 2  x-b: 1\nx-a: 1  x-b: 1\rx-a: 1  x-a: 1\r  : 1  x-a  x a: 1  x(a): 1  x@a: 1  x-\xe9: 1
    x-a\x00: 1  x_a: 1  x.a: 1  x!#$%&'*+^`|~: 1  x-a;: 1  "x-a": 1  x/a: 1  :path: /private  :authority: web
    :method: PUT  x-a:: 1  x\x0ba: 1  x-a: \x00  x-a: 1\x00  x-a: \x01  x-a: \x7f  x-a: caf\xe9  x-a: \xff  x-a: a\tb
    x-a: 1\x0b  Connection: close  Connection: keep-alive  Connection: x-a  Connection: host  Connection: content-length
    Keep-Alive: timeout=5  Proxy-Connection: keep-alive  TE: trailers  TE: gzip  Trailer: x-a  Connection: close, x-a
    Connection: transfer-encoding  Proxy-Authorization: x  Connection: te\r\nTE: trailers
    Connection: upgrade\r\nUpgrade: websocket  Upgrade: websocket  Connection: upgrade\r\nUpgrade: h2c
    Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA  Connection: upgrade
    Expect: 100-continue  Expect: other  Expect: 100-Continue  Expect: 100-continue, x  Expect:
    X-Forwarded-For: 1.2.3.4  X-Forwarded-Proto: https  X-Forwarded-Proto: gopher  X-Forwarded-Host: web
    X-Envoy-Original-Path: /private  x-envoy-upstream-rq-timeout-ms: 1  x-envoy-internal: true  x-envoy-retry-on: 5xx
    x-envoy-decorator-operation: x  x-envoy-force-trace: 1  x-envoy-expected-rq-timeout-ms: 1  X-Request-Id: 1
    Via: 1.1 x  Forwarded: for=1.2.3.4  X-Forwarded-Client-Cert: x  Max-Forwards: 0  grpc-timeout: 1n
    Content-Type: application/grpc  X-HTTP-Method-Override: DELETE  X-Original-URL: /private  Range: bytes=0-1
    If-Match: x  Date: x  Server: x  Content-Encoding: gzip  Upgrade-Insecure-Requests: 1  Early-Data: 1  Priority: u=1
    Alt-Used: x  Origin: http://x  Referer: http://x/  traceparent: x
    """
)
ODD_CODINGS = _items(
    r"""
    CHUNKED  identity  gzip  deflate  xchunked  chunkedx  chunked;x=1  chunked,  ,chunked  "chunked"  chunked,chunked
    gzip, chunked  chunked, gzip  chunked, identity  identity, chunked  chunked\x20  \tchunked  \x0bchunked  (empty)
    chunked\x00  chunked\r\n ,gzip  trailers  c\xb5nked  chunked\t  chunked
    """
)
ODD_CHUNKS = _items(
    r"""
    5;x=y\r\n12345\r\n0\r\n\r\n  5 \r\n12345\r\n0\r\n\r\n  \x205\r\n12345\r\n0\r\n\r\n  05\r\n12345\r\n0\r\n\r\n
    0x5\r\n12345\r\n0\r\n\r\n  +5\r\n12345\r\n0\r\n\r\n  -5\r\n12345\r\n0\r\n\r\n  \r\n0\r\n\r\n  g\r\n0\r\n\r\n
    A\r\n1234567890\r\n0\r\n\r\n  a\r\n1234567890\r\n000\r\n\r\n  5\n12345\n0\n\n  5\r\n12345\n0\r\n\r\n
    5\r\n123450\r\n\r\n  5\r\n1234\r\n0\r\n\r\n  5\r\n123456\r\n0\r\n\r\n  5;\r\n12345\r\n0\r\n\r\n
    5;a="b\r\n12345\r\n0\r\n\r\n  5\t;x\r\n12345\r\n0\r\n\r\n  5;x\ny\r\n12345\r\n0\r\n\r\n  0;x\r\n\r\n
    0\r\nx-t: 1\r\n\r\n  0\r\nContent-Length: 5\r\n\r\n  0\r\nx t: 1\r\n\r\n  0\r\nHost: web\r\n\r\n  0\r\nbad\r\n\r\n
    ffffffffffffffff\r\n12345\r\n  10000000000000005\r\n12345\r\n0\r\n\r\n
    0000000000000000000000000000005\r\n12345\r\n0\r\n\r\n  5\r\n12345\r\n0\r\n\r\nN  5\r\r\n12345\r\n0\r\n\r\n
    5;\x00\r\n12345\r\n0\r\n\r\n  5 x\r\n12345\r\n0\r\n\r\n  0\r\n\r\nN
    """
)
ODD_LENGTHS = _items(
    r"""
    \x20+5  \x20-5  \x2005  \x200x5  \x205,5  \x205;5  \x205.0  \x205e0  \x20five  \x205  \x20\xb25  (empty)  \x20
    \x205 5  \x205\x20  \t5  \x205, 5  \x205,
    """
)
#: Whole framings: headers, and a body.
FRAMINGS = (
    (b"Content-Length: 5\r\n", b"12345"),
    (b"Content-Length: 0\r\n", b""),
    (b"content-length:5\r\n", b"12345"),
    (b"Transfer-Encoding: chunked\r\n", b"5\r\n12345\r\n0\r\n\r\n"),
    (b"transfer-encoding: Chunked\r\n", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
)
ODD_FRAMINGS = (
    (b"Content-Length: 99999999999999999999\r\n", b""),
    (b"Content-Length: 9223372036854775808\r\n", b""),
    (b"Content-Length: -0\r\n", b""),
    (b"Content-Length: +0\r\n", b""),
    (b"Content-Length: 00\r\n", b""),
    (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"12345"),
    (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"123456"),
    (b"Content-Length: 6\r\nContent-Length: 5\r\n", b"123456"),
    (b"Content-Length: 5\r\ncontent-length: 0\r\n", b"12345"),
    (b"Content-Length: 0\r\n", b"N"),
    (b"Content_Length: 5\r\n", b"N"),
    (b"Content-Length : 5\r\n", b"12345"),
    (b"X: y\r\n Content-Length: 5\r\n", b"N"),
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nN"),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\nN"),
    (b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n", b"0\r\n\r\nN"),
    (b"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n", b"0\r\n\r\nN"),
    (b"Content-Length: 5\r\nTransfer_Encoding: chunked\r\n", b"0\r\n\r\nN"),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nN"),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\nN"),
    (b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\nN"),
    (b"", b"N"),
    (b"", b"12345"),
    (b"", b"\r\n\r\nN"),
    *((b"Content-Length:%b\r\n" % length, b"12345") for length in ODD_LENGTHS),
    *((b"Transfer-Encoding: %b\r\n" % coding, b"0\r\n\r\nN") for coding in ODD_CODINGS),
    *((b"Transfer-Encoding: chunked\r\n", body) for body in ODD_CHUNKS),
)
