"""The ways between this node's pods and others: which may differ there and back, and what the network must let pass."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.nodecheck.model import Check, Target, info, ok, warn
from spliceway.agent.nodecheck.reading import Unreadable, text
from spliceway.bpf.steering import RECEIVING, SENDING

#: RT_TABLE_MAIN, RT_TABLE_LOCAL; RTN_UNICAST
_MAIN, _LOCAL, _UNICAST = 254, 255, 1
#: Kinds of devices that wrap packets into the nodes' own: the network sees no pod's address.
_TUNNELS = frozenset({"vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "ip6gre", "gretap", "wireguard", "tun"})
#: What firmware calls itself on clouds that look at packets' source and destination addresses → what to do there.
_CLOUDS = (
    ("Amazon EC2", "turn the source/destination check of the nodes' network interfaces off"),
    ("Google", "create the nodes with --can-ip-forward, or give pods alias addresses"),
    ("Microsoft Corporation", "enable IP forwarding on the nodes' network interfaces"),
    ("OpenStack", "add the pods' prefixes to allowed-address-pairs of the nodes' ports"),
)
_DMI = Path("/sys/class/dmi/id")
_SHOWN = 3


class Hop(msgspec.Struct, frozen=True):
    """A route that leads off the node: `destination` is a prefix, «default» for all; `gateway` may be empty."""

    family: int
    table: int
    destination: str
    device: str
    gateway: str

    def __str__(self) -> str:
        return f"{self.destination} by {self.gateway} ({self.device})"


class Ways(msgspec.Struct, frozen=True):
    """All of them. `by_source`: tables that rules choose by the source's address; `tunnels`: names of devices."""

    hops: tuple[Hop, ...] = ()
    by_source: frozenset[tuple[int, int]] = frozenset()
    tunnels: frozenset[str] = frozenset()


def differing(ways: Ways) -> frozenset[str]:
    """Devices by which packets of one connection may come and go, and not by the same: IPv4, as the filter is. Pure.

    That is so where a rule sends what comes from some addresses by another table (AWS does it for the pods of further
    interfaces), and that leads out by another device than the main table, by which others' packets are believed.
    """
    v4 = [hop for hop in ways.hops if hop.family == socket.AF_INET and hop.device not in ways.tunnels]
    main = {hop.device for hop in v4 if hop.table == _MAIN and hop.gateway}
    found: set[str] = set()
    for family, table in ways.by_source:
        own = {hop.device for hop in v4 if hop.table == table}
        if family == socket.AF_INET and table not in (_MAIN, _LOCAL) and own - main:
            found |= own | main
    return frozenset(found)


def pod_routes(_target: Target) -> Iterator[Check]:
    """Routes by other machines, without a tunnel: what goes there has pods' addresses, and the network sees them."""
    yield judge_pod_routes(read(), _firmware())


def judge_pod_routes(ways: Ways, firmware: str = "") -> Check:
    """From all routes, and what the machine's firmware calls itself."""
    found = [
        hop
        for hop in ways.hops
        if hop.table == _MAIN and hop.gateway and hop.destination != "default" and hop.device not in ways.tunnels
    ]
    if not found:
        return ok("pod-routes", "none but by tunnels, or the default route")
    shown = ", ".join(map(str, found[:_SHOWN])) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    for cloud, todo in _CLOUDS:
        if cloud in firmware:
            return warn("pod-routes", f"{shown}: no tunnel, on {cloud}", f"if pods of other nodes are there, {todo}")
    todo = "if pods of other nodes are there, the network must let pass packets with pods' addresses; else use a tunnel"
    return info("pod-routes", f"{shown}: no tunnel", todo)


def read() -> Ways:
    """Look at routes, rules and devices of this network namespace. Raises Unreadable."""
    try:
        return asyncio.run(_read())
    except OSError as error:
        raise Unreadable(f"routes can't be listed: {error}") from error


async def _read() -> Ways:
    from pyroute2 import AsyncIPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    hops: list[Hop] = []
    by_source = set()
    try:
        async with AsyncIPRoute() as ipr:
            devices = {int(each["index"]): each async for each in await ipr.link("dump")}
            names = {index: str(each.get_attr("IFLA_IFNAME")) for index, each in devices.items()}
            for family in (socket.AF_INET, socket.AF_INET6):
                async for each in await ipr.route("dump", family=family):
                    hops += _hops(family, each, names)
                async for each in await ipr.rule("dump", family=family):
                    if each["src_len"]:
                        by_source.add((family, int(each.get_attr("FRA_TABLE") or each["table"])))
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    tunnels = frozenset(names[index] for index, each in devices.items() if _kind(each) in _TUNNELS)
    return Ways(tuple(hops), frozenset(by_source), tunnels)


def _hops(family: int, message: Any, names: dict[int, str]) -> Iterator[Hop]:
    if message["type"] != _UNICAST:
        return
    table = int(message.get_attr("RTA_TABLE") or message["table"])
    target = message.get_attr("RTA_DST")
    destination = str(ip_network(f"{target}/{message['dst_len']}", strict=False)) if target else "default"
    parts: Collection[Any] = message.get_attr("RTA_MULTIPATH") or [message]
    for part in parts:
        index = part.get_attr("RTA_OIF") if part is message else part["oif"]
        device = names.get(int(index or 0), "")
        if device not in ("", "lo", SENDING, RECEIVING):
            yield Hop(family, table, destination, device, str(part.get_attr("RTA_GATEWAY") or ""))


def _kind(link: Any) -> str:
    found = link.get_attr("IFLA_LINKINFO")
    return str(found.get_attr("IFLA_INFO_KIND") or "") if found else ""


def _firmware() -> str:
    found = []
    for name in ("sys_vendor", "product_name", "chassis_asset_tag"):
        try:
            found.append(text(_DMI / name).strip())
        except Unreadable:
            continue
    return " ".join(found)
