"""cgroup2 directories of a run, `<mount>/spliceway-<run>/…`, and ending the processes in them with cgroup.kill."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.mounts import mounts
from spliceway.agent.testbed.syscalls import mount

#: Seconds after which a cgroup that is still populated is killed again.
_KILL_AGAIN = 0.05


def mounted(*, not_below: Path) -> Path | None:
    """Path of the machine's cgroup2 mount, or None. A mount that a run made for itself (`not_below`) doesn't count."""
    for entry in mounts():
        if entry.kind == "cgroup2" and entry.root == "/" and not entry.path.is_relative_to(not_below):
            return entry.path
    return None


def mount_own(path: Path) -> Path:
    """Mount the cgroup2 hierarchy at `path`, for a machine that has no such mount."""
    path.mkdir(parents=True, exist_ok=True)
    try:
        mount("cgroup2", path, "cgroup2")
    except OSError as error:
        raise TestbedError(
            f"{path}: no cgroup2 is mounted and none can be: {error.strerror}; "
            "the kernel needs CONFIG_CGROUPS and the user CAP_SYS_ADMIN"
        ) from error
    return path


def create(path: Path) -> Path:
    """Make a cgroup and its missing parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TestbedError(
            f"{path}: can't make a cgroup: {error.strerror}; is cgroup2 mounted read-only here?"
        ) from error
    return path


def kill(path: Path, timeout: float = 10.0) -> None:
    """End every process in the cgroup and below, and wait until none is left.

    Again and again: a program that was just being started may enter the cgroup after the first time.
    """
    if not _kill_once(path):
        return
    deadline = time.monotonic() + timeout
    with (path / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)  # cgroup.events signals changes so, see cgroup-v2.rst
        while "populated 1" in events.read():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TestbedError(f"{path}: processes are left {timeout:.0f} s after cgroup.kill")
            poll.poll(min(left, _KILL_AGAIN) * 1000)
            _kill_once(path)
            events.seek(0)


def _kill_once(path: Path) -> bool:
    try:
        (path / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        if path.exists():
            raise TestbedError(f"{path}: this kernel has no cgroup.kill (needs Linux 5.14 or newer)") from None
        return False
    return True


def remove(path: Path, timeout: float = 5.0) -> None:
    """End the processes in the cgroup and below, then remove it with all its children. Nothing there is no error."""
    kill(path)
    deadline = time.monotonic() + timeout
    for directory, _, _ in os.walk(path, topdown=False):
        while True:
            try:
                Path(directory).rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:  # EBUSY until the last task has left; one may just have come in
                kill(path)
                if time.monotonic() > deadline:
                    raise TestbedError(f"{directory}: can't remove the cgroup: {error.strerror}") from error
                time.sleep(0.005)
