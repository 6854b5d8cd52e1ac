"""The admin API: JSON over HTTP on a Unix socket, for the CLI and for people with curl. See docs/cli.md for the paths.

Whoever may open the socket (mode 0600: root) may do everything it offers; it has no other authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from spliceway.agent.errors import OWN_ERRORS
from spliceway.agent.filters import check_value
from spliceway.agent.flowlog import FlowLog, flow_filter
from spliceway.agent.jsonable import encode

JSON = "application/json"
JSON_LINES = "application/x-ndjson"

#: Query parameters to a value; raises ValueError for a bad one (400) and LookupError for an unknown name (404).
View = Callable[[dict[str, str]], Any]


class SpliceSwitch(Protocol):
    """What `PUT /v1/splice` turns."""

    async def set_splice_mode(self, mode: str) -> None:
        """`auto` or `off`. Raises ValueError for anything else."""


def admin_app(
    views: Mapping[str, View],
    dumps: Mapping[str, View],
    *,
    flows: FlowLog,
    registry: CollectorRegistry,
    splice: SpliceSwitch,
    resets: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
) -> Starlette:
    """Build the application.

    `views`: path below /v1/ → what it answers, made in the event loop; `dumps`: the same for what reads whole kernel
    maps, made in a thread; `resets`: path → what DELETE does, and answers.
    """

    async def put_splice(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=dict[str, str])
            mode = body["mode"]
        except (msgspec.MsgspecError, KeyError):
            return _error(400, 'the body must be {"mode": "auto"} or {"mode": "off"}')
        return await _answer(lambda: _switch(splice, mode))

    async def get_flows(request: Request) -> Response:
        query = dict(request.query_params)
        follow = query.pop("follow", "") in ("1", "true")
        try:
            last = int(query.pop("last", "0" if follow else "100"))
            match = flow_filter(query)
            for name, value in query.items():
                check_value(name, value)
            if last < 0:
                raise ValueError("last must not be negative")
        except ValueError as error:
            return _error(400, str(error))
        if not follow:
            lines = b"".join(msgspec.json.encode(flow) + b"\n" for flow in flows.latest(last, match))
            return Response(lines, media_type=JSON_LINES)

        async def stream() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(flows.follow(last, match)) as follower:
                async for flow in follower:
                    yield msgspec.json.encode(flow) + b"\n"

        return StreamingResponse(stream(), media_type=JSON_LINES)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            *(Route(f"/v1/{path}", _handler(view), methods=["GET"]) for path, view in views.items()),
            *(Route(f"/v1/{path}", _handler(view, slow=True), methods=["GET"]) for path, view in dumps.items()),
            *(Route(f"/v1/{path}", _resetter(reset), methods=["DELETE"]) for path, reset in resets.items()),
            Route("/v1/flows", get_flows, methods=["GET"]),
            Route("/v1/splice", put_splice, methods=["PUT"]),
            Route("/metrics", metrics, methods=["GET"]),
        ]
    )


def metrics_app(registry: CollectorRegistry) -> Starlette:
    """Only `/metrics`, for a Prometheus that comes over TCP."""

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])])


def _handler(view: View, *, slow: bool = False) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        query = dict(request.query_params)

        async def answer() -> bytes:
            value = await asyncio.to_thread(view, query) if slow else view(query)
            return await asyncio.to_thread(encode, value)

        return await _answer(answer)

    return handle


def _resetter(reset: Callable[[], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(_request: Request) -> Response:
        async def answer() -> Any:
            return reset()

        return await _answer(answer)

    return handle


async def _answer(make: Callable[[], Awaitable[Any]]) -> Response:
    try:
        body = await make()
    except ValueError as error:
        return _error(400, str(error))
    except LookupError as error:
        return _error(404, str(error.args[0]) if error.args else "not found")
    except OWN_ERRORS as error:
        return _error(500, str(error))
    return Response(body if isinstance(body, bytes) else encode(body), media_type=JSON)


async def _switch(splice: SpliceSwitch, mode: str) -> dict[str, str]:
    await splice.set_splice_mode(mode)
    return {"mode": mode}


def _error(status: int, text: str) -> Response:
    return Response(encode({"error": text}), status_code=status, media_type=JSON)
