"""Pods of one node on a bridge, on another, and on none: each reaches the others, and nobody speaks in their names."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import UPLINK, command, mac_address
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.errors import DatapathError, KernelRefusedError
from spliceway.bpf.hookorder import Place
from spliceway.bpf.hooks import Hooks
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.verdict import Reason, Verdict
from support import packets as p
from support.attack import MARKER, Witness
from support.foreign import ACCEPT, Foreigner, needs_tcx
from support.kernel import KernelNode
from support.node import http_status, pod_manifest, server_manifest
from support.serviceegress import somebodys_filter
from support.waiting import until

pytestmark = pytest.mark.kernel

#: Who may reach `alone`: the pod on the first bridge, by its identity.
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: alone, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: alone}}
  ingress: [{fromEndpoints: [{matchLabels: {role: first}}]}]
"""
ROLES = ("first", "second", "alone", "beside")
BRIDGES = {"first": "mix1", "beside": "mix1", "second": "mix2"}
STRANGER = ("odd1", "odd1-end")
STRANGERS_OWN = ("10.66.0.6", "fd66::6")
#: A device of the first bridge whose index has none of the bits that a note has room for.
NOTELESS, NOTELESS_INDEX = "noteless", 1 << 14
PASSES = -1


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    manifests = [server_manifest(role, {"role": role}) for role in ROLES]
    manifests.append(pod_manifest(NOTELESS, {"role": NOTELESS}))
    manifests.append(server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5")))
    with Testbed.up(manifests) as made:
        for bridge in dict.fromkeys(BRIDGES.values()):
            _on_node(made, "link", "add", bridge, "type", "bridge")
            _on_node(made, "link", "set", bridge, "up")
        for role, bridge in BRIDGES.items():
            _move(made, made.pod(role), bridge)
        _on_node(made, "link", "add", STRANGER[0], "type", "veth", "peer", "name", STRANGER[1])
        _on_node(made, "link", "set", STRANGER[0], "master", BRIDGES["first"])
        _on_node(made, "link", "set", STRANGER[0], "up")
        elsewhere = _elsewhere(made)
        netns.create(elsewhere, lambda: netns.sysctl("ipv6/conf/default/disable_ipv6", 1))
        _on_node(made, "link", "set", STRANGER[1], "netns", str(elsewhere))
        netns.call(elsewhere, lambda: netns.sysctl(f"ipv6/conf/{STRANGER[1]}/disable_ipv6", 1))
        netns.call(elsewhere, lambda: command("ip", "link", "set", STRANGER[1], "up"))
        index = ("index", str(NOTELESS_INDEX))
        _on_node(made, "link", "add", NOTELESS, *index, "type", "veth", "peer", "name", f"{NOTELESS}-end")
        _on_node(made, "link", "set", NOTELESS, "master", BRIDGES["first"])
        yield made
        netns.delete(elsewhere)


@pytest.fixture(scope="module")
def node(testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(testbed.node) as made:
        made.apply(POLICY)
        made.run(made.datapath._watch.look())  # whose filters there are is looked at now and then
        yield made


def _elsewhere(testbed: Testbed) -> Path:
    """The network namespace of the stranger, a container that is no pod."""
    return testbed.node.info.netns.with_name(f"{testbed.node.info.netns.name}-odd")


def _on_node(testbed: Testbed, *words: str) -> None:
    done = testbed.node.run_on_node(["ip", *words])
    assert done.returncode == 0, done.stderr


def _move(testbed: Testbed, pod: Pod, bridge: str) -> None:
    """Make the node's end of a pod a port of a bridge, by which the pod is routed from then on."""
    _on_node(testbed, "link", "set", pod.interface, "master", bridge)
    for address in pod.addresses:
        family = f"-{address.version}"
        whole = f"{address}/{address.max_prefixlen}"
        where = ("lladdr", mac_address(f"pod {pod.key}"), "dev", bridge, "nud", "permanent")
        _on_node(testbed, family, "route", "replace", whole, "dev", bridge)
        _on_node(testbed, family, "neigh", "replace", str(address), *where)


def _spoofed(node: KernelNode) -> int:
    found = node.datapath.reasons()
    return sum(one.packets for one in found if one.verdict is Verdict.DENY and one.reason is Reason.SPOOFED_SOURCE)


def _sent(testbed: Testbed, packets: Sequence[bytes]) -> None:
    """By the stranger on the first bridge, to the node's own end of that."""
    macs = (mac_address(f"lxc {testbed.pod('first').key}"), "02:00:00:00:06:66")
    head = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((STRANGER[1], 0))
            for packet in packets:
                sock.send(head + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet)

    netns.call(_elsewhere(testbed), send)


def _claims(testbed: Testbed, source: str, target: str) -> list[bytes]:
    """What `source` might have sent to `target`: the beginning of a connection, and datagrams."""
    made = []
    for version in (4, 6):
        one, other = testbed.pod(source).address(version), testbed.pod(target).address(version)
        made.append(p.ip(one, other, p.TCP, p.tcp(one, other, 40000, 80, p.SYN, MARKER)))
        made.append(p.ip(one, other, p.UDP, p.udp(one, other, 40000, 80, MARKER)))
    return made


def _more_claims(testbed: Testbed, source: str, target: str) -> list[bytes]:
    """Segments without a beginning, and echo requests."""
    made = []
    for version in (4, 6):
        one, other = testbed.pod(source).address(version), testbed.pod(target).address(version)
        made.append(p.ip(one, other, p.TCP, p.tcp(one, other, 40001, 80, p.ACK, MARKER)))
        rest = bytes((0, 7, 0, 1))
        echo = p.icmp(8, 0, rest, MARKER) if version == 4 else p.icmp6(one, other, 128, 0, rest, MARKER)
        made.append(p.ip(one, other, p.ICMP if version == 4 else p.ICMPV6, echo))
    return made


def test_before_there_are_programs_a_strangers_packets_arrive(testbed: Testbed) -> None:
    """So they are not lost for another reason."""
    claims = _claims(testbed, "first", "alone")
    with Witness(testbed.pod("alone").netns) as witness:
        _sent(testbed, claims)
        witness.close()
    assert len(witness.seen) == len(claims)


@pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
def test_pods_on_different_bridges_and_on_none_reach_each_other(
    testbed: Testbed, node: KernelNode, version: int
) -> None:
    allowed = {(one, other): one != other and (other != "alone" or one == "first") for one in ROLES for other in ROLES}
    before = _spoofed(node)
    for (client, server), passes in allowed.items():
        if client != server:
            found = http_status(testbed, client, server, version=version, timeout=5 if passes else 1)
            assert found == (200 if passes else 0), (client, server)
    assert _spoofed(node) == before


@pytest.mark.parametrize("target", ["alone", "second", "beside"])
def test_a_stranger_on_the_bridge_is_nobody(testbed: Testbed, node: KernelNode, target: str) -> None:
    """Its packets come in by the same bridge, and with the address of the pod that may."""
    claims = _claims(testbed, "first", target)
    before = _spoofed(node)
    with Witness(testbed.pod(target).netns) as witness:
        _sent(testbed, claims)
        witness.assert_nothing()
    assert _spoofed(node) == before + len(claims)


def test_a_stranger_on_the_bridge_is_nobody_outside_either(testbed: Testbed, node: KernelNode) -> None:
    """With the address of a pod, and in the middle of its connection, too; what it says of itself gets there."""
    claims = [*_claims(testbed, "first", "outside"), *_more_claims(testbed, "first", "outside")]
    for version in (4, 6):
        assert http_status(testbed, "first", "outside", version=version) == 200
    before = _spoofed(node)
    outside = testbed.pod("outside")
    with Witness(outside.netns) as witness:
        _sent(testbed, claims)
        witness.assert_nothing()
    assert _spoofed(node) == before + len(claims)
    own = [(ip_address(one), outside.address(ip_address(one).version)) for one in STRANGERS_OWN]
    with Witness(outside.netns) as witness:
        _sent(testbed, [p.ip(one, to, p.UDP, p.udp(one, to, 40000, 80, MARKER)) for one, to in own])
        until(lambda: len(witness.seen) == len(own))


@pytest.mark.parametrize("version", [4, 6], ids=["v4", "v6"])
def test_pods_of_a_bridge_reach_each_other_though_a_filter_has_packets_forgotten(
    testbed: Testbed, node: KernelNode, version: int
) -> None:
    """Routed by the node. To a pod elsewhere they don't get then: nobody could tell them from a stranger's."""
    with somebodys_filter(node, "default/first"):
        node.run(node.datapath._watch.look())
        assert http_status(testbed, "first", "beside", version=version) == 200
        before = _spoofed(node)
        assert http_status(testbed, "first", "alone", version=version, timeout=1) == 0
        assert _spoofed(node) > before
    node.run(node.datapath._watch.look())
    assert http_status(testbed, "first", "alone", version=version) == 200


def test_a_filter_that_was_there_before_the_agent_or_a_pod_breaks_nothing(testbed: Testbed, node: KernelNode) -> None:
    """No look comes in between: what is known of filters is known when pods are attached."""

    async def again() -> None:
        node.datapath = await Datapath.open(node.settings)
        await node.datapath._watch.stop()

    node.run(node.datapath._watch.stop())
    try:
        with somebodys_filter(node, "default/first"):
            node.run(node.datapath.set_endpoints(node.endpoints))
            assert http_status(testbed, "first", "beside") == 200
            node.run(node.datapath.close())
            node.run(again())
            assert http_status(testbed, "first", "beside") == 200, "of the endpoints of the agent before"
            node.run(node.datapath._watch.look())
            assert http_status(testbed, "first", "beside") == 200
            node.run(node.datapath.set_endpoints(node.endpoints))
            node.apply(POLICY)
            assert http_status(testbed, "first", "beside") == 200
        node.run(node.datapath.close())
        node.run(again())
        before = _spoofed(node)
        claims = _claims(testbed, "first", "beside")
        _sent(testbed, claims)
        assert _spoofed(node) == before + len(claims), "nobody has to look first"
    finally:
        node.run(node.datapath.set_endpoints(node.endpoints))
        node.apply(POLICY)


@needs_tcx
@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_a_program_at_the_bridge_that_has_packets_forgotten(testbed: Testbed, node: KernelNode, side: str) -> None:
    """What the kernel notes behind it is of nobody."""
    with Foreigner(testbed.node.info.netns, ACCEPT) as other:
        other.link(BRIDGES["first"], side)
        node.run(node.datapath._watch.look())
        assert http_status(testbed, "first", "beside") == 200
        assert node.datapath._table.marks._held["filters"] == (f"other_prog at {side} of {BRIDGES['first']}",)
    node.run(node.datapath._watch.look())
    assert not node.datapath._table.marks._held


@needs_tcx
@pytest.mark.parametrize("side", ["ingress", "egress"])
def test_what_is_masqueraded_gets_out_behind_such_a_program(testbed: Testbed, node: KernelNode, side: str) -> None:
    """At its ingress the kernel writes something in the note's place that is none."""
    place = testbed.node.info.netns
    rules = f"type nat hook postrouting priority srcnat;\noifname {UPLINK} masquerade\n"
    tables = "".join(f"table {family} out {{ chain after {{ {rules} }}\n }}\n" for family in ("ip", "ip6"))
    netns.call(place, lambda: command("nft", "-f", "-", stdin=tables))
    try:
        with Foreigner(place, ACCEPT) as other:
            other.link(BRIDGES["first"], side)
            node.run(node.datapath._watch.look())
            assert [http_status(testbed, "first", "outside", version=version) for version in (4, 6)] == [200, 200]
    finally:
        for family in ("ip", "ip6"):
            netns.call(place, lambda family=family: command("nft", "delete", "table", family, "out"))  # type: ignore[misc]
        node.run(node.datapath._watch.look())


def test_a_device_whose_index_leaves_no_note(testbed: Testbed, node: KernelNode) -> None:
    pod, target = testbed.pod(NOTELESS), testbed.pod("beside")
    replaced = LocalEndpoint(pod.key, NOTELESS, pod.netns, pod.addresses)
    others = [one for one in node.endpoints if one.name != pod.key]
    node.run(node.datapath.set_endpoints([*others, replaced]))
    try:
        node.apply(POLICY)
        assert node.ifindex(pod.key) == NOTELESS_INDEX
        bridge = node.loop.call(socket.if_nametoindex, BRIDGES["first"])
        for packet in _claims(testbed, NOTELESS, "beside"):
            frame = p.frame(packet)
            assert node.judge("to_pod", frame, endpoint=target.key, ingress_ifindex=bridge) == PASSES
    finally:
        node.run(node.datapath.set_endpoints(node.endpoints))
        node.apply(POLICY)


def test_a_port_that_can_not_become_a_pods_keeps_what_it_has(
    testbed: Testbed, node: KernelNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as its own program can't be attached, nobody there speaks for a pod of the bridge."""
    pod, put = testbed.pod(NOTELESS), Hooks.put

    async def failing(self: Hooks, ipr: AsyncIPRoute, place: Place, device: str) -> None:
        if device == STRANGER[0] and place.program == "from_pod":
            raise KernelRefusedError("attach from_pod", errno.EINVAL)
        await put(self, ipr, place, device)

    node.run(node.datapath._devices.look())
    claims = _claims(testbed, "first", "outside")
    one = LocalEndpoint(pod.key, STRANGER[0], pod.netns, pod.addresses)
    others = [each for each in node.endpoints if each.name != pod.key]
    monkeypatch.setattr(Hooks, "put", failing)
    try:
        for _ in range(2):  # it is tried again
            with pytest.raises(DatapathError, match="attach from_pod"):
                node.run(node.datapath.set_endpoints([*others, one]))
            node.run(node.datapath._devices.look())
            before = _spoofed(node)
            with Witness(testbed.pod("outside").netns) as witness:
                _sent(testbed, claims)
                witness.assert_nothing()
            assert _spoofed(node) == before + len(claims)
    finally:
        monkeypatch.undo()
        node.run(node.datapath.set_endpoints(node.endpoints))
        node.apply(POLICY)
