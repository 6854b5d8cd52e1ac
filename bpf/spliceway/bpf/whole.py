"""Work that is not left half done when the task that it is part of is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Do all of it; a cancellation is raised afterwards.

    Besides, what is cancelled in the middle of it may lose that: not all libraries hand a cancellation on.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
