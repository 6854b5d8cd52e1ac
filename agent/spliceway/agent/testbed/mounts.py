"""What is mounted, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(msgspec.Struct, frozen=True):
    """One mount. `root` is the directory of the file system that is seen at `path`; `kind` as in mount(8) -t."""

    path: Path
    root: str
    kind: str


def mounts() -> list[Mount]:
    """All mounts that this process sees, in the order they were made."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text())


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse mountinfo; paths have their octal escapes (space, tab, newline, backslash) undone."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        found.append(Mount(path=Path(_unescape(fields[4])), root=_unescape(fields[3]), kind=right.split(" ")[0]))
    return found


def below(directory: Path) -> list[Path]:
    """Mount points below `directory`, the last made first: the order in which to take them off."""
    return [entry.path for entry in reversed(mounts()) if entry.path.is_relative_to(directory)]


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
