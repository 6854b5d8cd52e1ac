"""Row 1 of the splice's pitfalls once more: bytes that wait for the connection are not overtaken by those that follow.

They are TCP's own by the time the socket could be spliced, so such a connection stays on TCP.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest, server_manifest

pytestmark = pytest.mark.kernel

CONNECTIONS = 30
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: echo, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: POST, path: /echo}]}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[tuple[Testbed, AgentProcess]]:
    manifests = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as bed:
        (bed.node.info.policies / "echo.yaml").write_text(POLICY)
        agent = start_agent(bed.node)
        try:
            yield bed, agent
        finally:
            agent.kill()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", ["fast-open", "waiting"])
def test_row_01_bytes_that_wait_for_the_connection(node: tuple[Testbed, AgentProcess], mode: str, version: int) -> None:
    bed, agent = node
    address = str(bed.pod("server").address(version))
    before = agent.client.get("status")["splice"]["counters"]
    search = os.pathsep.join((str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])))
    argv = [sys.executable, "-m", "support.earlybytes", mode, address, str(CONNECTIONS)]
    done = bed.pod("client").run(argv, env={"PYTHONPATH": search}, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"ok": CONNECTIONS}
    after = agent.client.get("status")["splice"]["counters"]
    # Those to the server are spliced, those of the client are not.
    assert after["spliced"] - before["spliced"] == CONNECTIONS
    assert after["tcpOnly"] - before["tcpOnly"] == CONNECTIONS
