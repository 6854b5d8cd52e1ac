"""Everything that any agent ever attached on this node: found, and taken out. Works without an agent and its programs.

What is ours is known by names and numbers of our own, and by the record (`record.py`); what others attached stays.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import netfilter, node, record, sidecars, steering, tcx
from spliceway.bpf.attach import EGRESS, INGRESS, detach_tc, is_ours
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.filters import GONE, filters
from spliceway.bpf.netns import current_cookie
from spliceway.bpf.record import PolicyRule
from spliceway.bpf.selftest import leftovers as of_selftests
from spliceway.bpf.types import DatapathSettings

_TABLE = "nftables: table inet spliceway"
#: Kinds of which a network namespace has one, whichever bpffs it was made for.
SHARED = ("filter", "rule", "device", "netfilter")


class Leftover(msgspec.Struct, frozen=True):
    """One thing of ours. `kind`: cgroup, link, filter, clsact, rule, device, netfilter, sysctl, pins.

    `what` tells which, for people.
    """

    kind: str
    what: str
    ifindex: int = 0
    parent: int = 0
    rule: PolicyRule | None = None
    path: Path | None = None


@contextmanager
def held(bpffs: Path) -> Iterator[None]:
    """Keep agents away from the bpffs meanwhile. Raises DatapathError when one runs there."""
    path = record.top(bpffs)
    if not path.is_dir():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DatapathError(f"bpffs: an agent runs on {path}") from error
    finally:
        os.close(descriptor)


def runs(bpffs: Path) -> bool:
    """Whether an agent holds the bpffs now."""
    try:
        with held(bpffs):
            return False
    except DatapathError:
        return True


def elsewhere(bpffs: Path) -> bool:
    """Whether the agent ran in another network namespace: its filters, rules and sysctls can't be reached from here."""
    return record.netns(bpffs) not in (None, current_cookie())


def strangers(bpffs: Path) -> list[Path]:
    """Other bpffs whose agents' rules, devices and tables in this network namespace would go with those of this one.

    Those of an agent that runs; and all, where no agent of this bpffs has been in this namespace.
    """
    at_home = record.netns(bpffs) == current_cookie()
    return [other for other in record.others(bpffs) if not at_home or runs(other)]


async def find(settings: DatapathSettings) -> list[Leftover]:
    """All of it, in the order in which it is to be taken out.

    Of the settings `bpffs`, `state_dir`, the cgroups and the rule's numbers count. Where the agent ran in another
    network namespace, cgroups, links and pins only. Raises KernelRefusedError.
    """
    bpffs = settings.bpffs
    if record.top(bpffs).exists() and not record.on_bpffs(record.top(bpffs)):
        raise DatapathError(f"bpffs: {record.top(bpffs)} is not on a bpffs: nothing of it is ours")
    roots = record.roots(bpffs)
    ended = of_selftests.over(settings.pods_cgroup, settings.proxy_cgroup)
    found = [Leftover("cgroup", str(path), path=path) for path in ended]
    found += [
        Leftover("link", str(pin), path=pin)
        for root in roots
        for pin in (*_files(root / "links"), *_files(root / sidecars.LINKS))
    ]
    hooks = [one for root in roots for one in tcx.pinned(root)]
    if elsewhere(bpffs):
        found += [Leftover("link", str(one.path), path=one.path) for one in hooks]
        return [*found, *(Leftover("pins", str(root), path=root) for root in roots)]
    async with AsyncIPRoute() as ipr:
        devices = {int(each["index"]): str(each.get_attr("IFLA_IFNAME")) async for each in await ipr.link("dump")}
        for one in hooks:
            of = devices.get(one.ifindex, f"interface {one.ifindex}, which is gone")
            found.append(Leftover("link", f"{one.path} ({one.program} at {of})", path=one.path))
        for index, device in devices.items():
            for parent, side in ((INGRESS, "ingress"), (EGRESS, "egress")):
                # One that an agent was moving to the front is there twice.
                for name in dict.fromkeys(each.name for each in filters(index, parent) if is_ours(each)):
                    found.append(Leftover("filter", f"{name} at {side} of {device}", index, parent))
        made = [index for index in record.clsacts(bpffs) if index in devices]
        found += [Leftover("clsact", f"of {devices[index]}", index) for index in made]
        known = dict.fromkeys((*record.rules(bpffs), *record.rules_of(settings)))
        there = await node.rules(ipr)
        found += [Leftover("rule", str(rule), rule=rule) for rule in known if rule in there]
        if steering.SENDING in devices.values():
            found.append(Leftover("device", f"{steering.SENDING}, {steering.RECEIVING}"))
    found += [Leftover("netfilter", str(rule)) for rule in await netfilter.find()]
    if await netfilter.has_table():
        found.append(Leftover("netfilter", _TABLE))
    found += [Leftover("sysctl", text) for text in node.changed_sysctls(settings.state_dir)]
    found += [Leftover("pins", str(root), path=root) for root in roots]
    return found


async def take_out(found: list[Leftover], settings: DatapathSettings) -> list[Leftover]:
    """Remove what `find` found, and the record of it; returns what is gone. Again does nothing.

    A clsact that others have filters in stays. Raises KernelRefusedError; then the rest is still there.
    """
    gone = []
    reached = not elsewhere(settings.bpffs)
    async with AsyncIPRoute() as ipr:
        steps: dict[str, Callable[[Leftover], Awaitable[bool]]] = {
            "cgroup": _remove_cgroup,
            "link": _detach_link,
            "filter": lambda one: _remove_filter(ipr, one),
            "clsact": lambda one: _remove_clsact(ipr, one, settings.bpffs),
            "rule": lambda one: _remove_rule(ipr, one, settings.bpffs),
            "device": lambda _: steering.remove(ipr),
            "netfilter": _remove_netfilter,
            "pins": _remove_pins,
        }
        for one in found:
            if one.kind != "sysctl" and await steps[one.kind](one):
                gone.append(one)
    if reached:
        node.restore_sysctls(settings.state_dir)
        record.clear(settings.bpffs)
    gone += [one for one in found if one.kind == "sysctl"]
    return gone


async def _remove_cgroup(one: Leftover) -> bool:
    """Of a self-test that was killed together with its agent. One that the kernel still holds on to stays."""
    assert one.path is not None
    try:
        await asyncio.to_thread(of_selftests.remove, one.path)
    except OSError:
        return False
    return True


async def _detach_link(one: Leftover) -> bool:
    assert one.path is not None
    tcx.take_off(one.path)  # it takes any link
    return True


async def _remove_filter(ipr: AsyncIPRoute, one: Leftover) -> bool:
    await detach_tc(ipr, one.ifindex, one.parent)
    return True


async def _remove_clsact(ipr: AsyncIPRoute, one: Leftover, bpffs: Path) -> bool:
    """Only an empty one: with it go all filters that are in it."""
    if filters(one.ifindex, INGRESS) or filters(one.ifindex, EGRESS):
        return False
    try:
        await ipr.tc("del", "clsact", index=one.ifindex)
    except NetlinkError as error:
        if error.code not in GONE:
            raise KernelRefusedError(f"remove clsact {one.what}", error.code) from error
    record.drop_clsact(bpffs, one.ifindex)
    return True


async def _remove_rule(ipr: AsyncIPRoute, one: Leftover, bpffs: Path) -> bool:
    assert one.rule is not None
    await node.remove_rule(ipr, one.rule)
    record.drop_rule(bpffs, one.rule)
    return True


async def _remove_netfilter(one: Leftover) -> bool:
    if one.what == _TABLE:
        return await netfilter.remove_table()
    rules = [rule for rule in await netfilter.find() if str(rule) == one.what]
    return all([await netfilter.remove(rule) for rule in rules]) and bool(rules)


async def _remove_pins(one: Leftover) -> bool:
    assert one.path is not None
    try:
        shutil.rmtree(one.path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelRefusedError(f"remove {one.path}", error.errno or 0) from error
    return True


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
