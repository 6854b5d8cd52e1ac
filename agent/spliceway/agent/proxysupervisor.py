"""The supervisor of the proxy: starts it, takes over one that is running, starts it again when it dies.

The proxy outlives the agent: it has its own session and cgroup, and ending or killing the agent does nothing to it.
Only `stop` ends it. What is special to Envoy and to the embedded proxy is in `envoy` and `embedded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import structlog

from spliceway.agent.proxypod import place
from spliceway.agent.proxyprocess import (
    ProcessHandle,
    ProxyIdentity,
    ProxyProcessError,
    end,
    identify,
    is_running,
    load_identity,
    running,
    save_identity,
    spawn,
)
from spliceway.xds.envoyadmin import admin_get, admin_stats
from spliceway.xds.errors import AdminError
from spliceway.xds.resources.names import RUNTIME_LOG_ALLOWED

_log = structlog.get_logger(__name__)

_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 5.0
#: A proxy that ran this long (seconds) has earned a quick restart.
_STEADY = 10.0
#: Statistics that are looked at.
LOGS_WRITTEN = "access_logs.grpc_access_log.logs_written"
WORKER_RESTARTS = "spliceway.worker_restarts_total"


class Program(Protocol):
    """What is run: one kind of proxy with its settings.

    `kind` is that of the configuration, `called` its name in sentences; `binary` what /proc/PID/exe says, `version` the
    proxy's; both are known after `find`. `workers`: threads or processes that move the traffic.
    """

    kind: str
    called: str
    binary: Path
    version: str
    workers: int

    async def find(self) -> None:
        """Find binary and version. Raises ProxyProcessError."""

    def prepare(self) -> None:
        """Write what it is started with."""

    def command(self) -> list[str]:
        """Program and arguments."""

    def digest(self) -> str:
        """Of all that makes one that runs the same as one that would be started now."""


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a proxy is run. `state_dir` holds its files.

    `cgroup`: a cgroup2 directory it shall be in, None stays in the agent's; `admin_socket`: its admin interface;
    `stop_timeout`: seconds from SIGTERM to SIGKILL.
    """

    state_dir: Path
    cgroup: Path | None
    admin_socket: Path
    stop_timeout: float


class Draining(msgspec.Struct, frozen=True):
    """A process that another one has taken over from; `since`: CLOCK_REALTIME in seconds."""

    pid: int
    since: float


class ProxyStatus(msgspec.Struct, frozen=True):
    """What runs. `since` is CLOCK_REALTIME in seconds; `problems` are sentences for people, empty when all is well.

    `worker_restarts`: workers of this process that had to be replaced (embedded), as of the last look at its
    statistics; `draining`: processes before it that still serve connections.
    """

    kind: str
    running: bool
    pid: int
    version: str
    workers: int
    since: float
    adopted: bool
    restarts: int
    last_exit: str
    problems: tuple[str, ...]
    worker_restarts: int = 0
    draining: tuple[Draining, ...] = ()


class ProxySupervisor:
    """One proxy: `start` once, then `run` as a task while the agent lives; cancelling `run` lets the proxy go on."""

    def __init__(
        self, program: Program, settings: ProcessSettings, on_exit: Callable[[str], None] | None = None
    ) -> None:
        self.program = program
        self.settings = settings
        self.on_exit = on_exit
        #: What `start` awaits first.
        self.before_start: Callable[[], Awaitable[None]] | None = None
        self.identity_file = identity_file(settings.state_dir, program.kind)
        self.log_file = settings.state_dir / f"{program.kind}.log"
        self._socks = 0
        self._handle: ProcessHandle | None = None
        self._identity: ProxyIdentity | None = None
        self._missing = ""
        self._adopted = False
        self._restarts = 0
        self._worker_restarts = 0
        self._last_exit = ""
        self._stopping = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._handle} restarts={self._restarts}>"

    async def start(self, socks: int = 0) -> None:
        """Take over the proxy of an earlier agent, or start one; first end one of another kind.

        `socks`: id of the map in which the kernel's programs look for the proxy's sockets. They are put there when they
        are made only: a proxy that was started under another map can't be steered to any more, and is ended. 0: not
        looked at.

        Raises:
            ProxyProcessError: none runs, and it isn't installed, won't do, or can't be started.
        """
        self.settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.before_start is not None:
            await self.before_start()
        self._socks = socks
        if self._unknown():
            _log.warning("the kernel's programs don't know the running proxy's sockets: it is ended")
            await end_kind(self.settings.state_dir, self.program.kind, self.settings.stop_timeout)
        adopted = self._adopt()
        try:
            await self.program.find()
        except ProxyProcessError as error:
            if not adopted:
                raise
            self._missing = str(error)  # what runs, runs: this is for status, and for the next restart
        # Their listening sockets have the ports that the new one needs: both at once can't be.
        for kind in KINDS:
            if kind != self.program.kind:
                await end_kind(self.settings.state_dir, kind, self.settings.stop_timeout)
        if not adopted:
            self._become(*self._spawn())

    async def run(self) -> None:
        """Watch the proxy, and start it again whenever it ends; returns after `stop`."""
        pause = _BACKOFF_FIRST
        while not self._stopping:
            started = time.monotonic()
            if (handle := self._handle) is not None:
                await self._until_over(handle)
                if not self._stopping:
                    self._ended(handle)
            if self._stopping:
                return
            pause = _BACKOFF_FIRST if time.monotonic() - started > _STEADY else min(pause * 2, _BACKOFF_LAST)
            await asyncio.sleep(pause)
            try:
                await self._find()
                if self._stopping:
                    return
                self._become(*self._spawn())
                self._restarts += 1
            except ProxyProcessError as error:
                self._last_exit = str(error)
                _log.error("the proxy can't be started again", kind=self.program.kind, error=str(error))

    async def _until_over(self, handle: ProcessHandle) -> None:
        """Wait until another one is needed."""
        await handle.wait()

    async def stop(self) -> None:
        """End the proxy for good: SIGTERM, and SIGKILL after `stop_timeout`. Its connections are reset."""
        self._stopping = True
        handle, self._handle = self._handle, None
        if handle is None:
            return
        await end(handle, self.settings.stop_timeout)
        forget(self.settings.state_dir, self.program.kind)

    def status(self) -> ProxyStatus:
        """What runs, and what about it should be known."""
        identity = self._identity if self._handle is not None else None
        return ProxyStatus(
            kind=self.program.kind,
            running=identity is not None,
            pid=identity.pid if identity else 0,
            version=identity.version if identity else "",
            workers=self.program.workers,
            since=identity.since if identity else 0.0,
            adopted=self._adopted,
            restarts=self._restarts,
            last_exit=self._last_exit,
            problems=tuple(self._problems(identity)),
            worker_restarts=self._worker_restarts,
            draining=self._still_draining(),
        )

    async def wait_ready(self, wait: float) -> None:
        """Wait until the proxy's admin interface answers.

        Raises:
            ProxyProcessError: not within `wait` seconds; the message has the end of its log.
        """
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            with contextlib.suppress(AdminError):
                await admin_get(self.settings.admin_socket, "/server_info", max(0.05, deadline - time.monotonic()))
                return
            await asyncio.sleep(0.02)
        log = self.last_log_lines() or "its log is empty"
        raise ProxyProcessError(f"{self.program.called} is not up after {wait:g} s: {log}")

    async def log_share(self, millionths: int) -> None:
        """Write so many of a million allowed requests to the access log.

        Raises:
            AdminError: the proxy does not answer.
        """
        target = f"/runtime_modify?{RUNTIME_LOG_ALLOWED}={millionths}"
        await admin_get(self.settings.admin_socket, target, method="POST")

    async def logs_written(self) -> tuple[str, int]:
        """Which process, and how many access log entries it has written: food for LossCounter.

        The same look at its statistics tells `status` how many workers had to be replaced.

        Raises:
            AdminError: the proxy does not answer.
        """
        identity = self._identity
        stats = await admin_stats(self.settings.admin_socket, f"{LOGS_WRITTEN}%7C{WORKER_RESTARTS}")
        if identity is self._identity:
            self._worker_restarts = stats.get(WORKER_RESTARTS, 0)
        return (f"{identity.pid}/{identity.start_time}" if identity else ""), stats.get(LOGS_WRITTEN, 0)

    def last_log_lines(self, lines: int = 5) -> str:
        """The end of the proxy's log, in one line."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - 4096))
                return " | ".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    async def _find(self) -> None:
        await self.program.find()
        self._missing = ""

    def _unknown(self) -> bool:
        """Whether what runs has sockets that aren't in the kernel's map. A handover would pass on the same ones."""
        known = {0, self._socks}
        files = (identity_file(self.settings.state_dir, self.program.kind, role) for role in ROLES)
        return bool(self._socks) and any(
            is_running(one) and one.socks not in known for one in map(load_identity, files) if one is not None
        )

    def _adopt(self) -> bool:
        found = running(self.identity_file)
        if found is None:
            return False
        self._identity, self._handle = found
        self._adopted = True
        _log.info("took over a running proxy", kind=self.program.kind, pid=found[0].pid, version=found[0].version)
        return True

    def _spawn(self) -> tuple[ProcessHandle, ProxyIdentity | None]:
        """Start one; its identity is None when it has already ended."""
        program = self.program
        program.prepare()
        pid = spawn(program.command(), self.log_file, self.settings.cgroup)
        handle = ProcessHandle(pid)
        _log.info("started the proxy", kind=program.kind, pid=pid, version=program.version)
        identity = identify(pid, program.binary, program.version, program.digest(), program.kind)
        return handle, None if identity is None else msgspec.structs.replace(identity, socks=self._socks)

    def _become(self, handle: ProcessHandle, identity: ProxyIdentity | None) -> None:
        """From now on that is the proxy."""
        self._handle, self._identity, self._adopted = handle, identity, False
        self._worker_restarts = 0
        if identity is not None:
            save_identity(self.identity_file, identity)

    def _ended(self, handle: ProcessHandle) -> None:
        how = handle.reap()
        handle.close()
        self._handle = None
        self._last_exit = f"pid {handle.pid}: {how}: {self.last_log_lines(2)}".rstrip(": ")
        _log.error("the proxy ended", kind=self.program.kind, pid=handle.pid, how=how, log=str(self.log_file))
        if self.on_exit is not None:
            self.on_exit(self._last_exit)

    def _problems(self, identity: ProxyIdentity | None) -> list[str]:
        called = self.program.called
        if identity is None:
            return [f"{called} is not running ({self._last_exit or 'not started'})"]
        problems = [f"{called} could not be started again: {self._missing}"] if self._missing else []
        return problems + self._stale(identity)

    def _still_draining(self) -> tuple[Draining, ...]:
        """Processes before this one that have not ended yet."""
        return ()

    def _stale(self, identity: ProxyIdentity) -> list[str]:
        """How what runs differs from what would be started now, one sentence each."""
        raise NotImplementedError


KINDS = ("embedded", "envoy")
Role = Literal["", "-next", "-last"]
#: In the order in which they are ended: a successor first, it would take over what is left.
ROLES: tuple[Role, ...] = ("-next", "", "-last")
#: Name of the file in which an embedded proxy keeps its last good configuration.
PROXY_STATE = place.STATE
#: Files in the state directory that a proxy has for itself, and that must not outlive its part on the node: rules that
#: an embedded proxy remembers are those of its last day. Logs stay.
_FILES = {
    "embedded": (PROXY_STATE, f"{PROXY_STATE}.lock", "proxy.json", "proxy-admin.sock", "proxy-handover.sock"),
    "envoy": ("envoy-bootstrap.json", "envoy-admin.sock"),
}


def identity_file(state_dir: Path, kind: str, role: Role = "") -> Path:
    """Where the identity of the proxy of that kind stands, or of one that takes over from it, or that it took over."""
    return state_dir / f"{kind}{role}.json"


def running_pids(state_dir: Path) -> dict[int, str]:
    """Process id → kind of every proxy that an agent with this state directory has left."""
    found = {}
    for kind in KINDS:
        for role in ROLES:
            if process := running(identity_file(state_dir, kind, role)):
                process[1].close()
                found[process[0].pid] = kind
    return found


async def end_kind(state_dir: Path, kind: str, grace: float) -> None:
    """End what runs of that kind: SIGTERM, and SIGKILL after `grace` seconds. Its connections are reset."""
    for role in ROLES:
        if process := running(identity_file(state_dir, kind, role)):
            how = await end(process[1], grace)
            _log.info("ended a proxy", kind=kind, pid=process[0].pid, how=how)
    forget(state_dir, kind)


def forget(state_dir: Path, kind: str) -> None:
    """Remove the files of a proxy that has ended for good."""
    for role in ROLES:
        identity_file(state_dir, kind, role).unlink(missing_ok=True)
    for name in _FILES[kind]:
        (state_dir / name).unlink(missing_ok=True)
