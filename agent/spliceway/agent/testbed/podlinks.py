"""How pods of the profiles bridge, vxlan and calico-like are joined to their node. ARP and NDP find neighbours.

Sources: containernetworking/plugins `bridge` (isGateway, hairpinMode) with flannel's `kube-flannel.yml`; Calico's
`cali*` veths (proxy_arp, 169.254.1.1, ee:ee:ee:ee:ee:ee), docs.tigera.io, «Frequently asked questions».
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import (
    SCOPE_LINK,
    add_address,
    command,
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
from spliceway.agent.testbed.plan import IPAddress, NodePlan, PodPlan

CNI_BRIDGE = "cni0"
#: The node's end of every Calico veth has this address, and so the same link-local one.
CALICO_MAC = "ee:ee:ee:ee:ee:ee"
_CALICO_GATEWAYS: dict[int, IPAddress] = {4: ip_address("169.254.1.1"), 6: ip_address("fe80::ecee:eeff:feee:eeee")}


def bridge_addresses(node: NodePlan) -> tuple[IPAddress, ...]:
    """The node's addresses on its bridge, its pods' gateways: 10.240.N.1 and fd00:240:N::1."""
    return tuple(prefix[1] for prefix in node.prefixes)


def create_bridge(path: Path, plan: NodePlan, *, br_netfilter: bool) -> None:
    """Make the bridge of a node with the node's addresses in its pods' prefixes."""

    def setup() -> None:
        with netlink(f"bridge of {plan.name}") as ip:
            # An address of its own: else the bridge takes that of its first port, and gives it up with that.
            ip.link("add", ifname=CNI_BRIDGE, kind="bridge", address=mac_address(f"{CNI_BRIDGE} {plan.name}"))
            index = up(ip, CNI_BRIDGE)
            for address, prefix in zip(bridge_addresses(plan), plan.prefixes, strict=True):
                add_address(ip, index, address, prefix.prefixlen)
        # These belong to a network namespace since Linux 5.3, and begin as 1.
        for tool in ("ip", "ip6"):
            netns.sysctl(f"bridge/bridge-nf-call-{tool}tables", int(br_netfilter))

    netns.call(path, setup)


def create_bridged_pod(path: Path, plan: PodPlan, node: NodePlan, node_netns: Path, interface: str) -> None:
    """Make a pod's namespace, and the node's end of its veth a port of the bridge, in hairpin mode."""

    def pod_side() -> None:
        _veth(plan, node_netns, interface, mac_address(f"veth {plan.key}"))
        with netlink(f"pod {plan.key}") as ip:
            index = up(ip, "eth0")
            for address in plan.addresses:
                add_address(ip, index, address, _prefix_of(node, address))
            for address in plan.addresses:
                gateway = next(one for one in bridge_addresses(node) if one.version == address.version)
                ip.route("add", dst="default", gateway=str(gateway), oif=index, family=family_of(gateway))

    def node_side() -> None:
        with netlink(f"pod {plan.key}") as ip:
            ip.link("set", index=index_of(ip, interface), master=index_of(ip, CNI_BRIDGE), state="up")
        command("bridge", "link", "set", "dev", interface, "hairpin", "on")

    def announce() -> None:
        """As the plugin does: the pod's addresses may have been another one's, whose station neighbours still know."""
        netns.sysctl("ipv4/conf/eth0/arp_notify", 1)
        netns.sysctl("ipv6/conf/eth0/ndisc_notify", 1)
        with netlink(f"pod {plan.key}") as ip:
            ip.link("set", index=index_of(ip, "eth0"), address=mac_address(f"pod {plan.key}"))

    netns.create(path, pod_side)
    netns.call(node_netns, node_side)
    netns.call(path, announce)


def answer_for_gateway(path: Path) -> None:
    """Proxy ARP answers for what the node has a route to, by another device: real nodes have a default route."""

    def setup() -> None:
        with netlink(path.name) as ip:
            target = f"{_CALICO_GATEWAYS[4]}/32"
            ip.route("add", dst=target, oif=uplink_of(ip), scope=SCOPE_LINK, family=2)

    netns.call(path, setup)


def create_calico_pod(path: Path, plan: PodPlan, node_netns: Path, interface: str) -> None:
    """Make a pod's namespace with a veth that answers for 169.254.1.1, and the node's routes to the pod."""

    def pod_side() -> None:
        _veth(plan, node_netns, interface, CALICO_MAC)

    def node_side() -> None:
        netns.sysctl(f"ipv4/conf/{interface}/proxy_arp", 1)
        netns.sysctl(f"ipv4/neigh/{interface}/proxy_delay", 0)
        netns.sysctl(f"ipv4/conf/{interface}/rp_filter", 1)
        netns.sysctl(f"ipv6/conf/{interface}/forwarding", 1)
        with netlink(f"pod {plan.key}") as ip:
            index = up(ip, interface)
            for address in plan.addresses:
                target = f"{address}/{address.max_prefixlen}"
                ip.route("add", dst=target, oif=index, family=family_of(address), **link_scope(address))

    def pod_routes() -> None:
        with netlink(f"pod {plan.key}") as ip:
            index = up(ip, "eth0")
            for address in plan.addresses:
                add_address(ip, index, address, address.max_prefixlen)
            for address in plan.addresses:
                gateway = _CALICO_GATEWAYS[address.version]
                family = family_of(gateway)
                if address.version == 4:
                    ip.route("add", dst=f"{gateway}/32", oif=index, scope=SCOPE_LINK, family=family)
                ip.route("add", dst="default", gateway=str(gateway), oif=index, family=family)

    netns.create(path, pod_side)
    netns.call(node_netns, node_side)
    netns.call(path, pod_routes)


def _veth(plan: PodPlan, node_netns: Path, interface: str, peer_mac: str) -> None:
    quiet_ipv6()
    with netlink(f"pod {plan.key}") as ip:
        up(ip, "lo")
        with opened(node_netns) as fd:
            peer = {"ifname": interface, "address": peer_mac, "net_ns_fd": fd}
            ip.link("add", ifname="eth0", kind="veth", address=mac_address(f"pod {plan.key}"), peer=peer)


def _prefix_of(node: NodePlan, address: IPAddress) -> int:
    return next(prefix.prefixlen for prefix in node.prefixes if address in prefix)
