"""Waiting until no program runs any more that began before."""

from __future__ import annotations

import ctypes
import platform
import time
from functools import cache

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}  # system call numbers
_MEMBARRIER_GLOBAL = 1
_GRACE_SECONDS = 0.05


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def wait_for_programs() -> None:
    """Return when every program that was running has ended (membarrier(2) GLOBAL waits for an RCU grace period)."""
    number = _MEMBARRIER.get(platform.machine())
    if number is None or _libc().syscall(number, _MEMBARRIER_GLOBAL, 0, 0) < 0:
        # Refused on kernels with nohz_full CPUs. A program runs for microseconds.
        time.sleep(_GRACE_SECONDS)
