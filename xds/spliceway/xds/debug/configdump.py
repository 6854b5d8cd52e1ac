"""A node's resources as Envoy's own `/config_dump` has them, from the control plane's side. Pure.

The shape is envoy.admin.v3.ConfigDump with the sections in Envoy's order, so that `istioctl proxy-config … -f` and
whatever else reads an Envoy's dump reads this one: bootstrap (empty), clusters, endpoints (if asked for), listeners,
scoped routes (empty), routes, secrets, extensions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from envoy.admin.v3 import config_dump_pb2, config_dump_shared_pb2
from google.protobuf.message import Message

from spliceway.xds.debug.nodeview import NodeView, Resources, client_state, failure, shown_any, timestamp
from spliceway.xds.debug.redact import as_json
from spliceway.xds.debug.status import Held, TypeStatus
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET, TYPES

#: Type URL -> (section, its list, field of the resource in an entry). Listeners are one level deeper.
_SECTIONS: dict[str, tuple[type[Message], str, str]] = {
    CLUSTER: (config_dump_shared_pb2.ClustersConfigDump, "dynamic_active_clusters", "cluster"),
    ENDPOINT: (config_dump_shared_pb2.EndpointsConfigDump, "dynamic_endpoint_configs", "endpoint_config"),
    LISTENER: (config_dump_shared_pb2.ListenersConfigDump, "dynamic_listeners", "listener"),
    ROUTE: (config_dump_shared_pb2.RoutesConfigDump, "dynamic_route_configs", "route_config"),
    SECRET: (config_dump_pb2.SecretsConfigDump, "dynamic_active_secrets", "secret"),
    EXTENSION: (config_dump_shared_pb2.EcdsConfigDump, "ecds_filters", "ecds_filter"),
}
#: Sections with a version of their own, and entries with a name.
_VERSIONED = frozenset({CLUSTER, LISTENER})
_NAMED = frozenset({LISTENER, SECRET})


def config_dump(
    node: NodeView, held: Resources, types: Collection[str] = (), *, include_eds: bool = False
) -> dict[str, Any]:
    """The dump as JSON. `held`: type URL -> name -> resource, of the stage that is wanted; `types`: short types.

    With `types` it has, as istiod's has, these resources themselves and no sections.
    """
    if types:
        wanted = [url for url, info in TYPES.items() if info.short in types]
        bare = [shown_any(url, item, node.secrets, stand_in=True) for url in wanted for item in _known(held, url)]
        return as_json(config_dump_pb2.ConfigDump(configs=bare))
    dump = config_dump_pb2.ConfigDump()
    dump.configs.add().Pack(config_dump_pb2.BootstrapConfigDump())
    for url in (CLUSTER, ENDPOINT, LISTENER, None, ROUTE, SECRET, EXTENSION):
        if url is None:
            dump.configs.add().Pack(config_dump_shared_pb2.ScopedRoutesConfigDump())
        elif url != ENDPOINT or include_eds:
            dump.configs.add().Pack(_section(url, node, held))
    return as_json(dump)


def _section(url: str, node: NodeView, held: Resources) -> Message:
    kind, entries, _ = _SECTIONS[url]
    status = node.types.get(TYPES[url].short)
    section: Any = kind()
    if url in _VERSIONED and status is not None:
        section.version_info = status.sent_version
    for item in _known(held, url):
        getattr(section, entries).add(**_entry(url, node, status, item))
    return section  # type: ignore[no-any-return]


def _entry(url: str, node: NodeView, status: TypeStatus | None, item: Held) -> dict[str, Any]:
    known = node.resources.get(TYPES[url].short, {}).get(item.name)
    content: dict[str, Any] = {
        "version_info": item.version,
        _SECTIONS[url][2]: shown_any(url, item, node.secrets, stand_in=True),
    }
    if status is not None and status.acked_at is not None and known is not None and known.state == "SYNCED":
        content["last_updated"] = timestamp(status.acked_at)
    entry: dict[str, Any] = {"active_state": content} if url == LISTENER else content
    if url in _NAMED:
        entry["name"] = item.name
    if known is not None:
        entry["client_status"] = client_state(known)
    if status is not None and known is not None and known.state == "NACK":
        entry["error_state"] = failure(node, status, known, contents=False)
    return entry


def _known(held: Resources, url: str) -> list[Held]:
    return [item for _, item in sorted(held.get(url, {}).items()) if item.resource is not None]
