"""Services whose backend is a process of the node, as the API server's can be, translated by kube-proxy."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.agent.cli.client import AgentClient
from spliceway.agent.testbed import build, netns
from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.kubeproxy import Backend, ServicePort
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from support import packets as p
from support.lbpod import Remote
from support.node import pod_manifest
from support.nodedevices import asked, dns_server
from support.profiled import node_address

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

CLUSTER_IPS = {4: "10.96.0.90", 6: "fd00:96::90"}
NODE, PORT = 5, 40053


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def bed(request: pytest.FixtureRequest) -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("client", {"role": "client"})], profile=Profile("l3", request.param)) as made:
        ports = []
        for version, cluster_ip in CLUSTER_IPS.items():
            backend = Backend(ip_address(node_address(made, version)), 53)
            ports.append(ServicePort("default/node:53", ip_address(cluster_ip), 53, (backend,)))
        build.translate(made.profile, made.node.info.netns, ports)
        agent = start_agent(made.node, {"splice": {"mode": "off"}})
        yield made
        agent.stop()


@pytest.mark.parametrize("bound", [True, False])
def test_the_answers_of_the_node_reach_the_pod(bed: Testbed, bound: bool) -> None:
    """By UDP, too: from a socket that is bound to the node's address, and by IPv4 from one that is not."""
    addresses = {version: node_address(bed, version) for version in (4, 6)}
    listening = list(addresses.values()) if bound else ["0.0.0.0"]
    versions = (4, 6) if bound else (4,)
    translate_udp(bed, addresses, "-A")
    try:
        with dns_server(bed.node, NODE, listening):
            for version in versions:
                assert asked(bed.node, "client", [CLUSTER_IPS[version]]) == [NODE, NODE], f"IPv{version}"
    finally:
        translate_udp(bed, addresses, "-D")


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_speaks_for_nobody_outside(bed: Testbed, version: int) -> None:
    """A raw socket with the node's address, and a socket that says in each datagram whom it is from."""
    pod, outside = str(bed.pod("client").address(version)), {4: "192.0.2.50", 6: "fd00:99::50"}[version]
    with Remote.of(bed.pod("client")) as client:
        client.do(f"sock = new({version}, DGRAM, 1); sock.bind(('', {PORT})); sock.connect(('{outside}', 53))")
        before = foreign(bed)
        ways = [lambda: forged(node_address(bed, version), outside, pod)]
        if version == 6:
            ways.append(lambda: chosen(outside, pod))
        for count, way in enumerate(ways, start=1):
            client.error("sock.send(b'?')")  # there is no route: that does not matter to who asks
            client.error("sock.send(b'?')")
            netns.call(bed.node.info.netns, way)
            assert client.error("sock.recv(100)") in ("ETIMEDOUT", "TimeoutError", "EHOSTUNREACH", "ENETUNREACH")
            assert foreign(bed) == before + count


def foreign(bed: Testbed) -> int:
    """Packets that were dropped as foreign-source."""
    path = bed.node.info.state / "agent.sock"
    rows = AgentClient(path).get("bpf/reasons")
    return sum(row["packets"] for row in rows if row["reason"] == "foreign-source")


def forged(own: str, source: str, pod: str) -> None:
    """A datagram by a raw socket that is bound to one of the node's addresses and connected to the pod."""
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        if family == socket.AF_INET:
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        else:
            raw.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
        raw.bind((own, 0))
        raw.connect((pod, 0))
        raw.send(p.ip(source, pod, p.UDP, p.udp(source, pod, 53, PORT, b"lie")))


def chosen(source: str, pod: str) -> None:
    """A datagram of an ordinary socket that may have any address of IPv6 (IPV6_FREEBIND needs no rights)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        made.bind(("::", 53))
        info = socket.inet_pton(socket.AF_INET6, source) + bytes(4)
        made.sendmsg([b"lie"], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, (pod, PORT))


def translate_udp(bed: Testbed, addresses: dict[int, str], action: str) -> None:
    """What kube-proxy's rules do for a Service's UDP port."""

    def rules() -> None:
        for version, address in addresses.items():
            tool = "iptables-nft" if version == 4 else "ip6tables-nft"
            to = f"[{address}]:53" if version == 6 else f"{address}:53"
            match = ("-d", CLUSTER_IPS[version], "-p", "udp", "--dport", "53")
            command(tool, "-w", "5", "-t", "nat", action, "PREROUTING", *match, "-j", "DNAT", "--to-destination", to)

    netns.call(bed.node.info.netns, rules)
