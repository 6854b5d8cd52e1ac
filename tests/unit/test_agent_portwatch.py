"""The warning about ports, and what status and metrics say of them."""

from __future__ import annotations

import asyncio

import pytest

from spliceway.agent.cli.summary import _ports
from spliceway.agent.jsonable import plain
from spliceway.agent.portwatch import PortWatch, port_metrics
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.portuse import PortUse
from support.agent import run, until

BUSY = PortUse(1000, 300, 600, 800, "10.0.0.1", "10.0.0.2:80")


def watched(*found: PortUse | Exception) -> PortWatch:
    """After a look at each of these."""

    def look() -> PortUse:
        item = next(items)
        if isinstance(item, Exception):
            raise item
        return item

    items = iter(found)
    watch = PortWatch(look)
    for _ in found:
        watch._observe()
    return watch


@pytest.mark.parametrize(("most", "warns"), [(0, False), (799, False), (800, True), (1000, True)])
def test_it_warns_when_a_pair_runs_short(most: int, warns: bool) -> None:
    told = watched(PortUse(1000, 300, 600, most, "10.0.0.1", "10.0.0.2:80")).warnings()
    assert bool(told) == warns
    assert all(f"10.0.0.1 to 10.0.0.2:80 hold {most} of 1000" in text for text in told)


def test_what_was_seen_last_stays_when_a_look_fails() -> None:
    watch = watched(BUSY, KernelRefusedError("list TCP sockets", 2))
    assert watch.use == BUSY


def test_it_looks_by_itself() -> None:
    async def work() -> None:
        watch = PortWatch(lambda: BUSY)
        task = asyncio.create_task(watch.run())
        await until(lambda: watch.use is BUSY)
        task.cancel()

    run(work)


def test_nothing_is_known_before_the_first_look() -> None:
    assert PortWatch().warnings() == ()


def test_status_and_metrics() -> None:
    assert _ports(plain(BUSY)) == (
        "1000 for a client and a server; most: 800 (10.0.0.1 -> 10.0.0.2:80); "
        "300 connections to servers, 600 in TIME_WAIT"
    )
    assert "most" not in _ports(plain(PortUse(1000)))
    samples = {(s.name, *s.labels.values()): s.value for family in port_metrics(BUSY) for s in family.samples}
    assert samples == {
        ("spliceway_upstream_connections", "open"): 300,
        ("spliceway_upstream_connections", "time-wait"): 600,
        ("spliceway_upstream_ports",): 1000,
        ("spliceway_upstream_ports_used",): 800,
    }
