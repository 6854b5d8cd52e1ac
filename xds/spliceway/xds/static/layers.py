"""What wins: files of everyone, the admin API's changes for everyone, files of the node, its changes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from spliceway.xds.errors import XdsError
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.resources.protofiles import Loaded
from spliceway.xds.static.files import EVERYONE, File, Key, resources_of


class ConflictError(XdsError):
    """A resource that was to be added is there already."""


class UnknownResourceError(XdsError):
    """A resource that was to be removed is not there."""


class Changes(msgspec.Struct, frozen=True):
    """What the admin API has changed for one scope.

    `whole`: `resources` are all that there is, and nothing below counts. Otherwise they win over what is below, and
    `removed` ones are not there.
    """

    whole: bool = False
    resources: Mapping[Key, Loaded] = {}
    removed: frozenset[Key] = frozenset()

    def over(self, below: Mapping[Key, Loaded]) -> dict[Key, Loaded]:
        """These changes on top of what is below."""
        kept = {} if self.whole else {key: item for key, item in below.items() if key not in self.removed}
        return {**kept, **self.resources}

    def put(self, items: Iterable[Loaded]) -> Changes:
        """The same, with these added or in place of those of the same type and name."""
        fresh = {(item.url, item.name): item for item in items}
        return Changes(self.whole, {**self.resources, **fresh}, self.removed - fresh.keys())

    def remove(self, key: Key) -> Changes:
        """The same, without that resource."""
        kept = {other: item for other, item in self.resources.items() if other != key}
        return Changes(self.whole, kept, self.removed if self.whole else self.removed | {key})


class Layers(msgspec.Struct, frozen=True):
    """Everything that was told: files by path, changes by scope (a node id, or EVERYONE)."""

    files: Mapping[str, File] = {}
    changes: Mapping[str, Changes] = {}

    def scopes(self) -> frozenset[str]:
        """Who has resources of their own, and EVERYONE."""
        named = {file.scope for file in self.files.values() if file.loaded is not None}
        return frozenset({EVERYONE, *named, *self.changes})

    def resources(self, scope: str) -> dict[Key, Loaded]:
        """What a node gets, or every node that has nothing of its own.

        Raises:
            InconsistentSnapshotError: two files have the same resource.
        """
        changes = self.changes.get(scope, Changes())
        if changes.whole:
            return changes.over({})
        below = {} if scope == EVERYONE else self.resources(EVERYONE)
        return changes.over({**below, **resources_of(self.files, scope)})

    def with_changes(self, scope: str, changes: Changes | None) -> Layers:
        """The same with other changes for the scope; None: none at all."""
        kept = {other: held for other, held in self.changes.items() if other != scope}
        return Layers(self.files, kept if changes is None else {**kept, scope: changes})

    def set(self, scope: str, items: Iterable[Loaded]) -> Layers:
        """These are all that the scope has. An empty list takes everything away."""
        return self.with_changes(scope, Changes(whole=True).put(items))

    def add(self, scope: str, items: Iterable[Loaded]) -> Layers:
        """Add what is not there yet.

        Raises:
            ConflictError: one is.
        """
        items, there = tuple(items), self.resources(scope)
        for item in items:
            if (item.url, item.name) in there:
                raise ConflictError(f"{_told((item.url, item.name))} is there already")
        return self.put(scope, items)

    def put(self, scope: str, items: Iterable[Loaded]) -> Layers:
        """Add or replace."""
        return self.with_changes(scope, self.changes.get(scope, Changes()).put(items))

    def remove(self, scope: str, key: Key) -> Layers:
        """Take one away, also one that is in a file.

        Raises:
            UnknownResourceError: it isn't there.
        """
        if key not in self.resources(scope):
            raise UnknownResourceError(f"there is no {_told(key)}")
        return self.with_changes(scope, self.changes.get(scope, Changes()).remove(key))

    def reset(self, scope: str | None) -> Layers:
        """Forget what the admin API has changed for the scope, or (None) for all."""
        return Layers(self.files) if scope is None else self.with_changes(scope, None)


def _told(key: Key) -> str:
    return f"{TYPES[key[0]].short} {key[1]!r}"
