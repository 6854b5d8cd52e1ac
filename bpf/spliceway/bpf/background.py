"""A task that runs beside what else an agent does."""

from __future__ import annotations

import abc
import asyncio


class Background(abc.ABC):
    """Runs `_run` from `start` to `stop`, which belong to one event loop."""

    def __init__(self, name: str) -> None:
        """`name`: the task's."""
        self._task_name = name
        self._task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Between `start` and `stop`."""
        return self._task is not None

    def start(self) -> None:
        """From now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self._task_name)

    async def stop(self) -> None:
        """Return when it does not run any more; what it does as a whole is finished."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    @abc.abstractmethod
    async def _run(self) -> None:
        """Until cancelled."""
