"""What is spliced, as modes and annotations say it, on a node with an agent: new connections only, old ones go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from spliceway.agent.cli.client import _UnixConnection
from spliceway.agent.optout import EXCLUDE_PORTS, SPLICE
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.selftest.cache import store
from spliceway.bpf.selftest.identity import identity, make_report
from spliceway.bpf.selftest.report import Check, Result, Side
from support.node import http_status, pod_manifest
from support.talk import Talk
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: The servers' ports: for everybody; one that pods exclude in these tests, one that the node excludes.
PORTS = (80, 8080, 9000)
SERVE = ["sh", "-c", " & ".join(f"python -m spliceway.agent.testbed.server --port {port}" for port in PORTS)]
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}, {port: "8080", protocol: TCP}, {port: "9000", protocol: TCP}]
      rules: {http: [{method: GET, path: /x}]}
"""
BOTH_SPLICED = {"downstream": ("spliced", ""), "upstream": ("spliced", "")}


class World:
    """A client's and a server's pod, and an agent that never splices port 9000."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        (testbed.node.info.policies / "web.yaml").write_text(POLICY)
        self.agent: AgentProcess = start_agent(testbed.node, {"splice": {"excludePorts": [9000]}})

    def cli(self, *arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "spliceway.agent", *arguments, "--socket", str(self.agent.socket)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def socks(self, **wanted: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.agent.client.get("socks")
        return [sock for sock in found if all(sock[key] == value for key, value in wanted.items())]

    def metrics(self) -> dict[str, float]:
        connection = _UnixConnection(self.agent.socket, 5.0)
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        text = connection.getresponse().read().decode()
        connection.close()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in lines}

    def ask(self, talk: Talk, old: set[tuple[Any, ...]], port: int = 80) -> dict[str, tuple[str, str]]:
        """One request on a new connection, and what became of its two legs; all others are `old`."""
        assert talk.ask() == "200"
        new = [sock for sock in self.socks() if name(sock) not in old]
        assert {sock["peerPort" if sock["leg"] == "downstream" else "endpointPort"] for sock in new} == {port}
        return {sock["leg"]: (sock["state"], sock["why"]) for sock in new}

    def fresh(self, *, version: int = 4, port: int = 80) -> dict[str, tuple[str, str]]:
        """What becomes of the two legs of a new connection."""
        old = set(map(name, self.socks()))
        with Talk(self.testbed, "client", "server", version=version, port=port) as talk:
            return self.ask(talk, old, port)

    def redirected(self) -> int:
        """Bytes that were spliced on connections that are there."""
        return sum(sock["toProxyBytes"] + sock["fromProxyBytes"] for sock in self.socks())

    def annotate(self, pod: str, annotations: dict[str, str], wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Change a pod's annotations and wait until the agent has taken over what it should."""
        self.testbed.set_annotations(pod, annotations)

        def taken_over() -> bool:
            found = {item["name"]: item for item in self.agent.client.get("endpoints")}
            return wanted(found[f"default/{pod}"])

        until(taken_over)

    def forget_annotations(self) -> None:
        for pod in ("client", "server"):
            self.annotate(pod, {}, lambda found: found["splice"] and not found["unsplicedPorts"])


def name(sock: dict[str, Any]) -> tuple[Any, ...]:
    return sock["endpoint"], sock["endpointPort"], sock["peer"], sock["peerPort"], sock["leg"]


@pytest.fixture(autouse=True)
def _as_it_was(world: World) -> Iterator[None]:
    yield
    world.forget_annotations()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    server = pod_manifest("server", {"role": "server"}, command=SERVE, ports=PORTS)
    with Testbed.up([pod_manifest("client", {"role": "client"}), server]) as testbed:
        made = World(testbed)
        try:
            yield made
        finally:
            made.agent.stop()


def test_a_mode_reaches_new_connections_only(world: World) -> None:
    with Talk(world.testbed, "client", "server") as first:
        assert world.ask(first, set()) == BOTH_SPLICED
        known = set(map(name, world.socks()))
        said = "splice: off for new connections, those that are open stay as they are"
        assert world.cli("splice", "off") == f"{said} (after a restart of the agent: auto)\n"
        with Talk(world.testbed, "client", "server") as late:
            off = world.ask(late, known)
            assert off == {"downstream": ("tcp-only", "off"), "upstream": ("tcp-only", "off")}
            before = world.redirected()
            assert first.ask() == "200"
            assert world.redirected() > before
            assert known <= {name(sock) for sock in world.socks(state="spliced")}
            assert world.cli("splice", "force").startswith("splice: force for new connections")
            assert world.fresh() == BOTH_SPLICED
            # Back again does not bring back what was left to TCP.
            assert "after a restart" not in world.cli("splice", "auto")
            assert late.ask() == "200"
            listed = world.cli("sock", "list", "--reason", "off", "--pod", "client")
            assert [line.split()[3:6] for line in listed.splitlines()[1:]] == [["downstream", "tcp-only", "off"]]
            assert first.ask() == "200"
    assert world.fresh() == BOTH_SPLICED


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_opts_out_for_new_connections(world: World, version: int) -> None:
    known = set(map(name, world.socks()))
    with Talk(world.testbed, "client", "server", version=version) as old:
        assert world.ask(old, known) == BOTH_SPLICED
        mine = {name(sock) for sock in world.socks(state="spliced")} - known
        world.annotate("server", {SPLICE: "false"}, lambda pod: not pod["splice"])
        out = ("tcp-only", "opted-out")
        assert world.fresh(version=version) == {"downstream": ("spliced", ""), "upstream": out}
        world.annotate("client", {SPLICE: "false"}, lambda pod: not pod["splice"])
        assert world.fresh(version=version) == {"downstream": out, "upstream": out}
        before = world.redirected()
        assert old.ask() == "200"  # neither reset nor taken out
        assert world.redirected() > before
        assert mine <= {name(sock) for sock in world.socks(state="spliced")}
        world.forget_annotations()
        assert world.fresh(version=version) == BOTH_SPLICED


@pytest.mark.parametrize("version", [4, 6])
def test_ports_are_excluded_by_pods_and_for_the_node(world: World, version: int) -> None:
    out = ("tcp-only", "excluded-port")
    assert world.fresh(version=version, port=9000) == {"downstream": out, "upstream": out}
    assert world.fresh(version=version, port=8080) == BOTH_SPLICED
    world.annotate("server", {EXCLUDE_PORTS: "8080,1"}, lambda pod: pod["unsplicedPorts"] == [1, 8080])
    assert world.fresh(version=version, port=8080) == {"downstream": ("spliced", ""), "upstream": out}
    world.annotate("client", {EXCLUDE_PORTS: "8080"}, lambda pod: pod["unsplicedPorts"] == [8080])
    assert world.fresh(version=version, port=8080) == {"downstream": out, "upstream": out}
    assert world.fresh(version=version) == BOTH_SPLICED
    world.forget_annotations()
    assert world.fresh(version=version, port=8080) == BOTH_SPLICED
    assert world.fresh(version=version, port=9000) == {"downstream": out, "upstream": out}


def test_a_bad_annotation_is_told_and_the_pod_stays_managed(world: World) -> None:
    world.annotate("server", {EXCLUDE_PORTS: "many"}, lambda pod: not pod["splice"])
    told = world.cli("status", status=1)
    assert f"metadata.annotations[{EXCLUDE_PORTS}]: 'many' is not a port" in told
    assert world.fresh() == {"downstream": ("spliced", ""), "upstream": ("tcp-only", "opted-out")}
    with Talk(world.testbed, "client", "server") as talk:
        assert talk.ask("/y") == "403"
    world.forget_annotations()
    world.cli("status")


def test_a_node_whose_self_test_failed_enforces_everything_unspliced_and_says_so(world: World) -> None:
    world.agent.stop()
    reports = world.testbed.node.info.state / "selftest"
    bad = Check("order", 1, Result.BAD, "bytes overtook others", (Side.CLIENTS, Side.SERVERS))
    report = make_report(identity(), time=time.time(), seconds=1.0, checks=[bad])
    store(reports, report)
    log = world.agent.log
    begin = log.stat().st_size
    world.agent = start_agent(world.testbed.node, {"splice": {"selfTestDir": str(reports)}})
    out = ("tcp-only", "kernel")
    known = set(map(name, world.socks()))
    with Talk(world.testbed, "client", "server") as talk:
        assert world.ask(talk, known) == {"downstream": out, "upstream": out}
        assert talk.ask("/y") == "403"
    assert http_status(world.testbed, "server", "client") == 0  # nobody listens there, and nothing hangs
    why = f"self-test: {report.why}"
    assert "bytes overtook others" in why
    told = world.cli("status")  # no reason for an exit status of 1: policy is in force
    assert f"(warning) splice: clients and servers not spliced: {why}\n" in told
    assert "auto, nothing: " in told
    assert "1 bad in 1.0 s" in told
    status = world.agent.client.get("status")["splice"]
    assert (status["decided"], status["spliced"], status["why"]) == (True, [], [why])
    metrics = world.metrics()
    assert [metrics[f'spliceway_splice_enabled{{class="{each}"}}'] for each in ("clients", "servers")] == [0, 0]
    assert metrics['spliceway_splice_self_test_checks{result="bad"}'] == 1
    assert metrics['spliceway_splice_connections_total{reason="kernel",result="tcp-only"}'] >= 2
    lines = [line for line in log.read_text()[begin:].splitlines() if "splicing decided" in line]
    assert len(lines) == 1
    assert "bytes overtook others" in lines[0]
    # In spite of it, for whoever knows better; and tightened at once for what is new.
    assert f"splice: spliced (force) in spite of: {why}" in world.cli("splice", "force")
    assert world.fresh() == BOTH_SPLICED
    world.cli("splice", "auto")
    assert world.fresh() == {"downstream": out, "upstream": out}
