"""Ambient pods on a node: what HBONE's port hides, the kubelet's probes, and that nothing of ztunnel's is spliced.

No ztunnel runs here. What counts is what a packet filter sees of one: connections to port 15008, sockets of another
process in the pod's network namespace, and probes that istio-cni's rule masquerades.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from spliceway.agent.hostaddresses import PROBES
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.attack import MARKER, SEQ, Wire, Witness
from support.node import pod_manifest, server_manifest
from support.packets import ACK, SYN, TCP, ip, tcp
from support.profiled import status
from support.raw import send_raw
from support.talk import Talk
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

HBONE = 15008
#: What ztunnel listens on in a pod, and the port of an application.
PORTS = (15001, 15006, HBONE, 22)
AMBIENT = {"ambient.istio.io/redirection": "enabled"}
SERVER = [sys.executable, "-m", "spliceway.agent.testbed.server", "--port"]
DENY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress: [{fromEndpoints: [{matchLabels: {role: client}}]}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "22", protocol: TCP}]}]
"""
HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}, {port: "15001", protocol: TCP}, {port: "15006", protocol: TCP},
              {port: "15008", protocol: TCP}]
      rules: {http: [{method: GET}]}
"""
#: Dials ports of the pod's own (argv), and keeps what it has.
HOLD = """
import socket, sys
kept = [socket.create_connection((sys.argv[1], int(port)), 3) for port in sys.argv[2:]]
for sock in kept:
    sock.sendall(b"GET /x HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n")
    assert sock.recv(9000)
print("ready", flush=True)
sys.stdin.read()
"""
Site = tuple[Testbed, AgentProcess]


def manifests() -> list[dict[str, Any]]:
    server = server_manifest("server", {"role": "server"})
    server["metadata"]["annotations"] = dict(AMBIENT)
    outside = server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))
    return [pod_manifest("client", {"role": "client"}), server, outside]


@contextmanager
def a_site(policy: str, mode: str) -> Iterator[Site]:
    with Testbed.up(manifests()) as bed:
        served = [bed.pod("server").spawn([*SERVER, str(port)]) for port in PORTS]
        bed.pod("server").wait_listening(PORTS)
        bed.node.write_policy("one", policy)
        agent = start_agent(bed.node, {"istio": {"enabled": mode == "force"}, "splice": {"mode": mode}})
        try:
            yield bed, agent
        finally:
            agent.stop()
            for one in served:
                one.kill()
                one.wait(10)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with a_site(DENY, "off") as made:
        yield made


@pytest.fixture(scope="module")
def spliced() -> Iterator[Site]:
    with a_site(HTTP, "force") as made:
        yield made


def reached(bed: Testbed, client: str, port: int) -> set[int]:
    """IP versions by which a client reaches the server."""
    pod = bed.pod("server")
    return {version for version in (4, 6) if status(bed.pod(client), pod.address(version), port, timeout=1.0) == 200}


def warnings(agent: AgentProcess) -> list[str]:
    found: list[str] = agent.client.get("status")["proxy"]["warnings"]
    return [one for one in found if "HBONE" in one]


def test_a_port_that_is_denied_is_not_open_by_hbone(site: Site) -> None:
    bed, agent = site
    both = {4, 6}
    assert reached(bed, "client", 80) == both
    assert reached(bed, "client", 22) == set()
    assert reached(bed, "client", HBONE) == set(), "22 would come by it"
    (told,) = warnings(agent)
    assert "default/server" in told
    assert "CiliumNetworkPolicy default/deny: spec.ingressDeny[0]" in told
    bed.set_annotations("server", {})
    until(lambda: reached(bed, "client", HBONE) == both, 30)
    until(lambda: warnings(agent) == [], 30)
    assert reached(bed, "client", 22) == set()
    bed.set_annotations("server", AMBIENT)
    until(lambda: reached(bed, "client", HBONE) == set(), 30)
    assert reached(bed, "client", 80) == both


@pytest.fixture
def masqueraded(site: Site) -> Iterator[None]:
    """What istio-cni's rule does, for one pod: ISTIO_POSTRT."""

    def change(how: str) -> None:
        for address in PROBES:
            pod = str(site[0].pod("server").address(address.version))
            rule = ["-d", pod, "-p", "tcp", "-m", "owner", "--socket-exists", "-j", "SNAT", "--to-source", str(address)]
            tool = "iptables" if address.version == 4 else "ip6tables"
            done = site[0].node.run_on_node([tool, "-w", "-t", "nat", how, "POSTROUTING", *rule])
            assert done.returncode == 0, done.stderr

    change("-A")
    yield
    change("-D")


def from_node(bed: Testbed, version: int, port: int) -> str:
    pod = bed.pod("server").address(version)
    url = f"http://[{pod}]:{port}/" if version == 6 else f"http://{pod}:{port}/"
    return bed.node.run_on_node(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "3", url]).stdout


def test_the_kubelets_probes_pass_with_the_address_that_istio_gives_them(site: Site, masqueraded: None) -> None:
    bed, _ = site
    for version in (4, 6):
        # Nothing allows the node but that it is the node.
        assert from_node(bed, version, 80) == "200"
        server = bed.pod("server")
        probe = next(one for one in PROBES if one.version == version)
        hold = [sys.executable, "-c", HOLD, str(server.address(version)), "80"]
        with bed.node.spawn_on_node(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
            assert holding.stdout is not None
            assert holding.stdout.readline() == "ready\n"
            peers = server.run(["ss", "-Htn", "state", "established"]).stdout
            assert f"{probe}]:" in peers or f"{probe}:" in peers, peers
            holding.communicate()


def spoofs(agent: AgentProcess) -> int:
    found = agent.client.get("bpf/reasons")
    return sum(one["packets"] for one in found if one["reason"] == "spoofed-source" and one["verdict"] == "deny")


@pytest.mark.parametrize("version", [4, 6])
def test_nobody_else_may_use_the_probes_addresses(site: Site, version: int) -> None:
    """Neither a pod of the node, nor a host outside: dropped where that begins."""
    bed, agent = site
    probe = next(str(one) for one in PROBES if one.version == version)
    target = str(bed.pod("server").address(version))
    packets = [
        ip(probe, target, TCP, tcp(probe, target, 40000, port, flags, MARKER, seq=SEQ))
        for port in (80, HBONE)
        for flags in (SYN, ACK)
    ]
    with Witness(bed.pod("server").netns) as witness:
        before = spoofs(agent)
        with Wire(bed.pod("client")) as wire:
            for packet in packets:
                wire.send(packet)
        until(lambda: spoofs(agent) >= before + len(packets))
        before = spoofs(agent)
        for packet in packets:
            netns.call(bed.pod("outside").netns, partial(send_raw, packet))
        until(lambda: spoofs(agent) >= before + len(packets))
        witness.assert_nothing()


def socks(agent: AgentProcess) -> dict[tuple[Any, ...], tuple[str, str]]:
    """State and reason of the server's ends, by its leg, ports and peer."""
    found: list[dict[str, Any]] = agent.client.get("socks")
    names = ("leg", "endpoint", "endpointPort", "peer", "peerPort")
    return {
        tuple(one[name] for name in names): (one["state"], one["why"])
        for one in found
        if one["endpointPod"] == "default/server"
    }


def test_nothing_of_ztunnels_is_spliced(spliced: Site) -> None:
    """Its ports have HTTP rules here, so that all would be: as it is for the same pod out of the mesh."""
    bed, agent = spliced
    server = bed.pod("server")

    def asked(port: int, version: int) -> set[tuple[str, str]]:
        old = socks(agent).keys()
        with Talk(bed, "client", "server", version=version, port=port) as talk:
            assert talk.ask() == "200"
            return {state for name, state in socks(agent).items() if name not in old}

    def may_be(wanted: bool) -> bool:
        found = {one["name"]: one["splice"] for one in agent.client.get("endpoints")}
        return bool(found["default/server"]) is wanted

    for said, wanted in (({}, ("spliced", "")), (AMBIENT, ("tcp-only", "opted-out"))):
        bed.set_annotations("server", said)
        until(partial(may_be, not said), 30)
        for version in (4, 6):
            for port in (80, 15001, 15006, HBONE):
                assert asked(port, version) == {wanted}, (said, port, version)
    hold = [sys.executable, "-c", HOLD, "127.0.0.1", "15001", "15006", str(HBONE)]
    before = socks(agent).keys()
    with server.spawn(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "ready\n"
        assert socks(agent).keys() <= before, "nor what an application says to it inside of the pod"
        holding.communicate()
