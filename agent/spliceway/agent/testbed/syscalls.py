"""The few system calls that Python 3.11 has no function for: setns, unshare, mount, umount2, fsmount and its kin."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
# System calls of Linux 5.2, with the same number on every architecture; constants from linux/mount.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6

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


def mount_detached(fstype: str) -> int:
    """Mount a file system at no path at all; returns a descriptor of its root, which the mount lives as long as.

    Source: fs/fsopen.c. Raises OSError.
    """
    context = _check(_libc.syscall(_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC), f"fsopen {fstype}")
    try:
        _check(_libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), f"fsconfig {fstype}")
        return _check(_libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0), f"fsmount {fstype}")
    finally:
        os.close(context)


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
