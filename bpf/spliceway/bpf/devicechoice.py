"""By which interfaces packets for pods come from outside, and so get `from_network`. Pure.

A packet should meet it once on its way up: at the device that hands it to IP, or before that, at a port of a bridge.
docs/devices.md has the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from spliceway.bpf.linktable import LOOPBACK, Device
from spliceway.bpf.steering import RECEIVING, SENDING

NETWORK, NETWORK_L3 = "from_network", "from_network_l3"
#: What goes with them at the same device's egress.
LEAVING = {NETWORK: "to_network", NETWORK_L3: "to_network_l3"}
#: Programs for packets from and to outside, whatever the device.
NETWORK_PROGRAMS = frozenset({*LEAVING, *LEAVING.values()})
Wanted = Literal["auto"] | tuple[str, ...]

ENDPOINTS_OWN = "an endpoint's own"

#: Nothing comes in by these, or only what another device has had.
_NEVER = {
    "dummy": "nothing comes in by a dummy device",
    "ifb": "it repeats what another device had",
    "nlmon": "no packets of the network",
    "vcan": "no packets of the network",
    "vrf": "its members have its packets",
    "openvswitch": "a port of Open vSwitch's own; its other ports have its packets",
}
#: Nothing leaves the node by these: they drop it, repeat it, or hand it to another device.
_SINKS = frozenset({"dummy", "ifb", "nlmon", "vcan", "vrf"})
#: One end is a pod's or a container's, unless the node is one itself.
_PAIRS = frozenset({"veth", "netkit"})
#: Ports of a bridge by which pods, containers and virtual machines are joined to it, not the network.
_GUESTS = _PAIRS | {"tun", "macvtap"}
_BUNDLES = frozenset({"bond", "team"})
#: Link types whose packets begin with their IP header: ARPHRD_PPP, RAWIP, TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE, NONE.
_BARE = frozenset({512, 519, 768, 769, 776, 778, 823, 0xFFFE})


class Choice(NamedTuple):
    """What becomes of a device: `program`, empty for none; then `why`, for people.

    `leaving` is the program at its egress, empty for none: pods' packets leave by it, whether any come by it or not.
    """

    device: Device
    program: str
    why: str = ""
    leaving: str = ""


def choose(
    devices: Sequence[Device], wanted: Wanted, endpoints: Collection[int], leads_out: Callable[[int], bool]
) -> list[Choice]:
    """Decide about all devices of the node.

    `endpoints`: indexes of those that are endpoints' own; `leads_out`: whether a route with a next hop goes out by an
    interface, asked for bridges and ports of Open vSwitch's own only.

    What leaves is judged whatever is configured, wherever no endpoint is: where a Service leads nobody has looked at
    before. That is at every device but members of bonds, bridges whose ports have it all, and what nothing leaves by.
    At a second device on the way a packet costs one look more.
    """
    by_index = {one.ifindex: one for one in devices}
    whys = {
        one.ifindex: _fixed(one, endpoints) or (_auto(one, by_index) if wanted == "auto" else _listed(one, wanted))
        for one in devices
    }
    unreadable = {one.ifindex: _unreadable(one) for one in devices}
    whys = {index: why or unreadable[index] for index, why in whys.items()}
    if wanted == "auto":
        covered = {one.master for one in devices if one.master and not whys[one.ifindex]}
        for one in devices:
            if _is_of_a_bridge(one, by_index) and not whys[one.ifindex]:
                whys[one.ifindex] = _bridge(one, covered, leads_out)
            elif (
                _is_a_strangers(one, endpoints, by_index) and not _fixed(one, endpoints) and not unreadable[one.ifindex]
            ):
                whys[one.ifindex] = ""
    return [
        Choice(
            one,
            "" if whys[one.ifindex] else program_of(one),
            whys[one.ifindex],
            LEAVING[program_of(one)] if _is_left_by(one, whys[one.ifindex], endpoints, by_index, leads_out) else "",
        )
        for one in devices
    ]


def program_of(device: Device) -> str:
    """The program that reads its packets."""
    return NETWORK if device.ethernet else NETWORK_L3


def _is_left_by(
    device: Device,
    why_not: str,
    endpoints: Collection[int],
    by_index: dict[int, Device],
    leads_out: Callable[[int], bool],
) -> bool:
    if _fixed(device, endpoints) or _unreadable(device) or device.kind in _SINKS:
        return False
    if _is_of_a_bridge(device, by_index) or device.kind == "openvswitch":
        return not why_not or leads_out(device.ifindex)
    return not why_not or _role(device, by_index) not in _BUNDLES


def _role(device: Device, by_index: dict[int, Device]) -> str:
    """The kind of what it is a member or port of, empty for none."""
    master = by_index.get(device.master)
    return device.role or (master.kind if master else "")


def _unreadable(device: Device) -> str:
    if device.ethernet or device.hardware in _BARE:
        return ""
    return f"its link type ({device.hardware:#x}) is none that can be read: what comes by it is judged at the pods only"


def unjudged(choices: Sequence[Choice]) -> list[str]:
    """Names of devices by which pods' packets leave for a network, and that no program can read."""
    return [one.device.name for one in choices if one.device.up and one.device.subnet and _unreadable(one.device)]


def missing(devices: Sequence[Device], wanted: Wanted) -> list[str]:
    """Names and patterns of the configuration that no device has."""
    if wanted == "auto":
        return []
    return [pattern for pattern in wanted if not any(fnmatchcase(one.name, pattern) for one in devices)]


def _fixed(device: Device, endpoints: Collection[int]) -> str:
    """Why it never gets one, whatever is configured."""
    if device.hardware == LOOPBACK:
        return "the loopback device"
    if device.name in (SENDING, RECEIVING):
        return "Spliceway's own"
    return ENDPOINTS_OWN if device.ifindex in endpoints else ""


def _listed(device: Device, patterns: tuple[str, ...]) -> str:
    return "" if any(fnmatchcase(device.name, pattern) for pattern in patterns) else "not in datapath.devices"


def _auto(device: Device, by_index: dict[int, Device]) -> str:
    if why := _NEVER.get(device.kind):
        return why
    master, role = by_index.get(device.master), _role(device, by_index)
    if role in _BUNDLES:
        return f"a member of {master.name if master else 'a bond'}, which has its packets"
    if role == "bridge" and device.kind in _GUESTS:
        return f"a port of {master.name if master else 'a bridge'} for pods, containers or machines"
    if device.kind in _PAIRS and not device.foreign:
        return "its other end is on this node"
    if device.kind in _PAIRS and not device.subnet:
        return "a pod's or container's: it has no address of a network"
    return ""


def _is_a_strangers(device: Device, endpoints: Collection[int], by_index: dict[int, Device]) -> bool:
    """Whether it joins somebody to a bridge of pods: nobody else would ask whether he speaks for one of them."""
    if device.kind not in _GUESTS or (device.kind in _PAIRS and not device.foreign):
        return False
    if _role(device, by_index) != "bridge":
        return False
    return any(by_index[index].master == device.master for index in endpoints if index in by_index)


def _is_of_a_bridge(device: Device, by_index: dict[int, Device]) -> bool:
    """Whether it is the node's own end of a bridge, or of a VLAN on one."""
    below = by_index.get(device.peer) if device.kind == "vlan" and not device.foreign else device
    return below is not None and below.kind == "bridge"


def _bridge(device: Device, covered: Collection[int], leads_out: Callable[[int], bool]) -> str:
    if device.ifindex in covered:
        return "its ports to the network have its packets"
    return "" if leads_out(device.ifindex) else "only pods, containers or machines are on it"
