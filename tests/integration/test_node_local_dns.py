"""The node-local DNS cache under egress policy: a DNS server at the node's device `nodelocaldns`, before kube-proxy."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest
from support.nodedevices import DNS, add_device, asked, dns_server, dns_service, remove_device
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

#: Addresses of the cache alone, and the ClusterIPs that it has in front of kube-proxy.
OWN = ("169.254.20.10", "fd00:169:254:20::10")
CLUSTER_IPS = ("10.96.0.10", "fd00:96::10")
#: Response codes of the cache and of the cluster's DNS.
CACHE, CLUSTER = 3, 0
_PATIENCE = 20.0

ALLOW = {
    # As Cilium's and Kubernetes' documents write it.
    "endpoints": """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: endpoints, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: endpoints}}
  egress:
  - toEndpoints: [{matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, "k8s:k8s-app": kube-dns}}]
    toPorts: [{ports: [{port: "53", protocol: ANY}]}]
""",
    "services": """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: services, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: services}}
  egress:
  - toServices: [{k8sService: {serviceName: kube-dns, namespace: kube-system}}]
    toPorts: [{ports: [{port: "53", protocol: UDP}, {port: "53", protocol: TCP}]}]
""",
    "selectors": """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: selectors, namespace: default}
spec:
  podSelector: {matchLabels: {role: selectors}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    ports: [{port: dns, protocol: UDP}, {port: dns-tcp, protocol: TCP}]
""",
}
OTHERS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: block, namespace: default}
spec:
  podSelector: {matchLabels: {role: block}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 169.254.20.10/32}}], ports: [{port: 53, protocol: UDP}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: host, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: host}}
  egress: [{toEntities: [host, world]}]
"""
PROFILES = {
    "l3": Profile("l3", "iptables"),
    "bridge-drop": Profile("bridge", "iptables", ("INPUT", "FORWARD", "OUTPUT")),
}


def manifests() -> list[dict[str, Any]]:
    dns = pod_manifest(
        "coredns", {"k8s-app": "kube-dns", "pod-template-hash": "1"}, namespace="kube-system",
        command=[sys.executable, "-c", DNS, str(CLUSTER), "::"], ports=(53,),
    )  # fmt: skip
    dns["spec"]["containers"][0]["ports"] = [
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
    ]
    return [dns, *(pod_manifest(role, {"role": role}) for role in (*ALLOW, "block", "host"))]


@pytest.fixture(scope="module", params=PROFILES)
def bed(request: pytest.FixtureRequest) -> Iterator[Testbed]:
    with Testbed.up(manifests(), profile=PROFILES[request.param]) as made:
        for name, text in {**ALLOW, "others": OTHERS}.items():
            made.node.write_policy(name, text)
        pod = made.pod("coredns")
        made.node.write_policy("kube-dns", dns_service(pod))
        made.set_services([Service("kube-system/kube-dns", tuple(map(ip_address, CLUSTER_IPS)), 53, 53, (pod.key,))])
        yield made


def intercept(bed: Testbed, action: str) -> None:
    """The cache's own rules: what goes to it and comes from it is not tracked, and so not translated; and accepted."""

    def rules() -> None:
        for address in (*OWN, *CLUSTER_IPS):
            tool = "ip6tables-nft" if ":" in address else "iptables-nft"
            for protocol in ("udp", "tcp"):
                to = ("-d", address, "-p", protocol, "--dport", "53")
                back = ("-s", address, "-p", protocol, "--sport", "53")
                for table, chain, match, verdict in (
                    ("raw", "PREROUTING", to, "NOTRACK"),
                    ("filter", "INPUT", to, "ACCEPT"),
                    ("raw", "OUTPUT", back, "NOTRACK"),
                    ("filter", "OUTPUT", back, "ACCEPT"),
                ):
                    command(tool, "-w", "5", "-t", table, action, chain, *match, "-j", verdict)

    netns.call(bed.node.info.netns, rules)


@contextmanager
def device(bed: Testbed, addresses: Sequence[str]) -> Iterator[None]:
    """The cache, and its rules, at these addresses."""
    add_device(bed.node, "nodelocaldns", [f"{one}/{128 if ':' in one else 32}" for one in addresses])
    intercept(bed, "-I")
    try:
        with dns_server(bed.node, CACHE, addresses):
            yield
    finally:
        intercept(bed, "-D")
        if "nodelocaldns" in bed.node.run_on_node(["ip", "link"]).stdout:
            remove_device(bed.node, "nodelocaldns")


@pytest.fixture
def cache(bed: Testbed) -> Iterator[None]:
    with device(bed, (*OWN, *CLUSTER_IPS)):
        yield


@pytest.fixture
def agent(bed: Testbed) -> Iterator[AgentProcess]:
    made = start_agent(bed.node, {"splice": {"mode": "off"}})
    yield made
    made.stop()


def test_policies_that_allow_the_clusters_dns_allow_the_cache(bed: Testbed, cache: None, agent: AgentProcess) -> None:
    node, everything = bed.node, (*OWN, *CLUSTER_IPS)
    for role in ALLOW:
        assert asked(node, role, everything) == [CACHE] * 8, f"{role}\n{agent.log_tail()}"
    assert asked(node, "endpoints", everything, ["tcp"], port=9253, seconds=0.5) == ["TimeoutError"] * 4, "another port"
    assert asked(node, "block", OWN[:1], ["udp"]) == [CACHE], "ipBlock means whoever has the address"
    assert asked(node, "block", CLUSTER_IPS, seconds=0.5) == ["TimeoutError"] * 4
    assert asked(node, "host", everything, seconds=0.5) == ["TimeoutError"] * 8, "it is neither the host nor the world"


def test_it_comes_and_goes_while_the_agent_runs(bed: Testbed, agent: AgentProcess) -> None:
    node, cluster = bed.node, _identity(agent, str(bed.pod("coredns").address()))
    with device(bed, OWN):
        until(lambda: asked(node, "endpoints", OWN, seconds=0.5) == [CACHE] * 4, _PATIENCE)
        assert _identity(agent, OWN[1]) == cluster, "it is one more of these pods"
        assert _identity(agent, OWN[0]) != cluster, "and one that a policy tells from them by its address"
    until(lambda: _identity(agent, OWN[1]) is None, _PATIENCE)
    assert CACHE not in asked(node, "endpoints", OWN, seconds=0.5)
    for version in (4, 6):
        assert asked(node, "endpoints", [str(bed.pod("coredns").address(version))]) == [CLUSTER, CLUSTER]


def test_what_the_cache_has_is_not_translated_before_it(bed: Testbed) -> None:
    """With datapath.socketLb, connect() would go past the cache."""
    with device(bed, (*OWN, *CLUSTER_IPS)):
        agent = start_agent(bed.node, {"splice": {"mode": "off"}, "datapath": {"socketLb": "on"}})
        try:
            assert asked(bed.node, "services", CLUSTER_IPS) == [CACHE] * 4
            assert agent.client.get("bpf/lb") == []
            remove_device(bed.node, "nodelocaldns")
            until(lambda: len(agent.client.get("bpf/lb")) == 4, _PATIENCE)
            assert asked(bed.node, "services", CLUSTER_IPS) == [CLUSTER] * 4
        finally:
            agent.stop()


def _identity(agent: AgentProcess, address: str) -> int | None:
    rows = {row["prefix"]: row["identity"] for row in agent.client.get("bpf/ipcache")}
    return rows.get(f"{address}/{128 if ':' in address else 32}")
