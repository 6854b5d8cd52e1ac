"""Files whose content is trusted: only this user's own, in a directory that nobody else can write to, are read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def prepare(directory: Path) -> None:
    """Make the directory, for this user only. Raises OSError when it belongs to others, or they may write there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _check(directory.lstat(), stat.S_ISDIR, f"{directory} is no directory")


def read(path: Path) -> bytes:
    """The content. Raises OSError: the file can't be read, is not this user's own, or others may write to it."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        _check(os.fstat(file.fileno()), stat.S_ISREG, "it is no regular file")
        return file.read()


def write(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 in one step. Raises OSError, also when the directory is not safe."""
    prepare(path.parent)
    new = path.parent / f".{os.getpid()}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    new.rename(path)


def _check(status: os.stat_result, is_kind: Callable[[int], bool], otherwise: str) -> None:
    if not is_kind(status.st_mode):
        raise OSError(otherwise)
    if status.st_uid != os.geteuid():
        raise OSError(f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & _OTHERS_WRITE:
        raise OSError("others may write to it")
