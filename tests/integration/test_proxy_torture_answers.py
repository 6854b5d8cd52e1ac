"""Answers of servers: right ones reach the client as they are, bad ones become a 502, cut ones a reset."""

from __future__ import annotations

import pytest

from support.rawhttp import End, read_answers, read_to_end
from support.torture import Bench
from support.torturecases import HOST, request
from support.upstreams import Step, answer, close, read_on, reset

pytestmark = pytest.mark.kernel

GET = request()
BEHIND = request(line=b"GET /pub/behind HTTP/1.1")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
#: Never shown to a client: it stands where no answer may begin.
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"

#: Relayed byte for byte; then the connection goes on.
PASSED: dict[str, bytes] = {
    "Content-Length": answer(b"hello"),
    "Content-Length 0": answer(b""),
    "names in any case": OK + b"content-LENGTH: 5\r\nX_y: Z\r\n\r\nhello",
    "obs-text": OK + b"X: \xe4\xf6\xfc\xff\r\nContent-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
    "a reason with obs-text": b"HTTP/1.1 200 \xe4 b\tc\r\nContent-Length: 0\r\n\r\n",
    "empty value": OK + b"X:\r\nContent-Length: 0\r\n\r\n",
    "headers twice": OK + b"Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n",
    "Connection: keep-alive": OK + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    "204": b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
    "304 with a length": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
    "304 with chunks": b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown status": b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nhi",
    "an error": b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nhi",
    "a 403 of its own": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nmine",
    "chunks": CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
    "chunks in capitals": OK + b"TRANSFER-ENCODING: Chunked\r\n\r\nA\r\nhellohello\r\n000\r\n\r\n",
    "chunks with extensions and trailers": CHUNKED + b'5;a;b="c"\r\nhello\r\n0;d\r\nX-T: y\r\nX-U:\r\n\r\n',
    "no chunk": CHUNKED + b"0\r\n\r\n",
    "many chunks": CHUNKED + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n",
    "a long body": answer(b"x" * 3_000_000),
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"hi"),
    "102 and 103s first": b"HTTP/1.1 102 Processing\r\n\r\n"
    + b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3
    + answer(b"hi"),
    "a 103 and chunks": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + CHUNKED + b"1\r\nx\r\n0\r\n\r\n",
}  # fmt: skip

#: Relayed byte for byte; then the connection ends.
LAST: dict[str, bytes] = {
    "until the end": OK + b"\r\nall that there is",
    "nothing until the end": OK + b"\r\n",
    "1.0 until the end": b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nall that there is",
    "1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "close": answer(b"hi", headers=b"Connection: close\r\n"),
    "close with chunks": OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "an unknown encoding (RFC 9112, 6.3)": OK + b"Transfer-Encoding: x\r\n\r\nall that there is",
    "close in a list": answer(b"hi", headers=b"Connection: x, Close\r\n"),
}  # fmt: skip

#: What could be read in two ways, or not at all: a 502, and not one byte of it.
BAD: dict[str, bytes] = {
    "both framings": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "both framings, other order": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + EVIL,
    "two lengths": OK + b"Content-Length: 0\r\nContent-Length: 39\r\n\r\n" + EVIL,
    "a list of lengths": OK + b"Content-Length: 0, 39\r\n\r\n" + EVIL,
    "a negative length": OK + b"Content-Length: -1\r\n\r\n" + EVIL,
    "a length with a sign": OK + b"Content-Length: +4\r\n\r\nevil",
    "a hexadecimal length": OK + b"Content-Length: 0x4\r\n\r\nevil",
    "a length that is none": OK + b"Content-Length: x\r\n\r\n" + EVIL,
    "an empty length": OK + b"Content-Length:\r\n\r\n" + EVIL,
    "a huge length": OK + b"Content-Length: 99999999999999999999\r\n\r\nevil",
    "chunked is not last": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + EVIL,
    "chunked twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "two encodings": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + EVIL,
    "chunks in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "space before the colon": OK + b"Content-Length : 4\r\n\r\nevil",
    "space before the encoding's colon": OK + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "a vertical tab": OK + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + EVIL,
    "NUL in a value": OK + b"X: a\0b\r\nContent-Length: 4\r\n\r\nevil",
    "bare CR in a value": OK + b"X: a\rb\r\nContent-Length: 4\r\n\r\nevil",
    "no colon": OK + b"Content-Length 4\r\n\r\nevil",
    "an empty name": OK + b": 4\r\n\r\nevil",
    "a switch that nobody asked for": b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nevil",
    "no status": b"HTTP/1.1 OK\r\n\r\nevil",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 4\r\n\r\nevil",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 4\r\n\r\nevil",
    "status 099": b"HTTP/1.1 099 X\r\nContent-Length: 4\r\n\r\nevil",
    "another protocol": b"220 mail ESMTP evil\r\n\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00evil\r\n\r\n",
    "HTTP/3.0 in words": b"HTTP/3.0 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "HTTP/0.9": b"<html>evil</html>\r\n\r\n",
    "a space first": b" " + EVIL,
    "a large head": OK + b"X: %b\r\n\r\nevil" % (b"y" * 70_000),
    "many headers": OK + b"X: y\r\n" * 3000 + b"\r\nevil",
}  # fmt: skip

#: An answer that has begun and can't be finished: (what is sent, what may be seen of it).
CUT: dict[str, bytes] = {
    "Content-Length": OK + b"Content-Length: 100\r\n\r\nonly this",
    "chunks": CHUNKED + b"5\r\nhello\r\n",
    "chunks, before the last line end": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "in a chunk": CHUNKED + b"ff\r\nhello",
    "in a size": CHUNKED + b"5\r\nhello\r\n1",
}  # fmt: skip

#: Chunks that are none, behind a head that is on its way.
SPOILED: dict[str, bytes] = {
    name: CHUNKED + chunk + EVIL
    for name, chunk in {
        "no size": b"x\r\nhello\r\n0\r\n\r\n",
        "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
        "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "an overflow": b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n",
        "no line end": b"5\r\nhello0\r\n\r\n",
        "too long": b"5\r\nhello!\r\n0\r\n\r\n",
        "an empty size": b"5\r\nhello\r\n\r\n\r\n",
    }.items()
}  # fmt: skip


def pieces(data: bytes) -> list[Step]:
    """Byte by byte, as far as that is bearable; a server's small writes arrive mostly one by one."""
    return [data] if len(data) > 2000 else [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize("how", ["whole", "bytes"])
@pytest.mark.parametrize("name", PASSED)
def test_passed(rack: Bench, name: str, how: str) -> None:
    data = PASSED[name]
    rack.upstream.answers[b"/pub/a"] = [data] if how == "whole" else pieces(data)
    back = rack.ask(GET * 2 + BEHIND)
    assert back.data == data * 2 + answer(b"GET /pub/behind ")
    assert back.end is End.FIN


@pytest.mark.parametrize("how", ["whole", "bytes"])
@pytest.mark.parametrize("name", LAST)
def test_last(rack: Bench, name: str, how: str) -> None:
    data = LAST[name]
    rack.upstream.answers[b"/pub/a"] = [*([data] if how == "whole" else pieces(data)), close]
    back = rack.exchange(GET + BEHIND)
    assert back.data.startswith(data.partition(b"\r\n\r\n")[0])
    assert back.data.endswith(data.partition(b"\r\n\r\n")[2])
    assert len(back.answers()) == 1
    assert back.end in (End.FIN, End.RESET)  # what the server did not read makes its close a reset
    assert [one.line for one in rack.requests()] == ["GET /pub/a"]


@pytest.mark.parametrize("name", LAST)
def test_last_without_more(rack: Bench, name: str) -> None:
    rack.upstream.answers[b"/pub/a"] = [LAST[name], close]
    assert rack.exchange(GET).end is End.FIN


@pytest.mark.parametrize("ends", [close, read_on])
@pytest.mark.parametrize("name", BAD)
def test_bad(rack: Bench, name: str, ends: Step) -> None:
    rack.upstream.answers[b"/pub/a"] = [BAD[name], ends]
    back = rack.exchange(GET + BEHIND)
    assert back.end is not End.OPEN
    assert back.statuses == [502], back
    assert b"evil" not in back.data
    assert [one.line for one in rack.requests()] == ["GET /pub/a"]


@pytest.mark.parametrize("ends", [close, reset])
@pytest.mark.parametrize("name", CUT)
def test_cut(rack: Bench, name: str, ends: Step) -> None:
    """Never a clean end of what is not whole."""
    rack.upstream.answers[b"/pub/a"] = [CUT[name], ends]
    back = rack.exchange(GET + BEHIND)
    assert back.end is End.RESET
    assert CUT[name].startswith(back.data)


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled(rack: Bench, name: str) -> None:
    rack.upstream.answers[b"/pub/a"] = [SPOILED[name], read_on]
    back = rack.exchange(GET + BEHIND)
    assert (back.statuses, back.end) == ([502], End.FIN) or back.end is End.RESET
    assert b"evil" not in back.data


def test_folded_answer(rack: Bench) -> None:
    """RFC 9112, section 5.2: unfolded, or refused; its encoding counts in either case."""
    rack.upstream.answers[b"/pub/a"] = [OK + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + EVIL, read_on]
    back = rack.exchange(GET)
    assert back.data.startswith((b"HTTP/1.1 502 ", CHUNKED + b"0\r\n\r\n"))
    assert b"evil" not in back.data
    assert back.end is not End.OPEN


@pytest.mark.parametrize("first", [answer(b"hi"), b"HTTP/1.1 204 No Content\r\n\r\n", CHUNKED + b"0\r\n\r\n"])
@pytest.mark.parametrize("more", [EVIL, b"HTTP/1.1 100 Continue\r\n\r\n" + EVIL, b"evil", b"\r\nevil"])
def test_more_than_was_asked_for(rack: Bench, first: bytes, more: bytes) -> None:
    """Bytes behind an answer belong to no request: the next one must not get them."""
    rack.upstream.answers[b"/pub/a"] = [first + more]
    with rack.connect() as connection:
        connection.sendall(GET)
        answers = read_answers(connection, 1)
        assert answers[0].status in (200, 204)
        back = read_to_end(connection)
    assert back.end is not End.OPEN
    assert b"evil" not in back.data
    assert b"evil" not in answers[0].body


def test_head_with_a_body(rack: Bench) -> None:
    """An answer to HEAD ends with its head, whatever it says."""
    rack.upstream.answers[b"/pub/a"] = [OK + b"Content-Length: %d\r\n\r\n" % len(EVIL) + EVIL]
    with rack.connect() as connection:
        connection.sendall(b"HEAD /pub/a HTTP/1.1\r\n" + HOST + b"\r\n")
        [found] = read_answers(connection, 1, ["HEAD"])
        assert (found.status, found.body) == (200, b"")
        back = read_to_end(connection)
    assert back.end is not End.OPEN
    assert b"evil" not in back.data


def test_an_answer_while_the_body_is_on_its_way(rack: Bench) -> None:
    """A server may answer early; the client gets it, and nothing hangs."""
    rack.upstream.before = [answer(b"early", status=b"413 Too Large", headers=b"Connection: close\r\n"), read_on]
    with rack.connect() as connection:
        connection.sendall(request(b"Content-Length: 100000\r\n", line=b"POST /pub/a HTTP/1.1") + b"x" * 100)
        back = read_to_end(connection)
    assert back.statuses == [413]
    assert back.end is not End.OPEN
