"""Streams of requests at random, from a grammar that likes trouble: right ones, nearly right ones, wrong ones."""

from __future__ import annotations

from random import Random

from support.acceptedcases import ACCEPTED, CHUNKS
from support.smugglingcases import ATTEMPTS
from support.torturecases import BAD_CHUNKS, DENIED, HOST, REFUSED

_METHODS = (b"GET", b"GET", b"GET", b"POST", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"get", b"FOO")
_TARGETS = (
    *(b"/pub/a", b"/pub/b?c=d", b"/pub/", b"/pub//x/../y", b"/%70ub/a", b"http://api/pub/a", b"/pub/a"),
    *(b"/private", b"/pub/../private", b"/pub/;x", b"/pub/%2e%2e/private", b"/pub/%2f", b"*", b"pub/a", b"/pub/#"),
)
_LINES = (
    *(b"X: y", b"X:", b"Accept: */*", b"x_y: \xff", b"Connection: keep-alive", b"Connection: close", b"TE: trailers"),
    *(b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 05", b"Content-Length: 40", b"Content-Length: +5"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: CHUNKED", b"Transfer-Encoding: x", b"Content-Length: 5, 5"),
    *(b"Transfer-Encoding : chunked", b"Transfer_Encoding: chunked", b"Host: api", b"Host: other", b"X: a\r\n b"),
    *(b"Expect: 100-continue", b"Connection: Content-Length", b"Connection: Host", b"Keep-Alive: 5", b"Trailer: X"),
)
_ENDS = (b"\r\n",) * 40 + (b"\n", b"\r", b"\r\r\n", b"\n\r\n", b" \r\n", b"\0\r\n")
_VERSIONS = (b"HTTP/1.1",) * 20 + (b"HTTP/1.0", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1")
_NOISE = (
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b";", b",", b"0", b"5", b"\x0b", b"\xff", b"%"),
    *(
        b"0\r\n\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"GET /private HTTP/1.1\r\n",
        b"chunked",
    ),
)
_KNOWN = tuple(
    data
    for table in (ACCEPTED, DENIED, ATTEMPTS, {name: case.data for name, case in REFUSED.items()})
    for data in table.values()
    # Switching protocols leaves HTTP, and what is large is slow: both have tests of their own.
    if len(data) < 4000 and b"pgrade" not in data
)


def stream(random: Random) -> bytes:
    """What a client sends on one connection: one to five requests, sometimes damaged, sometimes cut."""
    data = b"".join(_request(random) for _ in range(random.choice((1, 1, 2, 3, 5))))
    if random.random() < 0.4:
        for _ in range(random.choice((1, 1, 2, 3))):
            data = _damaged(random, data)
    return data[: random.randrange(len(data) + 1)] if random.random() < 0.1 else data


def pieces(random: Random, data: bytes) -> list[bytes]:
    """The same in pieces: whole, in a few, or in many."""
    count = random.choice((0, 0, 1, 2, 5, 20))
    edges = sorted({random.randrange(1, len(data)) for _ in range(count)}) if len(data) > 1 else []
    return [data[at:end] for at, end in zip([0, *edges], [*edges, len(data)], strict=True)]


def _request(random: Random) -> bytes:
    if random.random() < 0.3:
        return random.choice(_KNOWN)
    line = b" ".join((random.choice(_METHODS), random.choice(_TARGETS), random.choice(_VERSIONS)))
    lines = [line, *([HOST[:-2]] if random.random() < 0.95 else [])]
    body = b""
    match random.randrange(6):
        case 0:
            body = random.choice((*CHUNKS.values(), *BAD_CHUNKS.values())) if random.random() < 0.5 else _chunks(random)
            lines.append(b"Transfer-Encoding: chunked")
        case 1:
            body = random.randbytes(random.choice((0, 1, 5, 40, 300)))
            lines.append(b"Content-Length: %d" % len(body))
        case 2:
            lines += random.sample(_LINES, random.choice((1, 2, 3)))
            body = random.choice((b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n"))
        case 3:
            lines += random.sample(_LINES[:4], 2)
    lines[1:] = random.sample(lines[1:], len(lines) - 1)
    return b"".join(line + random.choice(_ENDS) for line in lines) + random.choice(_ENDS) + body


def _chunks(random: Random) -> bytes:
    parts = [random.randbytes(random.choice((1, 2, 15, 16, 300))) for _ in range(random.randrange(4))]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def _damaged(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + random.choice((0, 1, 1, 2, 10)))
    match random.randrange(4):
        case 0:
            return data[:at] + random.choice(_NOISE) + data[at:]
        case 1:
            return data[:at] + random.choice(_NOISE) + data[end:]
        case 2:
            return data[:at] + data[end:]
        case _:
            return data[:end] + data[at:]
