"""Watches our programs on the node's interfaces: puts back what was taken off, and goes to the front again.

A look every few seconds; where ours are clsact filters the kernel also tells at once when filters or a clsact go or
come (for TCX it tells nobody). Until then packets pass unseen. What can't be mended is a problem of the status.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf.background import Background
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.filters import messages
from spliceway.bpf.hookorder import CLSACT, LEAVING, Contest, Finding, Place, State, judge, listed
from spliceway.bpf.hooks import Hooks
from spliceway.bpf.types import HookStatus
from spliceway.bpf.whole import whole

#: How often all is looked at, and how long to wait for more after the kernel told of a change, in seconds.
INTERVAL, PAUSE = 5.0, 0.2
_TC_GROUP = 1 << 3  # RTNLGRP_TC
_TOLD = frozenset({37, 44, 45})  # RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER
_IFINDEX = struct.Struct("=4xi")  # the beginning of struct tcmsg
_ERRORS = (DatapathError, NetlinkError, OSError)

_log = structlog.get_logger(__name__)


class _Trouble(NamedTuple):
    """What could not be mended at a hook."""

    state: State
    text: str


class HookWatch(Background):
    """See the module."""

    def __init__(self, hooks: Hooks, after: Callable[[], Awaitable[None]]) -> None:
        """`after`: what else is looked at each time."""
        super().__init__("hooks")
        self._hooks, self._after = hooks, after
        self._contest = Contest()
        self._trouble: dict[Place, _Trouble] = {}
        self._tried: dict[Place, float] = {}
        self._failure = ""
        self._put_back, self._moved = 0, 0
        self._last, self._last_time = "", 0.0

    def __repr__(self) -> str:
        return f"HookWatch({self._hooks!r}, trouble={len(self._trouble)})"

    @property
    def status(self) -> HookStatus:
        """As of the last look."""
        states = [one.state for one in self._trouble.values()]
        return HookStatus(
            kind=self._hooks.kind,
            watched=len(self._hooks.places),
            missing=states.count(State.MISSING),
            behind=states.count(State.BEHIND),
            put_back=self._put_back,
            moved=self._moved,
            last=self._last,
            last_time=self._last_time,
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """What can't be mended, one sentence each."""
        failure = (f"hooks of the interfaces can't be looked at: {self._failure}",) if self._failure else ()
        return (*failure, *(one.text for one in self._trouble.values()))

    @property
    def unjudged(self) -> list[str]:
        """Where packets leave unseen."""
        missing = [place for place, one in self._trouble.items() if one.state is State.MISSING]
        return sorted(self._name(place) for place in missing if place.program in LEAVING)

    async def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            events = _Events()
            if self._hooks.kind == CLSACT:
                stack.enter_context(events)
            while True:
                await whole(self.look(await events.next(INTERVAL)))

    async def look(self, only: Collection[int] = ()) -> None:
        """Look at the hooks of these interfaces, or of all, and mend what is not as it should be."""
        try:
            async with self._hooks.lock:
                found = await self._hooks.read(only)
                findings = {place: judge(seen, self._hooks.kind) for place, seen in found.items()}
                for place, finding in findings.items():
                    if finding.state is State.GOOD:
                        self._settle(place, finding)
                    else:
                        await self._mend(place, finding, told=bool(only))
            await self._after()
        except Exception as error:
            # Also a bug: whoever stopped to look would not notice what is taken off from now on.
            text = str(error) or repr(error)
            if text != self._failure:
                _log.error("hooks can't be looked at", error=text, exc_info=not isinstance(error, _ERRORS))
            self._failure = text
            return
        self._failure = ""
        places = self._hooks.places
        self._contest.keep(list(places))
        for place in self._trouble.keys() - places.keys():
            del self._trouble[place]
        for place in self._tried.keys() - places.keys():
            del self._tried[place]

    async def _mend(self, place: Place, finding: Finding, told: bool) -> None:
        """`told`: by the kernel, which tells of what is done here, too."""
        why = ""
        try:
            async with AsyncIPRoute() as ipr:
                if finding.state is State.MISSING:
                    now, before = time.monotonic(), self._trouble.get(place)
                    if told and before and before.state is State.MISSING and now - self._tried.get(place, 0) < INTERVAL:
                        return  # what did not stay is tried at leisure
                    self._tried[place] = now
                    await self._hooks.mend(ipr, place)
                    self._put_back += 1
                    self._done(place, "was taken off and is attached again")
                elif finding.can_move and self._contest.may_move(place):
                    self._contest.moved(place, time.monotonic())
                    await self._hooks.to_front(ipr, place)
                    self._moved += 1
                    self._done(place, f"stood behind {listed(finding.front)} and is in front again")
        except _ERRORS as error:
            why = str(error)
        if why and not self._hooks.is_there(place):
            return  # the interface went meanwhile: the next look forgets it
        self._settle(place, judge(await self._hooks.read_one(place), self._hooks.kind), why)

    def _done(self, place: Place, what: str) -> None:
        self._last, self._last_time = f"{self._name(place)} {what}", time.time()
        _log.warning("a program of ours was not where it belongs", hook=self._name(place), mended=what)

    def _settle(self, place: Place, finding: Finding, why: str = "") -> None:
        if finding.state is State.GOOD:
            self._contest.good(place, time.monotonic())
            if self._trouble.pop(place, None) is not None:
                _log.info("a program of ours is where it belongs again", hook=self._name(place))
            return
        text = f"{self._name(place)} {self._told(place, finding, why)}"
        before = self._trouble.get(place)
        self._trouble[place] = _Trouble(finding.state, text)
        if before is None or before.text != text:
            _log.error("a program of ours is not where it belongs", problem=text)

    def _told(self, place: Place, finding: Finding, why: str) -> str:
        if finding.state is State.MISSING:
            return f"is not attached, its packets are not judged: {why or 'it was taken off again at once'}"
        told = f"stands behind {listed(finding.front)}, which may pass packets before they are judged"
        if why:
            return f"{told}: {why}"
        if not finding.can_move:
            return f"{told}: TCX comes before every filter; set datapath.tcx to auto"
        if not self._contest.may_move(place):
            return f"{told}: it came back in front again and again, and ours gave up; one of the two must yield"
        return told

    def _name(self, place: Place) -> str:
        device = self._hooks.places.get(place, f"interface {place.ifindex}")
        return f"{place.program} at {place.side} of {device}"


class _Events:
    """Interfaces whose filters or clsact changed, as the kernel tells while this is entered."""

    def __init__(self) -> None:
        self._changed: set[int] = set()
        self._lost = False
        self._told = asyncio.Event()
        self._all_at = asyncio.get_running_loop().time() + INTERVAL

    def __enter__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._netlink = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._netlink.bind((0, _TC_GROUP))
        asyncio.get_running_loop().add_reader(self._netlink, self._read)

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._netlink)
        self._netlink.close()

    def _read(self) -> None:
        try:
            while True:
                for kind, body in messages(self._netlink.recv(1 << 16)):
                    if kind in _TOLD:
                        self._changed.add(int(_IFINDEX.unpack_from(body)[0]))
        except BlockingIOError:
            pass
        except OSError:
            self._lost = True  # ENOBUFS: more than there was room for
        if self._changed or self._lost:
            self._told.set()

    async def next(self, interval: float) -> frozenset[int]:
        """What changed since, as soon as something did; after `interval` seconds nothing, which means all."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._all_at):
                await self._told.wait()
                await asyncio.sleep(PAUSE)  # a change is seldom alone
        except TimeoutError:
            pass
        self._told.clear()
        changed, lost = frozenset(self._changed), self._lost
        self._changed.clear()
        self._lost = False
        if lost or not changed or loop.time() >= self._all_at:
            self._all_at = loop.time() + interval
            return frozenset()
        return changed
