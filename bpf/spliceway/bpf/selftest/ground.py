"""Where the self-test stands: a node's and a pod's network namespace with a veth between them, and a bpffs of its own.

All of it belongs to this process alone, in namespaces that have no name: it ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from spliceway.bpf.selftest import syscalls
from spliceway.bpf.types import IPAddress

INTERFACE = "pod"
#: By IP version: the pod, its next hop, and a host that isn't there: the proxy speaks for it. Of RFC 5737 and RFC 3849.
POD: dict[int, IPAddress] = {4: ip_address("192.0.2.2"), 6: ip_address("2001:db8:1::2")}
GATEWAY: dict[int, IPAddress] = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8:1::1")}
REMOTE: dict[int, IPAddress] = {4: ip_address("198.51.100.1"), 6: ip_address("2001:db8:2::1")}
_LENGTH = {4: 24, 6: 64}
_FAMILY = {4: 2, 6: 10}

_NODAD = 0x02  # IFA_F_NODAD, linux/if_addr.h
_PERMANENT = 0x80  # NUD_PERMANENT, linux/neighbour.h
_MAC = {"eth0": "02:00:00:00:00:02", INTERFACE: "02:00:00:00:00:01"}


class Ground(NamedTuple):
    """What was made. `pod` and `node` are open files of the network namespaces; this process is in the node's."""

    pod: int
    node: int
    bpffs: Path
    state: Path


def make(bpffs: Path) -> Ground:
    """Move this process, which must have one thread only, to a place of its own.

    Its file systems are mounted over the directory `bpffs`, for this process alone. Raises OSError.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    _keep_mounts_here()
    syscalls.mount("tmpfs", bpffs)
    own, state = bpffs / "bpf", bpffs / "state"
    own.mkdir()
    state.mkdir()
    syscalls.mount("bpf", own)
    try:
        pod = _namespace()
        node = _namespace()
        _wire(pod, node)
    except NetlinkError as error:
        raise OSError(error.code, f"the kernel refuses a veth, address or route: {error}") from error
    return Ground(pod, node, own, state)


def _keep_mounts_here() -> None:
    """Let nothing that is mounted from now on show elsewhere.

    Each mount by itself: in a chroot the root is no mount point, so that all below it can't be changed at once.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4])
        with contextlib.suppress(FileNotFoundError):  # another one lies over it
            syscalls.mount("", Path(path), syscalls.MS_PRIVATE)


def _namespace() -> int:
    """A new network namespace, which this thread is in from now on."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    for scope in ("all", "default"):
        _sysctl(f"ipv4/conf/{scope}/rp_filter", 0)  # inherited from the machine's
        _sysctl(f"ipv6/conf/{scope}/disable_ipv6", 0)
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _wire(pod: int, node: int) -> None:
    with IPRoute() as netlink:
        peer = {"ifname": "eth0", "address": _MAC["eth0"], "net_ns_fd": pod}
        netlink.link("add", ifname=INTERFACE, kind="veth", address=_MAC[INTERFACE], peer=peer)
        _configure(netlink, INTERFACE, GATEWAY, POD, "eth0")
    syscalls.setns(pod, syscalls.CLONE_NEWNET)
    try:
        with IPRoute() as netlink:
            index = _configure(netlink, "eth0", POD, GATEWAY, INTERFACE)
            for version, gateway in GATEWAY.items():
                netlink.route("add", dst="default", gateway=str(gateway), oif=index, family=_FAMILY[version])
    finally:
        syscalls.setns(node, syscalls.CLONE_NEWNET)


def _configure(
    netlink: IPRoute, name: str, own: dict[int, IPAddress], neighbour: dict[int, IPAddress], peer: str
) -> int:
    """Addresses of one end, and its neighbour, so that nothing has to be asked for. Returns the interface's index."""
    index = int(netlink.link("get", ifname=name)[0]["index"])
    netlink.link("set", index=index, state="up")
    for version, address in own.items():
        flags = {"flags": _NODAD} if version == 6 else {}
        netlink.addr("add", index=index, address=str(address), prefixlen=_LENGTH[version], **flags)
        netlink.neigh(
            "add",
            dst=str(neighbour[version]),
            lladdr=_MAC[peer],
            ifindex=index,
            state=_PERMANENT,
            family=_FAMILY[version],
        )
    return index


def _sysctl(name: str, value: int) -> None:
    Path("/proc/sys/net", name).write_text(str(value))
