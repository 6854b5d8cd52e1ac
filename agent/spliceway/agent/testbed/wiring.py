"""Links, addresses and routes of a virtual node, by netlink.

The pod's side is what Calico and Cilium give a pod: a /32 (and /128) on eth0, a default route by way of a link-scope
next hop that no interface has, and permanent neighbours in both directions, so that no ARP is needed.
MAC addresses are derived from names: both ends are known before the link is there, which saves a round trip.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.plan import CLUSTER_PREFIXES, UNDERLAY_PREFIXES, IPAddress, IPNetwork, NodePlan, PodPlan

UPLINK = "eth0"
BRIDGE = "fabric"
#: Next hops that pods send to, as in Calico (169.254.1.1) and Cilium.
GATEWAYS: dict[int, IPAddress] = {4: ip_address("169.254.1.1"), 6: ip_address("fe80::1")}

_SCOPE_LINK = 253  # RT_SCOPE_LINK, linux/rtnetlink.h
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_NUD_PERMANENT = 0x80  # linux/neighbour.h


def interface_name(pod: PodPlan) -> str:
    """Name of the host side of a pod's veth: `lxc` and 8 hex digits."""
    return "lxc" + _digest(pod.key)[:8]


def create_fabric(path: Path) -> None:
    """Make the namespace with the bridge that joins the nodes' uplinks and the hosts outside."""

    def setup() -> None:
        _quiet_ipv6()
        with _netlink(f"fabric {path.name}") as ip:
            _up(ip, "lo")
            # Without snooping the bridge floods multicast, so that neighbour discovery works from the first packet.
            ip.link("add", ifname=BRIDGE, kind="bridge", br_mcast_snooping=0)
            _up(ip, BRIDGE)

    netns.create(path, setup)


def create_node(path: Path, plan: NodePlan, fabric: Path) -> None:
    """Make a node's namespace, its uplink into the fabric, and the routes every node has."""

    def setup() -> None:
        _quiet_ipv6()
        netns.sysctl("ipv4/ip_forward", 1)
        netns.sysctl("ipv6/conf/all/forwarding", 1)
        with _netlink(f"node {plan.name}") as ip:
            _up(ip, "lo")
            for prefix in CLUSTER_PREFIXES:
                ip.route("add", dst=str(prefix), type="blackhole", family=_family(prefix))
            mac = mac_address(f"node {plan.name}")
            with _open(fabric) as fd:
                ip.link(
                    "add", ifname=UPLINK, kind="veth", address=mac, peer={"ifname": f"n{plan.number}", "net_ns_fd": fd}
                )
            index = _up(ip, UPLINK)
            for address, prefix in zip(plan.addresses, UNDERLAY_PREFIXES, strict=True):
                _add_address(ip, index, address, prefix.prefixlen)

    netns.create(path, setup)
    _join_bridge(fabric, f"n{plan.number}")


def route_to_nodes(path: Path, others: list[NodePlan]) -> None:
    """Give a node or an outside host the routes to the pods of `others`, by way of their uplinks."""

    def setup() -> None:
        with _netlink(path.name) as ip:
            index = _index(ip, UPLINK)
            for other in others:
                for prefix, gateway in zip(other.prefixes, other.addresses, strict=True):
                    ip.route("add", dst=str(prefix), gateway=str(gateway), oif=index, family=_family(prefix))

    netns.call(path, setup)


def route_to_host(path: Path, host: PodPlan) -> None:
    """Give a node the way to an outside host that is not in the underlay's prefix: it is on the fabric nevertheless."""
    missing = [host_prefix(address) for address in host.addresses if not _in_underlay(address)]
    if not missing:
        return

    def setup() -> None:
        with _netlink(path.name) as ip:
            index = _index(ip, UPLINK)
            for prefix in missing:
                ip.route("replace", dst=str(prefix), oif=index, family=_family(prefix), **_link_scope(prefix))

    netns.call(path, setup)


def create_host(path: Path, plan: PodPlan, fabric: Path) -> None:
    """Make a host outside the cluster: /24 and /64 of its own, the underlay reached directly."""
    port = "h" + _digest(plan.key)[:8]

    def setup() -> None:
        _quiet_ipv6()
        with _netlink(f"host {plan.key}") as ip:
            _up(ip, "lo")
            with _open(fabric) as fd:
                ip.link("add", ifname=UPLINK, kind="veth", peer={"ifname": port, "net_ns_fd": fd})
            index = _up(ip, UPLINK)
            for address in plan.addresses:
                _add_address(ip, index, address, host_prefix(address).prefixlen)
            for version in {address.version for address in plan.addresses}:
                prefix = UNDERLAY_PREFIXES[0 if version == 4 else 1]
                ip.route("add", dst=str(prefix), oif=index, family=_family(prefix), **_link_scope(prefix))

    netns.create(path, setup)
    _join_bridge(fabric, port)


def create_pod(path: Path, plan: PodPlan, node: Path) -> str:
    """Make a pod's namespace with its veth into the node and the node's routes to it. Returns the node's end."""
    interface = interface_name(plan)
    mac, peer_mac = mac_address(f"pod {plan.key}"), mac_address(f"lxc {plan.key}")
    versions = sorted({address.version for address in plan.addresses})

    def pod_side() -> None:
        _quiet_ipv6()
        with _netlink(f"pod {plan.key}") as ip:
            _up(ip, "lo")
            with _open(node) as fd:
                peer = {"ifname": interface, "address": peer_mac, "net_ns_fd": fd}
                ip.link("add", ifname="eth0", kind="veth", address=mac, peer=peer)
            index = _up(ip, "eth0")
            for address in plan.addresses:
                _add_address(ip, index, address, address.max_prefixlen)
            for version in versions:
                gateway = GATEWAYS[version]
                family = _family(gateway)
                ip.neigh("add", dst=str(gateway), lladdr=peer_mac, ifindex=index, state=_NUD_PERMANENT, family=family)
                if version == 4:
                    ip.route("add", dst=f"{gateway}/32", oif=index, scope=_SCOPE_LINK, family=family)
                ip.route("add", dst="default", gateway=str(gateway), oif=index, family=family)

    def node_side() -> None:
        with _netlink(f"pod {plan.key}") as ip:
            index = _up(ip, interface)
            for address in plan.addresses:
                family = _family(address)
                ip.neigh("add", dst=str(address), lladdr=mac, ifindex=index, state=_NUD_PERMANENT, family=family)
                target = f"{address}/{address.max_prefixlen}"
                ip.route("add", dst=target, oif=index, family=family, **_link_scope(address))

    netns.create(path, pod_side)
    netns.call(node, node_side)
    return interface


def delete_pod(interface: str, node: Path) -> None:
    """Delete a pod's veth, as a CNI plugin does; left to the end of its namespace it would go some time later."""

    def setup() -> None:
        with _netlink(interface) as ip:
            ip.link("del", index=_index(ip, interface))

    netns.call(node, setup)


def host_prefix(address: IPAddress) -> IPNetwork:
    """The subnet of a host outside: /24 or /64."""
    return ip_network(f"{address}/{24 if address.version == 4 else 64}", strict=False)


def mac_address(name: str) -> str:
    """A locally administered unicast address derived from a name."""
    return "02:" + ":".join(_digest(name)[at : at + 2] for at in range(0, 10, 2))


def _quiet_ipv6() -> None:
    """No duplicate address detection: an address is usable at once. `default` is for interfaces still to come."""
    for scope in ("all", "default"):
        netns.sysctl(f"ipv6/conf/{scope}/accept_dad", 0)


def _join_bridge(fabric: Path, port: str) -> None:
    def setup() -> None:
        with _netlink(fabric.name) as ip:
            ip.link("set", index=_index(ip, port), master=_index(ip, BRIDGE), state="up")

    netns.call(fabric, setup)


def _add_address(ip: IPRoute, index: int, address: IPAddress, length: int) -> None:
    flags: dict[str, int] = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
    ip.addr("add", index=index, address=str(address), prefixlen=length, **flags)


def _link_scope(target: IPAddress | IPNetwork) -> dict[str, int]:
    return {"scope": _SCOPE_LINK} if target.version == 4 else {}  # IPv6 routes have no scope


def _up(ip: IPRoute, name: str) -> int:
    index = _index(ip, name)
    ip.link("set", index=index, state="up")
    return index


def _index(ip: IPRoute, name: str) -> int:
    if name == "lo":
        return 1
    return int(ip.link("get", ifname=name)[0]["index"])


def _in_underlay(address: IPAddress) -> bool:
    return any(address in prefix for prefix in UNDERLAY_PREFIXES)


def _family(target: IPAddress | IPNetwork) -> int:
    return 2 if target.version == 4 else 10  # AF_INET, AF_INET6


def _digest(name: str) -> str:
    return hashlib.blake2s(name.encode(), digest_size=8).hexdigest()


@contextmanager
def _open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _netlink(what: str) -> Iterator[IPRoute]:
    """Netlink socket in the calling thread's namespace; its errors name what was being built."""
    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            raise TestbedError(f"{what}: the kernel refused a link, address or route: {error}") from error
