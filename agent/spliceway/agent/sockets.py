"""Which ports are listened on in the node's network namespace, as the kernel says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from ipaddress import IPv4Address, IPv6Address

from spliceway.bpf import diag

_LOOPBACK = {IPv4Address("127.0.0.1"), IPv6Address("::1")}


async def listening_ports() -> frozenset[int]:
    """Ports with a TCP listener on both loopback addresses: one question for all of them, however many there are."""
    found: defaultdict[int, set[IPv4Address | IPv6Address]] = defaultdict(set)
    for address, port in await asyncio.to_thread(diag.listeners):
        found[port].add(address)
    return frozenset(port for port, addresses in found.items() if addresses >= _LOOPBACK)
