"""Runs: the directory, the lock and the names of one testbed, and the teardown that works from names alone.

A run owns `/run/spliceway/testbed/<run>/`, every `/run/netns/<run>-*`, `<cgroup2>/spliceway-<run>/` and every mount
below its directory. The owner holds an flock on `lock` as long as it lives, so that the lock of a dead run can be had:
that run is swept. The file `kept` says that a run outlives its owner on purpose.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spliceway.agent.testbed import cgroups, mounts, netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.syscalls import unmount

DIRECTORY = Path("/run/spliceway/testbed")
_RUN_ID = re.compile(r"sw[0-9a-f]{6}")


class Run:
    """One run that this process owns: `id` (8 characters) and `path`."""

    def __init__(self, run_id: str, lock: int) -> None:
        self.id = run_id
        self.path = DIRECTORY / run_id
        self._lock = lock

    def __repr__(self) -> str:
        return f"<Run {self.id}{' kept' if self.kept else ''}>"

    @property
    def kept(self) -> bool:
        """Whether the run outlives its owner."""
        return is_kept(self.id)

    def keep(self) -> None:
        """Mark the run so that neither the end of its owner nor a sweep takes it down."""
        (self.path / "kept").touch()

    def netns(self, name: str) -> Path:
        """Where the run's namespace `name` is kept. Raises TestbedError when the name is too long for a file."""
        file = f"{self.id}-{name}"
        if len(file) > 255:
            raise TestbedError(f"{name}: namespace and name are too long for a file name together")
        return netns.DIRECTORY / file

    def cgroup(self) -> Path:
        """The run's cgroup. A machine without a cgroup2 mount gets one in the run's directory."""
        return _cgroup(self.id)

    def release(self) -> None:
        """Let go of the lock. What is left of the run is then swept by the next one, unless it is kept."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def begin() -> Run:
    """Make a new run. Raises TestbedError without the rights to."""
    with _registry():
        run_id = "sw" + hashlib.blake2s(f"{os.getpid()} {time.time_ns()}".encode(), digest_size=3).hexdigest()
        path = DIRECTORY / run_id
        path.mkdir()
        return Run(run_id, _lock(path))


def existing() -> list[str]:
    """Ids of all runs that there is anything of, the oldest first."""
    return sorted((path.name for path in DIRECTORY.glob("*/") if _RUN_ID.fullmatch(path.name)), key=begun)


def begun(run_id: str) -> float:
    """When a run began, in seconds since the epoch; 0 when it has just gone or never got that far."""
    try:
        return (DIRECTORY / run_id / "lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def is_kept(run_id: str) -> bool:
    """Whether a run is marked to outlive its owner."""
    return (DIRECTORY / run_id / "kept").exists()


def is_dead(run_id: str) -> bool:
    """Whether the owner of a run has ended (a kept one's usually has)."""
    with _registry():
        try:
            os.close(_lock(DIRECTORY / run_id))
        except BlockingIOError:
            return False
        except FileNotFoundError:
            pass  # taken down meanwhile
    return True


def sweep() -> list[str]:
    """Take down what runs left whose owner is dead and that nobody kept; returns their ids."""
    swept = []
    with _registry():
        for run_id in existing():
            if is_kept(run_id):
                continue
            try:
                lock = _lock(DIRECTORY / run_id)
            except (BlockingIOError, FileNotFoundError):
                continue  # its owner lives, or has taken it down meanwhile
            try:
                tear_down(run_id)
            finally:
                os.close(lock)
            swept.append(run_id)
    return swept


def tear_down(run_id: str) -> None:
    """Remove all that a run owns, in the reverse order of making it. What is not there (any more) is no error.

    Raises TestbedError for what is no run's id: names are all that says what may be removed.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise TestbedError(f"{run_id!r} is not the id of a run")
    path = DIRECTORY / run_id
    cgroup = _cgroup(run_id)
    cgroups.kill(cgroup)
    for name in sorted(netns.DIRECTORY.glob(f"{run_id}-*")) if netns.DIRECTORY.is_dir() else ():
        netns.delete(name)
    cgroups.remove(cgroup)
    for target in mounts.below(path):
        unmount(target)
    # The directory goes last: as long as it is there, the next run knows that there may be something to sweep. When the
    # lock is among what has gone of it, a sweep may take it for a dead run's, and help.
    if path.is_dir():
        shutil.rmtree(path, onerror=_unless_gone)


def _unless_gone(function: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
    """Raises what `rmtree` met, but that something has gone already."""
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def _cgroup(run_id: str) -> Path:
    """Path of a run's cgroup, there or not, below a mount that is there: every mount shows the same hierarchy."""
    found = cgroups.mounted(not_below=DIRECTORY)
    if found is None:
        found = DIRECTORY / run_id / "cgroup2"
        if not found.is_mount():
            cgroups.mount_own(found)
    return found / f"spliceway-{run_id}"


@contextmanager
def _registry() -> Iterator[None]:
    """Hold the lock under which runs begin and are swept: a run is never seen before it holds its own lock."""
    try:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        lock = os.open(DIRECTORY / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TestbedError(f"{DIRECTORY}: {error.strerror}; a testbed needs root") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock
