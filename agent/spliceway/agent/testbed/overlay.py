"""Between nodes: flannel's VXLAN devices, and the second network interface of an AWS node.

Source: flannel `pkg/backend/vxlan` (a device for each family, no learning, permanent neighbours and FDB entries);
amazon-vpc-cni-k8s `docs/` (rules 512, 1024 and 1536, a table for each interface but the first).
"""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import (
    NUD_PERMANENT,
    UPLINK,
    add_address,
    command,
    family_of,
    index_of,
    mac_address,
    netlink,
    opened,
    up,
    uplink_of,
)
from spliceway.agent.testbed.plan import UNDERLAY_PREFIXES, NodePlan, PodPlan
from spliceway.agent.testbed.wiring import join_fabric

#: Device of each family.
VXLAN = {4: "flannel.1", 6: "flannel-v6.1"}
VXLAN_PORT = 8472
_VXLAN_ID = 1

SECOND_UPLINK = "eth1"
#: Table of the second interface, and AWS's priorities and mark.
ENI_TABLE = 2
TO_POD, CONNMARK, FROM_POD = 512, 1024, 1536
AWS_MARK = 0x80
#: A filter that looks at every IPv4 packet and decides nothing.
_ANYTHING = ("protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")


def create_vxlan(path: Path, plan: NodePlan) -> None:
    """Make a node's ends of the overlay."""

    def setup() -> None:
        with netlink(f"overlay of {plan.name}") as ip:
            below = uplink_of(ip)
            for address, prefix in zip(plan.addresses, plan.prefixes, strict=True):
                local = {"vxlan_local" if address.version == 4 else "vxlan_local6": str(address)}
                ip.link(
                    "add", ifname=VXLAN[address.version], kind="vxlan", address=_vtep(plan, address.version),
                    vxlan_id=_VXLAN_ID, vxlan_link=below, vxlan_port=VXLAN_PORT, vxlan_learning=0, **local,
                )  # fmt: skip
                index = up(ip, VXLAN[address.version])
                add_address(ip, index, prefix.network_address, address.max_prefixlen)

    netns.call(path, setup)


def route_over_vxlan(path: Path, others: list[NodePlan]) -> None:
    """Give a node the routes to the pods of `others` through the overlay."""

    def setup() -> None:
        with netlink(path.name) as ip:
            for other in others:
                _route_over(ip, other)

    netns.call(path, setup)


def _route_over(ip: IPRoute, other: NodePlan) -> None:
    for address, prefix in zip(other.addresses, other.prefixes, strict=True):
        device, mac, family = VXLAN[address.version], _vtep(other, address.version), family_of(address)
        index, gateway = index_of(ip, device), str(prefix.network_address)
        ip.neigh("add", dst=gateway, lladdr=mac, ifindex=index, state=NUD_PERMANENT, family=family)
        command("bridge", "fdb", "append", mac, "dev", device, "dst", str(address))
        ip.route("add", dst=str(prefix), gateway=gateway, oif=index, family=family, flags=4)  # RTNH_F_ONLINK


def _vtep(plan: NodePlan, version: int) -> str:
    return mac_address(f"vtep {plan.name} {version}")


def second_address(plan: NodePlan) -> IPv4Address:
    """Address of a node's second interface: 10.10.0.(201+N), N from 1 (so 53 nodes have one)."""
    return IPv4Address("10.10.0.201") + plan.number


def create_second_uplink(path: Path, plan: NodePlan, fabric: Path) -> None:
    """Make an AWS node's second interface, its table, the connmark rule, and a TC filter of somebody else on eth0."""
    port = f"e{plan.number}"

    def setup() -> None:
        with netlink(f"second interface of {plan.name}") as ip:
            with opened(fabric) as fd:
                peer = {"ifname": port, "net_ns_fd": fd}
                mac = mac_address(f"eth1 {plan.name}")
                ip.link("add", ifname=SECOND_UPLINK, kind="veth", address=mac, peer=peer)
            index = up(ip, SECOND_UPLINK)
            # In the nodes' network, but without its route in the main table, as the plugin has it.
            command("ip", "address", "add", f"{second_address(plan)}/16", "dev", SECOND_UPLINK, "noprefixroute")
            for name in (UPLINK, SECOND_UPLINK):  # as the plugin sets it: answers may take the other one
                netns.sysctl(f"ipv4/conf/{name}/rp_filter", 2)
                netns.sysctl(f"ipv4/conf/{name}/arp_ignore", 1)
            on_link = str(UNDERLAY_PREFIXES[0])
            ip.route("add", dst=on_link, oif=index, table=ENI_TABLE, family=2, scope=253)
            ip.rule("add", family=2, priority=CONNMARK, table=254, fwmark=AWS_MARK, fwmask=AWS_MARK)
        command("tc", "qdisc", "add", "dev", UPLINK, "clsact")
        command("tc", "filter", "add", "dev", UPLINK, "ingress", "prio", "49152", *_ANYTHING)

    netns.call(path, setup)
    join_fabric(fabric, port)


def route_second_uplink(path: Path, others: list[NodePlan]) -> None:
    """Let pods of the second interface reach the pods of other nodes: in a VPC their addresses are the network's."""

    def setup() -> None:
        with netlink(path.name) as ip:
            index = index_of(ip, SECOND_UPLINK)
            for other in others:
                target, gateway = str(other.prefixes[0]), str(other.addresses[0])
                ip.route("add", dst=target, gateway=gateway, oif=index, table=ENI_TABLE, family=2)

    netns.call(path, setup)


def add_pod_rules(path: Path, plan: PodPlan, *, second: bool) -> None:
    """The policy rules of an AWS pod: to it by table main, and from it by its interface's table if that is another."""

    def setup() -> None:
        with netlink(f"pod {plan.key}") as ip:
            for address in plan.addresses:
                if address.version == 4:  # the plugin's IPv6 mode has one interface and no rules
                    ip.rule("add", family=2, priority=TO_POD, table=254, dst=str(address), dst_len=32)
                    if second:
                        ip.rule("add", family=2, priority=FROM_POD, table=ENI_TABLE, src=str(address), src_len=32)

    netns.call(path, setup)


def remove_pod_rules(path: Path, plan: PodPlan, *, second: bool) -> None:
    """Take them out again."""

    def setup() -> None:
        with netlink(f"pod {plan.key}") as ip:
            for address in plan.addresses:
                if address.version == 4:
                    ip.rule("del", family=2, priority=TO_POD, table=254, dst=str(address), dst_len=32)
                    if second:
                        ip.rule("del", family=2, priority=FROM_POD, table=ENI_TABLE, src=str(address), src_len=32)

    netns.call(path, setup)
