"""The admin interface: what the agent asks an Envoy, with the same targets and shapes, and `/connections`.

Whoever may open its socket (mode 0600) may do all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Protocol

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from spliceway.proxy.process.metrics import Statistics

#: Runtime key: how many of a million allowed requests are written to the access log.
LOG_ALLOWED = "spliceway.access_log.allowed"
_MILLION = 1_000_000


class Subject(Protocol):
    """What the admin interface is about."""

    @property
    def state(self) -> str:
        """`INITIALIZING`, `LIVE` or `DRAINING`."""

    def about(self) -> Mapping[str, Any]:
        """More for `/server_info`."""

    def set_share(self, millionths: int) -> None:
        """How many of a million allowed requests are recorded."""

    async def connection_list(self) -> list[dict[str, Any]]:
        """All connections."""

    def dump(self) -> Callable[[], Mapping[str, Any]]:
        """What makes the config_dump, in a thread."""

    def drain_listeners(self) -> None:
        """Accept nothing more."""


def admin_app(subject: Subject, statistics: Statistics) -> Starlette:
    """The application."""
    began = time.monotonic()

    async def server_info(_: Request) -> Response:
        uptime = f"{int(time.monotonic() - began)}s"
        return _json(
            {
                "version": f"spliceway-proxy/{version('spliceway')}",
                "state": subject.state,
                "uptime_current_epoch": uptime,
                "uptime_all_epochs": uptime,
                **subject.about(),
            }
        )

    async def ready(_: Request) -> Response:
        return PlainTextResponse(f"{subject.state}\n", 200 if subject.state == "LIVE" else 503)

    async def stats(request: Request) -> Response:
        try:
            found = statistics.named(request.query_params.get("filter", ""))
        except re.error as error:
            return PlainTextResponse(f"filter: {error}\n", 400)
        if request.query_params.get("format") == "json":
            return _json({"stats": found})
        return PlainTextResponse("".join(f"{item['name']}: {item['value']}\n" for item in found))

    async def prometheus(_: Request) -> Response:
        return Response(statistics.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def config_dump(_: Request) -> Response:
        return _json(await asyncio.to_thread(subject.dump()))

    async def connections(_: Request) -> Response:
        return _json({"connections": await subject.connection_list()})

    async def runtime_modify(request: Request) -> Response:
        wanted = request.query_params.get(LOG_ALLOWED, "")
        if request.query_params.keys() != {LOG_ALLOWED} or not (wanted.isascii() and wanted.isdigit()):
            return PlainTextResponse(f"usage: /runtime_modify?{LOG_ALLOWED}=<0 to {_MILLION}>\n", 400)
        subject.set_share(min(int(wanted), _MILLION))
        return PlainTextResponse("OK\n")

    async def drain_listeners(_: Request) -> Response:
        subject.drain_listeners()
        return PlainTextResponse("OK\n")

    get: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/server_info": server_info,
        "/ready": ready,
        "/stats": stats,
        "/stats/prometheus": prometheus,
        "/config_dump": config_dump,
        "/connections": connections,
    }
    post = {"/runtime_modify": runtime_modify, "/drain_listeners": drain_listeners}
    return Starlette(
        routes=[
            *(Route(path, answer, methods=["GET"]) for path, answer in get.items()),
            *(Route(path, answer, methods=["POST"]) for path, answer in post.items()),
        ]
    )


class AdminServer(uvicorn.Server):
    """`await serve_on(socket)` serves until `stop`; signals are the composition root's."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve on a listening socket until `stop`."""
        await self.serve(sockets=[listener])

    def stop(self) -> None:
        """End `serve_on`."""
        self.should_exit = True


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
