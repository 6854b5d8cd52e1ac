"""Envoy listeners and clusters of one's own, on a node with the agent: whom they serve, and whom not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.extralistener import extra_listener
from support.node import demo_manifests, http_status, server_manifest

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

POLICIES = Path(__file__).parents[2] / "examples" / "demo" / "policies"
ASK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=1)
try:
    connection.request("GET", "/private")
    print(connection.getresponse().status)
except OSError:
    print(0)
"""


def cluster(name: str, address: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "0.3s", "load_assignment": assignment}


def test_extra_resources_serve_the_outside_and_no_pod_of_the_node() -> None:
    """The pod `api` has HTTP rules, `open` no policy at all: neither is reached, nor reaches, through one's own."""
    manifests = [*demo_manifests(), server_manifest("open", {"role": "open"})]
    with Testbed.up(manifests, policies=[POLICIES]) as testbed:
        ports = {"outside": 9100, "open": 9101, "api": 9102}
        envoy = {
            "extraListeners": [extra_listener(name, port, name) for name, port in ports.items()],
            "extraClusters": [cluster(name, str(testbed.pod(name).address(4))) for name in ports],
        }
        agent = start_agent(testbed.node, {"proxy": {"kind": "envoy"}, "envoy": envoy})
        try:
            address = testbed.node.info.ips[0]

            def from_pod(pod: str, port: int) -> int:
                return int(testbed.run(pod, [sys.executable, "-c", ASK, address, str(port)]).stdout)

            def from_node(port: int) -> int:
                enter = ["nsenter", f"--net={testbed.node.info.netns}"]
                command = [*enter, sys.executable, "-c", ASK, "127.0.0.1", str(port)]
                return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout)

            assert http_status(testbed, "frontend", "api", "/articles/1") == 200
            assert http_status(testbed, "frontend", "api", "/private") == 403
            assert (from_pod("outside", 9100), from_node(9100)) == (200, 200)
            for name in ("open", "api"):
                assert (from_pod("outside", ports[name]), from_node(ports[name])) == (503, 503)
            assert [from_pod("open", port) for port in ports.values()] == [0, 0, 0]
            reasons = {flow["reason"] for flow in agent.client.lines("flows", last="500", verdict="deny")}
            assert reasons >= {"tuple-conflict", "rule-set-changed"}
        finally:
            agent.stop()
