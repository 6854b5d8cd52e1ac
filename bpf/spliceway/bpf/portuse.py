"""How many of the node's ports the proxy's connections to servers hold, those in TIME_WAIT included.

The proxy connects from clients' own addresses with ports of the node's `ip_local_port_range`. A port is taken for a
pair of ends, so what can run out is the range towards one server's port from one client's address. A port in TIME_WAIT
is free again after a second (`node.py` sets tcp_tw_reuse), and so it is only a storm between two that can use all.
"""

from __future__ import annotations

import socket
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import msgspec

from spliceway.bpf import diag

_TIME_WAIT, _LISTEN = 6, 10
#: `struct inet_diag_msg`: the state, and below it `struct inet_diag_sockid` (linux/inet_diag.h).
_STATE, _SPORT, _DPORT, _SRC, _DST = 1, slice(4, 6), slice(6, 8), slice(8, 24), slice(24, 40)
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortUse(msgspec.Struct, frozen=True):
    """`ports`: how many there are for one client and one server.

    `open` and `time_wait`: the proxy's connections to servers, and those that have ended but keep their ports;
    `most`: ports that one client holds towards one server, and `client` and `server` (with port) are those two.
    """

    ports: int = 0
    open: int = 0
    time_wait: int = 0
    most: int = 0
    client: str = ""
    server: str = ""


def port_use() -> PortUse:
    """Look at all sockets of this network namespace. Raises KernelRefusedError.

    The proxy's are those from addresses that are none of the node's, with a port of the range: whoever listens on such
    a port behind the proxy is taken for a client, too.
    """
    low, high = map(int, _RANGE.read_text().split())
    own = _own_addresses()
    pairs: Counter[tuple[int, bytes]] = Counter()
    waiting = 0
    for family, body in diag.dump():
        source = body[_SRC]
        if not low <= int.from_bytes(body[_SPORT], "big") <= high or (family, source) in own or not any(source):
            continue
        if body[_STATE] == _LISTEN:
            continue
        waiting += body[_STATE] == _TIME_WAIT
        pairs[family, body[_DPORT] + source + body[_DST]] += 1
    total = pairs.total()
    if not total:
        return PortUse(high - low + 1)
    ((family, ends), most) = pairs.most_common(1)[0]
    size = 4 if family == socket.AF_INET else 16
    client, server = (str(ip_address(ends[at : at + size])) for at in (2, 18))
    port = int.from_bytes(ends[:2], "big")
    where = f"[{server}]:{port}" if size == 16 else f"{server}:{port}"
    return PortUse(high - low + 1, total - waiting, waiting, most, client, where)


def _own_addresses() -> set[tuple[int, bytes]]:
    """The node's, by family, in 16 bytes as sock_diag has them."""
    found = set()
    directory = Path("/proc/thread-self/net")
    for line in (directory / "if_inet6").read_text().splitlines():
        found.add((int(socket.AF_INET6), bytes.fromhex(line.split()[0])))
    address = ""
    for line in (directory / "fib_trie").read_text().splitlines():
        words = line.split()
        if words[0] == "|--":
            address = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"]:
            found.add((int(socket.AF_INET), socket.inet_aton(address).ljust(16, b"\0")))
    return found
