"""Pods of a mesh (Istio's) dial Services by themselves: their sockets are not translated, those of all others are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import ip_address

import msgspec
import pytest

from spliceway.agent.testbed.netns import call
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import diag
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.netns import cookie_of
from spliceway.policy.verdict import Reason
from support.kernel import KernelNode
from support.lbpod import PORT, Remote, server, services
from support.node import pod_manifest

pytestmark = pytest.mark.kernel

WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
NAMES = ("one", "two")
ONLY_OTHERS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-others, namespace: default}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: nobody}}}]}]
"""
EGRESS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: egress, namespace: default}}
spec:
  podSelector: {{matchExpressions: [{{key: role, operator: NotIn, values: [server]}}]}}
  policyTypes: [Egress]
  egress: [{{to: [{{podSelector: {{matchLabels: {{role: {role}}}}}}}]}}]
"""
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    manifests = [pod_manifest("meshed"), pod_manifest("plain"), *map(server, NAMES)]
    with Testbed.up(manifests, profile=Profile("l3", "iptables")) as made:
        yield made


@pytest.fixture
def node(testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(testbed.node, socket_lb="on", max_frontends=1024, max_backends=4096) as made:
        made.apply()
        made.run(made.datapath.set_services(services(WEB, [testbed.pod(name) for name in NAMES])))
        join(made, "sidecar")
        yield made


def join(node: KernelNode, mesh: str) -> None:
    """Have the pod `meshed` in a mesh, or in none."""
    wanted = [msgspec.structs.replace(one, mesh=mesh if one.name == "default/meshed" else "") for one in node.endpoints]
    node.run(node.datapath.set_endpoints(wanted))


def translate(testbed: Testbed, *, on: bool) -> None:
    """By kube-proxy's rules (TCP)."""
    web = Service("default/web", tuple(map(ip_address, WEB.values())), 80, PORT, tuple(f"default/{n}" for n in NAMES))
    testbed.set_services([web] if on else [])


@VERSIONS
def test_only_the_meshs_sockets_are_left_alone(testbed: Testbed, node: KernelNode, version: int) -> None:
    host, family = WEB[version], version
    translate(testbed, on=False)
    ways = (
        f"dial({family}, '{host}')",
        f"ask_to(new({family}, DGRAM, 1), '{host}')",
        f"(s := new({family}, DGRAM, 1)).connect(('{host}', 80)) or ask(s)",
    )
    mapped = (f"ask_to(new(6, DGRAM, 1), '::ffff:{host}')",) if version == 4 else ()
    with Remote.of(testbed.pod("meshed")) as meshed, Remote.of(testbed.pod("plain")) as plain:
        meshed.do("def new(family, kind, timeout=1, of=new): return of(family, kind, min(timeout, 1))")
        for way in (*ways, *mapped):
            assert meshed.error(way) != "", way
            assert plain.error(way) == "", way
        join(node, "")  # out of the mesh: as all others, and back
        assert [meshed.error(way) for way in (*ways, *mapped)] == [""] * len((*ways, *mapped))
        join(node, "ambient")
        assert meshed.error(ways[0]) != ""


@VERSIONS
def test_kube_proxy_does_it_and_policy_judges_the_backend(testbed: Testbed, node: KernelNode, version: int) -> None:
    host = WEB[version]
    translate(testbed, on=True)
    with Remote.of(testbed.pod("meshed")) as meshed:
        meshed.do("def new(family, kind, timeout=2, of=new): return of(family, kind, min(timeout, 2))")
        meshed.do(f"s, name = dial({version}, '{host}')")
        assert meshed.ask("name") in NAMES
        # The peer is the Service by the socket's own knowledge: nothing has to be remembered for it.
        assert meshed.ask("s.getpeername()[0]") == host
        assert host in peers(testbed)
        seen = node.flows_seen()
        node.apply(ONLY_OTHERS)
        assert meshed.error(f"dial({version}, '{host}')") == "TimeoutError"
        denied = [flow for flow in node.flows[seen:] if flow.reason is Reason.DEFAULT_DENY]
        assert denied
        backends = {testbed.pod(name).address(version) for name in NAMES}
        assert {flow.destination for flow in denied} <= backends
        assert {flow.destination_port for flow in denied} == {PORT}


@VERSIONS
def test_its_egress_is_judged_where_the_service_leads(testbed: Testbed, node: KernelNode, version: int) -> None:
    """Its packets have the Service's address where they leave the pod; the verdict is that of the backend."""
    host = WEB[version]
    translate(testbed, on=True)
    node.run(node.datapath.set_service_addresses({ip_address(one): True for one in WEB.values()}))
    with Remote.of(testbed.pod("meshed")) as meshed:
        meshed.do("def new(family, kind, timeout=2, of=new): return of(family, kind, min(timeout, 2))")
        node.apply(EGRESS.format(role="server"))
        assert meshed.ask(f"name_of({version}, '{host}')") in NAMES
        seen = node.flows_seen()
        node.apply(EGRESS.format(role="nobody"))
        assert meshed.error(f"dial({version}, '{host}')") == "TimeoutError"
        denied = {flow.destination for flow in node.flows[seen:] if flow.reason is Reason.DEFAULT_DENY}
        assert denied
        assert denied <= {testbed.pod(name).address(version) for name in NAMES}


def peers(testbed: Testbed) -> set[str]:
    """Peers of TCP sockets in the pod `meshed`, as its kernel has them."""
    return {str(one.remote) for one in call(testbed.pod("meshed").netns, lambda: diag.tcp_sockets(1 << 1))}


def untouched(node: KernelNode) -> list[bytes]:
    """Cookies of network namespaces that are left alone."""
    maps = node.datapath.services._maps
    assert maps is not None
    return [key for key, _ in maps._untouched.items()]


def test_it_outlives_the_agent_and_goes_with_the_pod(testbed: Testbed, node: KernelNode) -> None:
    cookie = cookie_of(testbed.pod("meshed").netns).to_bytes(8, sys.byteorder)
    assert untouched(node) == [cookie]
    node.run(node.datapath.close())
    node.datapath = node.run(Datapath.open(node.settings))
    assert untouched(node) == [cookie]
    join(node, "native-sidecar")
    assert untouched(node) == [cookie]
    node.run(node.datapath.set_endpoints([one for one in node.endpoints if one.name != "default/meshed"]))
    assert untouched(node) == []
