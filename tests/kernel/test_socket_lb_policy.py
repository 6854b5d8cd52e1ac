"""Policy judges what a socket got: a dial of the Service's address is steered by the backend's HTTP rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Leg
from spliceway.policy.verdict import Protocol, Reason
from support.lbpod import frontend, state
from support.node import pod_manifest, python_in, server_manifest
from support.proxied import ProxiedNode

pytestmark = pytest.mark.kernel

WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /x}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: only-the-server, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  egress:
  - toEndpoints: [{matchLabels: {role: server}}]
"""
ASK = """
import http.client, sys
for path in sys.argv[3:]:
    try:
        connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
        connection.request("GET", path)
        print(connection.getresponse().status, connection.sock and connection.sock.getpeername()[0])
    except OSError as error:
        print(type(error).__name__, None)
"""


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[Testbed, ProxiedNode]]:
    manifests = [
        pod_manifest("client", {"role": "client"}),
        server_manifest("server", {"role": "server"}),
        server_manifest("other", {"role": "other"}),
    ]
    with Testbed.up(manifests) as testbed, ProxiedNode(testbed.node, POLICY, socket_lb="on") as node:
        yield testbed, node


def ask(testbed: Testbed, host: str, port: int, *paths: str) -> list[str]:
    """Status and peer of a request for each path."""
    done = python_in(testbed.pod("client"), ASK, host, str(port), *paths, timeout=40)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("version", [4, 6])
def test_http_rules_of_the_backend_apply(proxied: tuple[Testbed, ProxiedNode], version: int) -> None:
    testbed, node = proxied
    server, host = testbed.pod("server"), WEB[version]
    wanted = {frontend(host, Protocol.TCP, 8000): state([server], version, port=80)}
    node.run(node.datapath.set_services(wanted))
    assert ask(testbed, host, 8000, "/x", "/y") == [f"200 {host}", f"403 {host}"]
    seen = {(entry.peer, entry.peer_port) for entry in node.datapath.conntrack() if entry.leg is Leg.DOWNSTREAM}
    assert (server.address(version), 80) in seen
    assert not {flow.destination for flow in node.flows} & {frontend(host, Protocol.TCP).address}


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_that_policy_denies_is_denied(proxied: tuple[Testbed, ProxiedNode], version: int) -> None:
    testbed, node = proxied
    other, host = testbed.pod("other"), WEB[version]
    node.run(node.datapath.set_services({frontend(host, Protocol.TCP, 8000): state([other], version, port=80)}))
    seen = node.flows_seen()
    assert ask(testbed, host, 8000, "/x") == ["TimeoutError None"]
    flow = node.flow_after(seen)
    assert (flow.destination, flow.destination_port, flow.reason) == (other.address(version), 80, Reason.DEFAULT_DENY)
