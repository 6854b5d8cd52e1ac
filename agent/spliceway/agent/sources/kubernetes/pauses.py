"""How long one kind waits between two tries: the longer the more of them came to nothing, and at random.

Others that are answered again shorten a wait, each time by less: a server that answers and fails by turns must not be
asked by all kinds whenever it answers one.
"""

from __future__ import annotations

import asyncio
import contextlib

from spliceway.agent.sources.kubernetes.figures import Timing


class Pauses:
    """Of one `Reflector`. All times are the loop's."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.tries = 0  # that came to nothing, in a row
        self._eased = 0  # how often that was forgotten since all was well
        self._begins = self._until = self._firm = 0.0
        self._sooner = asyncio.Event()

    def __repr__(self) -> str:
        return f"Pauses(tries={self.tries}, eased={self._eased})"

    def next(self) -> float:
        """Seconds to wait after one more try that came to nothing."""
        pause = self._timing.pause(self.tries)
        self.tries += 1
        return pause

    def well(self) -> None:
        """The server has said what it should."""
        self.tries = self._eased = 0

    def ease(self) -> float:
        """The server answers: how long it did not says nothing of what comes. Seconds to wait before it is asked."""
        pause = self._timing.pause(self._eased)
        self._eased += 1
        self.tries = min(self.tries, self._eased)
        return pause

    async def wait(self, seconds: float, firm: float = 0.0) -> None:
        """Wait; of that `firm` seconds whoever else is answered: the server has asked for them."""
        now = asyncio.get_running_loop().time()
        self._until, self._firm = now + seconds, now + firm
        self._sooner.clear()
        while asyncio.get_running_loop().time() < self._until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._until):
                    await self._sooner.wait()
            self._sooner.clear()

    def wake(self) -> None:
        """The server answers others: try soon, if it does not do so already."""
        now = asyncio.get_running_loop().time()
        if now < self._begins:
            return  # the last one of these is not over
        self._begins = max(self._firm, now + self.ease())
        if self._begins < self._until:
            self._until = self._begins
            self._sooner.set()
