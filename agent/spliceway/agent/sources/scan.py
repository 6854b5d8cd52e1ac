"""Reading a directory tree of YAML files: which files count, bounded reads, and what changed since the last look.

Synchronous and without inotify, so that it can be called at any time and always gives the truth.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from spliceway.agent.sources.events import FileChanged, FileRefused, FileRemoved, SourceEvent

#: The API server takes objects up to 1.5 MiB; a file may hold several.
MAX_FILE_BYTES = 4 << 20
SUFFIXES = (".yaml", ".yml", ".json")

#: Identity of a file's content: device, inode, size, mtime and ctime in ns, of what a symbolic link points to.
Signature = tuple[int, int, int, int, int]


def wanted(name: str) -> bool:
    """Whether a file of this name is ours. Hidden names are editors' temporary files and a ConfigMap's `..data`."""
    return name.endswith(SUFFIXES) and not name.startswith(".")


class Tree:
    """A directory and what is below it, `depth` levels down, as last seen."""

    def __init__(self, root: Path, *, max_bytes: int = MAX_FILE_BYTES, depth: int = 1) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._depth = depth
        self._seen: dict[str, Signature] = {}

    def __repr__(self) -> str:
        return f"Tree({str(self.root)!r}, files={len(self._seen)})"

    def directories(self) -> list[Path]:
        """The directories to watch: the root and the visible ones in it. Raises OSError when the root is gone."""
        found, level = [self.root], _below(self.root)
        for _ in range(self._depth - 1):
            found += level
            level = [each for directory in level for each in _below_if_there(directory)]
        return found + level

    def name(self, directory: Path, name: str = "") -> str:
        """How a file in that directory is called: its path below the root. Without `name`: the start of such paths."""
        return name if directory == self.root else f"{directory.relative_to(self.root).as_posix()}/{name}"

    def changes(self, skip: Collection[str] = ()) -> list[SourceEvent]:
        """Look again. `skip`: files that are being written at this moment. Raises OSError when the root is gone."""
        events: list[SourceEvent] = []
        found: dict[str, Signature] = {}
        for directory in self.directories():
            prefix = self.name(directory)
            for name, signature in sorted(_signatures(directory).items()):
                file = prefix + name
                if (told := _told(file)) != file:
                    # Neither logs nor answers could say this name; what is refused is seen.
                    found[told] = signature
                    if self._seen.get(told) != signature:
                        events.append(FileRefused(told, "its name is not UTF-8"))
                    continue
                if file in skip:
                    if file in self._seen:
                        found[file] = self._seen[file]
                    continue
                found[file] = signature
                if self._seen.get(file) != signature:
                    events.append(self._read(file, found))
        removed = [FileRemoved(file) for file in sorted(self._seen.keys() - found.keys())]
        self._seen = found
        return [*removed, *events]

    def _read(self, file: str, found: dict[str, Signature]) -> SourceEvent:
        try:
            # O_NONBLOCK: opening a FIFO must not hang the agent.
            handle = os.open(self.root / file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return FileRefused(file, f"can't be read: {error.strerror}")
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return FileRefused(file, "is not a regular file")
            # The signature of what was read, which may be newer than the one that was listed.
            found[file] = _signature(status)
            try:
                data = stream.read(self._max_bytes + 1) if status.st_size <= self._max_bytes else b""
            except OSError as error:  # a link to a file of the kernel's: those of the others can be read
                return FileRefused(file, f"can't be read: {error.strerror}")
            if data is None:  # and one that has nothing to say for now
                return FileRefused(file, "is not a regular file")
        if status.st_size > self._max_bytes or len(data) > self._max_bytes:
            return FileRefused(file, f"is larger than {self._max_bytes} bytes")
        try:
            return FileChanged(file, data.decode())
        except UnicodeDecodeError as error:
            return FileRefused(file, f"is not UTF-8 (byte {error.start})")


def _told(file: str) -> str:
    """The name, as text: bytes in it that are no UTF-8 are escaped."""
    return os.fsencode(file).decode(errors="backslashreplace")


def _below(directory: Path) -> list[Path]:
    """The visible directories in it, sorted. Raises OSError when it is gone."""
    with os.scandir(directory) as entries:
        return sorted(Path(entry.path) for entry in entries if _is_directory(entry))


def _below_if_there(directory: Path) -> list[Path]:
    try:
        return _below(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a loop of symbolic links
        return False


def _signature(status: os.stat_result) -> Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _signatures(directory: Path) -> dict[str, Signature]:
    """Wanted files of one directory; a sub-directory that went meanwhile has none."""
    found: dict[str, Signature] = {}
    try:
        entries = os.scandir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return found
    with entries:
        for entry in entries:
            if not wanted(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError:  # a dangling link, or gone meanwhile
                continue
            if not stat.S_ISDIR(status.st_mode):
                found[entry.name] = _signature(status)
    return found
