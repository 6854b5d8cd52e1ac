"""The proxy of a pod as the agent sees it: it is found, watched and told of, and not started.

Who listens on its admin socket is the proxy. A handover moves that path from one process to the next, with the same
listening sockets; otherwise the sockets are others, and nothing is steered to them until that proxy has acknowledged.

One thing the agent does end it for: listening sockets that the kernel's programs have not seen being made (they are
newer than the sockets: a cleaned node, a lost bpffs). Nothing is steered to those, ever. Its keeper starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec
import structlog

from spliceway.agent.proxypod import place
from spliceway.agent.proxypod.door import Door
from spliceway.agent.proxypod.listener import listener, listener_pid
from spliceway.agent.proxyprocess import ProcessHandle, ProxyProcessError
from spliceway.agent.proxysupervisor import (
    KINDS,
    LOGS_WRITTEN,
    WORKER_RESTARTS,
    Draining,
    ProxyStatus,
    end_kind,
    running_pids,
)
from spliceway.bpf import proxymarks
from spliceway.bpf.errors import DatapathError
from spliceway.xds.envoyadmin import admin_get, admin_stats
from spliceway.xds.errors import AdminError
from spliceway.xds.resources.names import RUNTIME_LOG_ALLOWED

_log = structlog.get_logger(__name__)

#: How often it is looked who the proxy is, and how often while there is none, in seconds.
_LOOK, _SEARCH = 1.0, 0.1
#: A proxy whose sockets the kernel does not know is ended once in so many seconds.
_PATIENCE = 10.0
#: How long a proxy that the agent ran before, and that can't hand over, may take to end, in seconds.
_GRACE = 5.0
_CALLED = {"embedded": "the embedded proxy", "envoy": "Envoy"}


class _Options(msgspec.Struct, frozen=True):
    concurrency: int = 0


class _About(msgspec.Struct, frozen=True):
    """What is read of `/server_info`. `version`: Envoy's commit/version/state/build/TLS, or spliceway-proxy/version."""

    version: str = ""
    command_line_options: _Options = _Options()


class PodSupervisor:
    """`sides.ProxyProcess` of a proxy that a pod runs."""

    def __init__(
        self,
        kind: str,
        state_dir: Path,
        *,
        cgroup: Path,
        ports: tuple[int, int],
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        """`cgroup`: the node's for the proxy; `ports`: of its listeners, both included."""
        self._kind, self._state_dir, self._ports, self._on_exit = kind, state_dir, ports, on_exit
        self._directory = place.shared(state_dir)
        self._admin = self._directory / place.ADMIN[kind]
        self._door = Door(self._directory / place.DOOR, cgroup, self._make_room)
        self._socks = 0
        self._handle: ProcessHandle | None = None
        self._since = 0.0
        self._about = _About()
        #: Port → cookies of its sockets, None: not looked at yet.
        self._listeners: dict[int, set[bytes]] | None = None
        self._failure = ""
        self._adopted = False
        self._restarts = 0
        self._last_exit = ""
        self._worker_restarts = 0
        self._ended_at = float("-inf")
        self._unknown: tuple[int, ...] = ()
        self._draining: dict[ProcessHandle, float] = {}

    def __repr__(self) -> str:
        return f"<PodSupervisor {self._kind} {self._handle} {self._door}>"

    async def start(self, socks: int = 0) -> None:
        """Leave the proxy to pods, find one that runs, and open the door.

        `socks`: id of the map in which the kernel's programs look for the proxy's sockets, 0: not looked at.

        Raises:
            ProxyProcessError: the directory or the door can't be made.
        """
        self._socks = socks
        try:
            place.open_for_pods(self._state_dir)
            # One that the agent ran before has this name of the socket, and serves what it has until it is done.
            place.link(self._directory / place.XDS, self._state_dir / place.XDS)
        except OSError as error:
            raise ProxyProcessError(f"{error.filename or self._directory}: {error.strerror}") from error
        await self._look()
        self._adopted = self._handle is not None
        self._door.open()

    async def run(self) -> None:
        """Watch it, for as long as the agent lives."""
        answering = asyncio.create_task(self._door.run())
        try:
            while True:
                try:
                    await self._pause()
                    await self._look()
                except Exception as error:
                    # Also a bug: the agent must not end for it, nor stop to look.
                    text = str(error) or repr(error)
                    if text != self._failure:
                        _log.exception("the proxy can't be looked at, trying again")
                    self._failure = text
                    await asyncio.sleep(_LOOK)
                else:
                    self._failure = ""
        finally:
            answering.cancel()
            await asyncio.wait({answering})

    async def stop(self) -> None:
        """Nothing of it stays in force: its pods stand by, and what runs is ended."""
        place.withdraw(self._state_dir)
        for kind in KINDS:
            await end_kind(self._state_dir, kind, _GRACE)
        await end_of_pods(self._state_dir, _GRACE)

    def status(self) -> ProxyStatus:
        """What runs, and what about it should be known."""
        runs = self._handle is not None
        return ProxyStatus(
            kind=self._kind,
            running=runs,
            pid=self._handle.pid if self._handle is not None else 0,
            version=self._version() if runs else "",
            workers=self._about.command_line_options.concurrency if runs else 0,
            since=self._since if runs else 0.0,
            adopted=self._adopted,
            restarts=self._restarts,
            last_exit=self._last_exit,
            problems=(*self._failed(), *self._problems()),
            worker_restarts=self._worker_restarts,
            draining=tuple(Draining(old.pid, since) for old, since in self._draining.items()),
        )

    async def log_share(self, millionths: int) -> None:
        """Write so many of a million allowed requests to the access log. Raises AdminError."""
        await admin_get(self._admin, f"/runtime_modify?{RUNTIME_LOG_ALLOWED}={millionths}", method="POST")

    async def logs_written(self) -> tuple[str, int]:
        """Which process, and how many access log entries it has written. Raises AdminError."""
        handle = self._handle
        stats = await admin_stats(self._admin, f"{LOGS_WRITTEN}%7C{WORKER_RESTARTS}")
        if handle is self._handle:
            self._worker_restarts = stats.get(WORKER_RESTARTS, 0)
        return (f"{handle.pid}/{self._since}" if handle else ""), stats.get(LOGS_WRITTEN, 0)

    # Who it is.

    async def _pause(self) -> None:
        """Until it is time to look: at once when the proxy has ended."""
        if self._handle is None:
            await asyncio.sleep(_SEARCH)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._handle.wait(), _LOOK)

    async def _look(self) -> None:
        pid = await asyncio.to_thread(listener_pid, self._admin)
        for old in [each for each in self._draining if not _lives(each)]:
            del self._draining[old]
            old.close()
        if self._handle is not None and (pid == self._handle.pid or not pid) and _lives(self._handle):
            await self._look_at_sockets(self._handle)
            return
        new = await asyncio.to_thread(listener, self._admin) if pid else None
        if new is not None or self._handle is not None:
            await self._change(new)

    async def _change(self, new: ProcessHandle | None) -> None:
        """From now on that is the proxy."""
        old, before = self._handle, self._listeners
        self._handle, self._worker_restarts, self._about, self._unknown = new, 0, _About(), ()
        self._listeners = None
        try:
            if new is not None:
                await self._meet(new)
        finally:
            if old is not None:
                self._part(old, before)

    async def _meet(self, new: ProcessHandle) -> None:
        self._since, self._adopted = time.time(), False
        with contextlib.suppress(AdminError, msgspec.DecodeError):
            self._about = msgspec.json.decode(await admin_get(self._admin, "/server_info", 2.0), type=_About)
        _log.info("the proxy of a pod", kind=self._kind, pid=new.pid, version=self._version())
        await self._look_at_sockets(new)

    def _part(self, old: ProcessHandle, before: dict[int, set[bytes]] | None) -> None:
        """`before`: the listening sockets while that was the proxy, as of the last look."""
        how = f"pid {old.pid}: told to end, its connections may go on for a while"
        if _lives(old):
            self._draining[old] = time.time()
        else:
            how = f"pid {old.pid}: ended"
            old.close()
        if not self._were_lost(before, ended=old not in self._draining):
            return
        self._last_exit = how
        self._restarts += old not in self._draining
        _log.warning("the proxy's listening sockets have gone", pid=old.pid, how=how)
        if self._on_exit is not None:
            self._on_exit(how)

    def _were_lost(self, before: dict[int, set[bytes]] | None, *, ended: bool) -> bool:
        """Whether those of the proxy of before are not this one's; `ended`: its process has."""
        now = self._listeners
        if before:
            both = [(before[port], now[port]) for port in before if port in now] if now else []
            return not (both and all(theirs & ours for theirs, ours in both))
        # It may have had some since the last look. None at all now: then there is nothing to be wrong about.
        return ended and (self._handle is None or now is None or bool(now))

    async def _look_at_sockets(self, handle: ProcessHandle) -> None:
        """Which sockets there are, and whether the kernel's programs know all that are the proxy's."""
        if not self._socks:
            return
        try:
            found = await asyncio.to_thread(proxymarks.listeners, self._socks)
        except (DatapathError, OSError) as error:
            _log.warning("the proxy's sockets could not be listed", error=str(error))
            return
        first, last = self._ports
        ours = [one for one in found if first <= one.port <= last]
        listening: dict[int, set[bytes]] = {}
        for one in ours:
            listening.setdefault(one.port, set()).add(one.cookie)
        self._listeners = listening
        unknown = {one.inode: one.port for one in ours if not one.known}
        if unknown:
            unknown = await asyncio.to_thread(_of_process, handle.pid, unknown)
        self._unknown = tuple(sorted(set(unknown.values())))
        if self._unknown and time.monotonic() - self._ended_at > _PATIENCE:
            self._ended_at = time.monotonic()
            _log.warning("the kernel's programs don't know the proxy's sockets: it is ended", ports=self._unknown[:5])
            # Twice: it does not wait for connections, none of which could be served.
            handle.send(signal.SIGTERM)
            await asyncio.sleep(_SEARCH)
            handle.send(signal.SIGTERM)

    async def _make_room(self) -> None:
        """A pod's proxy comes: one that the agent ran before, and that can't hand over to it, has to go."""
        for kind in set(running_pids(self._state_dir).values()):
            if kind != "embedded" or self._kind != "embedded":
                await end_kind(self._state_dir, kind, _GRACE)
                if self._on_exit is not None:
                    self._on_exit(f"{kind}: a pod's proxy takes its place")

    # What is said of it.

    def _version(self) -> str:
        parts = self._about.version.split("/")
        return parts[1] if len(parts) > 1 else ""

    def _failed(self) -> tuple[str, ...]:
        return (f"{_CALLED[self._kind]} can't be looked at: {self._failure}",) if self._failure else ()

    def _problems(self) -> list[str]:
        called = _CALLED[self._kind]
        if self._handle is None:
            left = running_pids(self._state_dir)
            if left:
                pids = ", ".join(map(str, left))
                return [
                    f"no pod runs {called} yet; the one that the agent ran before (pid {pids}) goes on until one does"
                ]
            before = f" ({self._last_exit})" if self._last_exit else ""
            asked = (
                "its keeper has asked for the cgroup" if self._door.asked else "no pod of it has asked for its cgroup"
            )
            return [f"{called} is not running{before}: {asked}; look at the proxy's DaemonSet and its pod on this node"]
        found = []
        if self._unknown:
            ports = ", ".join(map(str, self._unknown[:5]))
            found.append(
                f"{called} (pid {self._handle.pid}) has sockets that the kernel's programs don't know (ports {ports}): "
                "is it in the cgroup of cgroups.proxy? Delete its pod"
            )
        ours = metadata.version("spliceway")
        if self._kind == "embedded" and self._version() not in ("", ours):
            found.append(
                f"the proxy is of version {self._version()}, the agent of {ours}: one of their DaemonSets is behind"
            )
        return found


async def end_of_pods(state_dir: Path, grace: float) -> list[int]:
    """End what pods run: SIGTERM twice, and SIGKILL after `grace` seconds; the process ids.

    Their keepers start it again unless the permit was withdrawn before.
    """
    ended = []
    for name in place.ADMIN.values():
        handle = await asyncio.to_thread(listener, place.shared(state_dir) / name)
        if handle is None:
            continue
        if handle.pid == os.getpid():
            handle.close()
            continue
        ended.append(handle.pid)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            handle.send(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(handle.wait(), grace / 2)
                break
        handle.close()
    return ended


def pids_of_pods(state_dir: Path) -> dict[int, str]:
    """Process id → kind of what serves in pods."""
    found = {kind: listener_pid(place.shared(state_dir) / name) for kind, name in place.ADMIN.items()}
    return {pid: kind for kind, pid in found.items() if pid and pid != os.getpid()}


def _lives(handle: ProcessHandle) -> bool:
    return not handle.has_ended()


def _of_process(pid: int, inodes: dict[int, int]) -> dict[int, int]:
    """Of these sockets those that the process has open."""
    names = set()
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.add(str(each.readlink()))
    return {inode: port for inode, port in inodes.items() if f"socket:[{inode}]" in names}
