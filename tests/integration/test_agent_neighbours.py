"""The agent beside a Cilium that is at work, made up in the node's own namespace and bpffs: it does not start."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spliceway.agent.testbed.agentprocess import agent_config, config_text, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from support.foreign import Foreigner
from support.node import server_manifest

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(200)]

#: Splicing has no part in it, and its self-test takes long.
UNSPLICED = {"splice": {"mode": "off"}}


@contextmanager
def cilium(bed: Testbed, *, device: bool = True, maps: bool = True) -> Iterator[None]:
    """Its device, and something of its own where it pins its maps."""
    pins = bed.node.info.bpffs / "tc" / "globals"
    if device:
        made = bed.node.run_on_node(["ip", "link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net"])
        assert made.returncode == 0, made.stderr
    if maps:
        pins.mkdir(parents=True)
        with Foreigner(bed.node.info.netns, name="cil_from_cont") as other:
            libbpf.pin(other._program, pins / "cilium_calls_00001")
    try:
        yield
    finally:
        if maps:
            (pins / "cilium_calls_00001").unlink()
            pins.rmdir()
            pins.parent.rmdir()
        if device:
            bed.node.run_on_node(["ip", "link", "del", "cilium_host"])


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with Testbed.up([server_manifest("server", {"role": "server"})]) as testbed:
        yield testbed


def run_agent(bed: Testbed, **overrides: object) -> str:
    """What it says when it does not start."""
    path = bed.node.info.directory / "agent.yaml"
    path.write_text(config_text(agent_config(bed.node, overrides)))
    argv = [sys.executable, "-m", "spliceway.agent", "agent", "--config", str(path)]
    done = bed.node.run_on_node(argv, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def test_it_does_not_start_and_attaches_nothing(bed: Testbed) -> None:
    with cilium(bed):
        told = run_agent(bed)
        assert "Cilium enforces policy on this node: its device cilium_" in told
        assert "its maps (cilium_calls_00001) are there" in told
        assert "policies.besideCilium: true starts all the same" in told
        assert not (bed.node.info.bpffs / "spliceway" / "live").exists()
        path = bed.node.info.directory / "agent.yaml"
        argv = [
            sys.executable,
            "-m",
            "spliceway.agent",
            "preflight",
            "--config",
            str(path),
            "--no-self-test",
            "-o",
            "json",
        ]
        checks = json.loads(bed.node.run_on_node(argv, timeout=100).stdout)["checks"]
        (found,) = (one for one in checks if one["name"] == "cilium")
        assert (found["status"], "does not start beside it" in found["toDo"]) == ("warn", True)
        (kinds,) = (one for one in checks if one["name"] == "policy-kinds")
        assert "Cilium: CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, NetworkPolicy" in kinds["found"]


def test_it_starts_where_it_is_told_to_or_where_cilium_has_gone(bed: Testbed) -> None:
    with cilium(bed):
        start_agent(bed.node, {"policies": {"besideCilium": True}, **UNSPLICED}).stop()
    for left in ({"device": False}, {"maps": False}):
        with cilium(bed, **left):
            start_agent(bed.node, UNSPLICED).stop()


def test_only_the_kinds_that_are_ours_are_enforced(bed: Testbed) -> None:
    """The others stay as if they were not there."""
    path = bed.node.info.policies / "both.yaml"
    path.write_text("""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec: {endpointSelector: {}, egress: [{toEntities: [host]}]}
""")
    agent = start_agent(bed.node, {"policies": {"kinds": ["CiliumNetworkPolicy"]}, **UNSPLICED})
    try:
        (endpoint,) = agent.client.get("endpoints")
        assert (endpoint["ingress"], endpoint["egress"]) == (False, True)
        assert agent.client.get("status")["enforcement"]["policies"] == 1
    finally:
        agent.stop()
        path.unlink()
