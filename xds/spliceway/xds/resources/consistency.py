"""What must hold before a set of resources may be served. Pure: a snapshot in, an error or nothing out.

Policy's resources have a shape without holes (`shape`), the user's own leave policy alone (`extrarules`), and nothing
names what isn't there. Only what changed since an earlier set is looked at again (`index`).
"""

from __future__ import annotations

from collections.abc import Mapping

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import LISTENER, ROUTE
from spliceway.xds.resources.extrarules import extra_facts
from spliceway.xds.resources.facts import NOUNS, Facts, facts_of
from spliceway.xds.resources.index import Index, Indexes
from spliceway.xds.resources.shape import policy_facts


def _traffic_facts(url: str, name: str, body: bytes) -> Facts:
    facts = facts_of(url, name, body)
    return facts._replace(wants=tuple(want for want in facts.wants if want.traffic))


_POLICY = Indexes(policy_facts)
_ANY = Indexes(_traffic_facts)


def check_policy(snapshot: Snapshot) -> None:
    """Check an agent's snapshot for holes in policy and dangling references.

    Every listener and route configuration that isn't in `snapshot.extra` must be as policy makes them. Extra ones must
    not have policy's names or ports, nor lead to its cluster.

    Raises:
        InconsistentSnapshotError: naming the resource and the reason.
    """
    extra: dict[str, set[str]] = {url: set() for url in snapshot.types}
    for url, name in snapshot.extra:
        if name in snapshot.types[url].resources:
            extra[url].add(name)
    indexes = {
        url: _POLICY.of(url, held, extra[url], extra_facts) for url, held in snapshot.types.items() if held.resources
    }
    _check_apart(indexes, extra)
    _check_whole(snapshot, indexes)


def check_references(snapshot: Snapshot) -> None:
    """Check any snapshot for names that lead nowhere, wrong names and two listeners on one address.

    A cluster is asked for only where requests or connections go to it: a service (authorization, access log) may be a
    cluster that the client has from its bootstrap.

    Raises:
        InconsistentSnapshotError: naming the resource and the reason.
    """
    indexes = {url: _ANY.of(url, held) for url, held in snapshot.types.items() if held.resources}
    _check_whole(snapshot, indexes)


def _check_apart(indexes: Mapping[str, Index], extra: Mapping[str, set[str]]) -> None:
    """Extra listeners share no port with policy's, whatever the address, and nothing of theirs is policy's."""
    listeners = indexes.get(LISTENER)
    ports: dict[int, int] = {}
    for name in extra[LISTENER]:
        for address in listeners.facts[name].addresses if listeners else ():
            ports[address.port] = ports.get(address.port, 0) + 1
    for name in extra[LISTENER]:
        for address in listeners.facts[name].addresses if listeners else ():
            if address.port and listeners and listeners.ports[address.port] != ports[address.port]:
                raise _fail(LISTENER, name, f"has port {address.port}, which is a rule set's")
    for url, names in extra.items():
        for name in names:
            for want in indexes[url].facts[name].wants:
                if want.url == ROUTE and want.name not in extra[ROUTE] and want.name in _names(indexes, ROUTE):
                    raise _fail(url, name, f"takes the routes of policy ({want.at})")


def _names(indexes: Mapping[str, Index], url: str) -> Mapping[str, object]:
    index = indexes.get(url)
    return index.facts if index else {}


def _check_whole(snapshot: Snapshot, indexes: Mapping[str, Index]) -> None:
    """Every address has one listener, and what is named is there."""
    listeners = indexes.get(LISTENER)
    if listeners is not None and listeners.listening != len(listeners.addresses):
        _refuse_address(listeners)
    for index in indexes.values():
        for url, names in index.wants.items():
            if not names.keys() <= snapshot.types[url].resources.keys():
                _refuse_want(snapshot, indexes, url)


def _refuse_address(listeners: Index) -> None:
    seen: dict[object, str] = {}
    for name, facts in listeners.facts.items():
        for address in facts.addresses:
            if address in seen:
                raise _fail(LISTENER, name, f"has the address {address} of {seen[address]!r}")
            seen[address] = name


def _refuse_want(snapshot: Snapshot, indexes: Mapping[str, Index], url: str) -> None:
    for kind, index in indexes.items():
        for name, facts in index.facts.items():
            for want in facts.wants:
                if want.url == url and want.name not in snapshot.types[url].resources:
                    raise _fail(kind, name, f"{NOUNS[url]} {want.name!r} is missing ({want.at})")


def _fail(url: str, name: str, reason: str) -> InconsistentSnapshotError:
    return InconsistentSnapshotError(f"{NOUNS[url]} {name!r}: {reason}")
