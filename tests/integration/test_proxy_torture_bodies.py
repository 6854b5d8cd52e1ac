"""Bodies in chunks: bad ones never become a whole request at the server, good ones arrive in whatever pieces."""

from __future__ import annotations

import pytest

from support.acceptedcases import CHUNKS
from support.rawhttp import End
from support.stricthttp import parse_all
from support.torture import Bench, deliveries
from support.torturecases import BAD_CHUNKS, BODY, chunked, post, request

pytestmark = pytest.mark.kernel

_HEAD = len(chunked(b""))
BEHIND = request(line=b"GET /pub/behind HTTP/1.1")
EXPECTING = b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_are_no_request(rack: Bench, name: str) -> None:
    for how, pieces in deliveries(chunked(BAD_CHUNKS[name]), _HEAD):
        back = rack.exchange(*pieces)
        assert back.end is not End.OPEN, how
        # The head may be on its way, so a reset is right, too.
        assert back.statuses in ([400], []), (how, back)
    _assert_no_whole_request(rack)


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_nothing_is_read_behind_bad_chunks(rack: Bench, name: str) -> None:
    back = rack.exchange(chunked(BAD_CHUNKS[name]) + BEHIND)
    assert back.end is not End.OPEN
    assert back.statuses in ([400], []), back
    _assert_no_whole_request(rack)


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_of_a_denied_request(rack: Bench, name: str) -> None:
    back = rack.exchange(chunked(BAD_CHUNKS[name]).replace(b"/pub/a", b"/private", 1) + BEHIND)
    assert back.end is not End.OPEN
    assert back.statuses == [403], back
    assert rack.conversations() == []


@pytest.mark.parametrize("name", CHUNKS)
def test_good_chunks(rack: Bench, name: str) -> None:
    sent = 0
    for how, pieces in deliveries(chunked(CHUNKS[name]) + BEHIND, _HEAD):
        back = rack.exchange(*pieces, half=True)
        assert back.statuses == [200, 200], (how, back)
        sent += 1
    for conversation in rack.conversations():
        first, second = conversation.requests
        assert (first.body, second.line) == (BODY, "GET /pub/behind")
        # Extensions are removed and trailers dropped, whatever they say.
        assert b";" not in conversation.received
        assert b"railer" not in conversation.received
        assert b"other" not in conversation.received
        sent -= 1
    assert sent == 0


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 300_000])
@pytest.mark.parametrize("shape", ["length", "one chunk", "chunks of 1000"])
def test_sizes_of_bodies(rack: Bench, size: int, shape: str) -> None:
    body = bytes(number % 251 for number in range(size))
    step = size if shape == "one chunk" else 1000
    parts = [body[at : at + step] for at in range(0, size, step)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    data = post(b"Content-Length: %d\r\n" % size, body) if shape == "length" else chunked(chunks)
    assert [len(answer.body) for answer in rack.ask(data + BEHIND).answers()] == [len(b"POST /pub/a ") + size, 16]
    first, second = rack.requests()
    assert first.body == body
    assert second.line == "GET /pub/behind"


@pytest.mark.parametrize(
    ("headers", "length", "kept"),
    [
        (b"", 0, True),
        (b"Content-Length: 0\r\n", 0, True),
        (b"Content-Length: 65536\r\n", 65536, True),
        (b"Content-Length: 65537\r\n", 65537, False),
        (b"Content-Length: 5\r\n" + EXPECTING, 5, False),
        (b"Connection: close\r\n", 0, False),
    ],
)
def test_body_of_a_denied_request(rack: Bench, headers: bytes, length: int, kept: bool) -> None:
    """It is skipped, whatever it says, or the connection is closed."""
    inside = (BEHIND * (length // len(BEHIND) + 1))[:length]
    denied = request(headers, line=b"POST /private HTTP/1.1", body=inside)
    for half in (True, False) if not kept else (True,):
        back = rack.exchange(denied + BEHIND, half=half)
        assert back.end is not End.OPEN
        assert back.statuses == ([403, 200] if kept else [403])
    assert [one.line for one in rack.requests()] == ["GET /pub/behind"] * kept


def test_denied_with_chunks_is_closed(rack: Bench) -> None:
    """What frames itself could go on for ever."""
    denied = chunked(b"5\r\nhello\r\n0\r\n\r\n").replace(b"/pub/a", b"/private")
    back = rack.exchange(denied + BEHIND)
    assert (back.statuses, back.end is End.OPEN) == ([403], False)
    assert rack.conversations() == []


def _assert_no_whole_request(rack: Bench) -> None:
    for conversation in rack.conversations():
        assert conversation.error == ""
        assert parse_all(conversation.received)[0] == []
        assert b"behind" not in conversation.received
