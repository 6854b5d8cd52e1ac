"""Programs of somebody else at the interfaces of a node, and what is at its hooks, in order."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from spliceway.bpf import creation, libbpf, loaded, tcx
from spliceway.bpf.attach import EGRESS, INGRESS
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.filters import filters
from spliceway.bpf.source import CGROUP_SOCK_ADDR, SCHED_CLS
from support.kernel import NamespaceLoop

#: What it returns: hand on to the next one, or let pass without asking anybody further (TC_ACT_UNSPEC, TC_ACT_OK).
HAND_ON, ACCEPT = -1, 0
NAME = "other_prog"
KIND = {"auto": "tcx", "off": "clsact"}
_TCX = {"ingress": tcx.INGRESS, "egress": tcx.EGRESS}
_CLSACT = {"ingress": INGRESS, "egress": EGRESS}
_RETURN_ONE = bytes.fromhex("b700000001000000 9500000000000000")  # r0 = 1; exit


def has_tcx() -> bool:
    """Whether the kernel has TCX; False, too, where this may not be asked: there no kernel test runs."""
    try:
        return tcx.supported()
    except KernelRefusedError:
        return False


needs_tcx = pytest.mark.skipif(not has_tcx(), reason="needs Linux 6.6 (TCX)")
#: Values of `datapath.tcx`.
BOTH = [pytest.param("auto", marks=needs_tcx, id="tcx"), pytest.param("off", id="clsact")]


class Foreigner:
    """Has a program of its own, and attaches it to interfaces of a network namespace. TCX links go with `close`."""

    def __init__(self, netns: Path, returns: int = HAND_ON, *, name: str = NAME) -> None:
        self._loop = NamespaceLoop(netns)
        code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, returns, 0x95, 0, 0, 0)  # r0 = returns; exit
        self._name = name
        self._program = creation.load_program(name, SCHED_CLS, -1, code)
        self._links: list[int] = []

    def index(self, device: str) -> int:
        """Of an interface."""
        return self._loop.call(socket.if_nametoindex, device)

    def link(self, device: str, side: str, flags: int = tcx.BEFORE) -> None:
        """By TCX, at the head."""
        index = self.index(device)
        self._links.append(self._loop.call(tcx.create_link, self._program, index, _TCX[side], flags))

    def unlink(self) -> None:
        """All TCX links."""
        while self._links:
            os.close(self._links.pop())

    def filter(self, device: str, side: str, *, priority: int = 1, handle: int = 1) -> None:
        """As a clsact filter; it comes before all of its priority that are there."""
        index = self.index(device)

        async def add() -> None:
            async with AsyncIPRoute() as ipr:
                await ipr.tc(
                    "add-filter", "bpf", index=index, handle=handle, fd=self._program, name=self._name,
                    parent=_CLSACT[side], direct_action=True, prio=priority, protocol=0x0003,
                )  # fmt: skip

        self._loop.run(add())

    def at(self, device: str, side: str) -> list[str]:
        """What is at a hook, in order: «tcx from_pod», «clsact other_prog»."""
        return [text for text, _ in self._at(device, side)]

    def program_ids(self, device: str, side: str) -> list[int]:
        """The same, by ids of the programs."""
        return [number for _, number in self._at(device, side)]

    def _at(self, device: str, side: str) -> list[tuple[str, int]]:
        index = self.index(device)

        def read() -> list[tuple[str, int]]:
            links = tcx.query(index, _TCX[side]) if has_tcx() else []
            named = [(f"tcx {loaded.program_name(one.program)}", one.program) for one in links]
            return named + [(f"clsact {one.name or one.kind}", one.program) for one in filters(index, _CLSACT[side])]

        return self._loop.call(read)

    def close(self) -> None:
        self.unlink()
        os.close(self._program)
        self._loop.stop()

    def __enter__(self) -> Foreigner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def cgroup_program(cgroup: Path, kind: int) -> Iterator[None]:
    """A program that may translate Services and is not ours, attached to a cgroup of a testbed."""
    program = creation.load_program("cil_sock4_conn", CGROUP_SOCK_ADDR, kind, _RETURN_ONE)
    target = os.open(cgroup, os.O_RDONLY)
    link = libbpf.create_link(program, target, kind)
    try:
        yield
    finally:
        for descriptor in (link, target, program):
            os.close(descriptor)
