"""What the soak's programs are told, and what they say: JSON between them and the test."""

from __future__ import annotations

import msgspec


class Trouble(msgspec.Struct, frozen=True):
    """A connection that did not go as planned. Times are CLOCK_MONOTONIC in seconds; `peer`: its other end."""

    number: int
    kind: str
    what: str
    detail: str
    peer: tuple[str, int]
    began: float
    ended: float


class ServerResult(msgspec.Struct, frozen=True):
    """Connections and bytes in all, those still open at the end, and what went wrong."""

    connections: int
    requests: int
    received: int
    sent: int
    open: int
    troubles: list[Trouble]


class Options(msgspec.Struct, frozen=True):
    """`envoy`: it takes a half-close for the end of all, and lets some pipelined connections go between two answers."""

    seed: int
    addresses: dict[int, str]
    first: int
    last: int
    parallel: int
    envoy: bool


class ClientResult(msgspec.Struct, frozen=True):
    """How many went as planned, by kind; `shortened`: those that were told to close before their last request.

    `let_go`: pipelined ones that Envoy ended between two answers, as HTTP allows; `early`: connections whose first
    bytes went with the SYN; `slowest`: seconds of the one that took longest.
    """

    done: dict[str, int]
    shortened: list[Trouble]
    troubles: list[Trouble]
    let_go: int
    early: int
    bound: int
    received: int
    sent: int
    slowest: float
    seconds: float

    @property
    def total(self) -> int:
        """All connections."""
        return sum(self.done.values()) + len(self.shortened) + len(self.troubles) + self.let_go
