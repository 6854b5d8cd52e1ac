"""Serving HTTP inside our own event loop: uvicorn as a task, without its signal handlers."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from spliceway.agent.errors import AgentError


class HttpServer(uvicorn.Server):
    """`await serve_on(socket)` serves until `stop`."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the composition root."""
        yield

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve on a listening socket until `stop` is called; then finish what runs, for two seconds at most."""
        await self.serve(sockets=[listener])

    def stop(self) -> None:
        """End `serve_on`."""
        self.should_exit = True


def unix_listener(path: Path, field: str = "admin.socket") -> socket.socket:
    """Make a listening Unix socket of mode 0600. The caller owns the node's lock, so a socket that is there is stale.

    `field`: where the path is configured. Raises AgentError.
    """
    # sockaddr_un has 108 bytes, one of them for the final NUL.
    if len(os.fsencode(path)) > 107:
        raise AgentError(f"{field} {path} is longer than the 107 bytes that a Unix socket's path may have")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise AgentError(f"{field} {path} is there and is not a socket")
            path.unlink()
        # fchmod on the unbound socket sets the mode that bind() gives the file: it is never open to others.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise AgentError(f"{field} {path} can't be made: {error.strerror}") from error
    except AgentError:
        listener.close()
        raise
    return listener


def tcp_listener(host: str, port: int, field: str = "metrics.listen") -> socket.socket:
    """Make a listening TCP socket. `field`: where the address is configured. Raises AgentError."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        raise AgentError(f"{field} {host}:{port}: {error.strerror or error}") from error
