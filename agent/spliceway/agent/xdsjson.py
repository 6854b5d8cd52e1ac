"""What the admin APIs say of xDS clients and events, as plain JSON: times as flows have them, RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from spliceway.agent.jsonable import plain, time_shown
from spliceway.agent.ring import Lost
from spliceway.xds.debug.status import ClientStatus
from spliceway.xds.server.events import XdsEvent

#: How long it is told that a stream was not served: a client that still wants to be tries again within seconds.
REJECTED_SECONDS = 60.0
_TIMES = frozenset({"time", "since", "sentAt", "ackedAt"})


def clients_shown(clients: Iterable[ClientStatus]) -> list[dict[str, Any]]:
    """Streams as `GET /v1/xds/status` has them. `ackSeconds` of a type: from its last change to the acknowledgement."""
    found = []
    for client in plain(tuple(clients)):
        client["types"] = [_shown(kind) for kind in client["types"]]
        found.append(_shown(client))
    return found


def clients_refused(rejected: Iterable[XdsEvent], now: float) -> list[dict[str, Any]]:
    """Clients that were not served in the last minute, in `GET /v1/xds/refused`: each once for a reason, and when last.

    `rejected`: the oldest first; `now`: CLOCK_REALTIME in seconds.
    """
    latest = {(event.node, event.error): event.time for event in rejected if now - event.time < REJECTED_SECONDS}
    return [
        {"kind": "client", "name": node, "reason": reason, "time": time_shown(time)}
        for (node, reason), time in latest.items()
    ]


def event_json(event: XdsEvent | Lost) -> bytes:
    """One line of `GET /v1/xds/events`."""
    return msgspec.json.encode(_shown(msgspec.to_builtins(event)))


def _shown(value: dict[str, Any]) -> dict[str, Any]:
    """The same, in the same order, with times as text; `seconds` says which they are."""
    return {
        "ackSeconds" if key == "seconds" else key: time_shown(item) if key in _TIMES and item is not None else item
        for key, item in value.items()
    }
