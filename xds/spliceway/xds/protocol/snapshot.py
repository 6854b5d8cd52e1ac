"""The immutable snapshot: everything that one client shall have, each resource with its version. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import count

import msgspec

from spliceway.xds.protocol.references import at_once, clusters_of, endpoints_of
from spliceway.xds.protocol.typeurls import CLUSTER, TYPES

_SERIALS = count(1)


class Resource(msgspec.Struct, frozen=True):
    """One serialized resource: encoded once, however many clients get it.

    `version` is the version of the snapshot in which its content last changed, and never used for other content.
    `digest` is made of the content alone: what a delta client tells after a reconnect, also to another agent.
    `ttl`: seconds after which a client that can forgets the resource unless it hears of it again; None for never.
    `endpoints`: of a cluster, the names of its EDS resources; `at_once`: it needs nothing but these to be used.
    `clusters`: of a listener or a route configuration, where it sends traffic. `secrets`: texts in it that are values
    of Secrets, and must not be shown.
    """

    name: str
    version: str
    body: bytes
    digest: str = ""
    ttl: float | None = None
    endpoints: tuple[str, ...] = ()
    at_once: bool = False
    clusters: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        # The body may hold values of Secrets.
        return f"Resource({self.name!r}, version={self.version!r}, {len(self.body)} bytes)"

    @classmethod
    def of(
        cls,
        url: str,
        name: str,
        version: str,
        body: bytes,
        ttl: float | None = None,
        secrets: frozenset[str] = frozenset(),
    ) -> Resource:
        """Make a resource of that type URL from its serialized message."""
        digest = hashlib.blake2b(body, digest_size=8, person=b"xds").hexdigest()
        if url == CLUSTER:
            return cls(name, version, body, digest, ttl, endpoints_of(body), at_once(body), secrets=secrets)
        return cls(name, version, body, digest, ttl, clusters=clusters_of(url, body), secrets=secrets)

    @classmethod
    def foreign(cls, name: str, digest: str) -> Resource:
        """What a client says it has and nobody here knows: neither its version nor its content."""
        return cls(name, "", b"", digest)


class TypeSet(msgspec.Struct, frozen=True, eq=False):
    """All resources of one type. `version` is the version of the snapshot in which the set last changed.

    `serial` is unique in this process; `changed` are the names that differ from the set with the serial `base` (added,
    changed or gone), so that a client which has that one need not be compared with all of this one.
    """

    version: str
    resources: Mapping[str, Resource]
    serial: int = msgspec.field(default_factory=lambda: next(_SERIALS))
    base: int = 0
    changed: frozenset[str] = frozenset()


class Snapshot(msgspec.Struct, frozen=True, eq=False):
    """What one client shall have. `types` has an entry for every served type URL, in sending order.

    `secrets`: what must not be shown of a resource, by its name (see `Resource.secrets`, which what was sent earlier
    has, too). `extra`: (type URL, name) of resources that come from the user's own configuration and not from policy.
    """

    version: str
    types: Mapping[str, TypeSet]
    secrets: Mapping[str, frozenset[str]] = {}
    extra: frozenset[tuple[str, str]] = frozenset()

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
        *,
        extra: frozenset[tuple[str, str]] = frozenset(),
        ttls: Mapping[tuple[str, str], float] | None = None,
    ) -> Snapshot:
        """Make a snapshot from serialized resources: type URL -> name -> bytes. `ttls`: (type URL, name) -> seconds.

        What is equal in `previous` keeps its version, so that an identical update causes no push. `version` must never
        have been used with other content: rolling back to earlier content needs a new one (Envoy issue 12592).

        Raises:
            KeyError: a type URL that isn't served.
        """
        ttls, secrets = ttls or {}, secrets or {}
        types: dict[str, TypeSet] = {}
        given = {TYPES[url].url: named for url, named in bodies.items()}
        for url in TYPES:
            old = previous.types[url] if previous else None
            named = given.get(url, {})
            fresh: dict[str, Resource] = {}
            changed: set[str] = set()
            for name, body in sorted(named.items()):
                kept = old.resources.get(name) if old else None
                ttl, hidden = ttls.get((url, name)), secrets.get(name, frozenset())
                # A value may be a Secret's from now on, although it is the same.
                if kept is not None and (kept.body, kept.ttl, kept.secrets) == (body, ttl, hidden):
                    fresh[name] = kept
                else:
                    fresh[name] = Resource.of(url, name, version, body, ttl, hidden)
                    changed.add(name)
            if old is None:
                types[url] = TypeSet(version, fresh)
                continue
            changed |= old.resources.keys() - fresh.keys()
            types[url] = TypeSet(version, fresh, base=old.serial, changed=frozenset(changed)) if changed else old
        return cls(version, types, secrets, extra)

    def bodies(self) -> dict[str, dict[str, bytes]]:
        """Type URL -> name -> serialized message."""
        return {url: {r.name: r.body for r in held.resources.values()} for url, held in self.types.items()}


#: Refuses a snapshot that must not be served, by raising InconsistentSnapshotError.
Check = Callable[[Snapshot], None]
