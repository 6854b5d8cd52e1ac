"""HTTP policy on nodes that are built like real ones: whatever way a connection takes to a pod, it passes the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest
from support.profiled import (
    CLUSTER_IPS,
    LOCAL_NODE_PORT,
    NODE_PORT,
    PROFILES,
    TRIED,
    manifests,
    node_address,
    services,
    status,
)
from support.proxied import ProxiedNode

pytestmark = pytest.mark.kernel

POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
  - fromEndpoints: [{matchLabels: {role: client}}, {matchLabels: {role: server}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shopper}}
  egress:
  - toEntities: [world, all]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
"""


class Site(NamedTuple):
    """A testbed whose first node has the datapath and the proxy."""

    bed: Testbed
    node: ProxiedNode

    def pod(self, name: str) -> Pod:
        """Of any node, or the host outside."""
        return self.bed.pod(name)

    def asks(self, client: str, address: object, port: int = 80) -> tuple[int, int]:
        """What a client gets for a path that the policy allows, and for another one."""
        return (
            status(self.pod(client), address, port, "/open"),
            status(self.pod(client), address, port, "/closed"),
        )


PROXIED = (200, 403)
DROPPED = (0, 0)


@pytest.fixture(scope="module", params=TRIED)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    shopper = pod_manifest("shopper", {"role": "shopper"})
    shopper["spec"]["nodeName"] = "node1"
    with (
        Testbed.up([*manifests(), shopper], profile=PROFILES[request.param]) as bed,
        ProxiedNode(bed.node, POLICIES) as node,
    ):
        bed.set_services(services("server"))
        yield Site(bed, node)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", ["client", "outside", "far"])
def test_connections_to_a_pod_are_proxied(site: Site, client: str, version: int) -> None:
    assert site.asks(client, site.pod("server").address(version)) == PROXIED


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("server", ["server", "far", "outside", "other"])
def test_connections_of_a_pod_are_proxied(site: Site, server: str, version: int) -> None:
    """By the egress policy of the client; the server's asks as well where it has one, and denies this client."""
    expected = (0, 0) if server == "server" else PROXIED
    assert site.asks("shopper", site.pod(server).address(version)) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_what_needs_no_proxy_goes_its_way(site: Site, version: int) -> None:
    ways = [("client", "other"), ("client", "far"), ("client", "outside"), ("outside", "other"), ("far", "other")]
    found = {way: status(site.pod(way[0]), site.pod(way[1]).address(version)) for way in ways}
    assert found == dict.fromkeys(ways, 200)


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_reaches_its_pods(site: Site, version: int) -> None:
    """As the kubelet does, whatever policies say."""
    address = site.pod("server").address(version)
    host = f"[{address}]" if version == 6 else str(address)
    what = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "3", f"http://{host}/closed"]
    done = site.bed.node.run_on_node(what)
    assert done.stdout == ("000" if "OUTPUT" in site.bed.profile.drop else "200"), "its own rules may forbid it"


@pytest.mark.parametrize("version", [4, 6])
def test_a_service_leads_to_the_proxy(site: Site, version: int) -> None:
    """Its address is translated behind the first hook."""
    if site.bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates Services in this profile")
    assert site.asks("client", CLUSTER_IPS[0 if version == 4 else 1]) == PROXIED


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("backend", ["other", "far"])
def test_the_proxy_dials_a_service(site: Site, backend: str, version: int, request: pytest.FixtureRequest) -> None:
    """An egress policy steers the Service's own address: what the proxy dials is translated then."""
    if backend == "other" and site.bed.profile.bridged and not site.bed.profile.br_netfilter:
        # Nor does it without an agent (test_testbed_profiles).
        why = "without br_netfilter, answers go from port to port of the bridge, past the translation back"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    if site.bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates Services in this profile")
    site.bed.set_services(services(backend))
    try:
        assert site.asks("shopper", CLUSTER_IPS[0 if version == 4 else 1]) == PROXIED
    finally:
        site.bed.set_services(services("server"))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [NODE_PORT, LOCAL_NODE_PORT], ids=["cluster", "local"])
def test_a_node_port_leads_to_the_proxy(site: Site, port: int, version: int) -> None:
    """With the policy Cluster the packet comes masqueraded: as the node's, which may do more than others."""
    if site.bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates Services in this profile")
    assert site.asks("outside", node_address(site.bed, version), port) == PROXIED


def test_a_long_answer_by_a_service(site: Site) -> None:
    """Many segments each way, acknowledged through the translation."""
    if site.bed.profile.kube_proxy == "none":
        pytest.skip("nobody translates Services in this profile")
    get = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}", "-m", "10"]
    url = f"http://{CLUSTER_IPS[0]}/open"
    done = site.pod("client").run([*get, *([url, "-o", "/dev/null"] * 40)])
    assert done.stdout == "200 1" + "200 0" * 39, "one connection carries them all"


def test_what_others_remove_comes_back(site: Site) -> None:
    """The devices, the route, and the rules of netfilter: all is mended, and connections are proxied again."""
    place = site.bed.node.info.netns
    netns.call(place, lambda: command("ip", "link", "del", "spliceway0"))
    netns.call(place, lambda: command("ip", "-6", "route", "flush", "table", "2480"))
    netns.call(place, lambda: command("nft", "delete", "table", "inet", "spliceway"))
    if site.bed.profile.drop:
        program = f"iptables-{site.bed.profile.iptables}"
        netns.call(place, lambda: command(program, "-D", "INPUT", "1"))
    server = site.pod("server")
    site.node.run(site.node.datapath._upkeep.mend())  # the agent does so every few seconds
    assert [site.asks("client", server.address(version)) for version in (4, 6)] == [PROXIED, PROXIED]
    assert not [one for one in site.node.datapath.status().problems if "steered" in one or "tables" in one]
