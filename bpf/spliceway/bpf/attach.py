"""Attaching programs: clsact filters by pyroute2, bpf_links to cgroups and namespaces, sk_msg to its sockhash.

Everything attached outlives the agent. Attaching again replaces: never two of one kind (sockmap.md, row 24). TCX links
are in `tcx.py`, and which of the two an interface gets, in `hooks.py`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import libbpf, record
from spliceway.bpf.devicechoice import NETWORK_PROGRAMS
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.filters import GONE, Filter, filters

_NO_EGRESS = "it has a qdisc ingress, which has no egress: put clsact in its place"
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # parents ffff:fff2 and ffff:fff3 of clsact
_PRIORITY = 1
#: The second one is there while a filter goes to the front.
_HANDLE, _SPARE = 0x5317, 0x5318
#: What is attached to interfaces, by name.
OURS = frozenset({"from_pod", "to_pod", "steered"}) | NETWORK_PROGRAMS


async def interface_index(ipr: AsyncIPRoute, name: str) -> int:
    """Index of an interface in this network namespace. DatapathError when there is none."""
    found = await ipr.link_lookup(ifname=name)
    if not found:
        raise DatapathError(f"interface {name} does not exist in the node's network namespace")
    return int(found[0])


def is_ours(one: Filter) -> bool:
    """Whether a filter is one of ours, of any version."""
    return one.handle in (_HANDLE, _SPARE) and one.priority == _PRIORITY and one.name in OURS


async def attach_tc(ipr: AsyncIPRoute, ifindex: int, parent: int, program: int, name: str, bpffs: Path) -> None:
    """Attach or replace our filter at a clsact hook of an interface. A clsact that is made for it is recorded."""
    try:
        await ipr.tc("add", "clsact", index=ifindex)
        record.add_clsact(bpffs, ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise KernelRefusedError(f"add clsact to interface {ifindex}", error.code) from error
        # The older qdisc is in clsact's place, and takes what is meant for its egress for ingress.
        if parent == EGRESS and "ingress" in [one.get_attr("TCA_KIND") async for one in await _qdiscs(ipr, ifindex)]:
            raise KernelRefusedError(f"attach {name} to interface {ifindex}", error.code, _NO_EGRESS) from error
    await _replace(ipr, ifindex, parent, program, name, _HANDLE)


async def _qdiscs(ipr: AsyncIPRoute, ifindex: int) -> AsyncIterator[Any]:
    found: AsyncIterator[Any] = await ipr.get_qdiscs(index=ifindex)
    return found


async def move_tc(ipr: AsyncIPRoute, ifindex: int, parent: int, program: int, name: str) -> None:
    """Bring our filter to the front of its priority: one that is new comes there. It is there twice, but never not."""
    for handle, other in ((_SPARE, _HANDLE), (_HANDLE, _SPARE)):
        await _replace(ipr, ifindex, parent, program, name, handle)
        await _delete(ipr, ifindex, parent, other)


async def detach_tc(ipr: AsyncIPRoute, ifindex: int, parent: int) -> None:
    """Remove our filter; what others attached stays. Nothing happens when it, or the interface, is gone."""
    for handle in (_HANDLE, _SPARE):
        await _delete(ipr, ifindex, parent, handle)


async def _replace(ipr: AsyncIPRoute, ifindex: int, parent: int, program: int, name: str, handle: int) -> None:
    try:
        await ipr.tc(
            "replace-filter", "bpf", index=ifindex, handle=handle, fd=program, name=name, parent=parent,
            direct_action=True, prio=_PRIORITY, protocol=0x0003,
        )  # fmt: skip
    except NetlinkError as error:
        taken = [one.kind for one in filters(ifindex, parent) if one.priority == _PRIORITY and one.kind != "bpf"]
        hint = f"a filter of kind {taken[0]} has priority {_PRIORITY} there: give it another one" if taken else ""
        raise KernelRefusedError(f"attach {name} to interface {ifindex}", error.code, hint) from error


async def _delete(ipr: AsyncIPRoute, ifindex: int, parent: int, handle: int) -> None:
    try:
        await ipr.tc("del-filter", "bpf", index=ifindex, handle=handle, parent=parent, prio=_PRIORITY, protocol=0x0003)
    except NetlinkError as error:
        if error.code not in GONE:
            raise KernelRefusedError(f"detach from interface {ifindex}", error.code) from error


def attach_link(pin: Path, target: Path, attach_type: int, program: int) -> None:
    """Link a program to a cgroup directory or a namespace file, or put it behind the link that is pinned there."""
    if pin.exists():
        link = libbpf.open_pin(pin)
        try:
            if attach_type == libbpf.BPF_SK_LOOKUP or libbpf.linked_cgroup(link) == target.stat().st_ino:
                libbpf.update_link(link, program)
                return
            pin.unlink()  # the configuration names another cgroup by now; this link goes with its last descriptor
        except KernelRefusedError as error:
            if error.errno not in (errno.ENOLINK, errno.EINVAL):
                raise
            pin.unlink()  # its cgroup or namespace is gone
        finally:
            os.close(link)
    try:
        descriptor = os.open(target, os.O_RDONLY)
    except OSError as error:
        raise DatapathError(f"{target}: {error.strerror} (is cgroup2 mounted, and the directory made?)") from error
    try:
        link = libbpf.create_link(program, descriptor, attach_type)
    except KernelRefusedError as error:
        raise KernelRefusedError(f"attach a program to {target}", error.errno, "is it a cgroup2 directory?") from error
    finally:
        os.close(descriptor)
    try:
        libbpf.pin(link, pin)
    finally:
        os.close(link)
