"""The node's own addresses: all that its network namespace has, whatever its Node object names.

A bridge plugin gives the node its pods' gateway (`cni0`), an overlay another address (`flannel.1`), a second network
one more, and connections to and from the node use any of them. All of them, and its networks' broadcast addresses,
are `host`, except those that
mean something else: Services' (kube-proxy in IPVS mode, kube-router), the node-local DNS cache's (`nodelocaldns`),
loopback, link-local ones of IPv6 (the same one may be somebody else's on another link), and our own pair's.
With ambient pods of Istio's two more are, which no device has: istio-cni gives them to the kubelet's probes of these.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import NamedTuple

import msgspec
import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.agent.manifests import Key
from spliceway.bpf.netlinkevents import ADDRESS_GROUPS, ADDRESS_KINDS, NetlinkEvents
from spliceway.bpf.steering import RECEIVING, SENDING
from spliceway.policy.model import Node, Object

IPAddress = IPv4Address | IPv6Address

#: Devices that have Services' addresses: kube-proxy's in IPVS mode, kube-router's.
SERVICE_DEVICES = frozenset({"kube-ipvs0", "kube-dummy-if"})
#: The node-local DNS cache's device, and the address that it has unless something else is set.
DNS_DEVICE, DNS_ADDRESS = "nodelocaldns", IPv4Address("169.254.20.10")
#: What istio-cni masquerades probes of ambient pods with (HOST_PROBE_SNAT_IP, HOST_PROBE_SNAT_IPV6), by which their
#: rules know them. Who else comes with it from elsewhere than the node's own processes is no more the node than with
#: any other address of it.
PROBES = frozenset((ip_address("169.254.7.127"), ip_address("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")))
_OURS = frozenset({SENDING, RECEIVING})
#: Seconds to wait for more after the kernel told of a change; between two looks without one; after one that failed.
PAUSE, INTERVAL, RETRY = 0.1, 10.0, 1.0
#: Prefixes of IPv4 that have none.
_NO_BROADCAST = 31

log = structlog.get_logger(__name__)


class Held(NamedTuple):
    """An address and the device that has it."""

    address: IPAddress
    device: str


class Own(msgspec.Struct, frozen=True):
    """The node's addresses: those by which it is the host, and those of its node-local DNS cache."""

    host: frozenset[IPAddress] = frozenset()
    dns: frozenset[IPAddress] = frozenset()


async def own_addresses() -> Own:
    """Those of this network namespace. Raises OSError."""
    found = []
    try:
        async with AsyncIPRoute() as ipr:
            names = dict(socket.if_nameindex())
            async for each in await ipr.addr("dump"):
                device = names.get(each["index"], "")
                text = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
                if text:
                    found.append(Held(ip_address(text), device))
                # What is sent to a network's broadcast address, the processes of the node get (fib_add_ifaddr).
                if each["family"] == socket.AF_INET and each["prefixlen"] < _NO_BROADCAST and text:
                    network = ip_interface(f"{each.get_attr('IFA_ADDRESS') or text}/{each['prefixlen']}").network
                    found.append(Held(network.broadcast_address, device))
                if text := each.get_attr("IFA_BROADCAST"):
                    found.append(Held(ip_address(text), device))
    except NetlinkError as error:
        raise OSError(error.code, "the node's addresses can't be listed") from error
    return sort_out(found)


def sort_out(held: Iterable[Held]) -> Own:
    """What each of them means. Pure."""
    host, dns = set[IPAddress](), set[IPAddress]()
    for address, device in held:
        if address.is_loopback or device in _OURS or (address.version == 6 and address.is_link_local):
            continue
        if device == DNS_DEVICE or address == DNS_ADDRESS:
            dns.add(address)
        elif device not in SERVICE_DEVICES:
            host.add(address)
    return Own(frozenset(host - dns), frozenset(dns))


def with_own(node: Node, own: Own) -> Node:
    """The node with all that it has itself, in place of what is only told of it. Pure."""
    named = tuple(one for one in node.addresses if one not in own.dns)
    more = sorted(own.host.difference(named), key=lambda one: (one.version, one))
    return msgspec.structs.replace(node, addresses=(*named, *more), further=())


class OwnNode:
    """The node's own object as policy sees it: what the source says of it, and its addresses as they are now."""

    def __init__(self, name: str) -> None:
        self._key: Key = ("Node", name)
        self._said: Node | None = None
        self._given: Node | None = None
        self._failed = False
        self.own = Own()

    def __repr__(self) -> str:
        return f"OwnNode({self._key[1]}, host={len(self.own.host)}, dns={len(self.own.dns)})"

    async def look(self) -> bool:
        """Look at the addresses; whether they are others than before."""
        before = self.own
        try:
            self.own, self._failed = await own_addresses(), False
        except OSError as error:
            if not self._failed:
                log.warning("the node's addresses could not be listed", error=str(error))
            self._failed = True
        return self.own != before

    def complete(self, changes: dict[Key, Object | None], *, probes: bool = False) -> None:
        """Make what changes say of the node whole. A node without an object has its addresses all the same.

        `probes`: PROBES are the node's, too.
        """
        if self._key in changes:
            said = changes.pop(self._key)
            self._said = said if isinstance(said, Node) else None
        own = msgspec.structs.replace(self.own, host=self.own.host | PROBES) if probes else self.own
        whole = with_own(self._said or Node(self._key[1]), own)
        if whole != self._given:
            changes[self._key] = self._given = whole

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Tell when the addresses change, until cancelled."""
        with NetlinkEvents(ADDRESS_GROUPS, ADDRESS_KINDS) as events:
            while True:
                if await self.look():
                    dns = sorted(map(str, self.own.dns))
                    log.info("the node has other addresses", host=len(self.own.host), dns=dns)
                    on_change()
                await events.changed(RETRY if self._failed else INTERVAL, PAUSE)
