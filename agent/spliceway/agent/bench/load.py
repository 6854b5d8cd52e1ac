"""What is measured on each data path: a kind of load, and the figures it gives. Pure."""

from __future__ import annotations

import msgspec

from spliceway.agent.bench.wrk import WrkResult

#: Files that the servers have: name below `/` and size of the body in bytes.
FILES: dict[str, int] = {"small": 128, "64k": 64 << 10, "1m": 1 << 20}


class Load(msgspec.Struct, frozen=True):
    """A load: `connections` keep-alive connections ask for `file`. `latency`: requests matter, else bytes.

    `unique`: no two requests have the same head. A proxy may remember what it made of a head.
    """

    name: str
    connections: int
    file: str
    latency: bool
    unique: bool = False

    def figures(self, result: WrkResult) -> dict[str, float]:
        """What one run gave: `rps`, `p50_us`, `p99_us`, or `gb_per_s` (10⁹ bytes of replies a second)."""
        if self.latency:
            return {"rps": result.requests_per_second, "p50_us": result.p50_us, "p99_us": result.p99_us}
        return {"gb_per_s": result.bytes_per_second / 1e9}


LOADS: dict[str, Load] = {
    load.name: load
    for load in (
        Load("c1", 1, "small", latency=True),
        Load("c16", 16, "small", latency=True),
        Load("u16", 16, "small", latency=True, unique=True),
        Load("64k", 4, "64k", latency=False),
        Load("1m", 4, "1m", latency=False),
    )
}
