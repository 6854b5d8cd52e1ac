"""Who is the node: addresses of real devices that come and go while an agent runs, and those of other nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest, server_manifest
from support.nodedevices import add_address, add_device, remove_address, remove_device
from support.profiled import status
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

HOST, REMOTE_NODE = 1, 6
#: Longer than it may take, on a machine that does other work, too.
_PATIENCE = 10.0
#: A second, on a machine that does nothing else.
_SOON = 3.0
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  egress: [{toEntities: [host]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress: [{fromEntities: [remote-node]}]
"""
Site = tuple[Testbed, AgentProcess]


def far_node(**annotations: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node2", "annotations": annotations}}


def manifests() -> list[dict[str, Any]]:
    far = pod_manifest("far", {"role": "client"})
    far["spec"]["nodeName"] = "node2"
    near = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    for one in near:
        one["spec"]["nodeName"] = "node1"
    nodes = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}},
        far_node(
            **{
                "flannel.alpha.coreos.com/public-ip": "192.0.2.7",
                "projectcalico.org/IPv4VXLANTunnelAddr": "10.99.2.64",
                "projectcalico.org/IPv6VXLANTunnelAddr": "not an address",
            }
        ),
    ]
    return [*nodes, *near, far]


@pytest.fixture(scope="module", params=["l3", "vxlan"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Testbed.up(manifests(), profile=Profile(request.param)) as bed:
        bed.node.write_policy("both", POLICIES)
        agent = start_agent(bed.node, {"splice": {"mode": "off"}})
        yield bed, agent
        agent.stop()


def identities(agent: AgentProcess) -> dict[str, int]:
    """Of single addresses, as the kernel has them."""
    found = agent.client.get("bpf/ipcache")
    return {row["prefix"].partition("/")[0]: row["identity"] for row in found if row["prefix"][-3:] in ("/32", "128")}


def becomes(agent: AgentProcess, address: str, identity: int | None) -> float:
    """Wait until an address has this identity; returns the seconds that took."""
    begin = time.monotonic()
    while (found := identities(agent).get(address)) != identity:
        assert time.monotonic() < begin + _PATIENCE, f"{address}: {found}\n{agent.log_tail()}"
        time.sleep(0.02)
    return time.monotonic() - begin


@contextmanager
def server_on_node(bed: Testbed) -> Iterator[None]:
    """An HTTP server at all addresses of the first node, port 8080."""
    served = bed.node.spawn_on_node([sys.executable, "-m", "spliceway.agent.testbed.server", "--port", "8080"])
    try:
        until(lambda: 8080 in netns.call(bed.node.info.netns, netns.listening_ports), _PATIENCE)
        yield
    finally:
        served.kill()
        served.wait(10)


def test_addresses_that_come_and_go_are_the_hosts_as_long_as_they_are_there(site: Site) -> None:
    bed, agent = site
    with server_on_node(bed):
        add_device(bed.node, "docker0", ["172.17.0.1/16", "fd00:17::1/64"])
        took = [becomes(agent, "172.17.0.1", HOST), becomes(agent, "fd00:17::1", HOST)]
        assert max(took) < _SOON, "netlink tells of it"
        for address in ("172.17.0.1", "fd00:17::1"):
            assert status(bed.pod("client"), address, 8080) == 200
            host = f"[{address}]" if ":" in address else address
            pod = bed.pod("server").address(6 if ":" in address else 4)
            probe = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "3", "--interface", address]
            target = f"http://[{pod}]/" if ":" in address else f"http://{pod}/"
            assert bed.node.run_on_node([*probe, target]).stdout == "200", f"the node, from {host}"
        remove_address(bed.node, "docker0", "172.17.0.1/16")
        becomes(agent, "172.17.0.1", None)
        assert identities(agent)["fd00:17::1"] == HOST
        add_address(bed.node, "docker0", "172.17.0.1/16")
        becomes(agent, "172.17.0.1", HOST)
        remove_device(bed.node, "docker0")
        becomes(agent, "172.17.0.1", None)
        becomes(agent, "fd00:17::1", None)
        add_address(bed.node, "lo", "10.98.0.1/32")
        becomes(agent, "10.98.0.1", HOST)
        assert status(bed.pod("client"), "10.98.0.1", 8080) == 200, "its address is routed, and at loopback"
        remove_address(bed.node, "lo", "10.98.0.1/32")
        becomes(agent, "10.98.0.1", None)


def test_what_is_not_the_host(site: Site) -> None:
    bed, agent = site
    add_device(bed.node, "kube-ipvs0", ["10.96.0.77/32", "fd00:96::77/128"])
    add_device(bed.node, "docker1", ["172.18.0.1/16"])  # so that it is seen that all has been looked at
    try:
        becomes(agent, "172.18.0.1", HOST)
        found = identities(agent)
        assert not {"10.96.0.77", "fd00:96::77", "127.0.0.1", "::1", "127.83.87.1"} & found.keys()
        assert not [address for address in found if address.startswith("fe80:")]
        assert status(bed.pod("client"), "10.96.0.77", 8080, timeout=0.5) == 0
    finally:
        remove_device(bed.node, "kube-ipvs0")
        remove_device(bed.node, "docker1")
    becomes(agent, "172.18.0.1", None)


def test_other_nodes_have_tunnels_and_bridges(site: Site) -> None:
    bed, agent = site
    found = identities(agent)
    told = ("10.10.0.3", "192.0.2.7", "10.99.2.64", "10.240.2.0", "10.240.2.1", "fd00:240:2::", "fd00:240:2::1")
    assert {address: found.get(address) for address in told} == dict.fromkeys(told, REMOTE_NODE)
    own = {"l3": [], "vxlan": ["10.240.1.0", "10.240.1.1", "fd00:240:1::", "fd00:240:1::1"]}[bed.profile.name]
    hosts = {address for address in found if found[address] == HOST}
    assert hosts - {"10.10.255.255", "10.240.1.255"} == {"10.10.0.2", "fd00:10::2", *own}, "and broadcast addresses"
    for version in (4, 6):
        server = bed.pod("server").address(version)
        probe = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "3"]
        url = f"http://[{server}]/" if version == 6 else f"http://{server}/"
        assert bed.nodes[1].run_on_node([*probe, url]).stdout == "200", "by its tunnel, where there is one"
        assert status(bed.pod("far"), server, timeout=0.5) == 0, "a pod of that node is not the node"


def refusals(agent: AgentProcess) -> list[dict[str, str]]:
    found: list[dict[str, str]] = agent.client.get("status")["source"]["refusals"]
    return found


def test_a_bad_annotation_is_told_and_the_others_count(site: Site) -> None:
    bed, agent = site
    (refused,) = refusals(agent)
    assert refused["field"] == "metadata.annotations[projectcalico.org/IPv6VXLANTunnelAddr]"
    assert (refused["document"], refused["reason"]) == ("Node node2", "not an address is not an IP address")
    path = next(bed.node.info.manifests.rglob("node-node2.yaml"))
    document = yaml.safe_load(path.read_text())
    document["metadata"]["annotations"] = {"network.cilium.io/ipv4-cilium-host": "10.97.0.5"}
    before = path.read_text()
    path.write_text(yaml.safe_dump(document))
    try:
        becomes(agent, "10.97.0.5", REMOTE_NODE)
        becomes(agent, "10.99.2.64", None)
        assert refusals(agent) == []
    finally:
        path.write_text(before)
    becomes(agent, "10.99.2.64", REMOTE_NODE)
