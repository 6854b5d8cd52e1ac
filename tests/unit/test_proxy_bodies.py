"""Bodies in any pieces: chunks of requests written anew, the end of answers found, timeouts turned in order."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.proxy.http.body import MAX_LINE, ChunkError, ChunkReader
from spliceway.proxy.http.response import (
    ChunkFollower,
    Framing,
    ResponseError,
    head_end,
    read_response,
    with_close,
)
from spliceway.proxy.relay.wheel import TICK, Timed, Wheel

EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b' ; a = "b\\"c;d"', b";a;b=1"])
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"000%X"])
CHUNKS = st.lists(st.tuples(st.binary(min_size=1, max_size=40), SIZES, EXTENSIONS), max_size=6)
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC:\r\n"])
CUTS = st.lists(st.integers(0, 400), max_size=8)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def chunked(chunks: list[tuple[bytes, bytes, bytes]], trailers: bytes) -> bytes:
    body = b"".join(b"%b%b\r\n%b\r\n" % (size % len(data), more, data) for data, size, more in chunks)
    return body + b"0\r\n" + trailers + b"\r\n"


@settings(max_examples=500, deadline=None)
@given(CHUNKS, TRAILERS, CUTS, st.binary(max_size=20))
def test_chunks_are_written_anew(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: bytes, cuts: list[int], after: bytes
) -> None:
    body = chunked(chunks, trailers)
    reader, out, used = ChunkReader(), list[bytes | memoryview](), 0
    for piece in in_pieces(body + after, cuts):
        if not reader.done:
            used += reader.feed(memoryview(piece), out)
    assert (reader.done, used) == (True, len(body))
    written = b"".join(out)
    # Read by what is so simple that it takes nothing but sizes, bytes and line ends.
    read = b""
    while size := int(written[: written.index(b"\r\n")], 16):
        written = written.partition(b"\r\n")[2]
        read += written[:size]
        assert written[size : size + 2] == b"\r\n"
        written = written[size + 2 :]
    assert (read, written) == (b"".join(data for data, _, _ in chunks), b"0\r\n\r\n")


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "body",
    [
        *(
            b"\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1\n",
            b"1\r\na\n",
            b"1\r\nab\r\n",
        ),
        *(b"1;\r\n", b"1;a=\r\n", b"1;a b\r\n", b'1;a="\r\n', b"1;\x00\r\n", b"1\rx\r\n", b"1_0\r\n", b"\xb2\r\n"),
        *(b"1" * 16 + b"\r\n", b"0\r\nA\r\n", b"0\r\n A: b\r\n", b"0\r\nA : b\r\n", b"0\n\n", b"1;" + b"a" * MAX_LINE),
    ],
)
def test_bad_chunks(body: bytes, cut: int) -> None:
    def read() -> None:
        reader = ChunkReader()
        for piece in in_pieces(body + b"\r\n", [cut]):
            reader.feed(memoryview(piece), [])

    with pytest.raises(ChunkError):
        read()


@settings(max_examples=500, deadline=None)
@given(CHUNKS, TRAILERS, CUTS, st.binary(max_size=20))
def test_the_end_of_an_answer_in_chunks(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: bytes, cuts: list[int], after: bytes
) -> None:
    body = chunked(chunks, trailers)
    follower, used = ChunkFollower(), 0
    for piece in in_pieces(body + after, cuts):
        if not follower.done:
            used += follower.feed(memoryview(piece))
    assert (follower.done, used) == (True, len(body))


@pytest.mark.parametrize("body", [b"x\r\n", b"1\r\nab\r\n", b"-1\r\n", b"f" * 16 + b"\r\n", b"\r\n", b"1;" * 40_000])
def test_answers_in_chunks_that_are_none(body: bytes) -> None:
    with pytest.raises(ResponseError):
        ChunkFollower().feed(memoryview(body))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"\r\n", b"\n"]), st.sampled_from([b"\r\n", b"\n"]), CUTS, st.binary(max_size=8))
def test_the_end_of_a_head_in_any_pieces(line: bytes, last: bytes, cuts: list[int], after: bytes) -> None:
    head = b"HTTP/1.1 200 OK" + line + b"A: b" + line + last
    got, looked, end = b"", 0, 0
    for piece in in_pieces(head + after, cuts):
        got += piece
        if not end:
            end, looked = head_end(got, looked), len(got)
    assert end == len(head)


FRAMINGS: list[tuple[bytes, bytes, Framing | None, int]] = [
    (b"GET", b"200 OK\r\nContent-Length: 5", Framing.LENGTH, 5),
    (b"GET", b"200 OK\r\ncontent-length:5 \r\nConnection: keep-alive", Framing.LENGTH, 5),
    (b"GET", b"200 OK\r\nContent-Length: 5\r\nConnection: close", Framing.LENGTH, 5),
    (b"GET", b"200\r\nContent-Length: 0", Framing.LENGTH, 0),
    (b"HEAD", b"200 OK\r\nContent-Length: 5", Framing.LENGTH, 0),
    (b"GET", b"204 No Content", Framing.LENGTH, 0),
    (b"GET", b"304 Not Modified\r\nContent-Length: 5", Framing.LENGTH, 0),
    (b"GET", b"200 OK\r\nTransfer-Encoding: chunked", Framing.CHUNKED, 0),
    (b"GET", b"200 OK\r\nTransfer-Encoding: gzip, Chunked", Framing.CHUNKED, 0),
    (b"GET", b"200 OK\r\nTransfer-Encoding: gzip", Framing.CLOSE, 0),
    (b"GET", b"200 OK", Framing.CLOSE, 0),
    (b"GET", b"200 OK\r\nX: a\r\n folded\r\nContent-Length: 5", Framing.LENGTH, 5),
    (b"GET", b"200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", None, 0),
    (b"GET", b"200 OK\r\nContent-Length: 5\r\nContent-Length: 5", None, 0),
    (b"GET", b"200 OK\r\nContent-Length: 5, 5", None, 0),
    (b"GET", b"200 OK\r\nContent-Length: +5", None, 0),
    (b"GET", b"200 OK\r\nTransfer-Encoding: chunked, gzip", None, 0),
    (b"GET", b"99 Low", None, 0),
    (b"GET", b"200 OK\r\nContent-Length : 5", None, 0),
]


@pytest.mark.parametrize(("method", "rest", "framing", "length"), FRAMINGS)
def test_how_answers_end(method: bytes, rest: bytes, framing: Framing | None, length: int) -> None:
    raw = b"HTTP/1.1 " + rest + b"\r\n\r\n"
    if framing is None:
        with pytest.raises(ResponseError):
            read_response(raw, method, 100)
        return
    head = read_response(raw, method, 100)
    assert (head.framing, head.length, head.raw == raw) == (framing, length, b" folded" not in raw)
    assert head.close is (framing is Framing.CLOSE or b"close" in raw)
    last = read_response(with_close(head), method, 100)
    assert (last.framing, last.length, last.close) == (framing, length, True)


class Item:
    def __init__(self, at: float, seen: list[float], all_seen: asyncio.Event) -> None:
        self.slot = -1
        self.at = at
        self.seen = seen
        self.all_seen = all_seen

    def due(self) -> float:
        return self.at

    def expire(self, now: float) -> None:
        self.seen.append(self.at)
        if len(self.seen) == 3:
            self.all_seen.set()
        assert now >= self.at
        if not self.seen[:-1]:
            raise RuntimeError("one that fails keeps no other from its turn")


def test_timeouts_come_in_time_and_move() -> None:
    async def turn() -> tuple[list[float], int]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        all_seen = asyncio.Event()
        failed: list[Timed] = []
        wheel = Wheel(loop, lambda item, _error: failed.append(item))
        start = loop.time()
        first, second, never, moved, forgotten = (
            Item(start + after, seen, all_seen) for after in (0.1, 0.2, 1e9, 0.05, 0.05)
        )
        never.at = float("inf")
        for item in (first, second, never, moved, forgotten):
            wheel.watch(item)
        moved.at = start + 3 * TICK
        wheel.forget(forgotten)
        await all_seen.wait()
        wheel.stop()
        assert sorted(seen) == [first.at, second.at, moved.at]
        return seen, len(failed)

    seen, failed = asyncio.run(turn())
    assert seen[-1] == max(seen)
    assert failed == 1
