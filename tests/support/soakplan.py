"""What each connection of the soak does. Client and server make the same plan from a seed and the connection's number.

Nothing of it travels but the number, so that both ends know every byte that must come.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import NamedTuple

_LENGTH = 1_048_573  # a prime: no power of two brings a piece back to where it would look right
_BLOCK = random.Random(6).randbytes(_LENGTH) * 2
#: Ports that clients bind to; the pods' kernel never chooses one of them (the range of ephemeral ports begins above).
BOUND_PORTS = range(20_000, 21_000)


class Stream:
    """The bytes of one direction of one exchange: a block of random bytes, begun somewhere, over and over."""

    __slots__ = ("_start",)

    def __init__(self, number: int, index: int, direction: int) -> None:
        self._start = (number * 2_654_435_761 + index * 40_503 + direction * 524_287) % _LENGTH

    def piece(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position` on, at least one."""
        start = (self._start + position) % _LENGTH
        return _BLOCK[start : start + min(size, _LENGTH)]

    def is_at(self, position: int, data: bytes) -> bool:
        """Whether `data` is what comes at `position`."""
        checked = 0
        while checked < len(data):
            wanted = self.piece(position + checked, len(data) - checked)
            if not data.startswith(wanted, checked):
                return False
            checked += len(wanted)
        return True


class Kind(Enum):
    """What is special about a connection."""

    ORDINARY = "ordinary"
    PIPELINED = "pipelined"
    DENIED = "denied"
    TUNNEL = "tunnel"
    CLIENT_RESETS = "client-resets"
    SERVER_RESETS = "server-resets"
    CLIENT_HALF_CLOSES = "client-half-closes"
    SERVER_HALF_CLOSES = "server-half-closes"


_SHARES = {
    Kind.ORDINARY: 50,
    Kind.PIPELINED: 10,
    Kind.DENIED: 3,
    Kind.TUNNEL: 7,
    Kind.CLIENT_RESETS: 8,
    Kind.SERVER_RESETS: 7,
    Kind.CLIENT_HALF_CLOSES: 8,
    Kind.SERVER_HALF_CLOSES: 7,
}


class Exchange(NamedTuple):
    """One request and its answer: bytes of both bodies, and whether they are in chunks."""

    up: int
    down: int
    up_chunked: bool
    down_chunked: bool


class Plan(NamedTuple):
    """One connection.

    `early`: the first bytes go with the SYN; `bound`: from ports that others have used, tried in order; `cut`: the
    share of the bytes after which an end resets, of the request's below 1 and of the answer's above; `slow_*`: who
    reads little at a time; `pauses`: seconds before each exchange; `close`: the last request asks for the end.
    """

    number: int
    kind: Kind
    version: int
    exchanges: tuple[Exchange, ...]
    early: bool
    bound: tuple[int, ...]
    cut: float
    slow_client: bool
    slow_server: bool
    pauses: tuple[float, ...]
    close: bool
    nodelay: bool
    piece: int


def plan(seed: int, number: int) -> Plan:
    """What connection `number` does."""
    r = random.Random(seed * 1_000_000_007 + number)
    kind = r.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]
    exchanges = tuple(_exchange(r, kind) for _ in range(_count(r, kind)))
    if kind is Kind.PIPELINED:
        exchanges = tuple(each._replace(up=0, up_chunked=False) for each in exchanges)
    return Plan(
        number,
        kind,
        r.choice((4, 6)),
        exchanges,
        early=r.random() < 0.04,
        bound=tuple(r.sample(BOUND_PORTS, 8)) if r.random() < 0.15 else (),
        cut=r.random() * (2 if kind is Kind.CLIENT_RESETS else 1),
        slow_client=r.random() < 0.03,
        slow_server=r.random() < 0.03,
        pauses=tuple(r.random() * 0.5 if r.random() < 0.05 else 0.0 for _ in exchanges),
        close=kind is Kind.SERVER_HALF_CLOSES or r.random() < 0.5,
        nodelay=r.random() < 0.5,
        piece=int(2 ** r.uniform(6, 20)),
    )


def _count(r: random.Random, kind: Kind) -> int:
    if kind is Kind.PIPELINED:
        return r.randint(2, 8)
    if kind in (Kind.TUNNEL, Kind.CLIENT_RESETS, Kind.SERVER_RESETS):
        return 1
    return r.choice((1, 1, 1, 2, 5))


def _exchange(r: random.Random, kind: Kind) -> Exchange:
    up, down = (_size(r) if r.random() < share else 0 for share in (0.6, 0.85))
    if kind is Kind.SERVER_RESETS:
        down = max(1, down)
    chunked = r.random() < 0.3, r.random() < 0.3
    # An answer that is left in the middle is read up to there, and chunks have no such place.
    return Exchange(up, down, chunked[0], chunked[1] and kind is not Kind.CLIENT_RESETS)


def _size(r: random.Random) -> int:
    """0 B to 8 MiB, most of them small: it is the number of connections that counts."""
    x = r.random()
    low, high = (0, 12) if x < 0.7 else (12, 16) if x < 0.95 else (16, 20) if x < 0.997 else (20, 23)
    return int(2 ** r.uniform(low, high))


def target(number: int, index: int) -> bytes:
    """Path of a request that the rules allow."""
    return b"/soak/%d/%d" % (number, index)


def denied_target(number: int) -> bytes:
    """Path of a request that no rule allows."""
    return b"/private/%d" % number


#: Rules of the server's pod.
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: soak, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: "GET|POST", path: "/soak/[0-9]+/[0-9]+"}]}
"""
