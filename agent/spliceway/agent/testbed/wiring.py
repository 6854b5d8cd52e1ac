"""Links, addresses and routes of a virtual node of the profile `l3`, by netlink. Others: `podlinks`, `overlay`.

The pod's side is what Calico and Cilium give a pod: a /32 (and /128) on eth0, a default route by way of a link-scope
next hop that no interface has, and permanent neighbours in both directions, so that no ARP is needed.
MAC addresses are derived from names: both ends are known before the link is there, which saves a round trip.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import (
    NUD_PERMANENT,
    SCOPE_LINK,
    UPLINK,
    add_address,
    digest,
    family_of,
    index_of,
    link_scope,
    mac_address,
    netlink,
    opened,
    quiet_ipv6,
    up,
    uplink_of,
)
from spliceway.agent.testbed.plan import CLUSTER_PREFIXES, UNDERLAY_PREFIXES, IPAddress, IPNetwork, NodePlan, PodPlan

BRIDGE = "fabric"
#: Next hops that pods send to, as in Calico (169.254.1.1) and Cilium.
GATEWAYS: dict[int, IPAddress] = {4: ip_address("169.254.1.1"), 6: ip_address("fe80::1")}


def create_fabric(path: Path) -> None:
    """Make the namespace with the bridge that joins the nodes' uplinks and the hosts outside."""

    def setup() -> None:
        quiet_ipv6()
        with netlink(f"fabric {path.name}") as ip:
            up(ip, "lo")
            # Without snooping the bridge floods multicast, so that neighbour discovery works from the first packet.
            ip.link("add", ifname=BRIDGE, kind="bridge", br_mcast_snooping=0)
            up(ip, BRIDGE)

    netns.create(path, setup)


def create_node(path: Path, plan: NodePlan, fabric: Path) -> None:
    """Make a node's namespace, its uplink into the fabric, and the routes every node has."""

    def setup() -> None:
        quiet_ipv6()
        netns.sysctl("ipv4/ip_forward", 1)
        netns.sysctl("ipv6/conf/all/forwarding", 1)
        with netlink(f"node {plan.name}") as ip:
            up(ip, "lo")
            for prefix in CLUSTER_PREFIXES:
                ip.route("add", dst=str(prefix), type="blackhole", family=family_of(prefix))
            mac = mac_address(f"node {plan.name}")
            with opened(fabric) as fd:
                ip.link(
                    "add", ifname=UPLINK, kind="veth", address=mac, peer={"ifname": f"n{plan.number}", "net_ns_fd": fd}
                )
            index = up(ip, UPLINK)
            for address, prefix in zip(plan.addresses, UNDERLAY_PREFIXES, strict=True):
                add_address(ip, index, address, prefix.prefixlen)

    netns.create(path, setup)
    join_fabric(fabric, f"n{plan.number}")


def route_to_nodes(path: Path, others: list[NodePlan]) -> None:
    """Give a node or an outside host the routes to the pods of `others`, by way of their uplinks."""

    def setup() -> None:
        with netlink(path.name) as ip:
            index = uplink_of(ip)
            for other in others:
                for prefix, gateway in zip(other.prefixes, other.addresses, strict=True):
                    ip.route("add", dst=str(prefix), gateway=str(gateway), oif=index, family=family_of(prefix))

    netns.call(path, setup)


def route_to_host(path: Path, host: PodPlan) -> None:
    """Give a node the way to an outside host that is not in the underlay's prefix: it is on the fabric nevertheless."""
    missing = [host_prefix(address) for address in host.addresses if not _in_underlay(address)]
    if not missing:
        return

    def setup() -> None:
        with netlink(path.name) as ip:
            index = uplink_of(ip)
            for prefix in missing:
                ip.route("replace", dst=str(prefix), oif=index, family=family_of(prefix), **link_scope(prefix))

    netns.call(path, setup)


def create_host(path: Path, plan: PodPlan, fabric: Path) -> None:
    """Make a host outside the cluster: /24 and /64 of its own, the underlay reached directly."""
    port = "h" + digest(plan.key)[:8]

    def setup() -> None:
        quiet_ipv6()
        with netlink(f"host {plan.key}") as ip:
            up(ip, "lo")
            with opened(fabric) as fd:
                ip.link("add", ifname=UPLINK, kind="veth", peer={"ifname": port, "net_ns_fd": fd})
            index = up(ip, UPLINK)
            for address in plan.addresses:
                add_address(ip, index, address, host_prefix(address).prefixlen)
            for version in {address.version for address in plan.addresses}:
                prefix = UNDERLAY_PREFIXES[0 if version == 4 else 1]
                ip.route("add", dst=str(prefix), oif=index, family=family_of(prefix), **link_scope(prefix))

    netns.create(path, setup)
    join_fabric(fabric, port)


def create_pod(path: Path, plan: PodPlan, node: Path, interface: str) -> None:
    """Make a pod's namespace with its veth into the node, `interface`, and the node's routes to it."""
    mac, peer_mac = mac_address(f"pod {plan.key}"), mac_address(f"lxc {plan.key}")
    versions = sorted({address.version for address in plan.addresses})

    def pod_side() -> None:
        quiet_ipv6()
        with netlink(f"pod {plan.key}") as ip:
            up(ip, "lo")
            with opened(node) as fd:
                peer = {"ifname": interface, "address": peer_mac, "net_ns_fd": fd}
                ip.link("add", ifname="eth0", kind="veth", address=mac, peer=peer)
            index = up(ip, "eth0")
            for address in plan.addresses:
                add_address(ip, index, address, address.max_prefixlen)
            for version in versions:
                gateway = GATEWAYS[version]
                family = family_of(gateway)
                ip.neigh("add", dst=str(gateway), lladdr=peer_mac, ifindex=index, state=NUD_PERMANENT, family=family)
                if version == 4:
                    ip.route("add", dst=f"{gateway}/32", oif=index, scope=SCOPE_LINK, family=family)
                ip.route("add", dst="default", gateway=str(gateway), oif=index, family=family)

    def node_side() -> None:
        with netlink(f"pod {plan.key}") as ip:
            index = up(ip, interface)
            for address in plan.addresses:
                family = family_of(address)
                ip.neigh("add", dst=str(address), lladdr=mac, ifindex=index, state=NUD_PERMANENT, family=family)
                target = f"{address}/{address.max_prefixlen}"
                ip.route("add", dst=target, oif=index, family=family, **link_scope(address))

    netns.create(path, pod_side)
    netns.call(node, node_side)


def delete_pod(interface: str, node: Path) -> None:
    """Delete a pod's veth, as a CNI plugin does; left to the end of its namespace it would go some time later."""

    def setup() -> None:
        with netlink(interface) as ip:
            ip.link("del", index=index_of(ip, interface))

    netns.call(node, setup)


def host_prefix(address: IPAddress) -> IPNetwork:
    """The subnet of a host outside: /24 or /64."""
    return ip_network(f"{address}/{24 if address.version == 4 else 64}", strict=False)


def join_fabric(fabric: Path, port: str) -> None:
    """Make an interface of the fabric's namespace a port of its bridge."""

    def setup() -> None:
        with netlink(fabric.name) as ip:
            ip.link("set", index=index_of(ip, port), master=index_of(ip, BRIDGE), state="up")

    netns.call(fabric, setup)


def _in_underlay(address: IPAddress) -> bool:
    return any(address in prefix for prefix in UNDERLAY_PREFIXES)
