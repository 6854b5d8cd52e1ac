"""The admin API of `spliceway xds serve`: what is served, and changing it. See docs/xds-serve.md.

It has no authentication: whoever may connect may do everything. So it is for a Unix socket of mode 0600 or loopback,
and answers no web page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from spliceway.xds.errors import InconsistentSnapshotError, ResourceError, XdsError
from spliceway.xds.protocol.typeurls import TYPES
from spliceway.xds.static.control import Control
from spliceway.xds.static.files import EVERYONE, Key
from spliceway.xds.static.layers import ConflictError, Layers, UnknownResourceError
from spliceway.xds.static.show import TYPE_WORDS, resources_shown, state_shown
from spliceway.xds.webpages import NoWebPages

_JSON = "application/json"
#: Longest body in bytes: what a file may have.
_MAX_BODY = 4 << 20
_STATUS = {ResourceError: 400, UnknownResourceError: 404, ConflictError: 409, InconsistentSnapshotError: 422}

Encode = Callable[[Any], bytes]
_Handler = Callable[[Request], Awaitable[Response]]


class _BadRequestError(Exception):
    """The request itself is wrong. `status` is that of HTTP."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def static_app(
    control: Control,
    clients: Callable[[], Any],
    encode: Encode,
    *,
    tcp: bool = False,
    routes: Iterable[BaseRoute] = (),
) -> ASGIApp:
    """Build the application. `encode`: values to JSON; `tcp`: it listens on loopback.

    `clients`: every stream, as it is shown; `routes`: further ones.
    """

    def answer(value: Any, status: int = 200) -> Response:
        return Response(encode(value), status_code=status, media_type=_JSON)

    def route(path: str, method: str, handle: _Handler, *parameters: str) -> Route:
        async def guarded(request: Request) -> Response:
            try:
                if strange := request.query_params.keys() - set(parameters):
                    raise _BadRequestError(f"unknown parameter {min(strange)!r}")
                return await handle(request)
            except _BadRequestError as error:
                return answer({"error": str(error)}, error.status)
            except XdsError as error:
                status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
                return answer({"error": str(error)}, status)

        return Route(path, guarded, methods=[method])

    async def change(request: Request, make: Callable[[Layers], Layers], status: int = 200) -> Response:
        scope = _scope(request)
        served = await control.change(scope, make, _version(request))
        return answer({"node": scope, "version": served.snapshot.version, "resources": len(served.where)}, status)

    async def get_all(request: Request) -> Response:
        query, scope = request.query_params, _scope(request)
        url = _url(query["type"]) if "type" in query else None
        served = control.state.snapshot(scope)
        return answer(resources_shown(scope, served, lambda key: _fits(key, url, query.get("name"))))

    async def get_one(request: Request) -> Response:
        key = _key(request)
        shown = resources_shown(_scope(request), control.state.snapshot(_scope(request)), lambda other: other == key)
        if not shown["resources"]:
            raise UnknownResourceError(f"there is no {TYPES[key[0]].short} {key[1]!r}")
        return answer(shown["resources"][0])

    async def set_all(request: Request) -> Response:
        items = await control.load(await _text(request), "request")
        return await change(request, lambda layers: layers.set(_scope(request), items))

    async def add(request: Request) -> Response:
        items = await control.load(await _text(request), "request")
        return await change(request, lambda layers: layers.add(_scope(request), items), 201)

    async def put_one(request: Request) -> Response:
        key, items = _key(request), await control.load(await _text(request), "request")
        if [(item.url, item.name) for item in items] != [key]:
            raise _BadRequestError(f"the body must be one resource: {TYPES[key[0]].short} {key[1]!r}")
        return await change(request, lambda layers: layers.put(_scope(request), items))

    async def remove_one(request: Request) -> Response:
        key = _key(request)
        return await change(request, lambda layers: layers.remove(_scope(request), key))

    async def remove_all(request: Request) -> Response:
        return await change(request, lambda layers: layers.set(_scope(request), ()))

    async def reset(request: Request) -> Response:
        named = request.query_params.get("node")
        return await change(request, lambda layers: layers.reset(named))

    async def status(_request: Request) -> Response:
        return answer(state_shown(control.state, control.lost) | {"clients": clients()})

    async def xds_status(_request: Request) -> Response:
        return answer(clients())

    one = "/v1/resources/{type}/{name:path}"
    app = Starlette(
        routes=[
            route("/v1/resources", "GET", get_all, "type", "name", "node"),
            route("/v1/resources", "PUT", set_all, "node", "version"),
            route("/v1/resources", "POST", add, "node", "version"),
            route("/v1/resources", "DELETE", remove_all, "node", "version"),
            route(one, "GET", get_one, "node"),
            route(one, "PUT", put_one, "node", "version"),
            route(one, "DELETE", remove_one, "node", "version"),
            route("/v1/changes", "DELETE", reset, "node"),
            route("/v1/status", "GET", status),
            route("/v1/xds/status", "GET", xds_status),
            *routes,
        ]
    )
    return NoWebPages(app, check_host=tcp)


async def _text(request: Request) -> str:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise _BadRequestError(f"the body is longer than {_MAX_BODY >> 20} MiB", 413)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise _BadRequestError(f"the body is not UTF-8 (byte {error.start})") from None


def _scope(request: Request) -> str:
    return request.query_params.get("node") or EVERYONE


def _version(request: Request) -> str | None:
    version = request.query_params.get("version") or None
    if version is not None and not (len(version) <= 200 and version.isascii() and version.isprintable()):
        raise _BadRequestError("a version is at most 200 printable ASCII characters")
    return version


def _key(request: Request) -> Key:
    return _url(request.path_params["type"]), request.path_params["name"]


def _url(word: str) -> str:
    try:
        return TYPE_WORDS[word.lower()]
    except KeyError:
        shorts = ", ".join(info.short for info in TYPES.values())
        raise _BadRequestError(f"no type {word!r}: {shorts}, or the name of the message") from None


def _fits(key: Key, url: str | None, name: str | None) -> bool:
    return (url is None or key[0] == url) and (name is None or key[1] == name)
