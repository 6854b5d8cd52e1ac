"""Work that is done again and again while an agent runs, and never left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from spliceway.bpf.whole import whole

_log = structlog.get_logger(__name__)


class Repeated:
    """A look, then a pause, until it is stopped. `start` and `stop` belong to one event loop."""

    def __init__(self, name: str, work: Callable[[], Coroutine[None, None, None]], seconds: float) -> None:
        """`seconds`: before each run of `work`, whose own errors are its own business. `name` is the task's."""
        self._name, self._work, self._seconds = name, work, seconds
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Repeated({self._name}, running={self._task is not None})"

    def start(self) -> None:
        """From now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Return when it does not work any more; what has begun is finished."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await whole(self._work())
            except Exception:
                # A bug. Who stopped to look would not notice what is wrong from now on.
                _log.exception("failed, and goes on", task=self._name)
