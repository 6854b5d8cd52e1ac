"""What supervisor and workers say to each other. `Change`, which goes down as well, is in `model`."""

from __future__ import annotations

import msgspec

from spliceway.proxy.model import AccessRecord, Change, Limits


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The first message. Its one descriptor is shared memory with a u32 for each of `workers`: their connections.

    `share`: how many of a million allowed requests are recorded. `epoch`: another one for each process.
    """

    worker: int
    epoch: int
    workers: int
    limits: Limits
    share: int


class Share(msgspec.Struct, frozen=True, tag="share"):
    """From now on so many of a million allowed requests are recorded."""

    millionths: int


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Accept nothing more, say `Drained` when the last connection has ended."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End all connections, say the last things, exit."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Asks for the list of connections; the answer bears the same number."""

    number: int


Down = Start | Change | Share | Drain | Stop | Ask


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """The change of this revision is in force."""

    revision: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The change of this revision can't be applied: what was in force before still is."""

    revision: int
    reason: str


class Records(msgspec.Struct, frozen=True, tag="records"):
    """Requests that have ended, in order."""

    records: list[AccessRecord]


class Counters(msgspec.Struct, frozen=True, tag="counters"):
    """All counters since the worker's start, gauges as they are now, and records that had to be dropped so far."""

    counters: dict[str, int]
    gauges: dict[str, int]
    dropped: int


class Connections(msgspec.Struct, frozen=True, tag="connections"):
    """The answer to `Ask`."""

    number: int
    connections: list[dict[str, int | float | str | bool | None]]


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """No connection is left."""


Up = Applied | Failed | Records | Counters | Connections | Drained
