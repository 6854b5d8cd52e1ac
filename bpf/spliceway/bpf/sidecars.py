"""Pods with sidecars: the program at their loopback device (`c/sidecar_lo.h`), and the map that says who they are.

A pod is in the map only once the program is at its loopback, so nothing is spliced there before. The program stays as
long as the pod does, also when its sidecar's connections are to be left alone from now on: those that are spliced may
have to leave. Nothing is ever attached to the loopback of the namespace that the agent runs in.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import abi, diag, libbpf, tcx
from spliceway.bpf.attach import EGRESS
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.maps import Maps
from spliceway.bpf.netns import call_in, current_cookie
from spliceway.bpf.rows import Attached

#: Directory of the pinned links below a pin root; a link's name is its namespace's cookie.
LINKS = "sidecars"
PROGRAM = "sidecar_lo"
_LOOPBACK = 1  # in every network namespace
_HANDLE, _PRIORITY = 0x5317, 1
_log = structlog.get_logger(__name__)


class Sidecars:
    """Writes `sidecar_pods`, after the program is where it belongs. All of it blocks."""

    def __init__(self, maps: Maps, *, wanted: bool) -> None:
        """Nothing is attached yet. Not `wanted`: no pod is known; those that were known may leave."""
        self._maps, self._wanted = maps, wanted
        self._own = current_cookie()
        self._hooked: dict[int, Path] = {}
        self._failed: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Sidecars(pods={len(self._hooked)}, failed={sorted(self._failed)})"

    @property
    def problems(self) -> tuple[str, ...]:
        """Pods that go without, for people."""
        return tuple(
            f"pod {name}: what it says to its sidecar is not spliced: {why}"
            for name, why in sorted(self._failed.items())
        )

    def apply(self, attached: Sequence[Attached]) -> None:
        """Make the kernel know these pods' sidecars, and no others. What fails shows in `problems`."""
        wanted: dict[bytes, bytes] = {}
        failed: dict[str, str] = {}
        there = {one.netns_cookie for one in attached}
        for one in attached:
            uid = one.endpoint.sidecar if self._wanted else None
            try:
                if one.netns_cookie not in self._hooked and (uid is not None or self._pin(one).exists()):
                    self._hook(one)
            except (DatapathError, OSError) as error:
                failed[one.endpoint.name] = str(error)
                continue
            if uid is not None:
                row = abi.SidecarPod(uid, one.ifindex, not one.endpoint.splice)
                wanted[one.netns_cookie.to_bytes(8, sys.byteorder)] = bytes(row)
        for name in failed.keys() - self._failed.keys():
            _log.warning("a pod's sidecar is left alone", pod=name, reason=failed[name])
        self._failed = failed
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
            if (netns := self._hooked.get(cookie)) is not None:
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
        self._hooked[one.netns_cookie] = one.endpoint.netns

    def _forget(self, there: set[int]) -> None:
        """Links of pods that have gone."""
        for cookie in self._hooked.keys() - there:
            del self._hooked[cookie]
        directory = self._maps.root / LINKS
        for pin in directory.iterdir() if directory.is_dir() else ():
            if not pin.name.isdigit() or int(pin.name) not in there:
                tcx.take_off(pin)


def _check(cookie: int) -> None:
    """Whether this thread is where it should be. Raises DatapathError: the path names another namespace by now."""
    if current_cookie() != cookie:
        raise DatapathError("its network namespace is another one by now")


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
