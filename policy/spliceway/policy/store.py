"""The objects of a cluster, changed one at a time and seen as an immutable `Cluster` at any time, without copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from immutables import Map

from spliceway.policy.model import Cluster, Object, object_key, place_of
from spliceway.policy.table import IPNetwork

_EMPTY: Map[Any, Any] = Map()


class Store:
    """Objects by kind and key (`object_key`)."""

    def __init__(self, *, pod_cidrs: tuple[IPNetwork, ...] = (), audit: bool = False) -> None:
        names = ("namespaces", "pods", "nodes", "policies", "services", "slices", "cidr_groups", "secrets")
        self._maps: dict[str, Map[Any, Any]] = dict.fromkeys(names, _EMPTY)
        self._edits: dict[str, Any] = {}
        self._cluster = Cluster(pod_cidrs=pod_cidrs, audit=audit)

    def get(self, kind: str, name: str) -> Object | None:
        """The object of this kind and key."""
        field, key = place_of(kind, name)
        found: Object | None = self._edit(field).get(key)
        return found

    def put(self, item: Object) -> None:
        """Add an object, or replace that of the same kind and key."""
        field, key = place_of(*object_key(item))
        self._edit(field)[key] = item

    def drop(self, kind: str, name: str) -> None:
        """Remove an object."""
        field, key = place_of(kind, name)
        self._edit(field).pop(key, None)

    @property
    def cluster(self) -> Cluster:
        """All objects."""
        if self._edits:
            parts: Mapping[str, Any] = {field: edit.finish() for field, edit in self._edits.items()}
            self._maps.update(parts)
            self._edits = {}
            self._cluster = msgspec.structs.replace(self._cluster, **self._maps)
        return self._cluster

    def _edit(self, field: str) -> Any:
        edit = self._edits.get(field)
        if edit is None:
            edit = self._edits[field] = self._maps[field].mutate()
        return edit
