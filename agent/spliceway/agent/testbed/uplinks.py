"""What stands between a node's addresses and the fabric: a bond of two interfaces, or a bridge with one port."""

from __future__ import annotations

import errno
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import (
    BOND,
    UPLINK,
    UPLINK_BRIDGE,
    add_address,
    index_of,
    kernel_needs,
    mac_address,
    netlink,
    opened,
    up,
)
from spliceway.agent.testbed.plan import UNDERLAY_PREFIXES, NodePlan
from spliceway.agent.testbed.wiring import join_fabric

#: The second member of a bond.
SECOND_MEMBER = "eth1"
_ACTIVE_BACKUP = 1


def create_bond(path: Path, plan: NodePlan, fabric: Path) -> None:
    """Make eth0 and a second interface the members of an active-backup bond, which gets the node's addresses."""
    port = f"b{plan.number}"

    def setup() -> None:
        with netlink(f"bond of {plan.name}") as ip:
            with opened(fabric) as fd:
                peer = {"ifname": port, "net_ns_fd": fd}
                ip.link("add", ifname=SECOND_MEMBER, kind="veth", address=mac_address(f"b {plan.name}"), peer=peer)
            try:
                ip.link("add", ifname=BOND, kind="bond", bond_mode=_ACTIVE_BACKUP, bond_miimon=50)
            except NetlinkError as error:
                if error.code != errno.EOPNOTSUPP:
                    raise
                raise TestbedError(f"{BOND}: {kernel_needs('bond')}") from error
            _give_up_addresses(ip)
            for name in (UPLINK, SECOND_MEMBER):
                index = index_of(ip, name)
                ip.link("set", index=index, state="down")
                ip.link("set", index=index, master=index_of(ip, BOND))
                ip.link("set", index=index, state="up")
            _take_addresses(ip, BOND, plan)

    netns.call(path, setup)
    join_fabric(fabric, port)


def create_bridge(path: Path, plan: NodePlan) -> None:
    """Make eth0 a port of a bridge, which gets the node's addresses, as on hosts of virtual machines."""

    def setup() -> None:
        with netlink(f"bridge of {plan.name}") as ip:
            mac = mac_address(f"node {plan.name}")
            ip.link("add", ifname=UPLINK_BRIDGE, kind="bridge", address=mac, br_mcast_snooping=0)
            _give_up_addresses(ip)
            ip.link("set", index=index_of(ip, UPLINK), master=index_of(ip, UPLINK_BRIDGE))
            _take_addresses(ip, UPLINK_BRIDGE, plan)

    netns.call(path, setup)


def _give_up_addresses(ip: IPRoute) -> None:
    ip.flush_addr(index=index_of(ip, UPLINK))


def _take_addresses(ip: IPRoute, name: str, plan: NodePlan) -> None:
    index = up(ip, name)
    for address, prefix in zip(plan.addresses, UNDERLAY_PREFIXES, strict=True):
        add_address(ip, index, address, prefix.prefixlen)
