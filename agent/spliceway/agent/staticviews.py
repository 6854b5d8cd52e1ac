"""What `spliceway xds dump|diff|watch` and tools for istiod ask, answered by `spliceway xds serve`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from spliceway.agent.debugapi import debug_routes
from spliceway.agent.jsonable import encode
from spliceway.agent.xdsevents import XdsEvents, event_filter
from spliceway.agent.xdsjson import clients_refused, event_json
from spliceway.agent.xdstypes import short_type
from spliceway.xds.debug.diff import compare
from spliceway.xds.debug.dump import dump_held
from spliceway.xds.debug.view import STAGES, ServerView, Stage
from spliceway.xds.errors import AdminError
from spliceway.xds.protocol.typeurls import URLS
from spliceway.xds.server.events import XdsEvent
from spliceway.xds.static.control import Control
from spliceway.xds.static.show import refused_shown

_JSON = "application/json"
_JSON_LINES = "application/x-ndjson"
#: Largest configuration of a proxy that is compared, in bytes.
_MAX_BODY = 512 << 20
_Query = dict[str, str]
_Handler = Callable[[Request], Awaitable[Response]]


class StaticViews:
    """The routes below /v1/xds/ and /debug/."""

    def __init__(
        self,
        view: ServerView,
        control: Control,
        events: XdsEvents,
        rejections: Callable[[], Iterable[XdsEvent]],
    ) -> None:
        """`rejections`: the latest streams that were not served."""
        self._view = view
        self._rejections = rejections
        self._control = control
        self._events = events

    def routes(self) -> list[BaseRoute]:
        """Routes with their whole paths."""
        return [
            Route("/v1/xds/refused", _told(self._refused), methods=["GET"]),
            Route("/v1/xds/resources", _told(self._resources), methods=["GET"]),
            Route("/v1/xds/diff", _told(self._diff), methods=["GET", "POST"]),
            Route("/v1/xds/events", _told(self._lines), methods=["GET"]),
            *debug_routes(self._view),
        ]

    async def _refused(self, request: Request) -> Response:
        _only(request)
        found = refused_shown(self._control.state, self._control.lost)
        return Response(encode([*found, *clients_refused(self._rejections(), time.time())]), media_type=_JSON)

    async def _resources(self, request: Request) -> Response:
        query = _only(request, "node", "type", "name", "stage", "contents")
        node, stage = query.get("node", "*"), _stage(query.get("stage", "desired"))
        types = [short_type(query["type"])] if "type" in query else []
        names = [query["name"]] if "name" in query else []
        held, status, secrets = self._view.held(node, stage), self._view.current(node), self._view.secrets(node)
        if names and not any(query["name"] in of for of in held.values()):
            raise LookupError(f"{node} has no resource {query['name']!r} at the stage {stage}")
        served = self._control.state.snapshot(node)
        where = served.where if served else {}
        whole = query.get("contents", "1") not in ("0", "false")

        def decode() -> bytes:
            found = []
            items = dump_held(held, status, secrets, types, names, contents=whole)
            for item in items:
                body = {"resource": item.pop("resource")} if whole else {}
                origin = where.get((URLS[item["type"]], item["name"]), "configuration")
                made: dict[str, object] = {"origin": origin, "ruleSet": None, "policies": []}
                found.append({"node": node, "stage": stage, **item, **made, **body})
            return encode(found)

        return Response(await asyncio.to_thread(decode), media_type=_JSON)

    async def _diff(self, request: Request) -> Response:
        node = _only(request, "node").get("node", "")
        if request.method == "GET" or not node:
            raise ValueError("name a node (--node) and that proxy's admin interface (--admin)")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                raise ValueError(f"the body is larger than {_MAX_BODY >> 20} MiB")
        held, status, secrets = self._view.held(node, "desired"), self._view.current(node), self._view.secrets(node)

        def look() -> bytes:
            try:
                said = msgspec.json.decode(bytes(body), type=dict[str, Any])
            except (msgspec.MsgspecError, RecursionError) as error:
                raise ValueError(f"that is no configuration of a proxy: {error}") from None
            return encode({"node": node, "resources": compare(held, said, secrets, status)})

        return Response(await asyncio.to_thread(look), media_type=_JSON)

    async def _lines(self, request: Request) -> Response:
        query = _only(request, "node", "type", "follow", "last")
        follow = query.pop("follow", "") in ("1", "true")
        last = int(query.pop("last", "0" if follow else "100"))
        if last < 0:
            raise ValueError("last must not be negative")
        match = event_filter(query)
        if not follow:
            lines = b"".join(event_json(item) + b"\n" for item in self._events.latest(last, match))
            return Response(lines, media_type=_JSON_LINES)

        async def stream() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(self._events.follow(last, match)) as follower:
                async for item in follower:
                    yield event_json(item) + b"\n"

        return StreamingResponse(stream(), media_type=_JSON_LINES)


def _told(handle: _Handler) -> _Handler:
    """The same, with errors as answers."""

    async def guarded(request: Request) -> Response:
        try:
            return await handle(request)
        except LookupError as error:
            status, text = 404, str(error.args[0])
        except (ValueError, AdminError) as error:
            status, text = 400, str(error)
        return Response(encode({"error": text}), status_code=status, media_type=_JSON)

    return guarded


def _only(request: Request, *known: str) -> _Query:
    query = dict(request.query_params)
    if unknown := query.keys() - set(known):
        raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}")
    return query


def _stage(text: str) -> Stage:
    for stage in STAGES:
        if stage == text:
            return stage
    raise ValueError(f"no stage {text!r} (there are {', '.join(STAGES)})")
