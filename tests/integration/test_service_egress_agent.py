"""Egress policy and the cluster's DNS by its ClusterIP: a whole agent, kube-proxy's rules, policies as they are."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest, python_in
from support.nodedevices import DNS, asked, dns_service
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

CLUSTER_IPS = {4: "10.96.0.10", 6: "fd00:96::10"}
BOTH = list(CLUSTER_IPS.values())
ANSWER = 5
POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns-only, namespace: default}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: by-address, namespace: default}
spec:
  podSelector: {matchLabels: {role: addressed}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.96.0.0/12}}, {ipBlock: {cidr: "fd00:96::/64"}}]}]
"""
#: A query by a raw socket, which no program of the pods' cgroup translates: the response code (argv: address).
RAW = """
import socket, struct, sys
query = struct.pack("!6H", 4711, 0x100, 1, 0, 0, 0) + b"\\x03www\\x07example\\x00" + struct.pack("!2H", 1, 1)
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as made:
    made.settimeout(5)
    made.sendto(struct.pack("!4H", 40999, 53, 8 + len(query), 0) + query, (sys.argv[1], 0))
    while True:
        data, sender = made.recvfrom(4096)
        if sender[0] == sys.argv[1]:
            print(data[31])
            break
"""


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def bed(request: pytest.FixtureRequest) -> Iterator[Testbed]:
    dns = pod_manifest(
        "coredns", {"k8s-app": "kube-dns"}, namespace="kube-system",
        command=[sys.executable, "-c", DNS, str(ANSWER), "::"], ports=(53,),
    )  # fmt: skip
    clients = [pod_manifest(role, {"role": role}) for role in ("client", "addressed")]
    with Testbed.up([dns, *clients], profile=Profile("l3", request.param)) as made:
        made.node.write_policy("policies", POLICIES)
        know(made)
        pod = made.pod("coredns")
        made.set_services(
            [Service("kube-system/kube-dns", tuple(map(ip_address, BOTH)), 53, 53, (pod.key,))]
        )  # fmt: skip
        netns.call(made.node.info.netns, lambda: _by_udp(made))
        yield made


@pytest.fixture
def agent(bed: Testbed) -> Iterator[AgentProcess]:
    made = start_agent(bed.node, {"splice": {"mode": "off"}})
    yield made
    made.stop()


def know(bed: Testbed) -> None:
    pod = bed.pod("coredns")
    bed.node.write_policy("kube-dns", dns_service(pod))


def _by_udp(bed: Testbed) -> None:
    for version, address in CLUSTER_IPS.items():
        backend, family = bed.pod("coredns").address(version), "ip" if version == 4 else "ip6"
        to = f"[{backend}]" if version == 6 else str(backend)
        rule = f"{family} daddr {address} udp dport 53 dnat to {to}:53"
        chain = f"chain before {{ type nat hook prerouting priority dstnat - 1; {rule}\n }}"
        command("nft", "-f", "-", stdin=f"table {family} dns {{ {chain}\n }}")


def marked(agent: AgentProcess) -> set[str]:
    return {row["prefix"].partition("/")[0] for row in agent.client.get("bpf/ipcache") if row["service"]}


def test_a_policy_that_names_the_clusters_dns_lets_its_clusterip_pass(bed: Testbed, agent: AgentProcess) -> None:
    assert asked(bed.node, "client", BOTH) == [ANSWER] * 4, agent.log_tail()
    assert marked(agent) == set(BOTH)
    assert asked(bed.node, "client", BOTH, ["tcp"], port=54, seconds=0.5) == ["TimeoutError"] * 2
    command_line = [sys.executable, "-m", "spliceway.agent", "flows", "--service", "kube-system/kube-dns"]
    done = bed.node.run_on_node([*command_line, "--socket", str(agent.socket), "-o", "json"], timeout=60)
    found = [one for one in map(json.loads, done.stdout.splitlines()) if one["destination"]["port"] == 53]
    backends = {str(bed.pod("coredns").address(version)) for version in (4, 6)}
    assert {one["destination"]["address"] for one in found} == backends, done.stderr
    assert {(one["hook"], one["verdict"], one["reason"]) for one in found} == {("to-pod", "allow", "policy-allowed")}
    assert len(found) == 4, "one for each connection"


def test_a_policy_that_names_the_address_does_not(bed: Testbed, agent: AgentProcess) -> None:
    assert asked(bed.node, "addressed", BOTH, seconds=0.5) == ["TimeoutError"] * 4


def test_a_service_that_goes_while_it_is_dialled(bed: Testbed, agent: AgentProcess) -> None:
    def dialled() -> socket.socket:
        made = socket.create_connection((CLUSTER_IPS[4], 53), timeout=5)
        made.settimeout(5)
        return made

    until(lambda: marked(agent) == set(BOTH), 20)
    with netns.call(bed.pod("client").netns, dialled) as sock:
        bed.node.remove_policy("kube-dns")
        try:
            until(lambda: not marked(agent), 20)
            sock.sendall(b"\0\x04abcd")
            assert sock.recv(100)[:4] == b"\0\x04ab", "the connection goes on"
            assert asked(bed.node, "client", BOTH, seconds=0.5) == ["TimeoutError"] * 4, (
                "new ones are to an address outside"
            )
        finally:
            know(bed)
        until(lambda: marked(agent) == set(BOTH), 20)
    assert asked(bed.node, "client", BOTH) == [ANSWER] * 4


def test_a_raw_socket_beside_socket_load_balancing(bed: Testbed) -> None:
    """No program of the cgroup translates it."""
    agent = start_agent(bed.node, {"splice": {"mode": "off"}, "datapath": {"socketLb": "on"}})
    try:
        until(lambda: len(agent.client.get("bpf/lb")) == 4, 20)
        assert asked(bed.node, "client", BOTH) == [ANSWER] * 4
        done = python_in(bed.pod("client"), RAW, CLUSTER_IPS[4])
        assert done.stdout.strip() == str(ANSWER), done.stderr
        assert python_in(bed.pod("addressed"), RAW, CLUSTER_IPS[4]).returncode
    finally:
        agent.stop()
