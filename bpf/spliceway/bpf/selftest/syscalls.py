"""The system calls that the self-test's process makes to be alone: unshare, setns and mount."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_PRIVATE = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def unshare(kind: int) -> None:
    """Give the calling thread a namespace of its own. Raises OSError."""
    _check(_libc.unshare(kind), "unshare")


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace of an open file. Raises OSError."""
    _check(_libc.setns(fd, kind), "setns")


def mount(kind: str, target: Path, flags: int = 0) -> None:
    """Mount a file system of this kind, or with an empty `kind` change the flags of what is there. Raises OSError."""
    _check(_libc.mount(b"none", os.fsencode(target), kind.encode() or None, flags, None), f"mount {kind} {target}")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
