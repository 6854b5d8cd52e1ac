"""`/debug/…`: what the control plane knows, in the shapes that istiod and Envoy have, for tools that read these.

The values are taken in the event loop; JSON of it is made in a thread, since a dump can be large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spliceway.xds.debug.configdump import config_dump
from spliceway.xds.debug.istiod import connections, push_status, syncz
from spliceway.xds.debug.nodeview import NodeView, nodes_of
from spliceway.xds.debug.view import STAGES, DebugView, Stage
from spliceway.xds.protocol.typeurls import URLS

_JSON = "application/json"
#: Path below /debug/ -> what it shows; also the answer to `/debug/`.
_HELP = {
    "syncz": "Nonces that were sent to each proxy and acknowledged by it, by type.",
    "config_dump": "What a proxy shall have, as Envoy's /config_dump. Query: proxyID=<node id>, include_eds, "
    "types=<CDS,EDS,SDS,LDS,RDS,ECDS>, stage=desired|sent|acked.",
    "connections": "Open streams, and what each watches.",
    "push_status": "What is refused now, by type and proxy, with the proxy's own message.",
    "list": "Names of all of these.",
}


class _BadQueryError(Exception):
    """The answer to a query that can't be answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def debug_routes(view: DebugView) -> list[Route]:
    """Routes with the whole path, `/debug/syncz` and so on, for GET only; `?pretty` indents the JSON."""

    def get_syncz(_query: _Query) -> Callable[[], Any]:
        status = view.status(resources=False)
        return lambda: syncz(status)

    def get_connections(_query: _Query) -> Callable[[], Any]:
        status = view.status()
        return lambda: connections(status)

    def get_push_status(_query: _Query) -> Callable[[], Any]:
        streams = view.status(resources=False)
        refusing = {client.client.node for client in streams if any(item.state == "NACK" for item in client.types)}
        status = {node: view.current(node) for node in refusing}
        return lambda: push_status(status)

    def get_config_dump(query: _Query) -> Callable[[], Any]:
        node, stage, types = _node(query, view), _stage(query), _types(query)
        client, streams = nodes_of(view.status(resources=False))[node]
        known, held = NodeView(view, client, streams), view.held(node, stage)
        return lambda: config_dump(known, held, types, include_eds="include_eds" in query)

    def get_list(_query: _Query) -> Callable[[], Any]:
        return lambda: sorted(_HELP.keys() - {"list"})

    def get_index(_query: _Query) -> Callable[[], Any]:
        return lambda: {f"/debug/{name}": text for name, text in _HELP.items()}

    views = {
        "syncz": get_syncz,
        "config_dump": get_config_dump,
        "connections": get_connections,
        "push_status": get_push_status,
        "list": get_list,
    }
    return [
        Route("/debug", _handler(get_index), methods=["GET"]),
        Route("/debug/", _handler(get_index), methods=["GET"]),
        *(Route(f"/debug/{name}", _handler(view), methods=["GET"]) for name, view in views.items()),
    ]


_Query = dict[str, str]


def _handler(take: Callable[[_Query], Callable[[], Any]]) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        query = dict(request.query_params)
        try:
            make = take(query)
        except _BadQueryError as error:
            return Response(f"{error}\n", status_code=error.status, media_type="text/plain")
        body = await asyncio.to_thread(lambda: msgspec.json.encode(make()))
        if "pretty" in query:
            body = msgspec.json.format(body, indent=2)
        return Response(body, media_type=_JSON)

    return handle


def _node(query: _Query, view: DebugView) -> str:
    node = query.get("proxyID", "")
    if not node:
        raise _BadQueryError(400, "proxyID is missing in the query: which proxy?")
    connected = sorted(nodes_of(view.status(resources=False)))
    if node not in connected:
        raise _BadQueryError(404, f"{node} is not connected; connected: {', '.join(connected[:20]) or 'no proxy'}")
    return node


def _stage(query: _Query) -> Stage:
    stage = query.get("stage", "desired")
    for known in STAGES:
        if stage == known:
            return known
    raise _BadQueryError(400, f"stage {stage!r} is none of {', '.join(STAGES)}")


def _types(query: _Query) -> frozenset[str]:
    types = frozenset(text.upper() for text in query.get("types", "").split(",") if text)
    if unknown := types - URLS.keys():
        raise _BadQueryError(400, f"type {', '.join(sorted(unknown))} is none of {', '.join(URLS)}")
    return types
