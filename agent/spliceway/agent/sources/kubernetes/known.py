"""What is known of one kind: which objects in which version, what a look at all has seen so far, and what it found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import structlog

from spliceway.agent.sources.events import FileEvent, FileRefused, FileRemoved
from spliceway.agent.sources.kubernetes.objects import Reader

#: In place of a hashed resourceVersion.
_NOT_HANDED_ON = 0
_BAD = (msgspec.MsgspecError, RecursionError)

log = structlog.get_logger(__name__)


class Newest(NamedTuple):
    """The object of the highest resourceVersion."""

    revision: int
    version: str
    file: str


class Known:
    """Of one `Reflector`. What is `held` is to be handed on by whoever takes it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._versions: dict[str, int] = {}  # by name, hashed
        self._seen: set[str] | None = None  # while all is looked at
        self._newest: Newest | None = None
        self.held: list[FileEvent] = []

    def __repr__(self) -> str:
        return f"Known({self._kind}, objects={len(self)}, looking={self.looking})"

    def __len__(self) -> int:
        return len(self._versions)

    def __contains__(self, file: str) -> bool:
        return file in self._versions

    @property
    def looking(self) -> bool:
        """Whether all is looked at."""
        return self._seen is not None

    @property
    def newest(self) -> Newest | None:
        """What was told last of all that is there, if that can be said."""
        return self._newest if self._newest is not None and self._newest.file in self._versions else None

    def begin(self) -> None:
        """All is looked at from now on."""
        self._seen, self._newest, self.held = set(), None, []

    def take(self, reader: Reader, raw: msgspec.Raw, *, gone: bool = False) -> tuple[str, str]:
        """Take in one object; its name and revision. What is as it was known is passed over."""
        event: FileEvent | None = None
        try:
            if gone:
                file, version = reader.name(raw)
            else:
                read = reader.read(raw)
                file, version, event = read.file, read.version, read.event
        except _BAD as error:
            # The last good version stays. Without a name nobody can say whose.
            try:
                file, version = reader.name(raw)
            except _BAD:
                log.warning("an object can't be read", kind=self._kind, error=str(error))
                return "", ""
            event, gone = FileRefused(file, f"{self._kind} can't be read: {error}"), False
        if gone:
            if self._versions.pop(file, None) is not None:
                self.held.append(FileRemoved(file))
            return file, version
        if self._seen is not None:
            self._seen.add(file)
        if version.isdecimal() and (self._newest is None or int(version) > self._newest.revision):
            self._newest = Newest(int(version), version, file)
        mark = hash(version) or 1
        if self._versions.get(file) != mark and event is not None:
            self._versions[file] = mark
            self.held.append(event)
        return file, version

    def hand_on(self) -> list[FileEvent]:
        """What is held; it is held no more."""
        held, self.held = self.held, []
        return held

    def end(self) -> list[FileEvent]:
        """All was seen: what was not is gone. What there is to hand on."""
        assert self._seen is not None
        seen, self._seen = self._seen, None
        removed = [file for file in self._versions if file not in seen]
        for file in removed:
            del self._versions[file]
        return [*map(FileRemoved, removed), *self.hand_on()]

    def give_up(self) -> None:
        """What was not handed on is not known yet; it may have been, in an older version."""
        self._seen = None
        self._versions.update((event.file, _NOT_HANDED_ON) for event in self.hand_on())

    def doubt(self, files: Iterable[str] | None) -> None:
        """Versions of these (None: of all) say nothing any more: whatever comes is handed on."""
        for file in list(self._versions) if files is None else files:
            if file in self._versions:
                self._versions[file] = _NOT_HANDED_ON

    def clear(self) -> list[FileEvent]:
        """Nothing is known any more; what there is to hand on."""
        removed: list[FileEvent] = [FileRemoved(file) for file in self._versions]
        self._versions = {}
        return removed
