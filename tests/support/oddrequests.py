"""Requests from a grammar that likes trouble: every part of a request is mostly plain, and sometimes something else.

What comes out are bytes, so that whitespace, framing and bytes that no library would write are part of it. A request
is at most one head and one body (that may hold what looks like another request).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from support import oddparts as parts

T = TypeVar("T")

#: Header that every request has, so that what arrives can be told apart: `x-n: <number>`.
TAG = b"x-n"

_VERSIONS = (b"HTTP/1.1",) * 30 + (b"HTTP/1.0",) * 4
_ODD_GAPS = (b"  ", b"\t", b" \t", b"\x0b", b"\x0c", b"", b"\r", b"\xa0")
_ODD_BEGINS = (b"\r\n", b"\n", b" ", b"\r", b"\r\n\r\n", b"\t", b"\x00", b"\xef\xbb\xbf")
_ODD_ENDS = (b" ", b"\t", b"\r", b"  ", b"\x00")
_ODD_LINE_ENDS = (b"\n", b"\r\n\n", b"\r\r\n", b"\r")
_LONG = (b"/" + b"a" * 9000,)
_SMUGGLED = b"GET /private HTTP/1.1\r\nHost: api\r\n"


def odd_requests(count: int, seed: int, rule_sets: Sequence[int]) -> list[tuple[int, bytes]]:
    """So many requests, each with the rule set that it is for; the same for the same seed.

    The tag of request i is i.
    """
    random = Random(f"odd/{seed}")
    return [(random.choice(rule_sets), odd_request(random, number)) for number in range(count)]


def odd_request(random: Random, number: int) -> bytes:
    """One request with as much trouble as the dice say."""
    often = random.choice((0.03, 0.1, 0.1, 0.25))  # of each part to be odd

    def pick(plain: Sequence[T], odd: Sequence[T], weight: float = 1.0) -> T:
        return random.choice(odd if random.random() < often * weight else plain)

    method = pick(parts.METHODS, parts.ODD_METHODS, 0.5)
    target = pick((_target(random, often),), (*parts.TARGETS, *_LONG), 0.5)
    version = pick(_VERSIONS, parts.ODD_VERSIONS, 0.3)
    first, second = (pick((b" ",), _ODD_GAPS, 0.15) for _ in range(2))
    line = pick((b"",), _ODD_BEGINS, 0.15) + method + first + target + (second + version if version else b"")
    line += pick((b"",), _ODD_ENDS, 0.15)

    host = [b"Host: " + pick(parts.HOSTS, (*parts.ODD_HOSTS, b"a" * 300))]
    odd_hosts: tuple[list[bytes], ...] = (
        [],
        host * 2,
        [*host, b"host: web"],
        [b"HOST:api"],
        [b"Host : api"],
        [b"Host:\tapi"],
    )
    headers = [*pick((host,), odd_hosts, 0.4)]
    headers += [pick(parts.HEADERS, parts.ODD_HEADERS) for _ in range(random.choice((0, 0, 1, 2, 3)))]
    random.shuffle(headers)
    if random.random() < often / 100:
        headers += [b"x-%d: 1" % index for index in range(random.choice((95, 101, 150)))]
    if random.random() < often / 100:
        headers.append(b"x-long: " + b"v" * random.choice((30_000, 60_000, 70_000)))
    framing, body = pick((*((b"", b""),) * 5, *parts.FRAMINGS), parts.ODD_FRAMINGS)
    end = pick((b"\r\n",), _ODD_LINE_ENDS, 0.05)
    # Not the first header: a fold of the next line would become a part of the tag.
    head = end.join([line, *headers, b"%b: %d" % (TAG, number)]) + b"\r\n" + framing + end
    return head + body.replace(b"N", _SMUGGLED + b"%b: %d\r\n\r\n" % (TAG, number))


def _target(random: Random, often: float) -> bytes:
    if random.random() > often * 3:
        return random.choice(parts.PATHS)
    path = b"/" + b"".join(random.choice(parts.PIECES) for _ in range(random.randint(1, 5)))
    if random.random() < 0.5:
        path = random.choice((b"/pub", b"/a", b"/pub/a")) + path
    return path + (random.choice(parts.QUERIES) if random.random() < 0.2 else b"")
