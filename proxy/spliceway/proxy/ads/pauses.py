"""How long to wait before the agent is tried again. Pure."""

from __future__ import annotations

from random import Random


class Pauses:
    """Pauses in seconds that double from `first` to `longest`, each shortened by chance by up to a half.

    So that many proxies of one machine, or streams of one proxy, don't come at the same moment.
    """

    def __init__(self, first: float, longest: float, random: Random | None = None) -> None:
        self._first, self._longest = first, max(first, longest)
        self._random = random or Random()
        self._next = first

    def __repr__(self) -> str:
        return f"Pauses(next={self._next:g}, longest={self._longest:g})"

    def take(self) -> float:
        """The next pause."""
        pause, self._next = self._next, min(self._longest, self._next * 2)
        return pause * self._random.uniform(0.5, 1)

    def reset(self) -> None:
        """It went well: begin with the first one again."""
        self._next = self._first
