"""The composition root of `spliceway xds serve`: files, the xDS server and the admin API in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import structlog
import typer

from spliceway.agent import log
from spliceway.agent.errors import AgentError, SourceError
from spliceway.agent.jsonable import encode
from spliceway.agent.listening import HttpServer, unix_listener
from spliceway.agent.sources.directory import DirectorySource
from spliceway.agent.sources.events import Batch, FileChanged, FileRefused, FileRemoved, SourceLost
from spliceway.agent.staticviews import StaticViews
from spliceway.agent.xdsevents import XdsEvents
from spliceway.agent.xdsjson import clients_shown
from spliceway.xds.debug import csds
from spliceway.xds.debug.view import ServerView
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.resources.consistency import check_references
from spliceway.xds.resources.protofiles import load_resources
from spliceway.xds.server.listen import TcpSettings
from spliceway.xds.server.server import XdsServer
from spliceway.xds.static.api import static_app
from spliceway.xds.static.control import Control
from spliceway.xds.static.files import News

_log = structlog.get_logger(__name__)

#: Path of a Unix socket, or a loopback address and port.
Admin = Path | tuple[str, int]


class StaticSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve and where. At least one of `socket` and `tcp`; `admin`: where the admin API listens, if at all.

    `check`: refuse what breaks the rules in Envoy's protos, and sets with dangling references.
    """

    directory: Path
    socket: Path | None = None
    tcp: TcpSettings | None = None
    admin: Admin | None = None
    check: bool = True


def run_static(settings: StaticSettings, *, log_level: str = "info") -> None:
    """Serve until SIGTERM or SIGINT. Raises one of OWN_ERRORS when that can't be."""
    log.configure(log_level)
    asyncio.run(_until_signal(settings))


async def _until_signal(settings: StaticSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve_static(settings, stop)


async def serve_static(settings: StaticSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. What is there is read before anything listens.

    Raises:
        AgentError, XdsError: the directory can't be read, or an address or socket can't be had.
    """
    events = XdsEvents()
    check = check_references if settings.check else _anything
    server = XdsServer(settings.socket, tcp=settings.tcp, check=check, unsafe="warn", on_event=events.add)
    view = ServerView(server)
    server.add_services(csds.handlers(view, settings.tcp))
    control = Control(server, partial(load_resources, check=settings.check), check)
    for path in (settings.socket, settings.admin):
        if isinstance(path, Path):
            _check_free(path)
    async with contextlib.AsyncExitStack() as stack:
        # nodes/<node id>: two levels below.
        source = stack.enter_context(DirectorySource(settings.directory, depth=2))
        batches = source.batches()
        first = await anext(batches)
        if lost := _lost(first):
            raise SourceError(lost)
        await control.read(_news(first))
        routes = StaticViews(view, control, events, server.rejections).routes()
        on_tcp = isinstance(settings.admin, tuple)
        app = static_app(control, lambda: clients_shown(server.status()), encode, tcp=on_tcp, routes=routes)
        http = HttpServer(app)
        listener = _admin_listener(stack, settings.admin) if settings.admin is not None else None
        await server.start()
        stack.push_async_callback(server.stop)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(_follow(control, batches), name="files")
            if listener is not None:
                group.create_task(http.serve_on(listener), name="admin")
            admin = f"admin API on {_told(listener)}" if listener else "no admin API"
            typer.echo(f"xDS on {_addresses(settings, server)}; {admin}")
            await stop.wait()
            reading.cancel()
            events.close()
            http.stop()


async def _follow(control: Control, batches: AsyncIterator[Batch]) -> None:
    async for batch in batches:
        control.lost = _lost(batch)
        if control.lost:
            _log.error("files can't be read, what is served stays", error=control.lost)
        await control.read(_news(batch))


def _anything(_snapshot: Snapshot) -> None:
    """The check that refuses nothing."""


def _lost(batch: Batch) -> str:
    """Why the directory can't be read; empty if it can."""
    reason = next((event.reason for event in batch if isinstance(event, SourceLost)), "")
    return reason.removeprefix("source.directory ")  # what the agent's configuration calls it


def _news(batch: Batch) -> list[News]:
    news = []
    for event in batch:
        if isinstance(event, FileChanged):
            news.append(News(event.file, event.text))
        elif isinstance(event, FileRefused):
            news.append(News(event.file, error=event.reason))
        elif isinstance(event, FileRemoved):
            news.append(News(event.file))
    return news


def _check_free(path: Path) -> None:
    """A socket that somebody answers on is not taken over. Raises AgentError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        raise AgentError(f"{path}: another process listens there")


def _admin_listener(stack: contextlib.AsyncExitStack, admin: Admin) -> socket.socket:
    if isinstance(admin, Path):
        listener = stack.enter_context(unix_listener(admin))
        stack.callback(admin.unlink, missing_ok=True)
        return listener
    host, port = admin
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return stack.enter_context(socket.create_server(admin, family=family))
    except OSError as error:
        raise AgentError(f"--admin {_host_port(host, port)}: {error.strerror or error}") from error


def _told(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if isinstance(name, str) else _host_port(name[0], name[1])


def _addresses(settings: StaticSettings, server: XdsServer) -> str:
    told = [f"unix:{settings.socket}"] if settings.socket is not None else []
    if settings.tcp is not None:
        told.append(_host_port(settings.tcp.host, server.tcp_port) + (" (plain)" if settings.tcp.plaintext else ""))
    return ", ".join(told)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
