"""The immutable snapshot: everything that one node's proxy shall have, each resource with its version."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from spliceway.xds.consistency import check
from spliceway.xds.typeurls import TYPES


class Resource(msgspec.Struct, frozen=True):
    """One serialized resource. `version` is the version of the snapshot in which its content last changed."""

    name: str
    version: str
    body: bytes

    def __repr__(self) -> str:
        # The body may hold values of Secrets.
        return f"Resource({self.name!r}, version={self.version!r}, {len(self.body)} bytes)"


class TypeSet(msgspec.Struct, frozen=True):
    """All resources of one type. `version` is the version of the snapshot in which the set last changed."""

    version: str
    resources: Mapping[str, Resource]


class Snapshot(msgspec.Struct, frozen=True):
    """What one node shall have. `types` has an entry for every served type URL, in sending order.

    `secrets`: what must not be shown of a resource, by its name: texts that stand in it as values of Secrets.
    """

    version: str
    types: Mapping[str, TypeSet]
    secrets: Mapping[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(held.resources)} {TYPES[url].short}" for url, held in self.types.items())
        return f"Snapshot({self.version!r}, {counts})"

    @classmethod
    def of(
        cls,
        version: str,
        bodies: Mapping[str, Mapping[str, bytes]],
        previous: Snapshot | None = None,
        secrets: Mapping[str, frozenset[str]] | None = None,
    ) -> Snapshot:
        """Make a snapshot from serialized resources: type URL -> name -> bytes.

        What is equal in `previous` keeps its version, so that an identical update causes no push. `version` must never
        have been used with other content: rolling back to earlier content needs a new one (Envoy issue 12592).

        Raises:
            KeyError: a type URL that isn't served.
        """
        types = {url: TypeSet(version, {}) for url in TYPES}
        for url, named in bodies.items():
            old = previous.types[url] if previous else types[url]
            fresh = {
                name: kept
                if (kept := old.resources.get(name)) is not None and kept.body == body
                else Resource(name, version, body)
                for name, body in sorted(named.items())
            }
            types[TYPES[url].url] = TypeSet(version, fresh)
        if previous:
            for url, kept_set in previous.types.items():
                if kept_set.resources == types[url].resources:
                    types[url] = kept_set
        return cls(version, types, secrets or {})

    def bodies(self) -> dict[str, dict[str, bytes]]:
        """Type URL -> name -> serialized message."""
        return {url: {r.name: r.body for r in held.resources.values()} for url, held in self.types.items()}

    def consistent(self) -> Snapshot:
        """Return this snapshot, or raise InconsistentSnapshotError saying what would dangle or enforce nothing."""
        check(self.bodies())
        return self
