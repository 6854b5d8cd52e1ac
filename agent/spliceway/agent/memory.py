"""Memory that the agent does not need any more goes back to the system.

The first look at a cluster, and its first table, make for a moment as much as stays for good. glibc keeps what is freed
between things that stay, and by and by keeps larger pieces, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable

#: Seconds between two times. It takes milliseconds; what a look at everything anew has needed goes back in this time.
INTERVAL = 300.0
_FIRST_LOOK = 1.0
#: mallopt(3): larger blocks are mapped, and go back when they are freed (glibc would raise this limit with each of
#: them); arenas for threads, of which each keeps what it has.
_MMAP_THRESHOLD, _ARENA_MAX = (-3, 256 << 10), (-8, 2)


#: What is used of pyroute2, and where that is in it.
_PYROUTE2 = ("pyroute2.iproute", ("AsyncIPRoute", "IPRoute"))


def import_less() -> None:
    """Before anything else is imported: leave out what comes along, and is not used by an agent (10 MiB).

    structlog takes rich to paint tracebacks, and pyroute2 brings two databases of interfaces.
    """
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # as if it were not installed
    spec = importlib.util.find_spec("pyroute2") if "pyroute2" not in sys.modules else None
    if spec is None or spec.submodule_search_locations is None:
        return
    package: types.ModuleType = types.ModuleType("pyroute2")
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules["pyroute2"] = package
    try:
        used = importlib.import_module(_PYROUTE2[0])
        for name in _PYROUTE2[1]:
            setattr(package, name, getattr(used, name))
    except (ImportError, AttributeError):  # another version of it: then as it is
        del sys.modules["pyroute2"]


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
