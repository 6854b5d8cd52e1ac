"""The embedded proxy as the node's: how it is started, and how a new one takes over from one that runs.

What was started with other settings, or of another version of the code, is replaced while it serves: the new one asks
it for its listening sockets (`spliceway.proxy.process`), and the old one ends when its connections have. If the new one
can't, the old one goes on, and status says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import structlog

from spliceway.agent.proxypod.listener import listener_pid
from spliceway.agent.proxyprocess import (
    ProcessHandle,
    ProxyIdentity,
    ProxyProcessError,
    end,
    load_identity,
    running,
    save_identity,
)
from spliceway.agent.proxysupervisor import Draining, ProcessSettings, ProxySupervisor, identity_file
from spliceway.agent.state import write_atomic
from spliceway.proxy.model import ProxySettings
from spliceway.xds.envoyadmin import admin_get
from spliceway.xds.errors import AdminError

_log = structlog.get_logger(__name__)

#: What the proxy is made of beside its own code.
_DISTRIBUTIONS = ("grpcio", "google-re2", "h11", "msgspec", "protobuf", "uvloop", "xds-protos")
#: How long a new proxy may take until it has taken over, in seconds: it starts its workers, and they all of the rules.
TAKE_OVER_SECONDS = 60.0
#: How often it is looked whether it has.
_LOOK_SECONDS = 0.05
#: How often it is looked whether it accepts nothing more, in seconds.
_DRAIN_LOOK_SECONDS = 1.0


class EmbeddedProgram:
    """`spliceway proxy` with these settings, without the rest of the command line."""

    kind = "embedded"
    called = "the embedded proxy"

    def __init__(self, settings: ProxySettings, state_dir: Path) -> None:
        """`state_dir`: where the file with the settings goes."""
        self._settings = settings
        self._config_file = state_dir / "proxy.json"
        self._document = msgspec.json.encode(settings, enc_hook=str)
        self._digest = ""
        self.binary = Path(sys.executable).resolve()
        self.version = metadata.version("spliceway")
        self.workers = settings.workers or len(os.sched_getaffinity(0))

    async def find(self) -> None:
        """Read its code, which is where the agent's is: what runs may be another."""
        self._digest = await asyncio.to_thread(_digest, self._document, self.command())

    def prepare(self) -> None:
        """Write the settings."""
        write_atomic(self._config_file, self._document)

    def command(self) -> list[str]:
        """The interpreter with its arguments."""
        # -P: a module in the current directory is none of ours.
        return [sys.executable, "-P", "-m", "spliceway.proxy", "--config", str(self._config_file)]

    def digest(self) -> str:
        """Of settings, versions and code."""
        return self._digest


class EmbeddedSupervisor(ProxySupervisor):
    """One embedded proxy, and for a while the one that takes over from it."""

    def __init__(
        self,
        settings: ProxySettings,
        state_dir: Path,
        *,
        cgroup: Path | None = None,
        stop_timeout: float = 1.0,
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        """`stop_timeout`: how long connections may go on when it ends for good, in seconds."""
        how = ProcessSettings(
            state_dir=state_dir, cgroup=cgroup, admin_socket=settings.admin_socket, stop_timeout=stop_timeout
        )
        super().__init__(EmbeddedProgram(settings, state_dir), how, on_exit)
        self._next_file, self._last_file = (identity_file(state_dir, "embedded", role) for role in ("-next", "-last"))
        self._next: ProcessHandle | None = None
        self._next_identity: ProxyIdentity | None = None
        self._failed = ""
        self._draining: dict[ProcessHandle, asyncio.Task[None]] = {}
        self._draining_since: dict[int, float] = {}
        self._drains = False

    async def run(self) -> None:
        """As of every proxy; before that, what runs with other settings or other code is replaced."""
        while not self._stopping and await self._replaced():
            pass  # settings may have changed again since that one was started
        try:
            await super().run()
        finally:
            for task in self._draining.values():
                task.cancel()

    async def stop(self) -> None:
        """End the proxy for good, one that was about to take over, and one that drains."""
        self._stopping = True
        beside = [*([self._next] if self._next else []), *self._draining]
        for task in self._draining.values():
            task.cancel()
        self._next = None
        self._draining.clear()
        for handle in beside:
            await end(handle, self.settings.stop_timeout)
        await super().stop()

    def _adopt(self) -> bool:
        adopted = super()._adopt()
        # An agent that ended in the middle of a handover left two.
        if found := running(self._next_file):
            self._next_identity, self._next = found
            if not adopted:
                self._take(self._next, self._next_identity)
                self._adopted = adopted = True
        if found := running(self._last_file):  # under the agent before
            self._watch_drain(found[1], self._last_file.stat().st_mtime)
        return adopted

    async def _until_over(self, handle: ProcessHandle) -> None:
        """It has ended, or somebody has told it to end: then it accepts nothing more while its connections go on."""
        ended = asyncio.create_task(handle.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=_DRAIN_LOOK_SECONDS)
                if not ended.done() and await self._says_draining(handle.pid):
                    self._drains = True
                    return
        finally:
            ended.cancel()

    async def _says_draining(self, pid: int) -> bool:
        try:
            said = json.loads(await admin_get(self.settings.admin_socket, "/server_info", 2.0))
        except (AdminError, ValueError):
            return False
        return isinstance(said, dict) and said.get("pid") == pid and said.get("state") == "DRAINING"

    def _ended(self, handle: ProcessHandle) -> None:
        if not self._drains:
            super()._ended(handle)
            return
        self._drains = False
        self._handle = None
        self._last_exit = f"pid {handle.pid}: told to end, its connections may go on for a while"
        _log.warning("the proxy was told to end; another one is started", pid=handle.pid)
        if self._identity is not None:
            save_identity(self._last_file, self._identity)
        self._watch_drain(handle, time.time())
        if self.on_exit is not None:
            self.on_exit(self._last_exit)

    async def _replaced(self) -> bool:
        """Whether what runs was replaced; if it is to be and can't, `_failed` says why."""
        old = self._handle
        if old is None or not (self._next is not None or self._differs()):
            return False
        try:
            new = self._next or self._successor()
        except (ProxyProcessError, OSError) as error:
            self._failed = str(error)
            _log.error("a new proxy could not be started; the old one stays", error=self._failed)
            return False
        _log.info("a new proxy takes over", old=old.pid, new=new.pid)
        failed = await self._outcome(old, new)
        if self._stopping:
            return False
        if failed:
            self._failed = f"{failed}: {self.last_log_lines(2) or 'its log is empty'}"
            self._next = None
            await end(new, self.settings.stop_timeout)
            self._next_file.unlink(missing_ok=True)
            _log.error("the new proxy did not take over; the old one stays", why=self._failed)
            return False
        if self._identity is not None:
            save_identity(self._last_file, self._identity)
        self._take(new, self._next_identity)
        self._watch_drain(old, time.time())
        return True

    def _successor(self) -> ProcessHandle:
        """Start one that shall take over. Raises ProxyProcessError or OSError."""
        self._next, self._next_identity = self._spawn()
        if self._next_identity is not None:
            save_identity(self._next_file, self._next_identity)
        return self._next

    async def _outcome(self, old: ProcessHandle, new: ProcessHandle) -> str:
        """Wait until `new` answers as the proxy, or won't: then why. An `old` one that ends leaves it to `new`."""
        ends = [asyncio.create_task(handle.wait()) for handle in (old, new)]
        serving = asyncio.create_task(self._serving(new.pid))
        try:
            await asyncio.wait([*ends, serving], timeout=TAKE_OVER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                return ""
            if ends[0].done():
                if self.on_exit is not None:
                    self.on_exit(f"pid {old.pid} ended before it had handed over")
                return ""
            return f"pid {new.pid}: {new.reap()}" if ends[1].done() else f"pid {new.pid} took too long"
        finally:
            for task in (*ends, serving):
                task.cancel()

    async def _serving(self, pid: int) -> None:
        """Return when the admin interface is that of this process: it is handed over together with all else."""
        while await asyncio.to_thread(listener_pid, self.settings.admin_socket) != pid:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    def _take(self, handle: ProcessHandle, identity: ProxyIdentity | None) -> None:
        """The successor is the proxy."""
        self._next = None
        self._failed = ""
        self._become(handle, identity)
        self._next_file.unlink(missing_ok=True)

    def _watch_drain(self, old: ProcessHandle, since: float) -> None:
        self._draining[old] = asyncio.create_task(self._drained(old))
        self._draining_since[old.pid] = since

    def _still_draining(self) -> tuple[Draining, ...]:
        return tuple(Draining(old.pid, self._draining_since[old.pid]) for old in self._draining)

    async def _drained(self, old: ProcessHandle) -> None:
        """Watch one that only drains."""
        await old.wait()
        del self._draining[old], self._draining_since[old.pid]
        _log.info("the proxy before has ended", pid=old.pid, how=old.reap())
        old.close()
        if (last := load_identity(self._last_file)) is not None and last.pid == old.pid:
            self._last_file.unlink()

    def _differs(self) -> bool:
        return self._identity is not None and self._identity.config != self.program.digest()

    def _stale(self, identity: ProxyIdentity) -> list[str]:
        if identity.config == self.program.digest() or self._next is not None or not self._failed:
            return []
        return [
            f"settings or version changed, and a new one could not take over ({self._failed}): pid {identity.pid} "
            f"of version {identity.version} goes on; restart the agent to try again"
        ]


def _digest(document: bytes, command: list[str]) -> str:
    import spliceway.policy
    import spliceway.proxy

    found = hashlib.sha256(document)
    found.update("\0".join((*command, sys.version, *map(metadata.version, _DISTRIBUTIONS))).encode())
    for package in (spliceway.policy, spliceway.proxy):
        for root in sorted(package.__path__):
            for file in sorted(Path(root).rglob("*.py")):
                found.update(f"\0{file.relative_to(root)}\0".encode())
                found.update(file.read_bytes())
    return found.hexdigest()[:16]
