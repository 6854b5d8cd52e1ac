"""Follows the node's interfaces: `from_network` is on each by which packets for pods come from outside.

The kernel tells of interfaces and addresses that come, change and go; then all are looked at, and every few seconds in
any case. Until a new one has its program, what comes by it is judged and steered at the pods alone (`to_pod`), so
nothing passes unseen. What can't be attached to is a problem of the status. Attaching is done by `Hooks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import linktable
from spliceway.bpf.background import Background
from spliceway.bpf.devicechoice import ENDPOINTS_OWN, NETWORK_PROGRAMS, Choice, Wanted, choose, missing, unjudged
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.hookorder import Place
from spliceway.bpf.hooks import Hooks
from spliceway.bpf.types import DeviceStatus
from spliceway.bpf.whole import whole

#: How often all is looked at, and how long to wait for more after the kernel told of a change, in seconds. A look
#: costs a millisecond or so for each hundred interfaces.
INTERVAL, PAUSE = 5.0, 0.02
_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS = 1 << 0, 1 << 4, 1 << 8  # RTMGRP_…
_ERRORS = (DatapathError, NetlinkError, OSError)

_log = structlog.get_logger(__name__)


class DeviceWatch(Background):
    """See the module. It runs in the node's network namespace."""

    def __init__(
        self,
        hooks: Hooks,
        wanted: Wanted,
        endpoints: Callable[[], Collection[int]],
        on_unjudged: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        """`endpoints`: tells the indexes of those devices that are endpoints'.

        `on_unjudged` is told when there come to be devices by which packets leave and can't be judged, or no more.
        """
        super().__init__("devices")
        self._on_unjudged = on_unjudged
        self._unjudged: list[str] = []
        self._hooks, self._wanted, self._endpoints = hooks, wanted, endpoints
        self._choices: list[Choice] = []
        self._failed: dict[str, str] = {}
        self._missing: tuple[str, ...] = ()
        self._failure = ""
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"DeviceWatch({self._wanted!r}, {len(self._choices)} interfaces, failed={sorted(self._failed)})"

    @property
    def status(self) -> tuple[DeviceStatus, ...]:
        """Interfaces that are no endpoints', by name: of the last look, and whether it is attached of now."""
        found = (
            DeviceStatus(
                name=one.device.name,
                kind=one.device.kind,
                program=one.program,
                attached=bool(one.program) and _places(one) <= self._hooks.places.keys(),
                why=self._failed.get(one.device.name, one.why),
            )
            for one in self._choices
            if one.why != ENDPOINTS_OWN
        )
        return tuple(sorted(found, key=lambda one: one.name))

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each interface that can't be attached to, or that is configured and not there."""
        failure = (f"the node's interfaces can't be looked at: {self._failure}",) if self._failure else ()
        return (
            *failure,
            *(
                f"{name}: what comes by it is judged and steered at the pods only, and pods' packets that leave by it "
                f"are not judged by where a Service leads, since a program can't be attached: {why}"
                for name, why in self._failed.items()
            ),
            *(f"datapath.devices: no interface is called {pattern}" for pattern in self._missing),
        )

    async def begin(self) -> None:
        """Attach to all, and detach from what was one for an earlier agent or configuration. Raises DatapathError."""
        await self._follow(await asyncio.to_thread(self._hooks.of_network))
        await self._tell()

    async def leave(self, ipr: AsyncIPRoute, ifindex: int) -> None:
        """This device becomes an endpoint's: it has programs of its own then. Raises KernelRefusedError."""
        for place in self._hooks.places:
            if place.ifindex == ifindex and place.program in NETWORK_PROGRAMS:
                await self._hooks.take_off(ipr, place)

    async def look(self) -> None:
        """Look at all interfaces once, and attach and detach as is right now."""
        try:
            await self._follow()
            await self._tell()
        except Exception as error:  # a bug, too: whoever stopped would miss each new device from now on
            text = str(error) or repr(error)
            if text != self._failure:
                _log.error("interfaces can't be looked at", error=text, exc_info=not isinstance(error, _ERRORS))
            self._failure = text
            return
        self._failure = ""

    async def _follow(self, others: Collection[Place] = ()) -> None:
        async with self._lock:
            devices = await asyncio.to_thread(linktable.devices)
            # Also of a pod that is known no more and may still run: its device keeps what it has.
            taken = self._hooks.of_pods.union(self._endpoints())
            self._choices = await asyncio.to_thread(choose, devices, self._wanted, taken, linktable.leads_out)
            self._missing = tuple(missing(devices, self._wanted))
            wanted = {place: one.device.name for one in self._choices for place in _places(one)}
            there = {place for place in self._hooks.places if place.program in NETWORK_PROGRAMS}
            fresh, stale = wanted.keys() - there, (there | set(others)) - wanted.keys()
            if fresh or stale:
                async with AsyncIPRoute() as ipr:
                    # New ones first: where a device is of another kind by now, its packets meet one at each moment.
                    failed: dict[str, str] = {}
                    for place in fresh:
                        if why := await self._attach(ipr, place, wanted[place]):
                            failed[wanted[place]] = why
                    for name in {wanted[place] for place in fresh} - failed.keys():
                        self._failed.pop(name, None)
                    self._failed |= failed
                    for place in stale:
                        await self._hooks.take_off(ipr, place)
            for name in self._failed.keys() - wanted.values():
                del self._failed[name]

    async def _tell(self) -> None:
        names = sorted({*unjudged(self._choices), *self._failed})
        if names != self._unjudged:
            await self._on_unjudged(names)
            self._unjudged = names

    async def _attach(self, ipr: AsyncIPRoute, place: Place, name: str) -> str:
        """Returns why it failed, or nothing."""
        try:
            if await self._hooks.put_network(ipr, place, name) and not place.is_egress:
                _log.info("packets from outside are judged", device=name, program=place.program)
        except _ERRORS as error:
            if self._failed.get(name) != str(error):
                _log.error("a device can't be attached to", device=name, error=str(error))
            return str(error)
        return ""

    async def _run(self) -> None:
        with _told() as told:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await told.wait()
                        await asyncio.sleep(PAUSE)  # a change is seldom alone
                told.clear()
                await whole(self.look())


def _places(choice: Choice) -> set[Place]:
    """Where a device has programs of ours: at its ingress and at its egress."""
    return {Place(choice.device.ifindex, program) for program in (choice.program, choice.leaving) if program}


@contextlib.contextmanager
def _told() -> Iterator[asyncio.Event]:
    """Set when the kernel tells of an interface or an address, as long as this is entered."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, _LINK | _IPV4_ADDRESS | _IPV6_ADDRESS))

        def read() -> None:
            with contextlib.suppress(OSError):  # nothing more; ENOBUFS: more than there was room for
                while True:
                    netlink.recv(1 << 16)
            event.set()

        loop.add_reader(netlink, read)
        try:
            yield event
        finally:
            loop.remove_reader(netlink)
