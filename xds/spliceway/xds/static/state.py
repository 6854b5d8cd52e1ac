"""From files and admin API to snapshots: one for everyone, one for each node with resources of its own. Pure.

What is refused changes nothing: a file that can't be read keeps its last good content, and a set that is inconsistent
leaves what is served as it is. Since the start nothing is served until everything could be read once and is consistent:
an incomplete set would take listeners away from proxies that have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import Check, Snapshot, TypeSet
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.static.files import EVERYONE, Key, Load, News, read, unread
from spliceway.xds.static.layers import Layers


class Served(msgspec.Struct, frozen=True):
    """What one scope gets. `where`: the place that each resource comes from."""

    snapshot: Snapshot
    where: Mapping[Key, str]


class State(msgspec.Struct, frozen=True):
    """What was told, what is served of it, and why not all of it is.

    `served`: by scope, with EVERYONE; empty before the start is complete. `problems`: scope → why its newest set is not
    served. `complete`: everything could be read once.
    """

    layers: Layers = Layers()
    served: Mapping[str, Served] = {}
    problems: Mapping[str, str] = {}
    complete: bool = False

    def snapshot(self, scope: str) -> Served | None:
        """What a node gets, or everyone."""
        return self.served.get(scope) or self.served.get(EVERYONE)


class Builder(msgspec.Struct, frozen=True):
    """Makes the next state. `load` reads a file, `check` refuses snapshots."""

    load: Load
    check: Check

    def read(self, state: State, news: Iterable[News], version: str) -> State:
        """The state after files changed. Never raises: `files` and `problems` tell what is refused."""
        return self._build(state, Layers(read(state.layers.files, news, self.load), state.layers.changes), version)

    def change(self, state: State, layers: Layers, scope: str, version: str, *, forced: bool = False) -> State:
        """The state after the admin API made `layers` of what was told, for `scope`.

        `forced`: what changes gets this very version, for delta clients as well.

        Raises:
            InconsistentSnapshotError: nothing is changed: the set would have dangling references, or nothing can be
                served yet because of files.
        """
        result = self._build(state, layers, version, forced=forced)
        if not result.complete:
            reason = next(iter([*unread(layers.files), *result.problems.values()]))
            raise InconsistentSnapshotError(f"nothing is served before all files could be read: {reason}")
        for other, problem in result.problems.items():
            if other == scope or other not in state.problems:
                raise InconsistentSnapshotError(problem if other == scope else f"node {other!r}: {problem}")
        return result

    def _build(self, state: State, layers: Layers, version: str, *, forced: bool = False) -> State:
        served: dict[str, Served] = {}
        problems: dict[str, str] = {}
        # EVERYONE first: what a new scope has in common with everyone keeps its version.
        for scope in sorted(layers.scopes(), key=lambda each: (each != EVERYONE, each)):
            before = state.served.get(scope) or served.get(EVERYONE)
            try:
                served[scope] = self._serve(layers, scope, before, version, forced=forced)
            except InconsistentSnapshotError as error:
                problems[scope] = str(error)
                if (last := state.served.get(scope)) is not None:
                    served[scope] = last
        complete = state.complete or not (problems or unread(layers.files))
        return State(layers, served if complete else {}, problems, complete)

    def _serve(self, layers: Layers, scope: str, before: Served | None, version: str, *, forced: bool) -> Served:
        bodies: dict[str, dict[str, bytes]] = {url: {} for url in TYPES}
        ttls: dict[Key, float] = {}
        items = layers.resources(scope)
        for key, item in items.items():
            bodies[item.url][item.name] = item.body
            if item.ttl is not None:
                ttls[key] = item.ttl
        snapshot = Snapshot.of(version, bodies, before.snapshot if before else None, ttls=ttls)
        where = {key: item.where for key, item in items.items()}
        if before is not None and snapshot.types == before.snapshot.types:
            return Served(before.snapshot, where)
        self.check(snapshot)
        return Served(_forced(snapshot, version) if forced else snapshot, where)


def _forced(snapshot: Snapshot, version: str) -> Snapshot:
    """The same, but delta clients as well see `version` instead of a digest for what has it."""
    return msgspec.structs.replace(snapshot, types={url: _set(held, version) for url, held in snapshot.types.items()})


def _set(held: TypeSet, version: str) -> TypeSet:
    if held.version != version:
        return held
    resources = {
        name: msgspec.structs.replace(item, digest=version) if item.version == version else item
        for name, item in held.resources.items()
    }
    return msgspec.structs.replace(held, resources=resources)


def differing(before: State, after: State) -> tuple[dict[str, Snapshot], list[str]]:
    """What a server must be told: new snapshots by scope, and scopes that have none of their own any more."""
    fresh = {
        scope: held.snapshot
        for scope, held in after.served.items()
        if scope not in before.served or before.served[scope].snapshot is not held.snapshot
    }
    return fresh, sorted(before.served.keys() - after.served.keys())
