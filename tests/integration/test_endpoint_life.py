"""Endpoints and connections that come to an odd end: nothing gets a way around the policy by it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import diag
from spliceway.bpf.types import SpliceClasses
from support import kinds
from support.foreign import Foreigner
from support.node import http_status, pod_manifest, server_manifest
from support.proxied import ProxiedNode
from support.talk import Talk

pytestmark = pytest.mark.kernel

HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
"""
CLOSED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: closed}}
  ingress: [{}]
  egress: [{}]
"""


@pytest.fixture(params=kinds.BOTH)
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Testbed, ProxiedNode]]:
    manifests = [
        pod_manifest("client", {"role": "client"}),
        server_manifest("server", {"role": "server"}),
        pod_manifest("closed", {"role": "closed"}),
        server_manifest("outside", outside=True, addresses=("10.10.1.5", "fd00:10:1::5")),
    ]
    with Testbed.up(manifests) as testbed, ProxiedNode(testbed.node, HTTP, CLOSED, proxy=request.param) as node:
        yield testbed, node


def test_a_forgotten_endpoint_that_still_runs_gets_nowhere(proxied: tuple[Testbed, ProxiedNode]) -> None:
    """Its object is gone, its veth is not: it must not be left without filters."""
    testbed, node = proxied
    assert http_status(testbed, "closed", "outside", timeout=1) == 0
    node.run(node.datapath.set_endpoints([one for one in node.endpoints if one.name != "default/closed"]))
    for version in (4, 6):
        assert http_status(testbed, "closed", "outside", version=version, timeout=1) == 0


def test_a_veth_made_anew_under_its_name_is_attached_again(proxied: tuple[Testbed, ProxiedNode]) -> None:
    _, node = proxied
    assert not node.run(node.datapath.endpoints_moved())
    name = next(one.interface for one in node.endpoints if one.name == "default/closed")
    node.node.run_on_node(["ip", "link", "del", name])
    node.node.run_on_node(["ip", "link", "add", name, "type", "veth", "peer", "name", "anew"])
    assert node.run(node.datapath.endpoints_moved())
    node.run(node.datapath.set_endpoints(node.endpoints))
    with Foreigner(node.node.info.netns) as looking:
        for hook, program in (("ingress", "from_pod"), ("egress", "to_pod")):
            assert [each.split()[1] for each in looking.at(name, hook)] == [program]
    assert not node.run(node.datapath.endpoints_moved())


def test_a_lost_entry_does_not_carry_a_connection_to_another_rule_set(proxied: tuple[Testbed, ProxiedNode]) -> None:
    """Evicted from conntrack, a connection meets the policy as it is now, and not on the old rule set's listener."""
    testbed, node = proxied
    node.run(node.datapath.set_splice(SpliceClasses(wanted=False)))
    with Talk(testbed, "client", "server") as talk:
        assert talk.ask() == "200"
        node.apply(HTTP.replace("name: http", "name: another").replace("method: GET", "method: PUT"), CLOSED)
        maps = node.datapath._maps
        for key in list(maps.conntrack.keys()):
            maps.conntrack.delete(key)
        assert talk.ask() in {"ConnectionResetError", "RemoteDisconnected", "BrokenPipeError"}


def test_a_lost_entry_does_no_harm_under_the_same_policy(proxied: tuple[Testbed, ProxiedNode]) -> None:
    testbed, node = proxied
    node.run(node.datapath.set_splice(SpliceClasses(wanted=False)))
    with Talk(testbed, "client", "server") as talk:
        for _ in range(3):
            assert talk.ask() == "200"
            for key in list(node.datapath._maps.conntrack.keys()):
                node.datapath._maps.conntrack.delete(key)


def test_ending_a_connection_that_is_gone_closes_no_listener() -> None:
    for family, everywhere, local, remote in (
        (socket.AF_INET, "0.0.0.0", "127.0.0.1", "127.0.0.9"),
        (socket.AF_INET6, "::", "::1", "::1"),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((everywhere, 0))
            listener.listen()
            port = listener.getsockname()[1]
            assert not diag.destroy(ip_address(local), port, ip_address(remote), 9)
            with socket.create_connection((local, port), 5) as client, listener.accept()[0]:
                mine = client.getsockname()[1]
                assert diag.destroy(ip_address(local), mine, ip_address(local), port)
                with pytest.raises(ConnectionError):
                    client.send(b"x")
