"""What `/debug/syncz`, `/debug/connections` and `/debug/push_status` answer, in istiod's shapes. Pure.

Source: istiod's debug interface (pilot/pkg/xds/debug.go): keys and which of them may be absent. Nonces are compared to
tell whether a type is in sync: what was sent against what was acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from spliceway.xds.debug.nodeview import nodes_of
from spliceway.xds.debug.status import Client, ClientStatus, TypeStatus

#: Short type -> the word for it in istiod's keys; SDS has none of its own.
_WORDS = {"CDS": "cluster", "LDS": "listener", "RDS": "route", "EDS": "endpoint", "ECDS": "extensionconfig"}
#: The types of proxies that stand in node ids of Istio's form, and what others are called.
_PROXY_TYPES = frozenset({"sidecar", "router", "waypoint", "ztunnel", "agentgateway"})
_NODE_PROXY = "node"


def syncz(status: Iterable[ClientStatus]) -> list[dict[str, Any]]:
    """One entry for each node: nonces sent and acknowledged of each type, and `resources` with times and errors."""
    nodes = nodes_of(status)
    return [_sync(client, _types(streams)) for _, (client, streams) in sorted(nodes.items())]


def connections(status: Iterable[ClientStatus]) -> dict[str, Any]:
    """Every stream: `totalClients` and `clients`, with what each watches (type URL -> names; `*` is everything)."""
    clients = [
        {
            "connectionId": f"{item.client.node}-{item.stream}",
            "connectedAt": _time(item.since),
            "address": item.peer,
            "metadata": _present(
                CLUSTER_ID=item.client.cluster,
                ISTIO_VERSION=item.client.version,
                USER_AGENT=item.client.agent,
                SERVICE=item.service,
                PROTOCOL=item.protocol,
            ),
            "watches": {of.type_url: [*(["*"] if of.wildcard else []), *of.names] for of in item.types},
        }
        for item in status
    ]
    return {"totalClients": len(clients), **({"clients": clients} if clients else {})}


def push_status(nodes: Mapping[str, Mapping[str, TypeStatus]]) -> dict[str, dict[str, dict[str, str]]]:
    """What is refused now: `pilot_xds_<type>_reject` -> node and resource -> `proxy` and `message`.

    The keys are istiod's metrics of the same meaning. `nodes`: node id -> short type -> status.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for node, types in sorted(nodes.items()):
        for item in types.values():
            for resource in item.resources:
                if resource.state == "NACK":
                    metric = found.setdefault(f"pilot_xds_{item.type.lower()}_reject", {})
                    metric[f"{node}/{resource.name}"] = {"proxy": node, "message": resource.error}
    return found


def _types(streams: dict[str, ClientStatus]) -> list[TypeStatus]:
    return [item for short, client in streams.items() for item in client.types if item.type == short]


def _sync(client: Client, items: list[TypeStatus]) -> dict[str, Any]:
    types = {item.type: item for item in items}
    nonces = {
        f"{word}_{what}": getattr(types[short], f"{what}_nonce")
        for short, word in _WORDS.items()
        if short in types
        for what in ("sent", "acked")
    }
    return _present(
        cluster_id=client.cluster,
        proxy=client.node,
        proxy_type=_proxy_type(client.node),
        proxy_version=client.version,
        istio_version=client.version,
        **nonces,
        resources={
            item.type_url: _present(
                sent=item.sent_nonce,
                acked=item.acked_nonce,
                sentTime=_time(item.sent_at) if item.sent_at is not None else "",
                lastError=item.last_error.message if item.last_error and item.state == "NACK" else "",
            )
            for item in items
        },
    )


def _proxy_type(node: str) -> str:
    """Of a node id in Istio's form (`type~address~name~domain`); other proxies are the node's."""
    first, *rest = node.split("~")
    return first if len(rest) == 3 and first in _PROXY_TYPES else _NODE_PROXY


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value}
