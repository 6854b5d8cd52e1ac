"""Every byte of thousands of connections that send at once, through Envoy with splicing on: in order, whole, none hung.

Once on plain veths and once with RPS on the veths, where the first bytes overtake the handshake's last packet and the
connection must fall back to TCP for good. With «deciding once» compiled out the same load fails, so it can.
`SPLICEWAY_ECHO_CONNECTIONS` sets the number (default 2,000; `make soak` takes 10,000).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import SpliceCounters
from support.node import pod_manifest, server_manifest
from support.proxied import ProxiedNode
from support.rps import set_rps

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(900)]

#: How often the race may be lost by the load: on a busy machine fewer first bytes are fast enough.
ATTEMPTS = 4
CONNECTIONS = int(os.environ.get("SPLICEWAY_ECHO_CONNECTIONS", "2000"))
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: echo, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: POST, path: /echo}]}}]
"""


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]) as bed:
        yield bed


# The client and what it receives are on the first CPU, what the node receives on the second: connect() returns where
# the handshake's last packet has only just left for the other CPU, and the first bytes race it.


def load(testbed: Testbed, version: int, seed: int, connections: int = CONNECTIONS) -> dict[str, object]:
    script = Path(__file__).parents[1] / "support" / "echo.py"
    address = str(testbed.pod("server").address(version))
    done = testbed.run("client", ["python", str(script), address, str(connections), "32", str(seed)], timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(result: dict[str, object], connections: int = CONNECTIONS) -> None:
    assert result["failed"] == []
    assert result["ok"] == connections


def shares(counters: SpliceCounters, before: SpliceCounters | None = None) -> tuple[float, float]:
    """Shares of the eligible connections that were spliced, and that took the TCP-only way."""
    spliced = counters.spliced - (before.spliced if before else 0)
    tcp_only = counters.tcp_only - (before.tcp_only if before else 0)
    return spliced / (spliced + tcp_only), tcp_only / (spliced + tcp_only)


@pytest.mark.row(1)
@pytest.mark.parametrize("version", [4, 6])
def test_plain_veths(testbed: Testbed, version: int) -> None:
    with ProxiedNode(testbed.node, POLICY, proxy="envoy") as node:
        check(load(testbed, version, seed=version))
        spliced, _ = shares(node.datapath.splice_counters())
        assert spliced >= 0.95


@pytest.mark.row(1)
def test_rps(testbed: Testbed) -> None:
    with ProxiedNode(testbed.node, POLICY, proxy="envoy") as node:
        set_rps(testbed.node, pods=0b01, node_mask=0b10)
        before, tcp_only = node.datapath.splice_counters(), 0.0
        for seed in range(ATTEMPTS):
            check(load(testbed, 4, seed))
            counters = node.datapath.splice_counters()
            spliced, tcp_only = shares(counters, before)
            if tcp_only >= 0.05:
                break
            before = counters
        assert tcp_only >= 0.05
        assert spliced > 0
        print(f"RPS: {counters}")


@pytest.mark.row(1)
def test_without_deciding_once_it_fails(testbed: Testbed) -> None:
    """The test above can fail: redirecting whenever both ends are there lets bytes overtake each other."""
    with ProxiedNode(testbed.node, POLICY, proxy="envoy", test_defines={"TEST_DECIDE_EVERY_TIME": "1"}):
        set_rps(testbed.node, pods=0b01, node_mask=0b10)
        failed = any(load(testbed, 4, seed)["failed"] for seed in range(ATTEMPTS))
        assert failed, f"nothing was overtaken in {ATTEMPTS} times {CONNECTIONS} connections"
