"""Counters of all workers together. Pure.

A worker counts from 0; what one that has ended had counted stays in the sum, so that no sum ever goes back.
"""

from __future__ import annotations

from collections import Counter

from spliceway.proxy.process.messages import Counters


class Totals:
    """Sums over workers, by slot: one slot has one worker at a time."""

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()
        self._ended_dropped = 0
        self._now: dict[int, Counters] = {}

    def __repr__(self) -> str:
        return f"<Totals of {len(self._now)} workers>"

    def take(self, slot: int, counters: Counters) -> None:
        """What the worker in this slot has counted so far."""
        self._now[slot] = counters

    def end(self, slot: int) -> None:
        """The worker in this slot has ended."""
        last = self._now.pop(slot, None)
        if last is not None:
            self._ended.update(last.counters)
            self._ended_dropped += last.dropped

    @property
    def dropped(self) -> int:
        """Records that workers could not hand on."""
        return self._ended_dropped + sum(item.dropped for item in self._now.values())

    def counters(self) -> dict[str, int]:
        """What only goes up."""
        result = Counter(self._ended)
        for item in self._now.values():
            result.update(item.counters)
        return dict(result)

    def gauges(self) -> dict[str, int]:
        """What goes up and down."""
        result: Counter[str] = Counter()
        for item in self._now.values():
            result.update(item.gauges)
        return dict(result)
