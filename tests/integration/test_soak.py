"""Connections of every kind through both proxies with splicing on, while everything that may be restarted is.

Every byte is accounted for, nothing hangs, and nothing is left of it. SPLICEWAY_SOAK_CONNECTIONS sets the number for
each proxy (default 2,000; `make soak` takes 200,000), SPLICEWAY_SOAK_SEED what happens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from spliceway.agent.configsections import ProxyKind
from support import kinds
from support.soak import Soak, soaked, spliced_share

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(7200)]

CONNECTIONS = int(os.environ.get("SPLICEWAY_SOAK_CONNECTIONS", "2000"))
SEED = int(os.environ.get("SPLICEWAY_SOAK_SEED", "1"))
#: Seconds between one restart and the next.
PACE = 1.0
#: What agent, proxy and workers may grow by while the last fifth of the connections is made, in MiB.
GROWTH = 16.0


@pytest.fixture(params=kinds.BOTH)
def soak(request: pytest.FixtureRequest) -> Iterator[Soak]:
    kind: ProxyKind = request.param
    with soaked(kind, SEED, pace=PACE) as made:
        yield made


def test_every_byte_is_accounted_for(soak: Soak) -> None:
    calm = CONNECTIONS // 5
    before = soak.counters()
    with soak.turmoil as turmoil:
        first = soak.load(0, CONNECTIONS - calm)
    turmoil.check()
    soak.load(0, calm // 4)  # new processes reach the size that they will have
    quiet = soak.settled()
    second = soak.load(CONNECTIONS - calm, CONNECTIONS)
    after, left = soak.counters(), soak.settled()
    server = soak.finish()
    share = spliced_share(before, after)
    print(f"\n{soak.proxy}: {turmoil.summary()}, {turmoil.starts} agents, spliced {share:.2%}, {after}")
    for result in (first, second):
        print(
            f"  {result.total} in {result.seconds:.0f} s, slowest {result.slowest:.1f} s: {result.done}, "
            f"{len(result.troubles)} cut, {len(result.shortened)} told to close, {result.let_go} let go; "
            f"{result.early} with early data, {result.bound} from bound ports, "
            f"{result.sent >> 20} MiB up, {result.received >> 20} MiB down"
        )
    print(
        f"  server: {server.connections} connections, {server.requests} requests, {len(server.troubles)} cut; "
        f"{quiet.resident:.1f} MiB and {quiet.files} files, after the last fifth {left.resident:.1f} and {left.files}"
    )

    assert (quiet.left, left.left) == ({}, {})
    assert turmoil.events
    assert turmoil.unexplained(first.troubles) == []
    assert turmoil.unexplained(server.troubles) == []
    assert turmoil.unannounced(first.shortened) == []
    assert (second.troubles, second.shortened) == ([], [])
    assert (first.total, second.total) == (CONNECTIONS - calm, calm)
    assert server.open == 0
    assert share >= 0.95
    assert left.files <= quiet.files + 4
    assert left.resident <= quiet.resident + GROWTH
