"""An agent's programs at the interfaces of its node: restarts, upgrades, others who take them off or come in front."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from support.foreign import ACCEPT, BOTH, KIND, Foreigner, needs_tcx
from support.node import pod_manifest
from support.packetstream import PacketStream
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

_CLI = (sys.executable, "-m", "spliceway.agent")
_PATIENCE = 20.0
DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec: {podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress, Egress]}
"""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    manifests = [
        pod_manifest("server", {"role": "server"}),
        pod_manifest("outside", outside=True, addresses=("10.10.1.5", "fd00:10:1::5")),
    ]
    with Testbed.up(manifests) as made:
        made.node.write_policy("deny", DENY)
        yield made


@pytest.fixture
def other(testbed: Testbed) -> Iterator[Foreigner]:
    with Foreigner(testbed.node.info.netns, ACCEPT) as made:
        yield made


def start(testbed: Testbed, how: str) -> AgentProcess:
    return start_agent(testbed.node, {"splice": {"mode": "off"}, "datapath": {"tcx": how}})


@contextmanager
def running(testbed: Testbed, how: str) -> Iterator[AgentProcess]:
    """An agent, and nothing of it afterwards."""
    agent = start(testbed, how)
    try:
        yield agent
    finally:
        agent.kill()
        done = cli(testbed, "cleanup", *places(testbed), "--yes", "--state")
        assert done.returncode == 0, done.stderr


@contextmanager
def flowing(testbed: Testbed) -> Iterator[PacketStream]:
    """Packets to the server, as long as nobody denies them."""
    with PacketStream(testbed, "outside", "server") as stream:
        stream.flows()
        yield stream


def cli(testbed: Testbed, *arguments: str) -> subprocess.CompletedProcess[str]:
    return testbed.node.run_on_node([*_CLI, *arguments], timeout=60)


def places(testbed: Testbed) -> tuple[str, ...]:
    info = testbed.node.info
    return "--bpffs", str(info.bpffs), "--state-dir", str(info.state)


def hooks(agent: AgentProcess) -> dict[str, Any]:
    found: dict[str, Any] = agent.client.get("status")["datapath"]["hooks"]
    return found


def metric(testbed: Testbed, agent: AgentProcess, name: str) -> float:
    text = testbed.node.run_on_node(
        ["curl", "--silent", "--unix-socket", str(agent.socket), "http://agent/metrics"]
    ).stdout
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


@needs_tcx
def test_no_packet_gets_through_while_one_agent_follows_another(testbed: Testbed, other: Foreigner) -> None:
    device = testbed.pod("server").interface
    with PacketStream(testbed, "outside", "server") as inward, PacketStream(testbed, "server", "outside") as outward:
        inward.flows()
        outward.flows()
        agent = start(testbed, "off")
        try:
            arrived = inward.stops(), outward.stops()
            assert other.at(device, "egress") == ["clsact to_pod"]
            for how, end in (("auto", agent.stop), ("auto", None), ("off", None), ("auto", None)):
                (end or agent.kill)()
                agent = start(testbed, how)
                assert other.at(device, "ingress") == [f"{KIND[how]} from_pod"]
                assert other.at(device, "egress") == [f"{KIND[how]} to_pod"]
                assert agent.client.get("status")["datapath"]["takenOver"]
            assert (inward.arrived(), outward.arrived()) == arrived
        finally:
            agent.kill()
        assert (inward.arrived(), outward.arrived()) == arrived
        done = cli(testbed, "cleanup", *places(testbed), "--yes")
        assert done.returncode == 0, done.stderr
        assert f"/tcx/{other.index(device)}-to_pod (to_pod at {device})" in done.stdout
        assert not other.at(device, "ingress") + other.at(device, "egress") + other.at("eth0", "ingress")
        inward.flows()
        outward.flows()


@pytest.mark.parametrize("how", BOTH)
def test_what_is_taken_off_is_put_back_and_told(testbed: Testbed, other: Foreigner, how: str) -> None:
    device = testbed.pod("server").interface
    with flowing(testbed) as stream, running(testbed, how) as agent:
        stream.stops()
        before = other.at(device, "egress")
        assert hooks(agent)["putBack"] == 0
        logged = len(agent.log.read_text())
        if how == "auto":
            (pin,) = testbed.node.info.bpffs.glob("spliceway/v*/tcx/*-to_pod")
            libbpf.detach_pinned_link(pin)
        else:
            testbed.node.run_on_node(["tc", "qdisc", "del", "dev", device, "clsact"])
        told = until(lambda: found if (found := hooks(agent))["putBack"] else None, _PATIENCE)
        stream.stops()
        assert other.at(device, "egress") == before
        assert told["missing"] == 0
        assert f"of {device} was taken off and is attached again" in told["last"]
        status = cli(testbed, "status", "--socket", str(agent.socket))
        assert "put back" in status.stdout
        assert metric(testbed, agent, 'spliceway_hook_repairs_total{problem="missing"}') >= 1
        assert metric(testbed, agent, 'spliceway_hook_problems{problem="missing"}') == 0
        assert agent.log.read_text()[logged:].count("to_pod at egress of") == 1


@pytest.mark.parametrize("how", BOTH)
def test_who_comes_in_front_is_overtaken_and_named(testbed: Testbed, other: Foreigner, how: str) -> None:
    """A program that accepts everything: until ours is in front again nothing is denied."""
    device = testbed.pod("server").interface
    with flowing(testbed) as stream, running(testbed, how) as agent:
        stream.stops()
        (other.link if how == "auto" else other.filter)(device, "egress")
        number = other.program_ids(device, "egress")[0]
        told = until(lambda: found if (found := hooks(agent))["moved"] else None, _PATIENCE)
        stream.stops()
        kind = KIND[how]
        assert other.at(device, "egress") == [f"{kind} to_pod", f"{kind} other_prog"]
        assert f"stood behind other_prog ({kind}, program id {number}) and is in front again" in told["last"]
        assert (told["moved"], told["behind"]) == (1, 0)
        status = cli(testbed, "status", "--wait", "10", "--socket", str(agent.socket))
        assert (status.returncode, f"other_prog ({kind}, program id {number})" in status.stdout) == (0, True)
    assert other.at(device, "egress") == [f"{kind} other_prog"]
    testbed.node.run_on_node(["tc", "qdisc", "del", "dev", device, "clsact"])


@needs_tcx
def test_what_can_not_be_mended_is_a_problem(testbed: Testbed, other: Foreigner) -> None:
    device = testbed.pod("server").interface
    with running(testbed, "off") as agent:
        other.link(device, "ingress")
        until(lambda: hooks(agent)["behind"], _PATIENCE)
        status = cli(testbed, "status", "--socket", str(agent.socket))
        assert status.returncode == 1
        assert f"! datapath: from_pod at ingress of {device} stands behind other_prog (tcx, program id" in status.stdout
        assert metric(testbed, agent, 'spliceway_hook_problems{problem="behind"}') == 1
        told = cli(testbed, "preflight", "--no-self-test", "--config", str(agent.config), "-o", "table").stdout
        assert "TCX program other_prog at ingress" in told
        other.unlink()
        until(lambda: not hooks(agent)["behind"], _PATIENCE)
        assert cli(testbed, "status", "--wait", "10", "--socket", str(agent.socket)).returncode == 0


@pytest.mark.parametrize("how", BOTH)
def test_a_veth_made_anew_gets_its_programs(testbed: Testbed, other: Foreigner, how: str) -> None:
    with running(testbed, how) as agent:
        device = testbed.pod("server").interface
        was, before = other.index(device), other.at(device, "ingress") + other.at(device, "egress")
        made = testbed.node.run_on_node(
            ["sh", "-ec", f"ip link del {device}; ip link add {device} type veth peer name anew{how}"]
        )
        assert made.returncode == 0, made.stderr
        until(lambda: other.at(device, "ingress") + other.at(device, "egress") == before, _PATIENCE)
        until(lambda: hooks(agent)["watched"] == 6, _PATIENCE)  # its other end is on the node, too, and no endpoint's
        assert not list(testbed.node.info.bpffs.glob(f"spliceway/v*/tcx/{was}-*"))
        assert hooks(agent)["missing"] == 0
