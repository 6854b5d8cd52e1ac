"""What a source says happened. A batch of events is one change: it is looked at only when it is whole."""

from __future__ import annotations

import msgspec


class FileChanged(msgspec.Struct, frozen=True):
    """A file appeared or has new text. `file` is its path below the source's directory."""

    file: str
    text: str


class FileRemoved(msgspec.Struct, frozen=True):
    """A file went. Its objects go with it."""

    file: str


class FileRefused(msgspec.Struct, frozen=True):
    """A file is there and can't be read: too large, not UTF-8, not a regular file. What it said before stays."""

    file: str
    reason: str


class SourceLost(msgspec.Struct, frozen=True):
    """The whole source can't be read for now. Everything stays as it was; an empty `reason` ends it."""

    reason: str


SourceEvent = FileChanged | FileRemoved | FileRefused | SourceLost
Batch = tuple[SourceEvent, ...]
