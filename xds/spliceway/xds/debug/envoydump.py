"""What an Envoy says of itself in `/config_dump?include_eds`: its dynamic resources with their states. Pure.

Static resources (the bootstrap's) are left out: no control plane sends them. Source: envoy.admin.v3.ConfigDump.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from spliceway.xds.errors import AdminError
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET
from spliceway.xds.resources.messagetypes import message_class

_TYPE = re.compile(r"type\.googleapis\.com/([\w.]+)")


class Reported(msgspec.Struct, frozen=True, eq=False):
    """A resource at an Envoy. `active`: in use; `warming`: accepted, waiting for what it needs; `error`: last refusal.

    Both None: it drains, or was refused and never there. `draining`: a listener that drains names it, and keeps it.
    `refused`: what the refusal is about, if Envoy tells. `unread`: why one of them can't be read.
    """

    active: Message | None = None
    warming: Message | None = None
    version: str = ""
    error: str = ""
    refused: Message | None = None
    unread: str = ""
    draining: bool = False


class _List(msgspec.Struct, frozen=True):
    """A list in a section: entries that are in use or warming, the field of the resource and that of its name."""

    url: str
    entries: str
    field: str
    name: str
    warming: bool = False


_LISTS: dict[str, tuple[_List, ...]] = {
    "ClustersConfigDump": (
        _List(CLUSTER, "dynamic_active_clusters", "cluster", "name"),
        _List(CLUSTER, "dynamic_warming_clusters", "cluster", "name", warming=True),
    ),
    "EndpointsConfigDump": (_List(ENDPOINT, "dynamic_endpoint_configs", "endpoint_config", "cluster_name"),),
    "RoutesConfigDump": (_List(ROUTE, "dynamic_route_configs", "route_config", "name"),),
    "SecretsConfigDump": (
        _List(SECRET, "dynamic_active_secrets", "secret", "name"),
        _List(SECRET, "dynamic_warming_secrets", "secret", "name", warming=True),
    ),
    "EcdsConfigDump": (_List(EXTENSION, "ecds_filters", "ecds_filter", "name"),),
}


def reported(dump: Mapping[str, Any]) -> dict[str, dict[str, Reported]]:
    """Type URL -> name -> resource, from the dump as JSON.

    Raises:
        AdminError: it isn't a config_dump.
    """
    found: dict[str, dict[str, Reported]] = {url: {} for url in (CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, EXTENSION)}
    draining: set[str] = set()
    try:
        for section in dump["configs"]:
            kind = section["@type"].rpartition(".")[2]
            if kind == "ListenersConfigDump":
                for item in section.get("dynamic_listeners", ()):
                    found[LISTENER][_listener_name(item)] = _listener(item)
                    draining |= set(_texts(item.get("draining_state")))
            for part in _LISTS.get(kind, ()):
                for name, item in _entries(part, section):
                    found[part.url][name] = _merged(found[part.url].get(name), item)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise AdminError(f"this is not the JSON of Envoy's /config_dump: {error!r}") from error
    _keep_asked(found)
    for url in (ENDPOINT, ROUTE, SECRET, EXTENSION):
        for name in draining & found[url].keys():
            found[url][name] = msgspec.structs.replace(found[url][name], draining=True)
    return found


def _listener_name(item: Mapping[str, Any]) -> str:
    """Envoy does not name a listener that was refused and never there."""
    name = item["name"] if "name" in item else item["error_state"]["failed_configuration"]["name"]
    return str(name)


def _listener(item: Mapping[str, Any]) -> Reported:
    states = [item.get(key, {}) for key in ("active_state", "warming_state")]
    (active, one), (warming, other) = (_message(LISTENER, state.get("listener")) for state in states)
    version = next((state["version_info"] for state in states if "version_info" in state), "")
    return Reported(active, warming, version, *_error(LISTENER, item), one or other)


def _entries(part: _List, section: Mapping[str, Any]) -> Iterator[tuple[str, Reported]]:
    for item in section.get(part.entries, ()):
        body = item.get(part.field)
        message, unread = _message(part.url, body)
        name = item.get("name") or (body or {}).get(part.name)
        if name is not None:
            yield (
                str(name),
                Reported(
                    None if part.warming else message,
                    message if part.warming else None,
                    item.get("version_info", ""),
                    *_error(part.url, item),
                    unread,
                ),
            )


def _merged(old: Reported | None, new: Reported) -> Reported:
    if old is None:
        return new
    return Reported(
        old.active or new.active,
        old.warming or new.warming,
        old.version or new.version,
        old.error or new.error,
        old.refused or new.refused,
        old.unread or new.unread,
    )


def _error(url: str, item: Mapping[str, Any]) -> tuple[str, Message | None]:
    state = item.get("error_state")
    if not state:
        return "", None
    details = str(state.get("details") or "refused, for a reason that Envoy does not tell").strip()
    return details, _message(url, state.get("failed_configuration"))[0]


def _message(url: str, body: Any) -> tuple[Message | None, str]:
    """The message of an Any in JSON, or why it can't be read. Another version than v3 is not read."""
    if body is None:
        return None, ""
    kind = message_class(url.rpartition("/")[2])
    assert kind is not None  # a served type
    if body.get("@type") != url:
        return None, f"{body.get('@type')} is not {url}"
    message = kind()
    for name in _types_in(body):
        message_class(name)  # json_format finds what has been imported
    try:
        json_format.ParseDict({key: value for key, value in body.items() if key != "@type"}, message)
    except (json_format.ParseError, TypeError, ValueError) as error:
        return None, str(error)
    return message, ""


def _types_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(url := value.get("@type"), str) and (match := _TYPE.fullmatch(url)):
            yield match[1]
        for item in value.values():
            yield from _types_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _types_in(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _keep_asked(found: dict[str, dict[str, Reported]]) -> None:
    """Envoy lists endpoints of every dynamic cluster, whatever its kind: only those of EDS clusters were sent."""
    names = set()
    for name, item in found[CLUSTER].items():
        for cluster in (item.active, item.warming):
            if cluster is not None and cluster.type == cluster.EDS:  # type: ignore[attr-defined]
                names.add(cluster.eds_cluster_config.service_name or name)  # type: ignore[attr-defined]
    found[ENDPOINT] = {name: item for name, item in found[ENDPOINT].items() if name in names}
