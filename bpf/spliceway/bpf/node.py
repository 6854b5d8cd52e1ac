"""What the datapath needs of the node besides programs: the policy route that delivers steered packets, and sysctls.

The devices that the route leads to are in `steering`, the rules of netfilter in `netfilter`. It is set when the
datapath opens, checked by `problems()`, and taken back by `leftovers.take_out` with the values that were there before.
"""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf import record
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.record import PolicyRule
from spliceway.bpf.steering import RECEIVING
from spliceway.bpf.types import DatapathSettings

_SYS = Path("/proc/sys/net")

#: Proxies connect from clients' addresses with fresh ports: reuse those in TIME_WAIT. The port range stays as it is: a
#: port is taken for a pair of ends only, and a wider range would reach into NodePorts.
#: A packet that early demultiplexing gave a socket of the proxy's is not forwarded any more (ip_forward and ip6_forward
#: drop it): what is on its way to be steered behind netfilter's translation must not get one. It counts for IPv6, too.
_WANTED = {"ipv4/tcp_tw_reuse": "1", "ipv4/tcp_early_demux": "0"}
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


async def set_up(ipr: AsyncIPRoute, settings: DatapathSettings) -> None:
    """Add the rule and route for steered packets (IPv4 and IPv6) and set the sysctls, remembering what they were.

    Rules that an agent with other numbers made go.
    """
    wanted = record.rules_of(settings)
    for rule in wanted:
        await _add_rule(ipr, rule)
        record.add_rule(settings.bpffs, rule)
    for rule in record.rules(settings.bpffs):
        if rule not in wanted:
            await remove_rule(ipr, rule, keep_route=any(one.table == rule.table for one in wanted))
            record.drop_rule(settings.bpffs, rule)
    before = {name: was for name, value in _WANTED.items() if (was := _read(name)) != value}
    known = _remembered(settings.state_dir)
    for name in known.keys() - _WANTED.keys():  # an earlier version needed it
        if (_SYS / name).exists():
            (_SYS / name).write_text(known[name])
    if before.keys() - known.keys():
        _memory(settings.state_dir).write_text(json.dumps({**before, **known}))
    for name in before:
        (_SYS / name).write_text(_WANTED[name])


def problems() -> list[str]:
    """Sentences about settings of the node that keep traffic from flowing."""
    return [f"net/{name} is 0: pods can't reach each other" for name in _FORWARDING if _read(name) == "0"]


async def mend(ipr: AsyncIPRoute, settings: DatapathSettings) -> bool:
    """Put back the rules and routes for steered packets. Returns whether a rule was missing."""
    there, missing = await rules(ipr), False
    for rule in record.rules_of(settings):
        missing |= rule not in there
        await _add_rule(ipr, rule)
    return missing


async def rules(ipr: AsyncIPRoute) -> set[PolicyRule]:
    """Every rule of this network namespace that asks for a mark."""
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        async for each in await ipr.rule("dump", family=family):
            mark, mask = each.get_attr("FRA_FWMARK"), each.get_attr("FRA_FWMASK")
            if mark is not None:
                priority, table = each.get_attr("FRA_PRIORITY") or 0, each.get_attr("FRA_TABLE") or each["table"]
                found.add(PolicyRule(family, int(priority), int(table), int(mark), int(mask or 0xFFFF_FFFF)))
    return found


async def remove_rule(ipr: AsyncIPRoute, rule: PolicyRule, *, keep_route: bool = False) -> None:
    """Remove a rule of ours and the route in its table; what else is in that table is others'."""
    steps = [
        ipr.rule(
            "del", family=rule.family, priority=rule.priority, table=rule.table, fwmark=rule.mark, fwmask=rule.mask,
        )
    ]  # fmt: skip
    if not keep_route:
        steps.append(ipr.route("del", **_route(rule)))
    for step in steps:
        try:
            await step
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.ESRCH):
                raise KernelRefusedError(f"remove the policy route ({rule})", error.code) from error


def changed_sysctls(state_dir: Path) -> list[str]:
    """What an agent has set and not put back, «net/NAME: VALUE, was VALUE»."""
    return [
        f"net/{name}: {_read(name)}, was {was}"
        for name, was in _remembered(state_dir).items()
        if name in _WANTED and _read(name) != was
    ]


def restore_sysctls(state_dir: Path) -> None:
    """Put back what was there before."""
    for name, value in _remembered(state_dir).items():
        if name in _WANTED and (_SYS / name).exists():
            (_SYS / name).write_text(value)
    _memory(state_dir).unlink(missing_ok=True)


async def _add_rule(ipr: AsyncIPRoute, rule: PolicyRule) -> None:
    try:
        await ipr.rule(
            "add", family=rule.family, priority=rule.priority, table=rule.table, fwmark=rule.mark, fwmask=rule.mask,
        )  # fmt: skip
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise KernelRefusedError("add the policy rule for steered packets", error.code) from error
    # By the device that steered packets come in by, their sources pass a strict reverse path filter. IPv6 has none.
    (device,) = await ipr.link_lookup(ifname=RECEIVING if rule.family == socket.AF_INET else "lo")
    await ipr.route("replace", **_route(rule), oif=device)


def _route(rule: PolicyRule) -> dict[str, Any]:
    anywhere = "0.0.0.0/0" if rule.family == socket.AF_INET else "::/0"
    return {"family": rule.family, "dst": anywhere, "table": rule.table, "type": "local", "scope": 254}


def _read(name: str) -> str:
    path = _SYS / name
    return path.read_text().strip() if path.exists() else ""


def _memory(state_dir: Path) -> Path:
    return state_dir / "sysctls-before.json"


def _remembered(state_dir: Path) -> dict[str, str]:
    """Name below /proc/sys/net → value before; empty when nothing is remembered, or what is there is damaged."""
    try:
        found = json.loads(_memory(state_dir).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
