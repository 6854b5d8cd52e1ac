"""The admin API: JSON over HTTP on a Unix socket, for the CLI and for people with curl. See docs/cli.md for the paths.

Whoever may open the socket (mode 0600: root) may do everything it offers; it has no other authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from spliceway.agent.config import debug_address
from spliceway.agent.errors import OWN_ERRORS, AgentError
from spliceway.agent.filters import check_value
from spliceway.agent.flowlog import Flow, FlowLog, flow_filter
from spliceway.agent.jsonable import encode
from spliceway.agent.ring import Lost, Ring
from spliceway.agent.xdsevents import XdsEvents, event_filter
from spliceway.agent.xdsjson import event_json
from spliceway.xds.errors import AdminError
from spliceway.xds.webpages import NoWebPages

JSON = "application/json"
JSON_LINES = "application/x-ndjson"

#: Query parameters to a value; raises ValueError for a bad one (400) and LookupError for an unknown name (404).
View = Callable[[dict[str, str]], Any]
#: The same for what awaits: it takes values in the event loop, and leaves what takes long to a thread.
Ask = Callable[[dict[str, str]], Awaitable[Any]]
#: The same with the body of the request.
Post = Callable[[dict[str, str], bytes], Awaitable[Any]]

T = TypeVar("T")
#: Largest body of a POST: what a proxy with 10,000 resources says of itself is a tenth of it.
MAX_BODY = 512 << 20


class SpliceSwitch(Protocol):
    """What `PUT /v1/splice` turns."""

    async def set_mode(self, mode: str) -> object:
        """`auto`, `force` or `off`; what splicing is then. Raises ValueError for anything else."""


def admin_app(
    views: Mapping[str, View],
    dumps: Mapping[str, View],
    *,
    flows: FlowLog,
    registry: CollectorRegistry,
    splice: SpliceSwitch,
    resets: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
    asks: Mapping[str, Ask] = MappingProxyType({}),
    posts: Mapping[str, Post] = MappingProxyType({}),
    xds_events: XdsEvents | None = None,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """Build the application.

    `views`: path below /v1/ → what it answers, made in the event loop; `dumps`: the same for what reads whole kernel
    maps, made in a thread; `asks` await; `posts` get a body; `resets`: path → what DELETE does, and answers;
    `routes`: further ones, with their whole paths.
    """

    async def put_splice(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=dict[str, str])
            mode = body["mode"]
        except (msgspec.MsgspecError, KeyError):
            return _error(400, 'the body must be {"mode": "auto"}, {"mode": "force"} or {"mode": "off"}')
        return await _answer(lambda: splice.set_mode(mode))

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            *(Route(f"/v1/{path}", _handler(view), methods=["GET"]) for path, view in views.items()),
            *(Route(f"/v1/{path}", _handler(view, slow=True), methods=["GET"]) for path, view in dumps.items()),
            *(Route(f"/v1/{path}", _resetter(reset), methods=["DELETE"]) for path, reset in resets.items()),
            *(Route(f"/v1/{path}", _asker(ask), methods=["GET"]) for path, ask in asks.items()),
            *(Route(f"/v1/{path}", _poster(post), methods=["POST"]) for path, post in posts.items()),
            Route("/v1/flows", _lines(flows, _flow_match, msgspec.json.encode), methods=["GET"]),
            *(
                [Route("/v1/xds/events", _lines(xds_events, event_filter, event_json))]
                if xds_events is not None
                else ()
            ),
            *routes,
            Route("/v1/splice", put_splice, methods=["PUT"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _not_there},
    )


def proxy_metrics(ask: Callable[[], Awaitable[bytes]]) -> Route:
    """`/metrics/proxy`: what `ask` says, the proxy's own metrics; 502 when it raises AdminError."""

    async def get(_request: Request) -> Response:
        try:
            return Response(await ask(), media_type="text/plain; version=0.0.4; charset=utf-8")
        except AdminError as error:
            return Response(f"the proxy does not tell its metrics: {error}\n", status_code=502, media_type="text/plain")

    return Route("/metrics/proxy", get, methods=["GET"])


def health_routes(why_not_ready: Callable[[], str]) -> tuple[Route, ...]:
    """`/healthz`: 200 while the event loop turns. `/readyz`: 503 with the reason until there is none.

    Neither reads kernel maps: probes come every few seconds.
    """

    async def alive(_request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def ready(_request: Request) -> Response:
        why = why_not_ready()
        return Response(f"{why or 'ok'}\n", status_code=503 if why else 200, media_type="text/plain")

    return Route("/healthz", alive, methods=["GET"]), Route("/readyz", ready, methods=["GET"])


def metrics_app(registry: CollectorRegistry, *routes: BaseRoute) -> ASGIApp:
    """Only `/metrics` and these, for a Prometheus that comes over TCP."""

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"]), *routes])


def health_app(*routes: BaseRoute) -> ASGIApp:
    """Only these, for the kubelet's probes."""
    return Starlette(routes=list(routes))


def debug_app(routes: Sequence[BaseRoute]) -> ASGIApp:
    """Only `/debug/*`, for tools that come over the loopback device; not for web pages."""
    return NoWebPages(Starlette(routes=list(routes)), check_host=True)


def debug_listener(listen: str) -> socket.socket:
    """Make the listening socket of `debug.listen`, which is of the loopback device. Raises AgentError."""
    host, port = debug_address(listen, "agent")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise AgentError(f"debug.listen {listen}: {error.strerror or error}") from error


def _lines(
    log: Ring[T], matcher: Callable[[dict[str, str]], Callable[[T], bool]], line: Callable[[T | Lost], bytes]
) -> Callable[..., Awaitable[Response]]:
    """JSON lines, each made by `line`: the `last` ones, and with `follow` each new one.

    Other parameters are for `matcher`.
    """

    async def get(request: Request) -> Response:
        query = dict(request.query_params)
        follow = query.pop("follow", "") in ("1", "true")
        try:
            last = int(query.pop("last", "0" if follow else "100"))
            match = matcher(query)
            if last < 0:
                raise ValueError("last must not be negative")
        except ValueError as error:
            return _error(400, str(error))
        if not follow:
            lines = b"".join(line(item) + b"\n" for item in log.latest(last, match))
            return Response(lines, media_type=JSON_LINES)

        async def stream() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(log.follow(last, match)) as follower:
                async for item in follower:
                    yield line(item) + b"\n"

        return StreamingResponse(stream(), media_type=JSON_LINES)

    return get


def _flow_match(query: dict[str, str]) -> Callable[[Flow], bool]:
    match = flow_filter(query)
    for name, value in query.items():
        check_value(name, value)
    return match


def _asker(ask: Ask) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        async def answer() -> bytes:
            return await asyncio.to_thread(encode, await ask(dict(request.query_params)))

        return await _answer(answer)

    return handle


def _poster(post: Post) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                return _error(413, f"the body is larger than {MAX_BODY >> 20} MiB")

        async def answer() -> bytes:
            return await asyncio.to_thread(encode, await post(dict(request.query_params), bytes(body)))

        return await _answer(answer)

    return handle


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


async def _not_there(request: Request, error: Exception) -> Response:
    """A path or method that there is none of."""
    assert isinstance(error, HTTPException)
    what = (
        f"the agent has no path {request.url.path}" if error.status_code == 404 else f"{request.method}: {error.detail}"
    )
    answer = _error(error.status_code, what)
    answer.headers.update(error.headers or {})
    return answer


def _error(status: int, text: str) -> Response:
    return Response(encode({"error": text}), status_code=status, media_type=JSON)
