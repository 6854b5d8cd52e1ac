"""Pods with sidecars: the program at their loopback device (`c/sidecar_lo.h`), and the map that says who they are.

A pod is in the map only once the program is at its loopback, so nothing is spliced there before. The program stays as
long as the pod does, also when its sidecar's connections are to be left alone from now on: those that are spliced may
have to leave. Nothing is ever attached to the loopback of the namespace that the agent runs in.

It is watched as the programs at the node's interfaces are: what somebody takes off is put back at the next look. Where
that fails nothing more is spliced there until it works again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import abi, diag, libbpf, tcx
from spliceway.bpf.attach import EGRESS
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.filters import filters
from spliceway.bpf.maps import Maps
from spliceway.bpf.netns import call_in, current_cookie
from spliceway.bpf.rows import Attached
from spliceway.bpf.types import HookStatus

#: Directory of the pinned links below a pin root; a link's name is its namespace's cookie.
LINKS = "sidecars"
PROGRAM = "sidecar_lo"
#: Seconds between two looks at least: a bit less than between two of `hookwatch`, which asks for them.
PAUSE = 4.0
_LOOPBACK = 1  # in every network namespace
_HANDLE, _PRIORITY = 0x5317, 1
_log = structlog.get_logger(__name__)


class _OtherNamespaceError(DatapathError):
    """A path that names another namespace by now."""


class Sidecars:
    """Writes `sidecar_pods`, after the program is where it belongs. All of it blocks."""

    def __init__(self, maps: Maps, *, wanted: bool) -> None:
        """Nothing is attached yet. Not `wanted`: no pod is known; those that were known may leave."""
        self._maps, self._wanted = maps, wanted
        self._own = current_cookie()
        self._hooked: dict[int, Attached] = {}
        self._failed: dict[str, str] = {}
        self._rows: dict[bytes, bytes] = {}
        self._lost: dict[int, str] = {}
        self._looked = float("-inf")
        self._put_back, self._last, self._last_time = 0, "", 0.0

    def __repr__(self) -> str:
        return f"Sidecars(pods={len(self._hooked)}, failed={sorted(self._failed)})"

    @property
    def problems(self) -> tuple[str, ...]:
        """Pods that go without, for people."""
        return tuple(
            f"pod {name}: what it says to its sidecar is not spliced: {why}"
            for name, why in sorted(self._failed.items())
        )

    @property
    def lost(self) -> tuple[str, ...]:
        """Programs that somebody took off, and that could not be put back, one sentence each."""
        return tuple(  # of a copy: the thread that looks may change it meanwhile
            f"{_place(one)} is not attached, and what is spliced there can't leave in order: {why}"
            for cookie, why in list(self._lost.items())
            if (one := self._hooked.get(cookie)) is not None
        )

    def counted(self, status: HookStatus) -> HookStatus:
        """The status of the node's hooks, and of these."""
        latest = self._last_time > status.last_time
        return msgspec.structs.replace(
            status,
            watched=status.watched + len(self._hooked),
            missing=status.missing + len(self._lost),
            put_back=status.put_back + self._put_back,
            last=self._last if latest else status.last,
            last_time=max(self._last_time, status.last_time),
        )

    def look(self) -> None:
        """Put back what somebody took off, if it is time for a look."""
        now = time.monotonic()
        if now - self._looked < PAUSE:
            return
        self._looked = now
        for cookie, one in self._hooked.items():
            try:
                if not (there := self._is_there(one)):
                    self._hook(one)
            except (DatapathError, OSError) as error:
                if isinstance(error, _OtherNamespaceError) or not one.endpoint.netns.exists():
                    continue  # the pod is going
                if cookie not in self._lost:
                    _log.error("a program of ours is not where it belongs", problem=f"{_place(one)}: {error}")
                self._lost[cookie] = str(error)
                self._maps.sidecar_pods.delete(_key(one))
                continue
            if not there:
                what = "was taken off and is attached again"
                _log.warning("a program of ours was not where it belongs", hook=_place(one), mended=what)
                self._put_back += 1
                self._last, self._last_time = f"{_place(one)} {what}", time.time()
            if self._lost.pop(cookie, None) is not None and (row := self._rows.get(_key(one))) is not None:
                self._maps.sidecar_pods.update(_key(one), row)

    def apply(self, attached: Sequence[Attached]) -> None:
        """Make the kernel know these pods' sidecars, and no others. What fails shows in `problems`."""
        wanted: dict[bytes, bytes] = {}
        failed: dict[str, str] = {}
        there = {one.netns_cookie for one in attached}
        for one in attached:
            uid = one.endpoint.sidecar if self._wanted else None
            try:
                if one.netns_cookie in self._hooked:
                    self._hooked[one.netns_cookie] = one
                elif uid is not None or self._pin(one).exists():
                    self._hook(one)
            except (DatapathError, OSError) as error:
                failed[one.endpoint.name] = str(error)
                continue
            if uid is not None:
                wanted[_key(one)] = bytes(abi.SidecarPod(uid, one.ifindex, not one.endpoint.splice))
        for name in failed.keys() - self._failed.keys():
            _log.warning("a pod's sidecar is left alone", pod=name, reason=failed[name])
        self._failed, self._rows = failed, wanted
        wanted = {key: row for key, row in wanted.items() if int.from_bytes(key, sys.byteorder) not in self._lost}
        have = dict(self._maps.sidecar_pods.items())
        self._maps.sidecar_pods.update_many([(key, row) for key, row in wanted.items() if have.get(key) != row])
        for key in have.keys() - wanted.keys():
            self._maps.sidecar_pods.delete(key)
        self._forget(there)

    def end(self, sockets: Iterable[tuple[int, bytes]]) -> None:
        """End these applications' sockets (network namespace's cookie, socket's cookie).

        They wait for what their sidecar's kernel has given up to send; nobody else would tell them.
        """
        found: dict[int, set[bytes]] = {}
        for cookie, sock in sockets:
            found.setdefault(cookie, set()).add(sock)
        for cookie, socks in found.items():
            if (one := self._hooked.get(cookie)) is not None:
                netns = one.endpoint.netns
                try:
                    call_in(netns, lambda socks=socks: _destroy(socks))  # type: ignore[misc]
                except DatapathError as error:
                    _log.warning("connections inside of a pod could not be ended", netns=str(netns), reason=str(error))

    def _pin(self, one: Attached) -> Path:
        return self._maps.root / LINKS / str(one.netns_cookie)

    def _hook(self, one: Attached) -> None:
        """Have the program at the loopback of a pod. Raises DatapathError."""
        if one.netns_cookie == self._own:
            raise DatapathError("it is in the node's network namespace")
        program = libbpf.open_pin(self._maps.root / "programs" / PROGRAM)
        try:
            pin = self._pin(one)
            pin.parent.mkdir(exist_ok=True)
            if tcx.supported():
                call_in(one.endpoint.netns, lambda: _link(pin, program, one.netns_cookie))
            else:
                call_in(one.endpoint.netns, lambda: asyncio.run(_filter(program, one.netns_cookie)))
        finally:
            os.close(program)
        self._hooked[one.netns_cookie] = one

    def _is_there(self, one: Attached) -> bool:
        """Whether the program is at the loopback still. Raises DatapathError: the namespace can't be entered."""
        if tcx.supported():
            return _is_linked(self._pin(one))
        found = call_in(one.endpoint.netns, lambda: filters(_LOOPBACK, EGRESS))
        return any((each.name, each.handle) == (PROGRAM, _HANDLE) for each in found)

    def _forget(self, there: set[int]) -> None:
        """Links of pods that have gone."""
        for cookie in self._hooked.keys() - there:
            del self._hooked[cookie]
            self._lost.pop(cookie, None)
        directory = self._maps.root / LINKS
        for pin in directory.iterdir() if directory.is_dir() else ():
            if not pin.name.isdigit() or int(pin.name) not in there:
                tcx.take_off(pin)


def _key(one: Attached) -> bytes:
    return one.netns_cookie.to_bytes(8, sys.byteorder)


def _place(one: Attached) -> str:
    return f"{PROGRAM} at egress of lo in pod {one.endpoint.name}"


def _is_linked(pin: Path) -> bool:
    """Whether there is a link at that pin, and an interface that it is attached to."""
    try:
        link = libbpf.open_pin(pin)
    except KernelRefusedError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    try:
        return bool(libbpf.linked_interface(link))
    finally:
        os.close(link)


def _check(cookie: int) -> None:
    """Whether this thread is where it should be. Raises _OtherNamespaceError."""
    if current_cookie() != cookie:
        raise _OtherNamespaceError("its network namespace is another one by now")


def _link(pin: Path, program: int, cookie: int) -> None:
    _check(cookie)
    if pin.exists():
        link = libbpf.open_pin(pin)
        try:
            libbpf.update_link(link, program)
            return
        except KernelRefusedError as error:
            if error.errno != errno.ENOLINK:
                raise
            pin.unlink()
        finally:
            os.close(link)
    link = tcx.create_link(program, _LOOPBACK, tcx.EGRESS)
    try:
        libbpf.pin(link, pin)
    finally:
        os.close(link)


async def _filter(program: int, cookie: int) -> None:
    """Where the kernel has no TCX. It goes with the pod."""
    _check(cookie)
    async with AsyncIPRoute() as ipr:
        try:
            await ipr.tc("add", "clsact", index=_LOOPBACK)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise KernelRefusedError("add clsact to a pod's loopback", error.code) from error
        try:
            await ipr.tc(
                "replace-filter", "bpf", index=_LOOPBACK, handle=_HANDLE, fd=program, name=PROGRAM, parent=EGRESS,
                direct_action=True, prio=_PRIORITY, protocol=0x0003,
            )  # fmt: skip
        except NetlinkError as error:
            raise KernelRefusedError("attach to a pod's loopback", error.code) from error


def _destroy(cookies: set[bytes]) -> None:
    diag.destroy_many([one for one in diag.connections() if one[2] in cookies])
