"""The directory source: inotify says *that* something changed, a fresh look at the tree says *what*.

Looking at the whole tree again costs some microseconds for each file and can't get out of step: renames, moved
directories, a ConfigMap's `..data` swap and an overflow of the event queue all come to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import inotify_simple

from spliceway.agent.errors import SourceError
from spliceway.agent.sources.events import Batch, SourceLost
from spliceway.agent.sources.scan import MAX_FILE_BYTES, Tree, wanted

#: Quiet time after an event before the tree is looked at, and the longest that a stream of events can put it off.
SETTLE_SECONDS = 0.003
SETTLE_LIMIT_SECONDS = 0.030
#: How often to look for a root that is gone (there is nothing to watch).
LOST_SECONDS = 1.0

_F = inotify_simple.flags
_MASK = (
    _F.MODIFY | _F.CLOSE_WRITE | _F.ATTRIB | _F.MOVED_FROM | _F.MOVED_TO | _F.CREATE | _F.DELETE | _F.DELETE_SELF
    | _F.MOVE_SELF | _F.EXCL_UNLINK | _F.ONLYDIR
)  # fmt: skip


class _Event(Protocol):
    wd: int
    mask: int
    name: str


class DirectorySource:
    """Watches a directory tree of YAML files. Use as a context manager, then iterate `batches`.

    A file counts when its writer has closed it (or it was renamed into place): a half-written one is never read.
    """

    def __init__(self, directory: Path, *, max_bytes: int = MAX_FILE_BYTES, depth: int = 1) -> None:
        """`depth`: so many levels of directories below it count."""
        self._root = directory
        self._tree = Tree(directory, max_bytes=max_bytes, depth=depth)
        self._inotify: inotify_simple.INotify | None = None
        self._watches: dict[int, Path] = {}
        self._writing: set[str] = set()
        self._changed = asyncio.Event()
        self._lost = ""

    def __repr__(self) -> str:
        return f"DirectorySource({str(self._root)!r}, watches={len(self._watches)}, lost={self._lost!r})"

    def __enter__(self) -> Self:
        """Start watching. Raises SourceError when the directory is not there or can't be watched."""
        if not self._root.is_dir():
            raise SourceError(f"source.directory {self._root} is not a directory")
        try:
            self._inotify = inotify_simple.INotify(nonblocking=True)
            self._watch()
        except OSError as error:
            hint = " (raise fs.inotify.max_user_watches)" if error.errno == 28 else ""
            raise SourceError(f"{self._root} can't be watched: {error.strerror}{hint}") from error
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._on_readable)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    async def batches(self) -> AsyncIterator[Batch]:
        """Every change, the first with all that is there (also when that is nothing). Ends never."""
        yield self._look()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOST_SECONDS if self._lost else None):
                    await self._changed.wait()
            await self._settle()
            if batch := self._look():
                yield batch

    def status(self) -> None:
        """Its refusals say all."""

    def warnings(self) -> tuple[str, ...]:
        """None."""
        return ()

    async def _settle(self) -> None:
        """Wait until the writer seems done: events of one `mv` or `cp` come close together."""
        deadline = asyncio.get_running_loop().time() + SETTLE_LIMIT_SECONDS
        while self._changed.is_set() and asyncio.get_running_loop().time() < deadline:
            self._changed.clear()
            await asyncio.sleep(SETTLE_SECONDS)

    def _look(self) -> Batch:
        self._changed.clear()
        try:
            # Watch before reading: what changes between the two is seen by the watch.
            self._watch()
            changes = tuple(self._tree.changes(self._writing))
        except OSError as error:
            reason = f"source.directory {self._root} can't be read: {error.strerror}"
            lost, self._lost = self._lost, reason
            return () if lost == reason else (SourceLost(reason),)
        if self._lost:
            self._lost = ""
            changes = (SourceLost(""), *changes)
        return changes

    def _watch(self) -> None:
        assert self._inotify is not None, "use the source as a context manager"
        watches: dict[int, Path] = {}
        for path in self._tree.directories():
            # Adding a watch again is the kernel's no-op, and follows a directory that was replaced by another.
            try:
                watches[self._inotify.add_watch(path, _MASK)] = path
            except (FileNotFoundError, NotADirectoryError):
                if path == self._root:
                    raise
        for stale in self._watches.keys() - watches.keys():
            with contextlib.suppress(OSError):  # the directory was deleted, and its watch with it
                self._inotify.rm_watch(stale)
            self._forget_writing(self._watches[stale])
        self._watches = watches

    def _on_readable(self) -> None:
        assert self._inotify is not None
        events: Iterable[_Event] = self._inotify.read(timeout=0)
        for event in events:
            if event.mask & _F.Q_OVERFLOW:
                self._writing.clear()
                self._changed.set()
            elif event.mask & _F.IGNORED:
                self._forget(event.wd)
            else:
                self._note(event)

    def _note(self, event: _Event) -> None:
        directory = self._watches.get(event.wd)
        if directory is None:
            return
        file = self._tree.name(directory, event.name)
        if event.mask & _F.MODIFY:
            if wanted(event.name):
                self._writing.add(file)
            return
        self._writing.discard(file)
        # Hidden names matter too: a ConfigMap's update is a rename of `..data`.
        self._changed.set()

    def _forget(self, watch: int) -> None:
        """The kernel dropped a watch: its directory was deleted, or we gave it up."""
        directory = self._watches.pop(watch, None)
        if directory is not None:
            self._forget_writing(directory)
            self._changed.set()

    def _forget_writing(self, directory: Path) -> None:
        prefix = self._tree.name(directory)
        self._writing = {file for file in self._writing if not file.startswith(prefix)}
