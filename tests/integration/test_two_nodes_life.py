"""Two nodes, and connections between them: splices, equal ports, policies and agents that go, forgery."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.bpf import diag
from support.attack import MARKER, SEQ, Wire, Witness
from support.packets import ACK, SYN, TCP, UDP, ip, tcp, udp
from support.raw import send_raw
from support.talk import Talk
from support.twonodes import EGRESS, INGRESS, MODES, Json, Report, TwoNodes, two_nodes
from support.waiting import LIMIT, until

pytestmark = pytest.mark.kernel

VERSIONS = pytest.mark.parametrize("version", [4, 6])
EACH_MODE = pytest.mark.parametrize("mode", MODES)
#: What a client sees of a connection that is cut.
CUT = {"ConnectionResetError", "RemoteDisconnected", "BrokenPipeError", "PermissionError"}
_ESTABLISHED = 1 << 1
_SIZE = 4 << 20


@pytest.fixture(scope="module")
def site() -> Iterator[TwoNodes]:
    with two_nodes(splice="auto") as built:
        yield built


def ends(mode: str) -> tuple[str, str]:
    client, server = MODES[mode]
    return f"{client}1", f"{server}2"


def established(site: TwoNodes, number: int, client: str, version: int) -> list[diag.TcpSocket]:
    """The proxy's connections with a client's address, on a node."""
    address = site.bed.pod(client).address(version)
    found = netns.call(site.node(number).info.netns, lambda: diag.tcp_sockets(_ESTABLISHED))
    return [one for one in found if address in (one.local, one.remote)]


def nothing_is_left(site: TwoNodes, client: str, version: int) -> None:
    until(lambda: not [one for n in (1, 2) for one in established(site, n, client, version)])


def socks(site: TwoNodes, number: int, pod: str) -> list[Json]:
    """What `sock list` says of a pod's connections."""
    return [one for one in site.agent(number).client.get("socks") if one["endpointPod"] == f"default/{pod}"]


def redirected(site: TwoNodes, number: int) -> int:
    return int(site.agent(number).client.get("status")["splice"]["counters"]["redirectedBytes"])


@VERSIONS
@EACH_MODE
def test_the_legs_of_pods_are_spliced_on_their_nodes(site: TwoNodes, mode: str, version: int) -> None:
    """Those between the nodes are not: one of their ends is no socket of this node."""
    client, server = ends(mode)
    nothing_is_left(site, client, version)
    spliced = {1: mode != "server", 2: mode != "client"}
    before = {number: redirected(site, number) for number in spliced}
    with Talk(site.bed, client, server, version=version) as talk:
        assert talk.ask("/open") == "200"
        for number, pod, leg in ((1, client, "downstream"), (2, server, "upstream")):
            found = [(one["leg"], one["state"]) for one in socks(site, number, pod)]
            assert found == ([(leg, "spliced")] if spliced[number] else []), number
    report = site.ask(client, server, ["POST", f"/open?size={_SIZE}", _SIZE], version=version)
    assert report.statuses == [200]
    assert report.answers[0]["whole"]
    assert report.answers[0]["seen"]["sum"] == report.answers[0]["sent"]
    for number, is_spliced in spliced.items():
        assert (redirected(site, number) - before[number] > 0) == is_spliced


@contextmanager
def one_port(site: TwoNodes, port: int) -> Iterator[None]:
    """Sockets of both nodes get this port, and no other."""
    place = Path("/proc/sys/net/ipv4/ip_local_port_range")

    def put(text: str) -> str:
        was = place.read_text()
        place.write_text(text)
        return was

    nodes = [site.node(number).info.netns for number in (1, 2)]
    before = [netns.call(path, lambda: put(f"{port} {port}")) for path in nodes]
    try:
        yield
    finally:
        for path, was in zip(nodes, before, strict=True):
            netns.call(path, lambda was=was: put(was))  # type: ignore[misc]


@VERSIONS
@EACH_MODE
def test_the_same_ports_on_all_legs(site: TwoNodes, mode: str, version: int) -> None:
    """The client's, and those of both proxies: each packet still finds its own connection."""
    client, server = ends(mode)
    port = 41000 + list(MODES).index(mode)
    with one_port(site, port):
        requests = [["GET", "/open"], ["POST", f"/open?size={_SIZE}", _SIZE], ["GET", "/none"]]
        report = site.ask(client, server, *requests, version=version, source=port, end="reset")
    assert (report.port, report.statuses) == (port, [200, 200, 403])
    assert report.answers[1]["whole"]
    assert report.answers[1]["seen"]["sum"] == report.answers[1]["sent"]
    assert report.answers[1]["seen"]["port"] == port


@contextmanager
def held(site: TwoNodes, client: str, server: str, version: int) -> Iterator[Future[Report]]:
    """A connection that has had one answer, and waits for its end; the future is done when that has come."""
    with ThreadPoolExecutor(1) as pool:
        path = f"/open/held-{time.monotonic_ns()}"
        future = pool.submit(
            lambda: site.ask(client, server, ["GET", path], version=version, end="wait", wait=30.0)
        )  # the context waits for it
        until(lambda: [flow for n in (1, 2) for flow in site.flows(n, path=path)])
        yield future


DENIES = {"out": EGRESS.replace('port: "80"', 'port: "81"'), "in": INGRESS.replace('port: "80"', 'port: "81"')}
OTHERS = {"out": EGRESS, "in": INGRESS}


@VERSIONS
@pytest.mark.parametrize(("mode", "name"), [("client", "out"), ("server", "in"), ("both", "out"), ("both", "in")])
@pytest.mark.parametrize("gone", [False, True], ids=["denied", "removed"])
def test_a_policy_that_goes_cuts_on_both_nodes(site: TwoNodes, mode: str, name: str, version: int, gone: bool) -> None:
    """One node denies, or has no HTTP rules any more: an idle connection ends at once, on both nodes."""
    client, server = ends(mode)
    nothing_is_left(site, client, version)
    number = 1 if name == "out" else 2
    with held(site, client, server, version) as connection:
        assert established(site, number, client, version)
        began = time.monotonic()
        try:
            site.write(name, None if gone else DENIES[name], number)
            report = connection.result(LIMIT)
            took = time.monotonic() - began
            nothing_is_left(site, client, version)
            expected = [200] if gone else [0]
            assert site.get(client, server, "/open", version=version, wait=2) == expected
        finally:
            site.write(name, OTHERS[name], number)
    assert report.statuses == [200]
    assert report.end in ("fin", "reset")
    assert took < 12, "as long as nobody told it"
    assert site.get(client, server, "/open", version=version) == [200]


@VERSIONS
def test_the_servers_node_without_its_agent(site: TwoNodes, version: int) -> None:
    """Killed, and ended: verdicts stay, connections go on. Its pod's answers never leave past the proxy."""
    for how in (signal.SIGKILL, signal.SIGTERM):
        with Talk(site.bed, "shopper1", "guarded2", version=version) as talk:
            assert talk.ask("/open") == "200"
            (entry,) = socks(site, 2, "guarded2")
            answers = (80).to_bytes(2, "big") + int(entry["peerPort"]).to_bytes(2, "big")
            with Witness(site.node(1).info.netns, marker=answers) as witness:
                agent = site.agent(2)
                agent.process.send_signal(how)
                agent.process.wait(30)
                for _ in range(5):
                    assert talk.ask("/open") == "200"
                assert talk.ask("/none") == "403"
                assert site.get("client1", "guarded2", "/in", "/out", version=version) == [200, 403]
                assert site.get("outside", "guarded2", "/in", version=version, wait=1) == [0]
                site.agents["node2"] = start_agent(site.node(2), {"splice": {"mode": "auto"}})
                assert talk.ask("/open") == "200"
                witness.assert_nothing()
    status = site.agent(2).client.get("status")
    assert status["datapath"]["takenOver"]
    assert status["proxy"]["process"]["adopted"]


@VERSIONS
def test_the_servers_node_loses_its_proxy(site: TwoNodes, version: int) -> None:
    """The client's connection ends visibly. What its server still says goes nowhere."""
    with Talk(site.bed, "client1", "guarded2", version=version) as talk:
        assert talk.ask("/open") == "200"
        (entry,) = socks(site, 2, "guarded2")
        answers = (80).to_bytes(2, "big") + int(entry["peerPort"]).to_bytes(2, "big")
        with Witness(site.node(1).info.netns, marker=answers) as witness:
            pid = int(site.agent(2).client.get("status")["proxy"]["process"]["pid"])
            kill(site, pid)
            said: list[str] = []
            until(lambda: said.append(talk.ask("/open")) or said[-1] != "200")  # type: ignore[func-returns-value]
            assert said[-1] in CUT
            server, client = site.bed.pod("guarded2"), site.bed.pod("client1").address(version)
            source = server.address(version)
            late = tcp(source, client, 80, int(entry["peerPort"]), ACK, MARKER, seq=SEQ)
            with Wire(server) as wire:
                for _ in range(5):
                    wire.send(ip(source, client, TCP, late))
            witness.assert_nothing()
    until(lambda: site.get("client1", "guarded2", "/open", version=version, wait=2) == [200], 20.0)


def kill(site: TwoNodes, pid: int) -> None:
    """End a proxy that an agent of ours has started: its pid is in the node's own cgroup for proxies."""
    assert str(pid) in (site.node(2).info.cgroups.proxy / "cgroup.procs").read_text().split()
    os.kill(pid, signal.SIGKILL)


def denied(site: TwoNodes, number: int, reason: str) -> int:
    """Packets that a node has dropped for this reason so far."""
    found = site.agent(number).client.get("bpf/reasons")
    return sum(one["packets"] for one in found if one["reason"] == reason and one["verdict"] == "deny")


@VERSIONS
def test_a_pod_in_the_name_of_its_neighbour(site: TwoNodes, version: int) -> None:
    """Dropped where it begins: nothing of it comes to the other node."""
    neighbour = site.bed.pod("shopper1").address(version)
    servers = [site.bed.pod(name).address(version) for name in ("plain2", "guarded2")]
    packets = [ip(neighbour, one, TCP, tcp(neighbour, one, 40000, 80, SYN, MARKER, seq=SEQ)) for one in servers]
    packets += [ip(neighbour, one, UDP, udp(neighbour, one, 40000, 53, MARKER)) for one in servers]
    before = denied(site, 1, "spoofed-source")
    with Witness(site.node(2).info.netns) as witness, Wire(site.bed.pod("client1")) as wire:
        for packet in packets:
            wire.send(packet)
        until(lambda: denied(site, 1, "spoofed-source") >= before + len(packets))
        witness.assert_nothing()


@VERSIONS
def test_a_host_outside_in_the_name_of_pods(site: TwoNodes, version: int) -> None:
    """As a pod of that very node: dropped. As one of another node: the network is believed, but TCP must be answered.

    What it sends without having seen an answer reaches no server behind HTTP rules, and no live connection.
    """
    outside, guarded = site.bed.pod("outside"), site.bed.pod("guarded2").address(version)
    own, other = site.bed.pod("client2").address(version), site.bed.pod("shopper1").address(version)
    before = denied(site, 2, "spoofed-source")
    with Talk(site.bed, "shopper1", "guarded2", version=version) as talk:
        assert talk.ask("/open") == "200"
        live = next(flow["port"] for flow in _ports(site, other))
        with Witness(site.bed.pod("guarded2").netns) as witness:
            forged = []
            for source in (own, other):
                for port in (40000, live):
                    for flags, payload in ((SYN, b""), (SYN, MARKER), (ACK, b"GET /open HTTP/1.1\r\n" + MARKER)):
                        segment = tcp(source, guarded, port, 80, flags, payload, seq=SEQ, ack=SEQ)
                        forged.append(ip(source, guarded, TCP, segment))
            for packet in forged:
                netns.call(outside.netns, partial(send_raw, packet))
            until(lambda: denied(site, 2, "spoofed-source") >= before + 6)
            assert talk.ask("/open") == "200"
            witness.assert_nothing()


def _ports(site: TwoNodes, client: object) -> list[Json]:
    found = site.flows(2, hook="from-network", leg="downstream", verdict="redirect")
    return [{"port": flow["source"]["port"]} for flow in reversed(found) if flow["source"]["address"] == str(client)]


@VERSIONS
@EACH_MODE
def test_a_narrow_place_between_the_nodes(site: TwoNodes, mode: str, version: int) -> None:
    """Its «too big» is about a proxy's packets and addressed to a pod, on either node. The last test: routes stay."""
    client, server = ends(mode)
    site.bed.narrow(1280 + 40 * (version == 6))
    before = [related(site, number) for number in (1, 2)]
    report = site.ask(client, server, ["POST", f"/open?size={_SIZE}", _SIZE], version=version)
    assert report.statuses == [200]
    assert report.answers[0]["whole"]
    assert report.answers[0]["seen"]["sum"] == report.answers[0]["sent"]
    assert all(now > was for now, was in zip([related(site, n) for n in (1, 2)], before, strict=True))
    for number in (1, 2):
        for family in ("-4", "-6"):
            site.node(number).run_on_node(["ip", family, "route", "flush", "cache"])


def related(site: TwoNodes, number: int) -> int:
    """ICMP errors that a node's programs have let pass so far."""
    return sum(one["packets"] for one in site.agent(number).client.get("bpf/reasons") if one["reason"] == "related")
