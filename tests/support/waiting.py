"""Waiting for what is to come about.

The limit is far from what anything takes, also on a machine that has four such tests to run at once and two CPUs for
them: whoever waits goes on as soon as it is so, and only what fails waits that long.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
#: Seconds.
LIMIT = 60.0
#: Between two looks, in seconds: a tenth of the time that it took so far, within these.
_SHORTEST, _LONGEST = 0.002, 0.02
#: The same in an event loop, where looking costs next to nothing.
_LOOP_PAUSE = 0.001


def until(
    found: Callable[[], T | None], seconds: float = LIMIT, told: Callable[[], object] = lambda: "it did not come about"
) -> T:
    """Look again and again until what is found is true, and return it; fail with what `told` says when it is late."""
    begin = time.monotonic()
    while not (answer := found()):
        took = time.monotonic() - begin
        assert took < seconds, told()
        time.sleep(min(_LONGEST, max(_SHORTEST, took / 10)))
    return answer


async def until_async(
    found: Callable[[], Any], seconds: float = LIMIT, told: Callable[[], object] = lambda: "it did not come about"
) -> Any:
    """As `until`, in an event loop. What is found may be awaitable."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while True:
        answer = found()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert loop.time() - begin < seconds, told()
        await asyncio.sleep(_LOOP_PAUSE)
