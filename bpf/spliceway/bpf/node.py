"""What the datapath needs of the node besides programs: the policy route that delivers steered packets, and sysctls.

It is set when the datapath opens, checked by `problems()`, and taken back by `remove()` with the values that were
there before.
"""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.types import DatapathSettings

_SYS = Path("/proc/sys/net")

#: Proxies connect from clients' addresses with fresh ports: reuse those in TIME_WAIT. The port range stays as it is: a
#: port is taken for a pair of ends only, and a wider range would reach into NodePorts.
#: Answers of the node's own servers to the proxy's connections in pods' names come in by the loopback device, from the
#: node's addresses.
_WANTED = {"ipv4/tcp_tw_reuse": "1", "ipv4/conf/lo/accept_local": "1"}
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


async def set_up(ipr: AsyncIPRoute, settings: DatapathSettings) -> None:
    """Add the rule and route for steered packets (IPv4 and IPv6) and set the sysctls, remembering what they were."""
    loopback = (await ipr.link_lookup(ifname="lo"))[0]
    for family, anywhere in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
        try:
            await ipr.rule(
                "add", family=family, priority=settings.rule_priority, table=settings.route_table,
                fwmark=settings.mark, fwmask=settings.mark_mask,
            )  # fmt: skip
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise KernelRefusedError("add the policy rule for steered packets", error.code) from error
        await ipr.route(
            "replace", family=family, dst=anywhere, oif=loopback, table=settings.route_table, type="local", scope=254,
        )  # fmt: skip
    before = {name: was for name, value in _WANTED.items() if (was := _read(name)) != value}
    memory = _memory(settings)
    known = json.loads(memory.read_text()) if memory.exists() else {}
    if before.keys() - known.keys():
        memory.write_text(json.dumps({**before, **known}))
    for name in before:
        (_SYS / name).write_text(_WANTED[name])


def problems(settings: DatapathSettings) -> list[str]:
    """Sentences about settings of the node that keep traffic from flowing."""
    found = [f"net/{name} is 0: pods can't reach each other" for name in _FORWARDING if _read(name) == "0"]
    strict = _read("ipv4/conf/all/rp_filter") == "1"
    if strict and _read("ipv4/conf/all/src_valid_mark") == "1":
        found.append(
            "net/ipv4/conf/all: rp_filter=1 with src_valid_mark=1 drops every steered packet; set src_valid_mark=0"
        )
    return found


async def tear_down(ipr: AsyncIPRoute, settings: DatapathSettings) -> None:
    """Remove rule and route, and put the sysctls back."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for step in (
            ipr.rule("del", family=family, priority=settings.rule_priority, table=settings.route_table),
            ipr.flush_routes(family=family, table=settings.route_table),
        ):
            try:
                await step
            except NetlinkError as error:
                if error.code not in (errno.ENOENT, errno.ESRCH):
                    raise KernelRefusedError("remove the policy route", error.code) from error
    memory = _memory(settings)
    if memory.exists():
        for name, value in json.loads(memory.read_text()).items():
            if name in _WANTED:
                (_SYS / name).write_text(value)
        memory.unlink()


def _read(name: str) -> str:
    path = _SYS / name
    return path.read_text().strip() if path.exists() else ""


def _memory(settings: DatapathSettings) -> Path:
    return settings.state_dir / "sysctls-before.json"
