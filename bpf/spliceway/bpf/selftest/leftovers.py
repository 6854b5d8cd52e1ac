"""Cgroups of the self-test: the only things of a run that the kernel does not take back by itself when it is killed.

Each run has one below the pods' and one below the proxy's cgroup, named by the pid and the start time of its process.
The next run removes those whose process is gone, as does `spliceway cleanup`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

PREFIX = "spliceway-selftest"
_NAME = re.compile(rf"{PREFIX}-(\d+)-(\d+)")
#: Seconds for the tasks of an ended run to leave its cgroup.
_PATIENCE = 2.0


def own_name() -> str:
    """Name of this process's cgroups."""
    return f"{PREFIX}-{os.getpid()}-{_start_time(os.getpid())}"


def sweep(*parents: Path) -> list[Path]:
    """Remove the cgroups of runs that are over, with what still runs in them. Returns what was removed."""
    found = over(*parents)
    for path in found:
        remove(path)
    return found


def over(*parents: Path) -> list[Path]:
    """The cgroups of runs that are over."""
    found = []
    for parent in parents:
        for path in sorted(parent.glob(f"{PREFIX}-*")):
            match = _NAME.fullmatch(path.name)
            if match and _start_time(int(match[1])) != match[2]:
                found.append(path)
    return found


def remove(cgroup: Path) -> None:
    """Remove a cgroup of the self-test and end what is still in it. Raises OSError when that lasts too long."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            with contextlib.suppress(OSError):  # cgroup.kill needs Linux 5.14
                (cgroup / "cgroup.kill").write_text("1")
            time.sleep(0.002)
        else:
            return


def _start_time(pid: int) -> str:
    """Start time of a process in clock ticks since boot, field 22 of proc_pid_stat(5); empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
