"""Which device of the node is the other end of a pod's interface, as the kernel tells. Blocking.

Names say nothing here: a runtime may call a device as it likes, and what prevResult calls the host's side is a bridge's
name as often as a veth's. Both ends of a veth name each other by index, and a link that leads into another namespace
names that by number: so both are looked at, and the number must be that of the pod's namespace.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from spliceway.agent.cni.netconf import BAD_ENVIRONMENT, NO_HOST_SIDE, CniError, IPAddress
from spliceway.bpf import linktable
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.linktable import Device
from spliceway.bpf.netns import call_in

#: The node's, where the agent is.
OWN = Path("/proc/thread-self/ns/net")


class Inside(NamedTuple):
    """What a namespace has: interfaces, and addresses by index."""

    devices: list[Device]
    addresses: list[tuple[int, IPAddress]]


class HostSide(msgspec.Struct, frozen=True):
    """The node's end: name and index, both empty where there is none, and the inode of the pod's namespace."""

    interface: str
    ifindex: int
    netns: int


def inode(netns: Path) -> int:
    """By which a namespace is known as long as it is there. Raises OSError."""
    return netns.stat().st_ino


def look(netns: Path, interface: str) -> HostSide:
    """The node's end of a pod's interface. Raises CniError when that is none that policy can be enforced at."""
    try:
        number = inode(netns)
        if number == inode(OWN):
            raise CniError(BAD_ENVIRONMENT, f"CNI_NETNS {netns} is the node's own network namespace")
        own = next((one for one in call_in(netns, linktable.devices) if one.name == interface), None)
        if own is None:
            raise CniError(BAD_ENVIRONMENT, f"there is no interface {interface} in {netns}")
        found = other_end(own, linktable.devices(), netns)
    except (OSError, DatapathError) as error:
        raise CniError(BAD_ENVIRONMENT, f"CNI_NETNS {netns} can't be looked into: {error}") from error
    if found is None:
        raise CniError(
            NO_HOST_SIDE,
            f"{interface} ({own.kind or 'hardware'}) has no other end on the node, so no policy can be enforced there",
            "pods need a veth or netkit pair, as bridge, ptp, Calico, Cilium and AWS make it",
        )
    return HostSide(found.name, found.ifindex, number)


def inside(netns: Path) -> Inside:
    """What there is in a namespace. Raises OSError or DatapathError."""
    return call_in(netns, lambda: Inside(linktable.devices(), linktable.own_addresses()))


def other_end(own: Device, devices: Iterable[Device], netns: Path) -> Device | None:
    """The node's end (among `devices`) of an interface in that namespace. Raises OSError."""
    if not own.foreign:
        return None
    found = next((one for one in devices if one.ifindex == own.peer and one.foreign), None)
    if found is None or found.peer != own.ifindex or found.kind not in ("veth", "netkit") or found.kind != own.kind:
        return None
    return found if found.peer_netns == linktable.number_of(netns) != -1 else None


def is_there(side: HostSide, netns: Path | None, indices: Collection[int]) -> bool:
    """Whether namespace and device are still those that were found; `indices`: of the node's devices.

    No index is used a second time, and a device goes with its other end; `netns` is asked only where it is given.
    """
    if side.ifindex and side.ifindex not in indices:
        return False
    try:
        return netns is None or inode(netns) == side.netns
    except OSError:
        return False


def boot_id() -> str:
    """Of this run of the machine: no namespace or index outlives it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
