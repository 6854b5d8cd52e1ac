"""Work that may be left undone when there is too much of it."""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """So many units a second, and as many at once."""

    __slots__ = ("_at", "_clock", "_left", "_rate")

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        """`clock`: seconds of any clock that doesn't go back."""
        self._rate = self._left = rate
        self._clock = clock
        self._at = clock()

    def __repr__(self) -> str:
        return f"<Budget {self._left:.0f} of {self._rate:.0f}>"

    def take(self, units: int) -> bool:
        """Whether work of so many units may be done. What is more than the whole budget may be done when it is full."""
        now = self._clock()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < min(units, self._rate):
            return False
        self._left -= units
        return True
