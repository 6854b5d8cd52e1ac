"""Which interfaces get `from_network`, what is read of rtnetlink, and how it is told."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from spliceway.agent.cli.summary import _devices, _uncovered
from spliceway.agent.nodecheck.devices import judge
from spliceway.agent.nodecheck.model import Status
from spliceway.bpf import linktable
from spliceway.bpf.devicechoice import choose, missing, unjudged
from spliceway.bpf.linktable import LOOPBACK, Device, parse_gateway, parse_link, parse_subnet
from spliceway.bpf.podinterfaces import leads_elsewhere

NONE, TUNNEL, GRE = 0xFFFE, 768, 778

LO = Device(1, "lo", hardware=LOOPBACK)
ETH0 = Device(2, "eth0", subnet=True)
#: Name → what a node may have beside these two, and what becomes of each of them.
NODES: dict[str, list[tuple[Device, str]]] = {
    "hardware": [(ETH0, "from_network"), (Device(3, "ens5", up=False), "from_network")],
    "flannel": [
        (ETH0, "from_network"),
        (Device(3, "flannel.1", "vxlan", subnet=True), "from_network"),
        (Device(4, "cni0", "bridge", subnet=True), ""),
        (Device(5, "veth1", "veth", master=4, role="bridge", foreign=True), ""),
    ],
    "calico": [
        (ETH0, "from_network"),
        (Device(3, "tunl0", "ipip", TUNNEL, subnet=True), "from_network_l3"),
        (Device(4, "vxlan.calico", "vxlan"), "from_network"),
        (Device(5, "wireguard.cali", "wireguard", NONE), "from_network_l3"),
        (Device(6, "cali1", "veth", foreign=True), ""),
    ],
    "tunnels": [
        (Device(3, "gre1", "gre", GRE), "from_network_l3"),
        (Device(4, "gretap1", "gretap"), "from_network"),
        (Device(5, "sit1", "sit", 776), "from_network_l3"),
        (Device(6, "ip6tnl1", "ip6tnl", 769), "from_network_l3"),
        (Device(7, "genev_sys_6081", "geneve"), "from_network"),
        (Device(8, "tun0", "tun", NONE), "from_network_l3"),
        (Device(9, "tap0", "tun"), "from_network"),
    ],
    "service addresses": [
        (ETH0, "from_network"),
        (Device(3, "kube-ipvs0", "dummy", subnet=True), ""),
        (Device(4, "nodelocaldns", "dummy"), ""),
        (Device(5, "spliceway0", "veth", peer=6), ""),
        (Device(6, "spliceway1", "veth", peer=5), ""),
        (Device(7, "ifb0", "ifb"), ""),
    ],
    "bond with VLANs": [
        (Device(3, "bond0", "bond"), "from_network"),
        (Device(4, "ens1", master=3, role="bond"), ""),
        (Device(5, "ens2", master=3, role="bond"), ""),
        (Device(6, "bond0.12", "vlan", peer=3), "from_network"),
    ],
    "team": [(Device(3, "team0", "team"), "from_network"), (Device(4, "ens1", master=3, role="team"), "")],
    "vrf": [(Device(3, "red", "vrf"), ""), (Device(4, "ens1", master=3, role="vrf"), "from_network")],
    "bridged port": [
        (Device(3, "br0", "bridge", subnet=True), ""),
        (Device(4, "ens1", master=3, role="bridge"), "from_network"),
        (Device(5, "vnet0", "tun", master=3, role="bridge"), ""),
        (Device(6, "veth1", "veth", master=3, role="bridge", foreign=True), ""),
        (Device(7, "br0.5", "vlan", peer=3), ""),
    ],
    "bridged bond": [
        (Device(3, "br0", "bridge", subnet=True), ""),
        (Device(4, "bond0", "bond", master=3, role="bridge"), "from_network"),
        (Device(5, "ens1", master=4, role="bond"), ""),
    ],
    "bridge that leads out": [
        (Device(33, "br0", "bridge", subnet=True), "from_network"),
        (Device(4, "veth1", "veth", master=33, role="bridge", foreign=True), ""),
        (Device(34, "br0.5", "vlan", peer=33), "from_network"),
    ],
    "Open vSwitch": [
        (Device(3, "ovs-system", "openvswitch"), ""),
        (Device(4, "ens1", master=3, role="openvswitch"), "from_network"),
        (Device(5, "br-ex", "openvswitch", subnet=True), ""),
    ],
    "kind": [
        (Device(3, "eth0", "veth", foreign=True, subnet=True), "from_network"),
        (Device(4, "vethab", "veth", foreign=True), ""),
        (Device(5, "here", "veth", peer=6, subnet=True), ""),
        (Device(6, "there", "veth", peer=5, subnet=True), ""),
    ],
    "InfiniBand": [
        (Device(3, "ib0", hardware=32, subnet=True), ""),
        (Device(4, "ppp0", "ppp", 512), "from_network_l3"),
    ],
    "netkit": [(ETH0, "from_network"), (Device(3, "nk1", "netkit", foreign=True), "")],
}


def leads_out(ifindex: int) -> bool:
    return ifindex > 30


@pytest.mark.parametrize("name", NODES)
def test_which_devices_are_taken(name: str) -> None:
    given = [(LO, ""), *NODES[name]]
    found = choose([device for device, _ in given], "auto", (), leads_out)
    assert {one.device.name: one.program for one in found} == {device.name: program for device, program in given}
    assert all(bool(one.why) is not bool(one.program) for one in found)


def test_what_leaves_is_judged_wherever_no_endpoint_is() -> None:
    """A Service may lead to a container of the node that is no pod; of bonds and bridges one device is enough."""
    devices = [
        LO,
        ETH0,
        Device(3, "docker0", "bridge", subnet=True),
        Device(4, "veth1", "veth", master=3, role="bridge", foreign=True),
        Device(5, "vnet0", "tun", master=3, role="bridge"),
        Device(6, "veth2", "veth", foreign=True),
        Device(7, "lxc1", "veth", foreign=True),
        Device(8, "bond0", "bond"),
        Device(9, "ens1", master=8, role="bond"),
        Device(10, "kube-ipvs0", "dummy", subnet=True),
        Device(11, "spliceway0", "veth", peer=12),
        Device(12, "tun0", "tun", NONE),
        Device(40, "br0", "bridge", subnet=True),
        Device(41, "ib0", hardware=32, subnet=True),
    ]
    wanted = {"eth0": "to_network", "veth1": "to_network", "vnet0": "to_network", "veth2": "to_network"}
    wanted |= {"bond0": "to_network", "tun0": "to_network_l3", "br0": "to_network"}
    for configured in ("auto", ("eth0",)):
        found = choose(devices, configured, {7}, leads_out)  # type: ignore[arg-type]
        assert {one.device.name: one.leaving for one in found if one.leaving} == wanted
        assert unjudged(found) == ["ib0"]
    assert unjudged(choose([Device(3, "can0", hardware=280)], "auto", (), leads_out)) == []


def test_no_packet_of_a_stack_of_devices_is_judged_twice() -> None:
    """Of a bond, bridge or team and its members, either it or they; of a VLAN, the tag tells."""
    for given in NODES.values():
        taken = {device.ifindex for device, program in given if program}
        for device, _ in given:
            assert not {device.ifindex, device.master} <= taken or device.role == "vrf", device


def test_an_endpoints_own_device_is_never_taken() -> None:
    pod = Device(3, "veth1", "veth", foreign=True, subnet=True)
    for wanted in ("auto", ("veth1",), ("*",)):
        (found,) = choose([pod], wanted, {3}, leads_out)  # type: ignore[arg-type]
        assert (found.program, found.why) == ("", "an endpoint's own")


def test_names_with_wildcards() -> None:
    devices = [LO, ETH0, Device(3, "eth10"), Device(4, "wg0", "wireguard", NONE), Device(5, "spliceway0", "veth")]
    found = {one.device.name: one.program for one in choose(devices, ("eth?", "wg*", "nope"), (), leads_out)}
    assert found == {"lo": "", "eth0": "from_network", "eth10": "", "wg0": "from_network_l3", "spliceway0": ""}
    assert {one.program for one in choose(devices, (), (), leads_out)} == {""}
    assert {one.device.name for one in choose(devices, ("*",), (), leads_out) if not one.program} == {
        "lo",
        "spliceway0",
    }
    assert missing(devices, ("eth?", "wg*", "nope")) == ["nope"]
    assert missing(devices, "auto") == []


def test_what_a_pod_has_besides() -> None:
    """Its own device, and what it has made itself, lead nowhere else."""
    given = {
        Device(1, "lo", hardware=LOOPBACK): False,
        Device(2, "eth0", "veth", peer=9, foreign=True): False,
        Device(3, "net1", "macvlan", peer=4, foreign=True): True,
        Device(4, "net2", "veth", peer=9, foreign=True): True,
        Device(5, "net3"): True,
        Device(6, "tunl0", "ipip", TUNNEL): False,
        Device(7, "a", "veth", peer=8): False,
        Device(8, "eth0.5", "vlan", peer=2): False,
    }
    assert {device: leads_elsewhere(device, 2) for device in given} == given


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def test_what_rtnetlink_says() -> None:
    info = attribute(1, b"vxlan\0") + attribute(4, b"bridge\0")
    body = struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0) + attribute(3, b"flannel.1\0") + attribute(5, number(2))
    body += attribute(10, number(4)) + attribute(18 | 0x8000, info) + attribute(37, number(0))
    assert parse_link(body) == Device(7, "flannel.1", "vxlan", 1, 4, "bridge", True, 2, True, peer_netns=0)
    bare = struct.pack("=BxHiII", 0, NONE, 8, 0, 0) + attribute(3, b"tun0\0")
    assert parse_link(bare) == Device(8, "tun0", "", NONE, up=False)

    def subnet(family: int, length: int, scope: int) -> list[int]:
        return parse_subnet(struct.pack("=BBBBI", family, length, 0, scope, 5))

    assert (subnet(2, 24, 0), subnet(2, 32, 0), subnet(10, 64, 0), subnet(10, 128, 0)) == ([5], [], [5], [])
    assert (subnet(10, 64, 253), subnet(2, 16, 253)) == ([], [])  # link-local

    def route(*parts: bytes, kind: int = 1) -> bool:
        return parse_gateway(struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, kind, 0) + b"".join(parts), 5)

    here, gateway = attribute(4, number(5)), attribute(5, b"\x0a\0\0\1")
    assert route(here, gateway)
    assert route(here, attribute(18, b"\x0a\0" + bytes(16)))
    assert not route(here)
    assert not route(attribute(4, number(6)), gateway)
    assert not route(here, gateway, kind=2)


def test_this_machines_own_table_can_be_read() -> None:
    found = {one.name: one for one in linktable.devices()}
    assert (found["lo"].hardware, found["lo"].ifindex, found["lo"].subnet) == (LOOPBACK, 1, False)
    assert not linktable.leads_out(1)


def test_preflight_names_what_would_be_missed() -> None:
    devices = [LO, ETH0, Device(3, "wg0", "wireguard", NONE)]
    assert [(one.status, one.found) for one in judge(devices, "auto", leads_out)] == [
        (Status.OK, "eth0, wg0 (wireguard, no Ethernet header)")
    ]
    told = list(judge(devices, ("eth*", "bond0"), leads_out))
    assert [one.status for one in told] == [Status.OK, Status.WARN, Status.WARN]
    assert told[1].found == "no interface is called bond0"
    assert told[2].found.startswith("wg0 (wireguard, no Ethernet header) is not in datapath.devices: what comes by it")
    assert [one.status for one in judge([LO], "auto", leads_out)] == [Status.WARN]
    (own,) = judge(devices, ("eth*", "wg*"), leads_out, [3])
    assert own.found == "eth0"
    (own,) = judge(devices, ("eth*",), leads_out, [3])
    assert own.found == "eth0"


def test_rows_of_status() -> None:
    def device(name: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "kind": "", "program": "", "attached": False, "why": "", **fields}

    there = device("eth0", program="from_network", attached=True)
    assert _devices([there, device("lo")]) == "eth0"
    failed = device("wg0", kind="wireguard", program="from_network_l3", why="no")
    vxlan = device("flannel.1", kind="vxlan", program="from_network", attached=True)
    assert _devices([there, vxlan, failed]) == "eth0, flannel.1 (vxlan); without our program: wg0"
    assert _devices([device("lo")]) == "none: what comes from outside is judged at the pods only"
    assert _uncovered(["a/b: net1 (macvlan)"]).endswith("which no policy covers: a/b: net1 (macvlan)")
    assert _uncovered([f"a/{n}: net1" for n in range(5)]).endswith("; and of 2 more pods")


def test_who_joins_a_bridge_of_pods_is_looked_at() -> None:
    """What is not the bridge's uplink, but what has come to it beside the pods; not where both ends are the node's."""
    devices = [
        ETH0,
        Device(3, "cni0", "bridge", subnet=True),
        Device(4, "docker0", "bridge", subnet=True),
        Device(5, "pod", "veth", master=3, role="bridge", foreign=True),
        Device(6, "container", "veth", master=3, role="bridge", foreign=True),
        Device(7, "machine", "tun", master=3, role="bridge"),
        Device(8, "patch", "veth", master=3, role="bridge"),
        Device(9, "other", "veth", master=4, role="bridge", foreign=True),
    ]
    found = {one.device.name: one.program for one in choose(devices, "auto", {5}, leads_out)}
    assert {name for name, program in found.items() if program} == {"eth0", "container", "machine"}
    assert not any(one.program for one in choose(devices, "auto", (), leads_out) if one.device.master)
    out = {one.device.name: one.program for one in choose(devices, "auto", {5}, lambda index: index == 3)}
    assert out["cni0"], "its way out goes on being looked at"
