"""What the modules that wire a testbed have in common: small steps by netlink, in the calling thread's namespace."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.plan import IPAddress, IPNetwork

UPLINK, BOND, UPLINK_BRIDGE = "eth0", "bond0", "br0"
SCOPE_LINK = 253  # RT_SCOPE_LINK, linux/rtnetlink.h
IFA_F_NODAD = 0x02  # linux/if_addr.h
NUD_PERMANENT = 0x80  # linux/neighbour.h


def mac_address(name: str) -> str:
    """A locally administered unicast address derived from a name."""
    return "02:" + ":".join(digest(name)[at : at + 2] for at in range(0, 10, 2))


def quiet_ipv6() -> None:
    """No duplicate address detection: an address is usable at once. `default` is for interfaces still to come."""
    for scope in ("all", "default"):
        netns.sysctl(f"ipv6/conf/{scope}/accept_dad", 0)


def add_address(ip: IPRoute, index: int, address: IPAddress, length: int) -> None:
    """Give an interface an address that can be used at once."""
    flags: dict[str, int] = {"flags": IFA_F_NODAD} if address.version == 6 else {}
    ip.addr("add", index=index, address=str(address), prefixlen=length, **flags)


def link_scope(target: IPAddress | IPNetwork) -> dict[str, int]:
    """The options of a route to what is on the link itself."""
    return {"scope": SCOPE_LINK} if target.version == 4 else {}  # IPv6 routes have no scope


def up(ip: IPRoute, name: str) -> int:
    """Set an interface up and return its index."""
    index = index_of(ip, name)
    ip.link("set", index=index, state="up")
    return index


def index_of(ip: IPRoute, name: str) -> int:
    """Index of an interface of this namespace."""
    if name == "lo":
        return 1
    return int(ip.link("get", ifname=name)[0]["index"])


def uplink_of(ip: IPRoute) -> int:
    """Index of the interface that has the node's addresses: a bond's or a bridge's where the node has such."""
    return next(int(found[0]) for name in (BOND, UPLINK_BRIDGE, UPLINK) if (found := ip.link_lookup(ifname=name)))


def family_of(target: IPAddress | IPNetwork) -> int:
    """AF_INET or AF_INET6."""
    return 2 if target.version == 4 else 10  # AF_INET, AF_INET6


def digest(name: str) -> str:
    """16 hex digits that stand for a name where space is short."""
    return hashlib.blake2s(name.encode(), digest_size=8).hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a namespace's file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


#: Kind of device → what the kernel needs for it.
_KINDS = {
    "bond": "CONFIG_BONDING",
    "bridge": "CONFIG_BRIDGE",
    "ipip": "CONFIG_NET_IPIP",
    "ip6tnl": "CONFIG_IPV6_TUNNEL",
    "gre": "CONFIG_NET_IPGRE",
    "vxlan": "CONFIG_VXLAN",
    "wireguard": "CONFIG_WIREGUARD (Linux 5.6)",
}


def kernel_needs(kind: str) -> str:
    """What to say of a kind of device that the kernel does not know."""
    return f"can't make a device of kind {kind}: the kernel needs {_KINDS[kind]}"


def add_device(name: str, kind: str, *options: str) -> None:
    """Make a device with iproute2. Raises TestbedError, with what the kernel needs where it has no such devices."""
    try:
        command("ip", "link", "add", name, "type", kind, *options)
    except TestbedError as error:
        # «Error: Unknown device type.», «RTNETLINK answers: Operation not supported»
        if any(words in str(error) for words in ("Unknown device type", "not supported")):
            raise TestbedError(f"{name}: {kernel_needs(kind)}") from error
        raise


@contextmanager
def netlink(what: str) -> Iterator[IPRoute]:
    """Netlink socket in the calling thread's namespace; its errors name what was being built."""
    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            raise TestbedError(f"{what}: the kernel refused a link, address or route: {error}") from error


def command(*argv: str, stdin: str = "") -> None:
    """Run a program of iproute2, iptables or nftables in the calling thread's namespace. Raises TestbedError."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TestbedError(f"{argv[0]}: can't be run: {error}; `make setup` installs it") from error
    if done.returncode:
        raise TestbedError(f"{' '.join(argv)}: {done.stderr.strip()}")
