"""The few system calls that Python 3.11 has no function for: setns, unshare, mount, umount2."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Move the calling thread into the namespace of an open file.

    Source: setns(2). Raises OSError.
    """
    _check(_libc.setns(fd, kind), "setns")


def unshare(kind: int = CLONE_NEWNET) -> None:
    """Give the calling thread a namespace of its own.

    Source: unshare(2). Raises OSError.
    """
    _check(_libc.unshare(kind), "unshare")


def mount(source: str, target: Path, fstype: str | None = None, flags: int = 0) -> None:
    """Mount a file system, or bind one path to another. Source: the manual's mount, section 2. Raises OSError."""
    kind = fstype.encode() if fstype else None
    _check(_libc.mount(source.encode(), os.fsencode(target), kind, flags, None), str(target))


def unmount(target: Path) -> None:
    """Take a mount off its path at once; the file system goes when its last user does. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), str(target))


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
