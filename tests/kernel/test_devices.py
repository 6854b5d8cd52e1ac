"""`from_network` follows the node's interfaces: new ones, renamed, made anew, enslaved, gone; by TCX and as filters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.devicewatch import INTERVAL
from support.foreign import BOTH, KIND, Foreigner
from support.kernel import KernelNode
from support.linked import attached
from support.node import pod_manifest

pytestmark = pytest.mark.kernel

VXLAN = ("type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472")


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("client"), pod_manifest("server")]) as made:
        yield made


@pytest.fixture
def other(testbed: Testbed) -> Iterator[Foreigner]:
    with Foreigner(testbed.node.info.netns) as made:
        yield made


def ip(testbed: Testbed, *words: str) -> None:
    done = testbed.node.run_on_node(["ip", *words])
    assert done.returncode == 0, done.stderr


def soon(check: Callable[[], bool], seconds: float = INTERVAL / 2) -> None:
    """Wait for what the kernel tells of: not as long as until the next look."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", BOTH)
def test_devices_come_change_and_go(testbed: Testbed, other: Foreigner, how: str) -> None:
    kind = KIND[how]

    def has(device: str, *programs: str) -> Callable[[], bool]:
        return lambda: other.at(device, "ingress") == [f"{kind} {program}" for program in programs]

    with KernelNode(testbed.node, tcx=how) as node:
        assert attached(node) == {"eth0": "from_network"}
        node.run(node.datapath._devices.look())
        before = {one.name: one.why for one in node.datapath.status().devices}
        assert before["lo"] == "the loopback device"
        assert before["spliceway0"] == before["spliceway1"] == "Spliceway's own"
        assert testbed.pod("client").interface not in before

        ip(testbed, "link", "add", "flannel.1", *VXLAN)
        soon(has("flannel.1", "from_network"))
        first = other.index("flannel.1")
        ip(testbed, "link", "set", "flannel.1", "up")
        ip(testbed, "link", "del", "flannel.1")  # as flannel does when its configuration is another
        ip(testbed, "link", "add", "flannel.1", *VXLAN)
        soon(has("flannel.1", "from_network"))
        assert other.index("flannel.1") != first
        soon(lambda: attached(node) == {"eth0": "from_network", "flannel.1": "from_network"})

        ip(testbed, "link", "set", "flannel.1", "name", "vxlan.calico")
        soon(lambda: "vxlan.calico" in attached(node))
        assert has("vxlan.calico", "from_network")()
        assert node.datapath.status().hooks.put_back == 0, "nothing of this was an accident"

        ip(testbed, "tuntap", "add", "tun0", "mode", "tun")
        soon(has("tun0", "from_network_l3"))
        ip(testbed, "link", "add", "ten0", "type", "veth", "peer", "name", "ten1")
        ip(testbed, "address", "add", "10.77.0.1/24", "dev", "ten0")
        time.sleep(0.2)
        assert "ten0" not in attached(node), "its other end is on the node, too"
        ip(testbed, "link", "del", "ten0")
        for name in ("tun0", "vxlan.calico"):
            ip(testbed, "link", "del", name)
        soon(lambda: attached(node) == {"eth0": "from_network"})
        assert not [one for one in node.datapath.status().problems if "from_network" in one]
    assert other.at("eth0", "ingress") == []


@pytest.mark.parametrize("how", BOTH)
def test_a_bridge_and_its_port_take_turns(testbed: Testbed, other: Foreigner, how: str) -> None:
    """Never both, and never neither: a port that is enslaved loses it once the bridge has got it by its route."""
    with KernelNode(testbed.node, tcx=how) as node:
        ip(testbed, "link", "add", "br7", "type", "bridge")
        ip(testbed, "link", "add", "vx7", *VXLAN)
        soon(lambda: "vx7" in attached(node))
        ip(testbed, "link", "set", "vx7", "master", "br7")
        time.sleep(0.2)
        assert (other.at("vx7", "ingress"), other.at("br7", "ingress")) == ([f"{KIND[how]} from_network"], [])
        ip(testbed, "link", "del", "vx7")
        ip(testbed, "address", "add", "10.78.0.1/24", "dev", "br7")
        ip(testbed, "link", "set", "br7", "up")
        ip(testbed, "route", "add", "10.79.0.0/24", "via", "10.78.0.2", "dev", "br7", "onlink")
        node.run(node.datapath._devices.look())  # the kernel tells of no routes: at the next look
        assert other.at("br7", "ingress") == [f"{KIND[how]} from_network"]
        ip(testbed, "link", "del", "br7")
        soon(lambda: attached(node) == {"eth0": "from_network"})


def test_a_device_that_becomes_an_endpoints_gives_it_up(testbed: Testbed, other: Foreigner) -> None:
    device = testbed.pod("server").interface
    with KernelNode(testbed.node, devices=("*",)) as node:
        kept = [one for one in node.endpoints if one.interface != device]
        assert device not in attached(node)
        node.run(node.datapath.set_endpoints(kept))
        node.run(node.datapath._devices.look())
        assert [one.partition(" ")[2] for one in other.at(device, "ingress")] == ["from_pod"], "it may still run"
    with KernelNode(testbed.node, devices=("eth0", device)) as node:
        assert other.at(device, "ingress")[0].endswith("from_pod")
        assert len(other.at(device, "ingress")) == 1


def test_what_can_not_be_attached_to_is_a_problem_and_no_crash(testbed: Testbed) -> None:
    ip(testbed, "link", "add", "odd0", *VXLAN)
    testbed.node.run_on_node(["tc", "qdisc", "add", "dev", "odd0", "clsact"])
    theirs = ("prio", "1", "protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")
    testbed.node.run_on_node(["tc", "filter", "add", "dev", "odd0", "ingress", *theirs])
    try:
        with KernelNode(testbed.node, devices=("odd*", "eth0", "nobody0"), tcx="off") as node:
            assert attached(node) == {"eth0": "from_network"}
            status = node.datapath.status()
            assert any("odd0: what comes by it" in one and "u32 has priority 1" in one for one in status.problems)
            assert "datapath.devices: no interface is called nobody0" in status.problems
            (odd,) = (one for one in status.devices if one.name == "odd0")
            assert (odd.program, odd.attached) == ("from_network", False)
            testbed.node.run_on_node(["tc", "filter", "del", "dev", "odd0", "ingress", "prio", "1"])
            node.run(node.datapath._devices.look())
            assert "odd0" in attached(node)
            assert not any("odd0" in one for one in node.datapath.status().problems)
    finally:
        ip(testbed, "link", "del", "odd0")


def test_further_interfaces_of_pods_are_told(testbed: Testbed) -> None:
    pod = testbed.pod("client")
    ip(testbed, "link", "add", "net1", "link", "eth0", "netns", pod.netns.name, "type", "macvlan", "mode", "bridge")
    try:
        pod.run(["ip", "link", "add", "own0", "type", "veth", "peer", "name", "own1"])
        with KernelNode(testbed.node) as node:
            assert node.datapath.status().uncovered == ("default/client: net1 (macvlan)",)
            node.run(node.datapath.set_endpoints([one for one in node.endpoints if "server" in one.name]))
            assert node.datapath.status().uncovered == ()
    finally:
        pod.run(["ip", "link", "del", "net1"])
        pod.run(["ip", "link", "del", "own0"])


def test_a_device_without_ethernet_can_be_no_endpoints(testbed: Testbed) -> None:
    ip(testbed, "tuntap", "add", "tun7", "mode", "tun")
    try:
        with KernelNode(testbed.node) as node:
            wrong = msgspec.structs.replace(node.endpoints[0], interface="tun7")
            with pytest.raises(Exception, match=r"interface tun7 \(tun\): its packets have no Ethernet header"):
                node.run(node.datapath.set_endpoints([wrong]))
    finally:
        ip(testbed, "link", "del", "tun7")
