"""The two flags above all rows, in the kernel alone: audit of the node, and the kill switch. No proxy, no agent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import killswitch
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support.kernel import KernelNode
from support.node import http_status, pod_manifest, server_manifest

pytestmark = pytest.mark.kernel

VERSIONS = (4, 6)
PASS, DROP = -1, 2
#: The server denies the intruder, and has HTTP rules for the client; nobody is there to ask them.
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
"""


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    pods = [pod_manifest(name, {"role": name}) for name in ("client", "intruder")]
    with Testbed.up([*pods, server_manifest("server", {"role": "server"})]) as testbed:
        yield testbed


@pytest.fixture
def node(bed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(bed.node) as kernel:
        yield kernel


def ask(bed: Testbed, client: str, version: int) -> int:
    return http_status(bed, client, "server", version=version, timeout=1)


def datagram(source: str, destination: str) -> bytes:
    """A frame with UDP from port 1000 to 2000, whose checksums nobody looks at."""
    addresses = ip_address(source).packed + ip_address(destination).packed
    body = struct.pack("!HHHH", 1000, 2000, 12, 0) + b"data"
    if ip_address(source).version == 4:
        return bytes(12) + struct.pack("!HBBHHHBBH", 0x0800, 0x45, 0, 32, 0, 0, 64, 17, 0) + addresses + body
    return bytes(12) + struct.pack("!HIHBB", 0x86DD, 6 << 28, 12, 17, 64) + addresses + body


@pytest.mark.parametrize("version", VERSIONS)
def test_on_and_off(bed: Testbed, node: KernelNode, version: int) -> None:
    """On: nothing is judged or recorded. Off: also what began meanwhile is."""
    node.apply(POLICY)
    assert [ask(bed, client, version) for client in ("client", "intruder")] == [0, 0]
    for _ in range(2):
        node.run(node.datapath.set_disabled(True))
        seen = node.flows_seen()
        assert [ask(bed, client, version) for client in ("client", "intruder")] == [200, 200]
        assert node.flows_seen() == seen
        node.run(node.datapath.set_disabled(False))
        assert [ask(bed, client, version) for client in ("client", "intruder")] == [0, 0]


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_that_no_table_knows_and_packets_of_nobody_pass(bed: Testbed, node: KernelNode, version: int) -> None:
    foreign = {4: "198.18.0.7", 6: "fd00:bad::7"}[version]
    server = str(bed.pod("server").address(version))
    whole = datagram(foreign, server)
    odd = whole[:14] + bytes([0x54 if version == 4 else 0x50]) + whole[15:]  # IP version 5
    frames = {"source": whole, "malformed": odd}
    assert ask(bed, "client", version) == 0  # not ready
    assert [node.judge("from_pod", frame, endpoint="default/client") for frame in frames.values()] == [DROP, DROP]
    node.run(node.datapath.set_disabled(True))
    assert ask(bed, "client", version) == 200
    assert [node.judge("from_pod", frame, endpoint="default/client") for frame in frames.values()] == [PASS, PASS]
    assert node.judge("to_pod", frames["source"], endpoint="default/server") == PASS


def test_the_flag_is_turned_without_the_datapath(bed: Testbed, node: KernelNode) -> None:
    """And read; what else stands in the map stays."""
    node.apply(POLICY)
    bpffs, config = bed.node.info.bpffs, node.datapath._maps.config
    node.run(node.datapath._watch.look())  # the first one writes what it has found, all others nothing
    before = config.lookup(bytes(4))
    assert not killswitch.is_on(bpffs)
    assert killswitch.turn(bpffs, True) == [node.datapath._maps.root]
    assert killswitch.is_on(bpffs)
    assert ask(bed, "intruder", 4) == 200
    killswitch.turn(bpffs, False)
    assert config.lookup(bytes(4)) == before
    assert ask(bed, "intruder", 4) == 0


def test_what_an_agent_has_turned_on_only_an_agent_turns_off(bed: Testbed, node: KernelNode) -> None:
    """Its proxy asks no rules then, and nobody else can tell it to: steering to it would be a hole."""
    node.apply(POLICY)
    node.run(node.datapath.set_disabled(True))
    with pytest.raises(DatapathError, match="only an agent can tell it"):
        killswitch.turn(bed.node.info.bpffs, False)
    assert killswitch.is_on(bed.node.info.bpffs)
    assert killswitch.turn(bed.node.info.bpffs, True)
    node.run(node.datapath.set_disabled(False))
    killswitch.turn(bed.node.info.bpffs, True)
    killswitch.turn(bed.node.info.bpffs, False)
    assert not killswitch.is_on(bed.node.info.bpffs)


def test_where_nothing_is_loaded_there_is_nothing_to_turn(bed: Testbed) -> None:
    assert killswitch.turn(bed.node.info.bpffs, True) == []
    assert not killswitch.is_on(bed.node.info.bpffs)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_node_in_audit_drops_nothing_and_tells_it_once(bed: Testbed, version: int) -> None:
    """Not even what rows deny that an agent finds when it begins in audit; nor pods that it does not know."""
    foreign = {4: "198.18.0.7", 6: "fd00:bad::7"}[version]
    client, server = (str(bed.pod(name).address(version)) for name in ("intruder", "server"))
    with KernelNode(bed.node, audit=True) as node:
        assert ask(bed, "intruder", version) == 200
        assert {flow.reason for flow in node.flows[: node.flows_seen()]} == {Reason.NOT_READY}
        node.apply(POLICY)
        seen = node.flows_seen()
        assert ask(bed, "intruder", version) == 200
        told = node.flow_after(seen, hook=Hook.FROM_POD)
        assert (told.verdict, told.reason, told.audit) == (Verdict.ALLOW, Reason.DEFAULT_DENY, True)
        assert (str(told.source), str(told.destination)) == (client, server)
        seen = node.flows_seen()
        for _ in range(5):
            assert node.judge("from_pod", datagram(foreign, server), endpoint="default/client") == PASS
        spoofed = node.flows[seen : node.flows_seen()]
        assert [(flow.reason, flow.audit) for flow in spoofed] == [(Reason.SPOOFED_SOURCE, True)]
        counted = [one for one in node.datapath.reasons() if one.reason is Reason.SPOOFED_SOURCE]
        assert [(one.verdict, one.packets) for one in counted] == [(Verdict.ALLOW, 5)]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_proxy_has_is_not_passed_by_in_audit(bed: Testbed, version: int) -> None:
    """A rule set that enforces, without a listener: the connection would go past its rules."""
    with KernelNode(bed.node, audit=True) as node:
        node.apply(POLICY)
        seen = node.flows_seen()
        assert ask(bed, "client", version) == 0
        told = node.flow_after(seen)
        assert (told.verdict, told.reason) == (Verdict.DENY, Reason.NO_LISTENER)
