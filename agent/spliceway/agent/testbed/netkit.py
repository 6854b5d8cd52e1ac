"""Pods joined by a netkit device (Linux 6.7) instead of a veth. The node has the primary end, as with Cilium.

In mode `l3` the devices resolve no neighbours. By raw netlink: iproute2 knows netkit from 6.7 on only. Source:
`linux/if_link.h`, `drivers/net/netkit.c`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import (
    NUD_PERMANENT,
    SCOPE_LINK,
    add_address,
    family_of,
    link_scope,
    mac_address,
    netlink,
    opened,
    quiet_ipv6,
    up,
)
from spliceway.agent.testbed.plan import PodPlan
from spliceway.agent.testbed.wiring import GATEWAYS

_NEWLINK, _FLAGS = 16, 0x605  # NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
_IFNAME, _ADDRESS, _LINKINFO, _NET_NS_FD, _INFO_KIND, _INFO_DATA = 3, 1, 18, 28, 1, 2
_PEER_INFO, _MODE = 1, 5
_MODES = {"netkit": 0, "netkit-l3": 1}  # NETKIT_L2, NETKIT_L3
_IFINFO = struct.pack("=BxHiII", 0, 0, 0, 0, 0)


def create_pod(path: Path, plan: PodPlan, node: Path, interface: str, mode: str) -> None:
    """Make a pod's namespace with its netkit device in the node, `interface`, and the node's routes to it."""
    mac, peer_mac = mac_address(f"pod {plan.key}"), mac_address(f"lxc {plan.key}")
    resolves = mode == "netkit"

    def pod_side() -> None:
        with netlink(f"pod {plan.key}") as ip:
            up(ip, "lo")
            index = up(ip, "eth0")
            for address in plan.addresses:
                add_address(ip, index, address, address.max_prefixlen)
            for version in sorted({address.version for address in plan.addresses}):
                gateway = GATEWAYS[version]
                family = family_of(gateway)
                if not resolves:
                    ip.route("add", dst="default", oif=index, family=family)
                    continue
                ip.neigh("add", dst=str(gateway), lladdr=peer_mac, ifindex=index, state=NUD_PERMANENT, family=family)
                if version == 4:
                    ip.route("add", dst=f"{gateway}/32", oif=index, scope=SCOPE_LINK, family=family)
                ip.route("add", dst="default", gateway=str(gateway), oif=index, family=family)

    def node_side() -> None:
        with opened(path) as fd:
            _add(interface, mode, fd, (peer_mac, mac) if resolves else ("", ""))
        with netlink(f"pod {plan.key}") as ip:
            index = up(ip, interface)
            for address in plan.addresses:
                family = family_of(address)
                if resolves:
                    ip.neigh("add", dst=str(address), lladdr=mac, ifindex=index, state=NUD_PERMANENT, family=family)
                target = f"{address}/{address.max_prefixlen}"
                ip.route("add", dst=target, oif=index, family=family, **link_scope(address))

    netns.create(path, quiet_ipv6)
    netns.call(node, node_side)
    netns.call(path, pod_side)


def _add(name: str, mode: str, peer_netns: int, macs: tuple[str, str]) -> None:
    """Make the pair: `name` here, and eth0 in the other namespace. Raises TestbedError."""
    peer = _IFINFO + _attribute(_IFNAME, b"eth0\0") + _attribute(_NET_NS_FD, struct.pack("=I", peer_netns))
    own = _IFINFO + _attribute(_IFNAME, name.encode() + b"\0")
    if macs[0]:
        own += _attribute(_ADDRESS, bytes.fromhex(macs[0].replace(":", "")))
        peer += _attribute(_ADDRESS, bytes.fromhex(macs[1].replace(":", "")))
    data = _attribute(_PEER_INFO, peer) + _attribute(_MODE, struct.pack("=I", _MODES[mode]))
    own += _attribute(_LINKINFO, _attribute(_INFO_KIND, b"netkit\0") + _attribute(_INFO_DATA, data))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as request:
        request.send(struct.pack("=IHHII", 16 + len(own), _NEWLINK, _FLAGS, 1, 0) + own)
        answer = request.recv(1 << 14)
    number = -int(struct.unpack_from("=i", answer, 16)[0])
    if number:
        hint = "; the kernel needs CONFIG_NETKIT (Linux 6.7)" if number == errno.EOPNOTSUPP else ""
        raise TestbedError(f"{name}: can't make a netkit device: {os.strerror(number)}{hint}")


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
