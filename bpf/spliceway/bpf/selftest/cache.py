"""Reports that are kept, so that an agent that is started again does not run the self-test again.

What is read decides what is spliced, so only root's own files count, in a directory that nobody else can write to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from spliceway.bpf.selftest.identity import Identity, identity_of
from spliceway.bpf.selftest.report import SelfTestReport

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SUFFIX = ".report.json"

_log = structlog.get_logger(__name__)


def prepare(directory: Path) -> None:
    """Make the directory, for this user only. Raises OSError when it belongs to others, or they may write there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _check(directory.lstat(), stat.S_ISDIR, f"{directory} is no directory")


def path_of(directory: Path, about: Identity) -> Path:
    """Where the report of such a run is kept."""
    return directory / f"{about.key}{_SUFFIX}"


def load(directory: Path, about: Identity) -> SelfTestReport | None:
    """The report of a run like this one, or None. A file that is not root's own, or damaged, is no report."""
    path = path_of(directory, about)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        _refuse(path, error)
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            _check(os.fstat(file.fileno()), stat.S_ISREG, "it is no regular file")
            report = msgspec.json.decode(file.read(), type=SelfTestReport)
        except (OSError, msgspec.MsgspecError) as error:
            _refuse(path, error)
            return None
    return report if identity_of(report) == about else None


def store(directory: Path, report: SelfTestReport) -> None:
    """Keep a report, in one step; those of other kernels, boots and programs go. Raises OSError."""
    prepare(directory)
    path = path_of(directory, identity_of(report))
    new = directory / f".{os.getpid()}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(report))
    new.rename(path)
    for other in directory.glob(f"*{_SUFFIX}"):
        if other != path:
            with contextlib.suppress(FileNotFoundError):
                other.unlink()


def _check(status: os.stat_result, is_kind: Callable[[int], bool], otherwise: str) -> None:
    if not is_kind(status.st_mode):
        raise OSError(otherwise)
    if status.st_uid != os.geteuid():
        raise OSError(f"it belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & _OTHERS_WRITE:
        raise OSError("others may write to it")


def _refuse(path: Path, error: Exception) -> None:
    _log.warning("a report of the self-test is not used", file=str(path), error=str(error))
