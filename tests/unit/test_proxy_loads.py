"""How workers share out new connections."""

from __future__ import annotations

from spliceway.proxy.relay.loads import AHEAD, Loads


def test_a_worker_that_is_gone_is_nobody_to_wait_for() -> None:
    memory = memoryview(bytearray(3 * 4))
    loads, other = Loads.of(memory), Loads(memory)
    assert (loads.size, loads.total(), loads.ahead(1000)) == (3, 0, False)
    loads.set(0, 1000)
    assert not loads.ahead(1000), "alone"
    other.set(2, 0)
    assert loads.ahead(1000)
    assert not other.ahead(0)
    other.set(2, 1000 - 2 * AHEAD)
    assert not loads.ahead(1000)
    assert (loads.total(), other.total()) == (2000 - 2 * AHEAD, 2000 - 2 * AHEAD)
    loads.leave(2)
    assert not loads.ahead(1000), "the other one has died"
    assert loads.total() == 1000
