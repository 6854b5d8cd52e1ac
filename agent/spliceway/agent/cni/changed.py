"""Waiting until something holds that others change: they say that something changed, and everybody looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Signal:
    """For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def until(self, holds: Callable[[], bool], deadline: float) -> bool:
        """Wait until it holds; False when it does not by `deadline` (the loop's time, in seconds)."""
        while not holds():
            event = self._event
            try:
                async with asyncio.timeout_at(deadline):
                    await event.wait()
            except TimeoutError:
                return holds()
        return True
