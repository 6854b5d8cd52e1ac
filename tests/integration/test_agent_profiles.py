"""The agent itself on a node with a bridge, kube-proxy and an INPUT policy of DROP."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.testbed import Testbed
from support.profiled import CLUSTER_IPS, PROFILES, manifests, services, status

pytestmark = pytest.mark.kernel

HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
"""
#: Longer than the agent's interval on a busy machine.
WAIT = 20.0


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Testbed, AgentProcess]]:
    with Testbed.up(manifests(), profile=PROFILES["bridge-drop"]) as bed:
        bed.node.write_policy("http", HTTP)
        bed.set_services(services("server"))
        agent = start_agent(bed.node, {"splice": {"mode": "off"}})
        yield bed, agent
        agent.stop()


def asks(bed: Testbed, address: object) -> tuple[int, int]:
    return status(bed.pod("client"), address, path="/open"), status(bed.pod("client"), address, path="/closed")


@pytest.mark.parametrize("version", [4, 6])
def test_http_policy_is_in_force(site: tuple[Testbed, AgentProcess], version: int) -> None:
    bed, _agent = site
    server = bed.pod("server").address(version)
    assert asks(bed, server) == (200, 403)
    assert asks(bed, CLUSTER_IPS[0 if version == 4 else 1]) == (200, 403)
    host = f"[{server}]" if version == 6 else str(server)
    probe = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "3", f"http://{host}/closed"]
    assert bed.node.run_on_node(probe).stdout == "200", "the node may, from its address on the bridge"


def test_what_others_remove_comes_back_by_itself(site: tuple[Testbed, AgentProcess]) -> None:
    bed, agent = site
    server, place = bed.pod("server").address(), bed.node.info.netns
    netns.call(place, lambda: command("ip", "link", "del", "spliceway1"))
    netns.call(place, lambda: command("iptables-nft", "-F", "INPUT"))
    deadline = time.monotonic() + WAIT
    while (found := asks(bed, server)) != (200, 403):
        assert found[1] != 200, "without a way to the proxy nothing gets through"
        assert time.monotonic() < deadline, agent.log_tail()
    assert "they are back" in agent.log_tail(100)
