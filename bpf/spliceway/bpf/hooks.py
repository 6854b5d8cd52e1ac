"""Where our programs are on the node's interfaces: attached, kept in front of others', and looked at.

By a TCX link where the kernel has TCX and the configuration wants it, else as a clsact filter of priority 1. From one
to the other there is no gap: the new one comes first, then the old one goes; in between a packet is judged twice, which
changes nothing. All of it is left in place when the agent ends.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from pyroute2 import AsyncIPRoute

from spliceway.bpf import libbpf, loaded, tcx
from spliceway.bpf.attach import EGRESS, INGRESS, attach_tc, detach_tc, is_ours, move_tc
from spliceway.bpf.devicechoice import NETWORK_PROGRAMS
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.filters import filters
from spliceway.bpf.hookorder import CLSACT, TCX, Place, Seen
from spliceway.bpf.types import DatapathSettings

#: Whose place at a device a pod's program takes: it led nowhere known, or to a stranger on a bridge of pods.
_FORMER = {"to_pod": "to_network", "from_pod": "from_network"}
#: Where these are, an endpoint is or was.
_OF_PODS = frozenset({"from_pod", "to_pod"})
_PROGRAMS = ("from_pod", "to_pod", *sorted(NETWORK_PROGRAMS), "steered")
T = TypeVar("T")


class Hooks:
    """The hooks of one node's interfaces that have a program of ours. `kind`: how they are attached."""

    def __init__(self, settings: DatapathSettings, root: Path) -> None:
        """`root`: where the programs that are to be attached are pinned. Raises KernelRefusedError."""
        self.kind = TCX if settings.tcx == "auto" and tcx.supported() else CLSACT
        self._settings, self._root = settings, root
        self._places: dict[Place, str] = {}
        self._left: set[Place] = set()
        self._settled = False
        self.lock = asyncio.Lock()
        found = {name: loaded.pinned_id(root / "programs" / name) for name in _PROGRAMS}
        self._ids = {name: one[1] for name, one in found.items() if one is not None}

    def __repr__(self) -> str:
        return f"Hooks({self.kind}, {len(self._places)} places)"

    # ---- putting them there ----

    def adopt(self, others: Iterable[Path]) -> None:
        """Take over the TCX links of other versions' roots, with their programs. Raises KernelRefusedError, OSError.

        What earlier agents have at pods' devices stays, in whichever way it is attached, until ours takes its place.
        """
        for other in others:
            tcx.adopt(self._root, other)
        self._left = self._found(_OF_PODS)

    async def put(self, ipr: AsyncIPRoute, place: Place, device: str) -> None:
        """Attach there, or replace in place; from now on it belongs there. Raises KernelRefusedError."""
        async with self.lock:
            if await self.mend(ipr, place):
                self._places.pop(Place(place.ifindex, _FORMER[place.program]), None)
            self._places[place] = device

    async def put_network(self, ipr: AsyncIPRoute, place: Place, device: str) -> bool:
        """The same at a device by which packets come from outside, unless it is an endpoint's by now: then False."""
        async with self.lock:
            if Place(place.ifindex, "from_pod") in self._places:
                return False
            await self.mend(ipr, place)
            self._places[place] = device
        return True

    async def take_off(self, ipr: AsyncIPRoute, place: Place) -> None:
        """Detach there, if it is attached; it belongs there no more. Raises KernelRefusedError."""
        async with self.lock:
            await _blocking(tcx.remove, self._root, place.ifindex, place.program)
            if any(is_ours(one) and one.name == place.program for one in filters(place.ifindex, _parent(place))):
                await detach_tc(ipr, place.ifindex, _parent(place))
            self._places.pop(place, None)

    def of_network(self) -> set[Place]:
        """Where programs for packets from outside are attached, whoever did it. Raises KernelRefusedError."""
        return self._found(NETWORK_PROGRAMS)

    def _found(self, programs: Collection[str]) -> set[Place]:
        found = {
            Place(index, one.name)
            for index in _devices()
            for parent in (INGRESS, EGRESS)
            for one in filters(index, parent)
            if is_ours(one) and one.name in programs
        }
        pinned = {Place(one.ifindex, one.program.removesuffix("-moving")) for one in tcx.pinned(self._root)}
        return found | {place for place in pinned if place.program in programs}

    async def settle(self, ipr: AsyncIPRoute, waiting: Collection[int] = ()) -> list[str]:
        """Once endpoints have theirs: take over what earlier agents attached for pods that are known no more.

        As long as such a pod has its veth, it must not be without. Programs of another version that this one does not
        know go: nobody would keep the maps that they go by. `waiting`: indexes of the devices of endpoints that could
        not be attached; they keep what they have. Returns what failed; then it is tried again.
        """
        if self._settled:
            return []
        devices, failures, again = _devices(), [], False
        for place in sorted(self._left - self._places.keys()):
            if place.ifindex in waiting:
                again = True
                continue
            try:
                if place.ifindex in devices:
                    await self.put(ipr, place, devices[place.ifindex])
            except KernelRefusedError as error:
                failures.append(str(error))
        known, pinned = self._judged(), tcx.pinned(self._root)
        devices = _devices()  # now, since others attach meanwhile
        try:
            for one in pinned:
                if one.ifindex not in devices:
                    one.path.unlink(missing_ok=True)  # it died with its interface
                elif one.program.removesuffix("-moving") in self._ids:
                    continue
                elif one.ifindex in known:
                    await _blocking(tcx.take_off, one.path)
                else:
                    again = True  # its pod may become known
        except KernelRefusedError as error:
            failures.append(str(error))
        self._settled = not failures and not again
        return failures

    async def earlier(self, waiting: Collection[int]) -> list[str]:
        """Devices that have programs of earlier agents where ours are not. Raises KernelRefusedError.

        Of those that nobody knows how to attach only the ones at `waiting` devices count, as in `settle`.
        """
        seen = await _blocking(self._read, self._left - self._places.keys())
        found = {place.ifindex for place, there in seen.items() if not any(one.ours for one in there)}
        pinned = tcx.pinned(self._root)
        strange = {one.ifindex for one in pinned if one.program.removesuffix("-moving") not in self._ids}
        found |= (strange - self._judged()).intersection(waiting)
        devices = _devices()
        return sorted(devices[index] for index in found & devices.keys())

    def _judged(self) -> set[int]:
        """Indexes of the devices that have all of ours: with one of a pod's two the other way is open."""
        of_pods = Counter(place.ifindex for place in self._places if place.program in _OF_PODS)
        half = {index for index, count in of_pods.items() if count < len(_OF_PODS)}
        return {place.ifindex for place in self._places} - half

    async def mend(self, ipr: AsyncIPRoute, place: Place) -> bool:
        """Attach there, or replace in place; returns whether it took the place of its former one (`_FORMER`).

        The caller holds the lock. Raises KernelRefusedError.
        """
        former = _FORMER.get(place.program, "")
        if self.kind == TCX:
            arguments = (self._root, place.ifindex, _attach_type(place), place.program, former)
            taken = await _blocking(tcx.put, *arguments)
            if any(is_ours(one) for one in filters(place.ifindex, _parent(place))):
                await detach_tc(ipr, place.ifindex, _parent(place))
            return taken
        await self._attach_filter(ipr, place)
        await _blocking(tcx.remove, self._root, place.ifindex, place.program)
        # A filter has the former one's handle, and so its place; a link of that one is gone in the same way.
        return bool(former) and not await _blocking(tcx.is_pinned, self._root, place.ifindex, former)

    async def to_front(self, ipr: AsyncIPRoute, place: Place) -> None:
        """Go in front of what others attached there since. The caller holds the lock. Raises KernelRefusedError."""
        if self.kind == TCX:
            await _blocking(tcx.to_front, self._root, place.ifindex, _attach_type(place), place.program)
            return
        program = libbpf.open_pin(self._root / "programs" / place.program)
        try:
            await move_tc(ipr, place.ifindex, _parent(place), program, place.program)
        finally:
            os.close(program)

    async def _attach_filter(self, ipr: AsyncIPRoute, place: Place) -> None:
        program = libbpf.open_pin(self._root / "programs" / place.program)
        try:
            bpffs = self._settings.bpffs
            await attach_tc(ipr, place.ifindex, _parent(place), program, place.program, bpffs)
        finally:
            os.close(program)

    # ---- looking at them ----

    @property
    def places(self) -> dict[Place, str]:
        """Where ours belong: place → interface."""
        return dict(self._places)

    @property
    def of_pods(self) -> set[int]:
        """Indexes of the devices that have programs of pods, also of pods that only earlier agents know.

        One that an earlier agent was not done with has nothing yet for what is sent to it: that is no pod's so far.
        """
        own = {place.ifindex for place in self._places if place.program in _OF_PODS}
        return own | {place.ifindex for place in self._left if place.is_egress}

    async def read(self, only: Collection[int] = ()) -> dict[Place, list[Seen]]:
        """What is attached where ours belong, in the order in which packets meet it; of these interfaces, or all.

        Interfaces that are gone are forgotten, with their pins. The caller holds the lock. Raises KernelRefusedError.
        """
        devices = await _blocking(_devices)
        for one in tcx.pinned(self._root):
            if one.ifindex not in devices:
                one.path.unlink(missing_ok=True)
        self._places = {place: devices[place.ifindex] for place in self._places if place.ifindex in devices}
        self._left = {place for place in self._left if place.ifindex in devices}  # an index may be another's later
        wanted = [place for place in self._places if not only or place.ifindex in only]
        return await _blocking(self._read, wanted)

    def is_there(self, place: Place) -> bool:
        """Whether its interface exists."""
        return place.ifindex in _devices()

    async def read_one(self, place: Place) -> list[Seen]:
        """The same of one place as it is now; nothing when its interface is gone. Raises KernelRefusedError."""
        return (await _blocking(self._read, [place])).get(place, [])

    def _read(self, places: Collection[Place]) -> dict[Place, list[Seen]]:
        found = {}
        for place in places:
            try:
                found[place] = self._at(place)
            except KernelRefusedError as error:
                if error.errno != errno.ENODEV:  # gone since they were listed
                    raise
        return found

    def _at(self, place: Place) -> list[Seen]:
        own, seen = self._ids.get(place.program, 0), []
        if tcx.supported():
            for one in tcx.query(place.ifindex, _attach_type(place)):
                ours = one.program == own
                name = place.program if ours else loaded.program_name(one.program)
                seen.append(Seen(TCX, name, one.program, ours))
        if self.kind == CLSACT:
            for each in filters(place.ifindex, _parent(place)):
                if not each.chain:
                    ours = is_ours(each) and each.program == own
                    seen.append(Seen(CLSACT, each.name or each.kind, each.program, ours))
        return seen


def _attach_type(place: Place) -> int:
    return tcx.EGRESS if place.is_egress else tcx.INGRESS


def _parent(place: Place) -> int:
    return EGRESS if place.is_egress else INGRESS


def _devices() -> dict[int, str]:
    """Interfaces of this network namespace: index → name."""
    return dict(socket.if_nameindex())


async def _blocking(work: Callable[..., T], *arguments: object) -> T:
    """In a thread, which is in this one's network namespace; it is waited for, also when the caller is cancelled."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
