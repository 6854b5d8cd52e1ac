"""Work that is done again and again while an agent runs, and never left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from spliceway.bpf.background import Background
from spliceway.bpf.whole import whole

_log = structlog.get_logger(__name__)


class Repeated(Background):
    """A look, then a pause, until it is stopped."""

    def __init__(self, name: str, work: Callable[[], Coroutine[None, None, None]], seconds: float) -> None:
        """`seconds`: before each run of `work`, whose own errors are its own business. `name` is the task's."""
        super().__init__(name)
        self._work, self._seconds = work, seconds

    def __repr__(self) -> str:
        return f"Repeated({self._task_name}, running={self.runs})"

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await whole(self._work())
            except Exception:
                # A bug. Who stopped to look would not notice what is wrong from now on.
                _log.exception("failed, and goes on", task=self._task_name)
