"""The real agent on a virtual node: configured, started, in force, ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spliceway.agent.testbed.agentprocess import agent_config, start_agent
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.testbed import Testbed
from support.node import http_status, pod_manifest, server_manifest

pytestmark = pytest.mark.kernel

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: frontend}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: "/articles/[0-9]+"}]}
"""


def test_policies_are_in_force_when_the_agent_has_started(tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text(POLICY)
    pods = [
        server_manifest("api", {"role": "api"}),
        pod_manifest("frontend", {"role": "frontend"}),
        pod_manifest("intruder"),
    ]
    with Testbed.up(pods, policies=[tmp_path]) as testbed:
        agent = start_agent(testbed.node)
        for version in (4, 6):
            assert http_status(testbed, "frontend", "api", "/articles/1", version=version) == 200
            assert http_status(testbed, "frontend", "api", "/private", version=version) == 403
            assert http_status(testbed, "intruder", "api", "/articles/1", version=version, timeout=1) == 0
        status = agent.wait_in_force()
        assert status["node"] == "node1"
        assert [one["name"] for one in status["datapath"]["devices"] if one["attached"]] == ["eth0"]
        assert agent.stop() == 0
        assert "ended 0" in repr(agent)


def test_an_agent_that_cannot_start_is_reported_with_its_log() -> None:
    with (
        Testbed.up([pod_manifest("web")]) as testbed,
        pytest.raises(TestbedError, match=r"(?s)the agent ended with status 1:.*unknown field"),
    ):
        start_agent(testbed.node, {"proxy": {"colour": "blue"}})


def test_overrides_replace_single_values(demo_testbed: Testbed) -> None:
    config = agent_config(demo_testbed.node, {"splice": {"mode": "off"}, "proxy": {"workers": 2}})
    assert config["splice"] == {"mode": "off"}
    assert config["proxy"] == {"kind": "embedded", "workers": 2}
    assert config["cgroups"]["pods"].endswith("/node1/pods")


def test_the_cli_leaves_the_agent_running(tmp_path: Path) -> None:
    manifest = tmp_path / "pods.json"
    manifest.write_text(json.dumps(pod_manifest("web")))
    cli = [sys.executable, "-m", "spliceway.agent", "testbed"]
    done = subprocess.run([*cli, "up", str(manifest)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.splitlines()[1].split()[0]
    try:
        socket = f"/run/spliceway/testbed/{run_id}/node1/state/agent.sock"
        asked = [sys.executable, "-m", "spliceway.agent", "status", "--wait", "20", "--socket", socket, "-o", "json"]
        status = json.loads(subprocess.run(asked, capture_output=True, timeout=60, check=True).stdout)
        assert status["node"] == "node1"
    finally:
        subprocess.run([*cli, "down", run_id], timeout=60, check=True)
    assert not Path(socket).exists()
