"""From rule sets to a snapshot: one listener and one route configuration each, and the one cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError, EncodeError

from spliceway.policy.table import RuleSet
from spliceway.xds.errors import InconsistentSnapshotError, ResourceError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.resources.clusters import original_cluster
from spliceway.xds.resources.consistency import check_policy
from spliceway.xds.resources.extra import NO_EXTRA, Extra
from spliceway.xds.resources.listeners import rule_set_listener
from spliceway.xds.resources.names import CLUSTER_ORIGINAL, listener_name
from spliceway.xds.resources.packing import serialized
from spliceway.xds.resources.routes import rule_set_routes
from spliceway.xds.resources.rules import secret_forms
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.resources.shape import policy_facts


class _Routes(NamedTuple):
    body: bytes
    secrets: frozenset[str]


def build_snapshot(
    rule_sets: Mapping[int, RuleSet],
    ports: Mapping[int, int],
    settings: ResourceSettings,
    version: str,
    previous: Snapshot | None = None,
    extra: Extra = NO_EXTRA,
) -> Snapshot:
    """Build a node's snapshot from its rule sets (by id) and their listeners' ports (rule set id -> port).

    What is equal in `previous` keeps its version. `extra`: the user's own resources, served beside policy's. The
    result is checked with `check_policy`.

    Raises:
        ResourceError: a rule set without a port or with another id than its key, a port out of range or used twice,
            or what `check_rule_set` refuses (`unfit` tells the last beforehand).
        InconsistentSnapshotError: the resources don't fit together.
    """
    _check_ports(rule_sets, ports)
    routes = {listener_name(key): _routes(rule_set) for key, rule_set in rule_sets.items()}
    own = {
        CLUSTER: {CLUSTER_ORIGINAL: serialized(original_cluster(settings))},
        LISTENER: {listener_name(key): _listener(key, ports[key], settings) for key in rule_sets},
        ROUTE: {name: made.body for name, made in routes.items()},
    }
    made = Snapshot.of(
        version,
        # Policy's own last: its names are nobody else's.
        {url: {**extra.bodies.get(url, {}), **bodies} for url, bodies in own.items()},
        previous,
        {name: made.secrets for name, made in routes.items() if made.secrets},
        extra=extra.names,
    )
    check_policy(made)
    return made


def unfit(rule_sets: Mapping[int, RuleSet]) -> dict[int, str]:
    """Rule sets that `build_snapshot` would refuse for what they say, by id, each with the reason."""
    return {key: reason for key, rule_set in rule_sets.items() if (reason := _unfit(rule_set))}


# An edit changes one rule set of many; building all of 500 again takes 150 ms, of which the edit has 200.


@lru_cache(maxsize=4096)
def _listener(key: int, port: int, settings: ResourceSettings) -> bytes:
    return serialized(rule_set_listener(key, port, settings))


@lru_cache(maxsize=4096)
def _unfit(rule_set: RuleSet) -> str:
    """Why a rule set can't be served: refused on purpose, or for whatever goes wrong in making and reading its routes.

    Nothing that one rule set says may ever hold back the others.
    """
    where = f"rule set {rule_set.id} ({rule_set.name})"
    try:
        policy_facts(ROUTE, listener_name(rule_set.id), _routes(rule_set).body)
    except ResourceError as error:
        return str(error)
    except InconsistentSnapshotError as error:
        return f"{where}: {error}"
    except (DecodeError, EncodeError, RecursionError, ValueError) as error:
        # The text of these is not for people, and may have the value of a header in it.
        return f"{where}: protobuf can't take its routes ({type(error).__name__}): fewer or shorter conditions may help"
    return ""


@lru_cache(maxsize=4096)
def _routes(rule_set: RuleSet) -> _Routes:
    return _Routes(serialized(rule_set_routes(rule_set)), secret_forms(rule_set))


def _check_ports(rule_sets: Mapping[int, RuleSet], ports: Mapping[int, int]) -> None:
    used: dict[int, int] = {}
    for key, rule_set in rule_sets.items():
        where = f"rule set {key} ({rule_set.name})"
        if rule_set.id != key or key <= 0:
            raise ResourceError(f"{where}: has the id {rule_set.id}; ids are positive and equal to their key")
        port = ports.get(key)
        if port is None:
            raise ResourceError(f"{where}: no listener port")
        if not 0 < port < 65536:
            raise ResourceError(f"{where}: listener port {port} is not a port")
        if port in used:
            raise ResourceError(f"{where}: listener port {port} is that of rule set {used[port]}")
        used[port] = key
