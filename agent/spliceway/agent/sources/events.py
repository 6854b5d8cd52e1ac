"""What a source says happened. A batch of events is one change: it is looked at only when it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class FileChanged(msgspec.Struct, frozen=True):
    """A file appeared or has new text. `file` is its path below the source's directory."""

    file: str
    text: str


class ObjectChanged(msgspec.Struct, frozen=True):
    """One object appeared or is another: what a file with it alone would say, as plain values of JSON.

    `file` is a name for it that no other object has, such as `kubernetes:Service/default/web`; pods, of which there are
    very many, have «namespace/name» alone, the very text of `Pod.key`. `mesh`: a pod's annotations of Istio's that
    the translation of policies needs, also of pods of other nodes.
    """

    file: str
    content: Mapping[str, Any]
    mesh: Mapping[str, str] = {}


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


class MoreToCome(msgspec.Struct, frozen=True):
    """This batch is only a part of the first look: nothing of it counts before the rest is there."""


SourceEvent = FileChanged | ObjectChanged | FileRemoved | FileRefused | SourceLost | MoreToCome
#: Events that are about one file.
FileEvent = FileChanged | ObjectChanged | FileRemoved | FileRefused
Batch = tuple[SourceEvent, ...]
