"""The share of allowed requests in the access log."""

from __future__ import annotations

from spliceway.xds.accesslog.sampling import WHOLE, Sampler


def test_a_quiet_node_logs_everything() -> None:
    sampler = Sampler(budget=1000)
    assert [sampler.observe(n * 400, 1.0) for n in range(1, 5)] == [WHOLE] * 4


def test_a_busy_node_comes_down_at_once_and_up_again() -> None:
    sampler = Sampler(budget=1000)
    received = 0
    for _ in range(20):  # 30,000 requests a second
        received += 30_000 * sampler.share // WHOLE
        sampler.observe(received, 1.0)
    assert 0.8 < 30_000 * sampler.share / WHOLE / 1000 <= 1.0
    for _ in range(10):
        sampler.observe(received, 1.0)
    assert sampler.share == WHOLE


def test_never_nothing() -> None:
    sampler = Sampler(budget=1)
    sampler.observe(10**9, 0.1)
    assert sampler.share == 100
