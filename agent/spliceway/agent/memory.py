"""Memory that the agent does not need any more goes back to the system.

The first look at a cluster, and its first table, make for a moment as much as stays for good. glibc keeps what is freed
between things that stay, and by and by keeps larger pieces, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable

#: Seconds between two times. It takes milliseconds; what a look at everything anew has needed goes back in this time.
INTERVAL = 300.0
_FIRST_LOOK = 1.0
#: mallopt(3): larger blocks are mapped, and go back when they are freed (glibc would raise this limit with each of
#: them); arenas for threads, of which each keeps what it has.
_MMAP_THRESHOLD, _ARENA_MAX = (-3, 256 << 10), (-8, 2)


def import_less() -> None:
    """Before anything else is imported: leave out what comes along, and is not used by an agent (5 MiB).

    structlog takes rich, where it is installed, to paint tracebacks.
    """
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # as if it were not installed


def set_up() -> None:
    """Before there are threads. Other C libraries than glibc know nothing of it, and stay as they are."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in (_MMAP_THRESHOLD, _ARENA_MAX):
            libc.mallopt(parameter, value)


async def give_back(is_quiet: Callable[[], bool]) -> None:
    """Do so when the first policy is in force (`is_quiet`), and from then on, until cancelled."""
    pause = _FIRST_LOOK
    while True:
        await asyncio.sleep(pause)
        if is_quiet():
            await asyncio.to_thread(_trim)
            pause = INTERVAL


def _trim() -> None:
    gc.collect(1)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
