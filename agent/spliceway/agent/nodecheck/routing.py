"""Routing: forwarding, reverse path filter, policy rules and the table for steered packets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.nodecheck import paths
from spliceway.agent.nodecheck.model import Check, Target, fail, info, ok, skipped, warn
from spliceway.agent.nodecheck.reading import Unreadable, names, sysctl
from spliceway.bpf.steering import RECEIVING, SENDING
from spliceway.bpf.types import DatapathSettings

#: What is no device there, and ours, which have to take what comes from anywhere.
_NO_DEVICES = ("all", "default", SENDING, RECEIVING)
_CONF = "net/ipv4/conf"
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
#: RTN_LOCAL
_LOCAL = 2


class Rule(msgspec.Struct, frozen=True):
    """A policy rule (`ip rule`). `mark` under `mask`; a mask of 0: it does not ask for marks."""

    family: int
    priority: int
    table: int
    mark: int
    mask: int

    def __str__(self) -> str:
        version = 4 if self.family == socket.AF_INET else 6
        marked = f" fwmark {self.mark:#x}/{self.mask:#x}" if self.mask else ""
        return f"IPv{version} rule {self.priority}:{marked} lookup {self.table}"


class Route(msgspec.Struct, frozen=True):
    """A route of the table that is ours. `local`: it delivers locally by the loopback device."""

    family: int
    destination: str
    local: bool

    @property
    def is_ours(self) -> bool:
        """Whether it is the one that an agent makes: everything, to this machine."""
        return self.local and self.destination == "default"


def forwarding(_target: Target) -> Iterator[Check]:
    """Packets between pods are forwarded."""
    for name in _FORWARDING:
        try:
            on = sysctl(name) != "0"
        except Unreadable as error:
            yield skipped("forwarding", str(error))
            continue
        if on:
            yield ok("forwarding", f"{name} is 1")
        else:
            yield fail(
                "forwarding", f"{name} is 0: pods can't reach each other", f"sysctl -w {name.replace('/', '.')}=1"
            )


def rp_filter(_target: Target) -> Iterator[Check]:
    """The reverse path filter, by interface. Steered packets pass a strict one, too (see `bpf.steering`)."""
    devices = names(Path("/proc/sys") / _CONF)
    yield judge_rp_filter({name: _filter(name) for name in devices}, paths.differing(paths.read()))


def judge_rp_filter(devices: dict[str, int], differing: Collection[str] = ()) -> Check:
    """From device → rp_filter; the kernel takes the greater of a device's and that of «all».

    `differing`: devices by which packets of one connection may come and go, and not by the same.
    """
    everywhere = devices.get("all", 0)
    strict = [name for name, own in devices.items() if name not in _NO_DEVICES and max(own, everywhere) == 1]
    if not strict:
        return ok("rp-filter", "nowhere strict")
    if hit := [name for name in strict if name in differing]:
        ways = " and ".join(sorted(differing))
        what = f"{_some(hit)}: rp_filter=1 (strict), and by rules for their addresses pods send by {ways}"
        todo = " ".join(f"net.ipv4.conf.{name}.rp_filter=2" for name in hit)
        return warn("rp-filter", f"{what}: what comes by the other one is dropped", f"sysctl -w {todo}")
    todo = "rp_filter=2 where routes are asymmetric (several uplinks); else nothing"
    return info("rp-filter", f"{_some(strict)}: rp_filter=1 (strict)", todo)


def rules(target: Target) -> Iterator[Check]:
    """Policy rules of others beside ours, and what is in our table."""
    try:
        found, routes = asyncio.run(read(target.settings.route_table))
    except OSError as error:
        raise Unreadable(f"rules can't be listed: {error}") from error
    yield from judge_rules(found, target.settings)
    yield judge_table(found, routes, target.settings)


def judge_rules(found: Iterable[Rule], settings: DatapathSettings) -> Iterator[Check]:
    """From all rules, IPv4 and IPv6."""
    clean = True
    for rule in found:
        if is_ours(rule, settings):
            continue
        asks = rule.mask & settings.mark_mask
        may_match = asks and rule.mark & asks == settings.mark & asks
        if may_match and rule.priority <= settings.rule_priority:
            clean = False
            todo = "give one of the two other bits (datapath.mark, markMask), or ours an earlier datapath.rulePriority"
            yield fail("rules", f"{rule} takes our steered packets first", todo)
        elif asks and not may_match:
            continue
        elif asks:
            clean = False
            todo = "set datapath.mark and markMask to bits that nobody uses: its packets would be delivered locally"
            yield fail("rules", f"{rule} asks for our mark, and comes after ours", todo)
        elif rule.priority == settings.rule_priority:
            clean = False
            todo = "set datapath.rulePriority to a free one, before all rules that route by a pod's address"
            yield warn("rules", f"{rule} has our priority", todo)
        elif 0 < rule.priority < settings.rule_priority and not rule.mask:
            clean = False
            todo = f"set datapath.rulePriority below {rule.priority}, unless that table has no route to pods"
            yield warn("rules", f"{rule} comes before ours", todo)
    if clean:
        yield ok(
            "rules", f"priority {settings.rule_priority} and mark {settings.mark:#x}/{settings.mark_mask:#x} are free"
        )


def judge_table(found: Iterable[Rule], routes: Iterable[Route], settings: DatapathSettings) -> Check:
    """Whether the table for steered packets is somebody else's."""
    table = settings.route_table
    users = [str(rule) for rule in found if rule.table == table and not is_ours(rule, settings)]
    others = [route.destination for route in routes if not route.is_ours]
    if users or others:
        what = "; ".join([*users, *(f"route to {each}" for each in others)])
        return fail("route-table", f"table {table} is in use: {what}", "set datapath.routeTable to a free one")
    return ok("route-table", f"table {table} is free, or ours")


def is_ours(rule: Rule, settings: DatapathSettings) -> bool:
    """Whether an agent with these settings made it."""
    wanted = (settings.rule_priority, settings.route_table, settings.mark, settings.mark_mask)
    return (rule.priority, rule.table, rule.mark, rule.mask) == wanted


async def read(table: int) -> tuple[list[Rule], list[Route]]:
    """Rules of this network namespace, and the routes of one table. Raises OSError."""
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    found, routes = [], []
    try:
        async with AsyncIPRoute() as ipr:
            for family in (socket.AF_INET, socket.AF_INET6):
                found += [_rule(family, each) async for each in await ipr.rule("dump", family=family)]
                dump = await ipr.route("dump", family=family, table=table)
                # A kernel without strict checking gives all tables.
                routes += [_route(family, each) async for each in dump if _table(each) == table]
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    return found, routes


def _rule(family: int, message: Any) -> Rule:
    mark, mask = message.get_attr("FRA_FWMARK"), message.get_attr("FRA_FWMASK")
    return Rule(
        family,
        int(message.get_attr("FRA_PRIORITY") or 0),
        _table(message, "FRA_TABLE"),
        int(mark or 0),
        0 if mark is None else int(mask if mask is not None else 0xFFFF_FFFF),
    )


def _route(family: int, message: Any) -> Route:
    destination = message.get_attr("RTA_DST")
    where = f"{destination}/{message['dst_len']}" if destination else "default"
    return Route(family, where, message["type"] == _LOCAL)


def _table(message: Any, attribute: str = "RTA_TABLE") -> int:
    found = message.get_attr(attribute)
    return int(found if found is not None else message["table"])


def _filter(device: str) -> int:
    try:
        return int(sysctl(f"{_CONF}/{device}/rp_filter"))
    except Unreadable:  # the device has gone
        return 0


def _some(devices: list[str]) -> str:
    shown = ", ".join(devices[:5])
    return shown if len(devices) <= 5 else f"{shown} and {len(devices) - 5} more"
