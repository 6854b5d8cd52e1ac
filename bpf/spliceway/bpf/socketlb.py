"""The socket load balancer of a node: attached to the pods' cgroup or not, and who else does the same work there.

A Service's address becomes a backend's when a pod's socket dials (`c/services.bpf.c`). When it is switched off,
programs and maps go; connections that are there stay, since packets never had the Service's address.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from spliceway.bpf import libbpf, loaded, record, udpends
from spliceway.bpf.attach import attach_link
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.links import SOCKET_LB_LINKS
from spliceway.bpf.maps import SERVICES_LAYOUT
from spliceway.bpf.mapsizes import configured
from spliceway.bpf.repeated import Repeated
from spliceway.bpf.services import Applied, FrontendRow, ServiceMaps
from spliceway.bpf.types import DatapathSettings, SocketLbStatus
from spliceway.policy.lbmodel import Frontend, FrontendState

T = TypeVar("T")
#: Seconds between two looks for others' programs.
INTERVAL = 5.0
#: Where others translate, too: BPF_CGROUP_INET4_CONNECT, INET6_CONNECT, UDP4_SENDMSG, UDP6_SENDMSG.
_TRANSLATING = {"connect4": 10, "connect6": 11, "sendmsg4": 14, "sendmsg6": 15}
_log = structlog.get_logger(__name__)


class ForeignProgram(msgspec.Struct, frozen=True, order=True):
    """Somebody else's program that sees what pods' sockets dial. `where`: connect4, connect6, sendmsg4, sendmsg6."""

    where: str
    id: int
    name: str

    def __str__(self) -> str:
        return f"{self.name or 'a program without a name'} (id {self.id}, {self.where})"


def foreign_programs(bpffs: Path, cgroup: Path) -> list[ForeignProgram]:
    """Programs at a cgroup or its ancestors that may translate Services, and that no agent on this bpffs attached.

    Cilium's socket LB and Calico's connect-time load balancing are such. Raises KernelRefusedError.
    """
    ours = set()
    for root in record.roots(bpffs):
        for name in SOCKET_LB_LINKS:
            for kind in ("links", "programs"):
                if (path := root / kind / name).exists() and (found := loaded.pinned_id(path)):
                    ours.add(found[1])
    return sorted(
        ForeignProgram(where, number, loaded.name_of(number))
        for where, kind in _TRANSLATING.items()
        for number in loaded.of_cgroup(cgroup, kind, effective=True)
        if number not in ours
    )


def take_off(root: Path) -> None:
    """Detach it, and remove its programs and maps. Again does nothing. Raises KernelRefusedError."""
    _detach(root)
    for directory, names in (("programs", SOCKET_LB_LINKS), ("maps", SERVICES_LAYOUT), ("layout", SERVICES_LAYOUT)):
        for name in names:
            if os.path.lexists(path := root / directory / name):
                path.unlink()


def _detach(root: Path) -> None:
    for name in SOCKET_LB_LINKS:
        if (link := root / "links" / name).exists():
            libbpf.detach_pinned_link(link)
            link.unlink()


def _attach(root: Path, cgroup: Path) -> None:
    """What gives the Service's address back is there before what takes it away."""
    for name, kind in sorted(SOCKET_LB_LINKS.items(), key=lambda each: each[1], reverse=True):
        program = libbpf.open_pin(root / "programs" / name)
        try:
            attach_link(root / "links" / name, cgroup, kind, program)
        finally:
            os.close(program)


class SocketLb:
    """It, or that there is none. `problems` are sentences for people."""

    def __init__(self, settings: DatapathSettings, root: Path) -> None:
        """Attach what is loaded below `root`, or take it off, as the settings want it. Raises DatapathError."""
        self._settings, self._root, self._mode = settings, root, settings.socket_lb
        self._maps: ServiceMaps | None = None
        self._lock = asyncio.Lock()
        self._unended, self._unseen, self._is_attached = "", "", False
        self._repeated = Repeated("socket lb", self._watch, INTERVAL)
        self._is_due = True  # an earlier agent may have ended between a change and what follows from it
        self.foreign: tuple[ForeignProgram, ...] = ()
        if self._mode == "off":
            take_off(root)
            return
        self._maps = ServiceMaps(root, configured(settings))
        self._look()

    def start(self) -> None:
        """Look for others now and then from now on."""
        if self._mode != "off":
            self._repeated.start()

    def __repr__(self) -> str:
        return f"SocketLb(active={self.is_active}, {self._maps!r}, foreign={self.foreign})"

    @property
    def is_active(self) -> bool:
        """Whether pods' sockets get Services from us."""
        return self._maps is not None and not self.foreign

    @property
    def status(self) -> SocketLbStatus:
        """How it is set, and what there is in the kernel."""
        frontends, backends = self._maps.counts if self._maps is not None else (0, 0)
        return SocketLbStatus(self._mode, self.is_active, tuple(map(str, self.foreign)), frontends, backends)

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps it from its work."""
        found = []
        if self.foreign and self._mode == "on":
            others = ", ".join(map(str, self.foreign))
            found.append(
                f"socket load balancing is off: others translate in the pods' cgroup or above it: {others}; "
                "switch theirs off, or say auto or off in datapath.socketLb"
            )
        if self._unseen:
            found.append(f"others' programs in the pods' cgroup can't be looked for: {self._unseen}")
        if self._unended:
            found.append(f"connected UDP sockets keep backends that have gone: {self._unended}")
        return tuple(found)

    async def look(self) -> None:
        """Make way for others that have come, and go on when they have gone; `apply` does so, too.

        Raises KernelRefusedError.
        """
        async with self._lock:
            if self._maps is not None:
                await _to_the_end(self._look)

    async def _watch(self) -> None:
        try:
            await self.look()
        except (DatapathError, OSError) as error:
            if not self._unseen:
                _log.warning("others in the pods' cgroup could not be looked for, trying again", error=str(error))
            self._unseen = str(error)
        else:
            self._unseen = ""

    def expected(self, pins: frozenset[str]) -> frozenset[str]:
        """What of these pins (`install.pins`) is there when all is well: no links where others work."""
        return pins - {f"links/{name}" for name in SOCKET_LB_LINKS} if self.foreign else pins

    async def apply(self, changes: Mapping[Frontend, FrontendState | None], namespaces: Iterable[Path] = ()) -> Applied:
        """Make these frontends so, see `ServiceMaps.apply`; then end what is connected to UDP backends that have gone.

        `namespaces`: the pods' network namespaces. Raises DatapathError, also where it is switched off.
        """
        maps, pods = self._opened(), list(namespaces)
        async with self._lock:
            await _to_the_end(self._look)
            was_due, self._is_due = self._is_due, True
            applied = await _to_the_end(lambda: maps.apply(changes))
            if (applied.udp_gone or was_due) and self.is_active:
                await _to_the_end(lambda: self._end_lost(maps, pods))
            self._is_due = bool(self._unended)
            return applied

    async def leave_alone(self, namespaces: Iterable[int]) -> None:
        """Pods that get no Services from us, see `ServiceMaps.leave_alone`."""
        pods = list(namespaces)
        async with self._lock:
            if self._maps is not None:
                maps = self._maps
                await _to_the_end(lambda: maps.leave_alone(pods))

    async def held(self) -> list[FrontendRow]:
        """`dump`, between two changes."""
        async with self._lock:
            return await _to_the_end(self.dump)

    def dump(self) -> list[FrontendRow]:
        """All frontends as they are in the kernel; none where it is switched off."""
        return self._maps.dump() if self._maps is not None else []

    @property
    def frontends(self) -> frozenset[Frontend]:
        """What is in the kernel, also what an earlier agent left there."""
        return self._maps.frontends if self._maps is not None else frozenset()

    async def close(self) -> None:
        """Let go when a change that is under way has been made, and leave all in place."""
        await self._repeated.stop()
        async with self._lock:
            if self._maps is not None:
                self._maps.close()
                self._maps = None

    def _look(self) -> None:
        foreign = tuple(foreign_programs(self._settings.bpffs, self._settings.pods_cgroup))
        if foreign != self.foreign:
            if foreign:
                others = [str(each) for each in foreign]
                _log.warning("socket load balancing is off: others in the pods' cgroup", programs=others)
            else:
                _log.info("socket load balancing is on again: the others in the pods' cgroup have gone")
        self.foreign = foreign
        if foreign:
            _detach(self._root)
        elif not self._is_attached:
            _attach(self._root, self._settings.pods_cgroup)
        self._is_attached = not foreign

    def _opened(self) -> ServiceMaps:
        if self._maps is None:
            raise DatapathError("socket_lb: it is switched off, or closed: there is no map for Services")
        return self._maps

    def _end_lost(self, maps: ServiceMaps, namespaces: list[Path]) -> None:
        try:
            ended = udpends.end_lost(namespaces, maps.is_lost)
        except (DatapathError, OSError) as error:
            if not self._unended:
                _log.warning("connected UDP sockets whose backends have gone could not be ended", reason=str(error))
            self._unended = str(error)
            return
        self._unended = ""
        if ended:
            _log.info("connected UDP sockets ended, their backends have gone", sockets=ended)


async def _to_the_end(work: Callable[[], T]) -> T:
    """In a thread; who is cancelled waits for its end, so that no two of them ever run."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise
