"""How many allowed requests the proxy writes to its access log. Pure.

An entry costs the proxy and the agent some ten microseconds each; a busy node answers tens of thousands of requests a
second. Denied requests are always written, allowed ones all of them while a node is quiet, and a share when it is busy.
"""

from __future__ import annotations

#: Shares are counted in millionths, as Envoy's runtime key is.
WHOLE = 1_000_000
_LEAST = 100


class Sampler:
    """Holds the entries that arrive near `budget` a second, by the share (of a million) that `share` says."""

    def __init__(self, budget: float = 1000.0) -> None:
        """Begin with every request."""
        self._budget = budget
        self._received = 0
        self.share = WHOLE

    def __repr__(self) -> str:
        return f"Sampler({self.share / WHOLE:.4%})"

    def observe(self, received: int, seconds: float) -> int:
        """Take in the count of entries so far, `seconds` after the last look; returns the new share.

        Down at once to what would have kept the budget, up by doubling while less than half of it is used.
        """
        rate = max(0, received - self._received) / seconds
        self._received = received
        if rate > self._budget:
            self.share = max(_LEAST, int(self.share * self._budget / rate))
        elif rate < self._budget / 2:
            self.share = min(WHOLE, self.share * 2)
        return self.share
