"""HTTP policy by every kind of device: tunnels without Ethernet, bonds, bridged uplinks, netkit; both ways."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command, mac_address
from spliceway.agent.testbed.profiles import Profile
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Verdict
from support import packets
from support.foreign import has_tcx
from support.linked import PROXIED, Site, site_of

pytestmark = pytest.mark.kernel

L3, ETHERNET = "from_network_l3", "from_network"
#: Profile, how programs are attached, and what is attached to.
TUNNELS: dict[str, tuple[Profile, str, dict[str, str]]] = {
    "gpe": (Profile(tunnel="gpe"), "auto", {"eth0": ETHERNET, "gpe0": L3}),
    "gpe-clsact": (Profile(tunnel="gpe"), "off", {"eth0": ETHERNET, "gpe0": L3}),
    "ipip": (Profile(tunnel="ipip"), "auto", {"eth0": ETHERNET, "tunl9": L3, "ip6tnl2": L3}),
    "gre": (Profile(tunnel="gre"), "auto", {"eth0": ETHERNET, "gre2": L3}),
    "wireguard": (Profile(tunnel="wireguard"), "auto", {"eth0": ETHERNET, "wg0": L3}),
    "wireguard-clsact": (Profile(tunnel="wireguard"), "off", {"eth0": ETHERNET, "wg0": L3}),
}


@pytest.fixture(scope="module", params=TUNNELS)
def tunnel(request: pytest.FixtureRequest) -> Iterator[Site]:
    profile, how, devices = TUNNELS[request.param]
    if how == "off" and not has_tcx():
        pytest.skip("without TCX there are filters only")
    with site_of(profile, tcx=how) as site:
        assert site.attached() == devices
        yield site


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_of_another_node_is_proxied(tunnel: Site, version: int) -> None:
    """Its packets are taken at the tunnel's own device, and not only at the pod."""
    steered, late = (tunnel.counted(hook, Verdict.REDIRECT) for hook in (Hook.FROM_NETWORK, Hook.TO_POD))
    assert tunnel.asks("far", "server", version) == PROXIED
    assert tunnel.counted(Hook.FROM_NETWORK, Verdict.REDIRECT) > steered
    assert tunnel.counted(Hook.TO_POD, Verdict.REDIRECT) == late


@pytest.mark.parametrize("version", [4, 6])
def test_answers_to_the_proxy_come_by_the_tunnel(tunnel: Site, version: int) -> None:
    steered, late = (tunnel.counted(hook, Verdict.REDIRECT) for hook in (Hook.FROM_NETWORK, Hook.TO_POD))
    assert tunnel.asks("shopper", "far", version) == PROXIED
    assert tunnel.counted(Hook.FROM_NETWORK, Verdict.REDIRECT) > steered
    assert tunnel.counted(Hook.TO_POD, Verdict.REDIRECT) == late


@pytest.mark.parametrize("version", [4, 6])
def test_megabytes_through_tunnel_and_proxy(tunnel: Site, version: int) -> None:
    """Packets that the kernel gathers (GSO) get an Ethernet header as well as small ones."""
    for client, server in (("far", "server"), ("shopper", "far")):
        assert tunnel.echoes(client, server, version, 3_000_000) == "200 True"


@pytest.mark.parametrize("version", [4, 6])
def test_what_needs_no_proxy_passes_the_tunnel(tunnel: Site, version: int) -> None:
    assert tunnel.asks("far", "other", version) == (200, 200)
    assert tunnel.asks("client", "far", version) == (200, 200)
    assert not [one for one in tunnel.node.datapath.status().problems if "from_network" in one]


@pytest.fixture(scope="module", params=["auto", "eth0"])
def bridged(request: pytest.FixtureRequest) -> Iterator[Site]:
    """The node's addresses are on a bridge. Taken at the bridge, as by itself here; or at its port, if that is said."""
    devices = request.param if request.param == "auto" else (request.param,)
    with site_of(Profile(uplink="bridge"), devices=devices) as site:
        yield site


@pytest.mark.parametrize("version", [4, 6])
def test_a_bridged_uplink(bridged: Site, version: int) -> None:
    assert list(bridged.attached()) == ["br0" if bridged.node.settings.devices == "auto" else "eth0"]
    seen = bridged.node.flows_seen()
    late = bridged.counted(Hook.TO_POD, Verdict.REDIRECT)
    assert bridged.asks("outside", "server", version) == PROXIED
    assert bridged.asks("far", "server", version) == PROXIED
    assert bridged.asks("shopper", "outside", version) == PROXIED
    assert bridged.asks("far", "other", version) == (200, 200)
    assert bridged.counted(Hook.TO_POD, Verdict.REDIRECT) == late
    bridged.node.flows_seen()
    ports = [flow.source_port for flow in bridged.node.flows[seen:] if flow.hook is Hook.FROM_NETWORK]
    assert len(ports) == len(set(ports)) == 4, "each connection to the server is judged, and once"


def test_a_bridge_of_pods() -> None:
    """What is for them comes by eth0, and is taken there. A bridge that leads out, too, hands up what they send."""
    with site_of(Profile("bridge", "iptables")) as site:
        assert site.attached() == {"eth0": ETHERNET}
        for leads_out in (False, True):
            for version in (4, 6):
                late = site.counted(Hook.TO_POD, Verdict.REDIRECT)
                for client in ("outside", "far", "client"):
                    assert site.asks(client, "server", version) == PROXIED, (leads_out, client)
                assert site.counted(Hook.TO_POD, Verdict.REDIRECT) == late
                # These are masqueraded on their way out: their answers show whose they are at the pod.
                assert site.asks("shopper", "outside", version) == PROXIED
                assert site.asks("client", "far", version) == (200, 200)
            assert site.counted(Hook.FROM_NETWORK, Verdict.DENY) == 0
            route = ("ip", "route", "replace", "10.79.0.0/24", "via", "10.240.1.250", "dev", "cni0")
            netns.call(site.bed.node.info.netns, partial(command, *route))
            site.node.run(site.node.datapath._devices.look())
            assert site.attached() == {"eth0": ETHERNET, "cni0": ETHERNET}


_SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    raw.send(bytes.fromhex(sys.argv[1]))
"""


@pytest.mark.parametrize("version", [4, 6])
def test_frames_of_a_vlan_are_nobodys(bridged: Site, version: int) -> None:
    """The node has no device for VLAN 5. What is tagged with 0 belongs to no VLAN, and has a priority only."""
    outside, server = bridged.pod("outside"), bridged.pod("server")
    mac = mac_address(f"node {bridged.bed.node.name}")
    ends = (outside.address(version), server.address(version))
    steered: list[int] = []
    for tags, vlan in (((), b""), ((0x8100,), b"\0\5"), ((0x8100,), b"\0\0")):
        frame = bytearray(packets.tcp_frame(*ends, 4000 + len(steered), 80))
        if tags:
            frame = bytearray(packets.frame(packets.ip(*ends, packets.TCP, bytes(frame[-20:])), tags=tags))
            frame[14:16] = vlan
        frame[:6] = bytes.fromhex(mac.replace(":", ""))
        before = bridged.counted(Hook.FROM_NETWORK, Verdict.REDIRECT)
        outside.run([sys.executable, "-c", _SEND, frame.hex()])
        bridged.node.flows_seen()
        steered.append(bridged.counted(Hook.FROM_NETWORK, Verdict.REDIRECT) - before)
    assert steered[1] == 0
    assert steered[0] > 0
    assert steered[2] > 0


@pytest.fixture(scope="module")
def bonded() -> Iterator[Site]:
    with site_of(Profile(uplink="bond")) as site:
        yield site


@pytest.mark.parametrize("version", [4, 6])
def test_a_bond_goes_on_when_a_member_fails(bonded: Site, version: int) -> None:
    """Attached to the bond alone. The connection that is there goes on by the other member, through the proxy."""
    assert bonded.attached() == {"bond0": ETHERNET}
    fabric = bonded.bed.node.info.netns.with_name(f"{bonded.bed.run_id}-fabric")
    with bonded.stays("outside", "server", version) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        first = client.stdout.readline().split()
        assert first[0] == "200"
        for port in ("n1", "b1"):  # eth0's and eth1's other ends, one after the other
            netns.call(fabric, partial(command, "ip", "link", "set", port, "down"))
            try:
                client.stdin.write("\n")
                client.stdin.flush()
                assert client.stdout.readline().split() == first, "the same connection"
                assert bonded.asks("far", "server", version) == PROXIED
                assert bonded.asks("shopper", "outside", version) == PROXIED
            finally:
                netns.call(fabric, partial(command, "ip", "link", "set", port, "up"))
        client.stdin.close()
        assert client.wait(30) == 0
    assert bonded.attached() == {"bond0": ETHERNET}
    assert not bonded.node.datapath.status().hooks.put_back


@pytest.fixture(scope="module", params=["netkit", "netkit-l3"])
def netkit(request: pytest.FixtureRequest) -> Iterator[Site]:
    with site_of(Profile(pod_link=request.param)) as site:
        yield site


_SPOOF = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sender:
    sender.bind((sys.argv[1], 0))
    sender.sendto(b"not mine", (sys.argv[2], 9))
"""


@pytest.mark.parametrize("version", [4, 6])
def test_pods_by_netkit(netkit: Site, version: int) -> None:
    """Verdicts and steering at both hooks of the node's end, as with a veth."""
    ways = [("client", "server"), ("far", "server"), ("outside", "server"), ("shopper", "far"), ("shopper", "server")]
    assert {way: netkit.asks(*way, version) for way in ways} == dict.fromkeys(ways, PROXIED)
    assert netkit.asks("client", "other", version) == (200, 200)
    assert netkit.echoes("client", "server", version, 3_000_000) == "200 True"
    pod, spoofed = netkit.pod("client"), ("10.240.1.99/32", "fd00:240:1::99/128")[version == 6]
    dropped = netkit.counted(Hook.FROM_POD, Verdict.DENY)
    assert pod.run(["ip", "address", "add", spoofed, "dev", "eth0"]).returncode == 0
    sent = pod.run([sys.executable, "-c", _SPOOF, spoofed.partition("/")[0], str(netkit.pod("other").address(version))])
    assert sent.returncode == 0, sent.stderr
    assert netkit.counted(Hook.FROM_POD, Verdict.DENY) > dropped
