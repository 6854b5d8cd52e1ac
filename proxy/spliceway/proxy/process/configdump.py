"""`/config_dump` in Envoy's shape, of the resources that are accepted, as they came. Pure.

Source: envoy.admin.v3.ConfigDump. Only dynamic resources: there is no bootstrap.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Resources, ResourceValue
from spliceway.proxy.process.supervisor import Refused

_DUMP = "type.googleapis.com/envoy.admin.v3."
_KINDS: dict[str, Callable[[], Message]] = {
    CLUSTER: cluster_pb2.Cluster,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
}
_UNKNOWN = re.compile(r"Can not find message descriptor by type_url: \S*?/([\w.]+)")


def config_dump(
    accepted: Resources, refused: Mapping[tuple[str, str], Refused], active: frozenset[str]
) -> dict[str, Any]:
    """The dump as JSON values. `active`: listeners that are served; the others are warming."""
    listeners = [
        {
            "name": name,
            **_listener_state(value, name in active),
            **_error(refused.get((LISTENER, name)), LISTENER),
        }
        for name, value in accepted[LISTENER].items()
    ]
    listeners += [
        {"name": name, **_error(item, LISTENER)}
        for (url, name), item in refused.items()
        if url == LISTENER and name not in accepted[LISTENER]
    ]
    return {
        "configs": [
            {
                "@type": f"{_DUMP}ClustersConfigDump",
                "dynamic_active_clusters": list(_entries(CLUSTER, "cluster", accepted, refused)),
            },
            {"@type": f"{_DUMP}ListenersConfigDump", "dynamic_listeners": listeners},
            {
                "@type": f"{_DUMP}RoutesConfigDump",
                "dynamic_route_configs": list(_entries(ROUTE, "route_config", accepted, refused)),
            },
        ]
    }


def _listener_state(value: ResourceValue, active: bool) -> dict[str, Any]:
    state = {"version_info": value.version, "listener": _json(LISTENER, value.body)}
    return {"active_state" if active else "warming_state": state}


def _entries(
    url: str, field: str, accepted: Resources, refused: Mapping[tuple[str, str], Refused]
) -> Iterator[dict[str, Any]]:
    for name, value in accepted[url].items():
        yield {"version_info": value.version, field: _json(url, value.body), **_error(refused.get((url, name)), url)}
    for (kind, name), item in refused.items():
        if kind == url and name not in accepted[url]:
            yield {field: {"@type": url, "name": name}, **_error(item, url)}


def _error(item: Refused | None, url: str) -> dict[str, Any]:
    if item is None:
        return {}
    failed = _json(url, item.value.body)
    return {"error_state": {"failed_configuration": failed, "details": item.reason, "version_info": item.value.version}}


def _json(url: str, body: bytes) -> dict[str, Any]:
    """The message in JSON with the proto's names, as Envoy has it; only the type if it can't be read."""
    message = _KINDS[url]()
    try:
        message.ParseFromString(body)
    except DecodeError:
        return {"@type": url}
    tried: set[str] = set()
    while True:
        try:
            return {"@type": url, **json_format.MessageToDict(message, preserving_proto_field_name=True)}
        except TypeError as error:
            # A type in an Any of which nobody has imported the module yet.
            found = _UNKNOWN.search(str(error))
            if found is None or found[1] in tried or not _import(found[1]):
                return {"@type": url}
            tried.add(found[1])


def _import(message_type: str) -> bool:
    """Import the module of `envoy.…` messages: it has the name of its package, and is one of that package's files."""
    package = message_type.rpartition(".")[0]
    if not package.startswith(("envoy.", "xds.", "udpa.")):
        return False
    import pkgutil

    try:
        folder = importlib.import_module(package)
    except ImportError:
        return False
    for module in pkgutil.iter_modules(folder.__path__, f"{package}."):
        importlib.import_module(module.name)
    return True
