"""etcd as the API server uses it: one revision for all, every object as it was at revisions that are not compacted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import msgspec
from immutables import Map

Json = dict[str, Any]
#: Group and plural name of a resource: how etcd knows it, whatever the version.
Resource = tuple[str, str]
#: Namespace (empty: none) and name.
Name = tuple[str, str]
Objects = Map[Name, "Item"]

_NONE: Objects = Map()


class Item:
    """An object as it was stored, never changed afterwards, with its text by apiVersion."""

    __slots__ = ("_texts", "content", "revision")

    def __init__(self, content: Json, revision: int) -> None:
        self.content = content
        self.revision = revision
        self._texts: dict[str, bytes] = {}

    def text(self, api_version: str) -> bytes:
        """Its JSON, served in this version; without its kind where that is empty, as in lists of built-in ones."""
        found = self._texts.get(api_version)
        if found is None:
            content = {key: value for key, value in self.content.items() if key not in ("apiVersion", "kind")}
            kind = {"kind": self.content["kind"], "apiVersion": api_version} if api_version else {}
            found = self._texts[api_version] = msgspec.json.encode({**kind, **content})
        return found


class Change(msgspec.Struct, frozen=True):
    """One write: `before` and `after` are None where there was, or is, nothing; `last` is how a deleted one ended."""

    revision: int
    resource: Resource
    name: Name
    before: Item | None
    after: Item | None
    last: Item | None = None


class Store:
    """All objects, and their past."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self._now: dict[Resource, Objects] = {}
        self._past: dict[Resource, list[tuple[int, Objects]]] = {}
        self._changes: dict[Resource, list[Change]] = {}
        self.listeners: list[Callable[[Change], None]] = []

    def __repr__(self) -> str:
        return f"Store(revision={self.revision}, compacted={self.compacted})"

    def objects(self, resource: Resource, revision: int | None = None) -> Objects:
        """All of a resource, now or as they were. Raises KeyError when that is compacted."""
        if revision is None or revision >= self.revision:
            return self._now.get(resource, _NONE)
        if revision < self.compacted:
            raise KeyError(revision)
        past = self._past.get(resource, [])
        at = bisect_right(past, revision, key=lambda one: one[0])
        return past[at - 1][1] if at else _NONE

    def get(self, resource: Resource, name: Name) -> Item | None:
        """One object, as it is."""
        return self._now.get(resource, _NONE).get(name)

    def write(self, resource: Resource, name: Name, content: Json | None) -> Item | None:
        """Store an object, or remove it (None), in a new revision."""
        now = self._now.get(resource, _NONE)
        before = now.get(name)
        self.revision += 1
        after = last = None
        if content is None:
            assert before is not None
            last = self._item(before.content)
            now = now.delete(name)
        else:
            after = self._item(content)
            now = now.set(name, after)
        self._now[resource] = now
        self._past.setdefault(resource, []).append((self.revision, now))
        change = Change(self.revision, resource, name, before, after, last)
        self._changes.setdefault(resource, []).append(change)
        for listener in tuple(self.listeners):
            listener(change)
        return after

    def since(self, resource: Resource, revision: int) -> list[Change]:
        """What changed after a revision. Raises KeyError when that is compacted."""
        if revision < self.compacted:
            raise KeyError(revision)
        changes = self._changes.get(resource, [])
        return changes[bisect_right(changes, revision, key=lambda one: one.revision) :]

    def compact(self, revision: int | None = None) -> None:
        """Forget what was before a revision (None: before now)."""
        self.compacted = revision = min(self.revision, self.revision if revision is None else revision)
        for past in self._past.values():
            at = bisect_right(past, revision, key=lambda one: one[0])
            del past[: max(at - 1, 0)]
        for changes in self._changes.values():
            del changes[: bisect_right(changes, revision, key=lambda one: one.revision)]

    def _item(self, content: Json) -> Item:
        metadata = {**content["metadata"], "resourceVersion": str(self.revision)}
        return Item({**content, "metadata": metadata}, self.revision)
