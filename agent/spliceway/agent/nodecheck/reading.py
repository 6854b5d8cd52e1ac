"""Reading the node. What can't be read is `Unreadable`, with a reason for people, and nothing else is ever raised."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

#: How long a program that only lists something may take, in seconds.
_PROGRAM_SECONDS = 20.0
#: Administrators' programs are there even where PATH is that of a plain user.
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"))


class Unreadable(Exception):  # noqa: N818
    """Says what could not be read, and why."""


def text(path: Path) -> str:
    """Text of a file. Raises Unreadable."""
    return data(path).decode(errors="replace")


def data(path: Path) -> bytes:
    """Content of a file. Raises Unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def sysctl(name: str) -> str:
    """A value of /proc/sys, by path: `net/ipv4/ip_forward`. Raises Unreadable."""
    return " ".join(text(Path("/proc/sys") / name).split())


def names(directory: Path) -> list[str]:
    """Names in a directory, sorted; none where it is not there. Raises Unreadable for anything else."""
    try:
        return sorted(each.name for each in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Unreadable(f"{directory}: {error.strerror}") from error


def program(name: str) -> str | None:
    """Path of a program, if it is installed."""
    return shutil.which(name, path=_PATH)


def output(argv: Sequence[str]) -> str:
    """What a program prints that lists something. Raises Unreadable: not installed, failed, took too long."""
    found = program(argv[0])
    if found is None:
        raise Unreadable(f"{argv[0]} is not installed")
    try:
        done = subprocess.run(
            [found, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROGRAM_SECONDS,
            check=False,
            env={**os.environ, "PATH": _PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreadable(f"{' '.join(argv)}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unreadable(f"{' '.join(argv)}: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def directories_below(path: Path, limit: int) -> Iterator[Path]:
    """`path` and directories below it, at most `limit`; what goes meanwhile is left out."""
    for count, (directory, _, _) in enumerate(os.walk(path)):
        if count >= limit:
            return
        yield Path(directory)
