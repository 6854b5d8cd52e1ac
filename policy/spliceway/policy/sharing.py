"""Immutable maps that share structure, so that a table costs what changed since the last one, not what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from immutables import Map

K = TypeVar("K")
V = TypeVar("V")


class SharedMap(Generic[K, V]):
    """A map that is edited in place and given out as an immutable one. It knows which keys were touched since then.

    `Map` is a hash array mapped trie: a copy with one key changed copies a handful of small nodes.
    """

    __slots__ = ("_edit", "_map", "touched")

    def __init__(self) -> None:
        self._map: Map[K, V] = Map()
        self._edit = self._map.mutate()
        self.touched: set[K] = set()

    def get(self, key: K) -> V | None:
        """The value now, None when there is none."""
        found: V | None = self._edit.get(key)
        return found

    def set(self, key: K, value: V) -> None:
        """Make this the value."""
        if self._edit.get(key) != value:
            self._edit[key] = value
            self.touched.add(key)

    def drop(self, key: K) -> None:
        """Make sure that there is none."""
        if self._edit.pop(key, None) is not None:
            self.touched.add(key)

    def give(self) -> Map[K, V]:
        """All of it, immutable."""
        self._map = self._edit.finish()
        self._edit = self._map.mutate()
        return self._map

    def __len__(self) -> int:
        return len(self._edit)

    def __repr__(self) -> str:
        return f"SharedMap({len(self)} keys, {len(self.touched)} touched)"


def differing(old: Mapping[K, V], new: Mapping[K, V]) -> set[K]:
    """Keys whose values are not the same in both maps."""
    found = {key for key, value in new.items() if old.get(key) != value}
    found.update(key for key in old if key not in new)
    return found
