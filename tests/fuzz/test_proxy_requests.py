"""Forwarded bytes parse to the same requests: those that are allowed of what was sent, never more, never merged.

Judges are a strict reader of the tests' own and h11. `SPLICEWAY_FUZZ_SECONDS` says how long (5), `SPLICEWAY_FUZZ_SEED`
which streams (1). A failure names the number of its stream: `stream(Random("1/815"))` makes it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from random import Random

import h11
import pytest

from spliceway.policy.verdict import Verdict
from spliceway.proxy.http.body import ChunkError, ChunkReader
from spliceway.proxy.http.decision import Judge
from spliceway.proxy.http.head import CHUNKED, HeadError, bad_line_end, read_head
from support.grammar import pieces, stream
from support.rawhttp import End
from support.stricthttp import MAX_HEAD, MAX_HEADERS, MAX_SKIPPED, Outcome, outcomes, parse_all
from support.torture import RULES, bench

SECONDS = float(os.environ.get("SPLICEWAY_FUZZ_SECONDS", "5"))
SEED = os.environ.get("SPLICEWAY_FUZZ_SEED", "1")


def numbers(least: int) -> Iterator[int]:
    """Count until the time is over, at least so far."""
    end = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < end or number < least:
        yield number
        number += 1


def check(forwarded: bytes, expected: list[Outcome], context: str) -> int:
    """Compare what a server got with what it should have got; the number of its requests."""
    requests, rest = parse_all(forwarded)
    wanted = [one.request for one in expected if one.request is not None]
    assert [one.meaning for one in requests] == [one.meaning for one in wanted], context
    begun = [one.begun for one in expected if one.begun is not None]
    if rest:
        assert begun, context
        assert rest.startswith(begun[0].method + b" " + begun[0].target + b" "), context
    second = by_h11(forwarded)
    assert second == [(one.head.method, one.head.target, one.body) for one in wanted][: len(second)], context
    # h11 does not go on behind HTTP/1.0, even where both sides keep the connection.
    assert len(second) == len(wanted) or wanted[len(second) - 1].head.version == "1.0", context
    return len(wanted)


def by_h11(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Method, target and body of each whole request, as h11 reads them."""
    found = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD)
    connection.receive_data(data)
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            found.append((head.method, head.target, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return found
            connection.start_next_cycle()
        else:
            return found


def forward(data: bytes, judge: Judge, random: Random) -> bytes:
    """What the pure layer makes of a stream, put together as the relay does it."""
    sent = b""
    while (end := data.find(b"\r\n\r\n") + 4) > 3 and not bad_line_end(data[:end]) and end <= MAX_HEAD:
        try:
            head = read_head(data[:end], MAX_HEADERS)
        except HeadError:
            break
        judged = judge.judge(head)
        data = data[end:]
        if judged.decision.verdict is Verdict.DENY:
            kept = judged.status == 403 and head.length != CHUNKED and not head.expect and not head.close
            if not kept or head.length > MAX_SKIPPED or len(data) < head.length:
                break
            data = data[head.length :]
            continue
        sent += judged.forward
        if head.length == CHUNKED:
            out, read, whole = chunks(data, random)
            sent += out
        else:
            read, whole = min(head.length, len(data)), len(data) >= head.length
            sent += data[:read]
        if not whole or head.close:
            break
        data = data[read:]
    return sent


def chunks(data: bytes, random: Random) -> tuple[bytes, int, bool]:
    """What is sent on of a body in chunks, how much was read of it, and whether it was whole."""
    reader, out, read = ChunkReader(), [], 0
    for piece in pieces(random, data):
        try:
            taken = reader.feed(memoryview(piece), out)
        except ChunkError:
            return b"".join(out), read, False
        read += taken
        if reader.done:
            break
    return b"".join(out), read, reader.done


def test_the_pure_layer() -> None:
    judge = Judge(RULES)
    passed = refused = 0
    for number in numbers(500):
        random = Random(f"{SEED}/{number}")
        data = stream(random)
        expected = outcomes(data, RULES)
        try:
            sent = forward(data, judge, random)
        except Exception as error:
            raise AssertionError(f"stream {SEED}/{number}: {data!r}") from error
        passed += check(sent, expected, f"stream {SEED}/{number}: {data!r}\nbecame {sent!r}")
        refused += sum(one.status in (400, 403) for one in expected)
    # The streams are neither all harmless nor all fatal.
    assert passed > number // 10
    assert refused > number // 5


@pytest.mark.kernel
def test_the_relay() -> None:
    passed = 0
    with bench() as site:
        for number in numbers(100):
            random = Random(f"{SEED}/{number}")
            data = stream(random)
            context = f"stream {SEED}/{number}: {data!r}"
            expected = outcomes(data, RULES)
            back = site.exchange(*pieces(random, data), half=True)
            assert back.end is not End.OPEN, context
            [got] = [one.received for one in site.conversations()] or [b""]
            passed += check(got, expected, f"{context}\nbecame {got!r}")
            site.begin()
    assert passed > number // 10
