"""Where a keeper gets the way into the proxy's cgroup: a Unix socket, mode 0600, while the agent runs.

Who connects gets one descriptor of `cgroup.procs`, opened for writing by the agent. What is written there is checked
against the rights and the cgroup namespace of who opened the file (Linux e57457641613 and 1756d7994ad8, in 5.16 and the
stable series): so a container moves itself to a cgroup of the node, which it can't even see, and needs no right for it.

The agent opens the door when the kernel's programs are at that cgroup, so no socket of the proxy's is older than they.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from spliceway.agent.proxyprocess import ProxyProcessError

#: Seconds until the next one is answered, when one could not be.
_PAUSE = 1.0

_log = structlog.get_logger(__name__)


class Door:
    """Open it with `open`, serve with `run`."""

    def __init__(self, path: Path, cgroup: Path, admit: Callable[[], Awaitable[None]]) -> None:
        """`admit`: makes room for a proxy of a pod, before it gets the descriptor."""
        self._path, self._cgroup, self._admit = path, cgroup, admit
        self._socket: socket.socket | None = None
        self.asked = 0

    def __repr__(self) -> str:
        return f"<Door {self._path} {'open' if self._socket else 'closed'} asked={self.asked}>"

    def open(self) -> None:
        """Listen. Raises ProxyProcessError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            os.fchmod(sock.fileno(), 0o600)  # so the file is never open to others
            sock.bind(str(self._path))
            sock.listen(16)
        except OSError as error:
            sock.close()
            raise ProxyProcessError(f"{self._path}: {error.strerror}") from error
        self._socket = sock

    async def run(self) -> None:
        """Answer, until cancelled; then nobody answers any more."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    keeper, _ = await loop.sock_accept(self._socket)
                except OSError as error:  # too many open files: no reason to close the door
                    _log.warning("a proxy's pod could not be answered", error=str(error))
                    await asyncio.sleep(_PAUSE)
                    continue
                with keeper:
                    await self._answer(keeper)
        finally:
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    async def _answer(self, keeper: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            try:
                await self._admit()
                procs = os.open(self._cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                stack.callback(os.close, procs)
                socket.send_fds(keeper, [b"{}\n"], [procs])
            except OSError as error:
                _log.warning("a proxy's pod could not be let into its cgroup; it asks again", error=str(error))
                return
            except Exception:
                # A bug. With the door closed no pod of this node would ever have a proxy again.
                _log.exception("a proxy's pod could not be let into its cgroup; it asks again")
                return
        self.asked += 1
        _log.info("a proxy's pod was let into its cgroup", cgroup=str(self._cgroup))
