"""When reconciliation has its next pass: at once, after a pause, or when something is tried again."""

from __future__ import annotations

import asyncio

#: Pause after a pass before answers of the proxy start the next one, in lengths of that pass.
IDLE_SHARE = 3.0
#: After a failure: first and longest pause before the next attempt. A new intent is tried at once.
RETRY_SECONDS = (0.5, 30.0)


class Pace:
    """`wait` for a pass, `begin` and `end` it; the rest says why there should be one. For one event loop."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._next: float | None = None
        self._answered = self._passing = False
        self._look: asyncio.TimerHandle | None = None
        self._began = self._ended = self._took = 0.0
        self._retry = RETRY_SECONDS[0]

    def __repr__(self) -> str:
        return f"Pace(next={self._next}, passing={self._passing}, retry={self._retry})"

    async def wait(self) -> None:
        """Return when a pass is due."""
        try:
            async with asyncio.timeout_at(self._next):
                await self._wake.wait()
        except TimeoutError:
            pass

    def look(self) -> None:
        """A pass is due at once."""
        self._wake.set()

    def answered(self) -> None:
        """A pass is due soon: the proxy answered.

        Hundreds of answers may come in a row. A pass for each would take the time that the xDS server needs to send the
        next resource, so after a pass there is a pause of IDLE_SHARE times its length.
        """
        self._answered = True
        self._plan()

    def again_in(self, seconds: float) -> None:
        """A pass is due after so many seconds at the latest."""
        at = asyncio.get_running_loop().time() + seconds
        self._next = at if self._next is None else min(self._next, at)

    def failed(self) -> float:
        """Something failed: it is tried again after a pause that grows; returns its seconds."""
        pause, self._retry = self._retry, min(self._retry * 2, RETRY_SECONDS[1])
        self.again_in(pause)
        return pause

    def went_well(self) -> None:
        """Nothing failed: the next failure's pause is the first one again."""
        self._retry = RETRY_SECONDS[0]

    def idle(self) -> None:
        """There is nothing to do yet."""
        self._wake.clear()
        self._next = None

    def begin(self) -> None:
        """A pass begins; what is told from now on asks for another one."""
        self.idle()
        self._began = asyncio.get_running_loop().time()
        self._answered, self._passing = False, True

    def end(self) -> None:
        """It has ended."""
        self._passing = False
        self._ended = asyncio.get_running_loop().time()
        self._took = self._ended - self._began
        self._plan()

    def _plan(self) -> None:
        if self._answered and not self._passing and self._look is None:
            self._look = asyncio.get_running_loop().call_at(self._ended + IDLE_SHARE * self._took, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        self._wake.set()
