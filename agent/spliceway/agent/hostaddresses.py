"""The node's own addresses that its Node object does not name: those it has in its pods' prefixes.

A bridge plugin gives the node the gateway's address of its pods (`cni0`), an overlay another one (`flannel.1`), and the
node's own connections to its pods, the kubelet's for example, come from there. They are the host's as any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.policy.model import Node

IPAddress = IPv4Address | IPv6Address


async def own_addresses() -> frozenset[IPAddress]:
    """Every address of an interface in this network namespace. Raises OSError."""
    found = set()
    try:
        async with AsyncIPRoute() as ipr:
            async for each in await ipr.addr("dump"):
                text = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
                if text:
                    found.add(ip_address(text))
    except NetlinkError as error:
        raise OSError(error.code, "the node's addresses can't be listed") from error
    return frozenset(found)


def with_own(node: Node, own: Iterable[IPAddress]) -> Node:
    """The node with those of its own addresses that lie in its pods' prefixes. Pure."""
    more = sorted(
        (one for one in own if one not in node.addresses and any(one in prefix for prefix in node.pod_cidrs)),
        key=lambda one: (one.version, one),
    )
    return msgspec.structs.replace(node, addresses=(*node.addresses, *more)) if more else node
