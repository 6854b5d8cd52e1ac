"""The real agent on a virtual node: real kernel programs, a real proxy, real traffic."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from spliceway.agent.cli.client import AgentClient
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.asking import Asking
from support.node import demo_manifests, http_status, server_manifest
from support.waiting import until

pytestmark = pytest.mark.kernel

POLICIES = Path(__file__).parents[2] / "examples" / "demo" / "policies"


class World:
    """A testbed with an agent."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.node = testbed.node
        self.agent: AgentProcess = start_agent(self.node)

    def api(self) -> AgentClient:
        return AgentClient(self.agent.socket)

    def status(self) -> Any:
        return self.api().get("status")

    def settled(self, wait: float = 15.0) -> Any:
        """Status once everything that is wanted is in force and accepted."""
        deadline = time.monotonic() + wait
        while True:
            status = self.status()
            policy = status["policy"]
            ready = policy["revision"] == policy["wanted"] > 0 and not policy["waiting"] and status["proxy"]["clients"]
            if ready:
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.02)

    def edit(self, name: str, text: str) -> float:
        """Replace a policy file as editors do; time.monotonic() of the rename."""
        path = self.node.info.policies / name
        beside = path.with_name(f".{name}")
        beside.write_text(text)
        when = time.monotonic()
        beside.rename(path)
        return when

    def restart(self) -> None:
        self.agent = start_agent(self.node)

    @contextmanager
    def client(self, pod: str, target: str, path: str = "/", **options: float) -> Iterator[Asking]:
        with Asking(self.testbed, pod, target, path, **options) as client:
            client.first(lambda _said: True, 0.0)
            yield client


def text(name: str) -> str:
    return (POLICIES / name).read_text()


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with Testbed.up(demo_manifests(), policies=[POLICIES]) as testbed:
        world = World(testbed)
        try:
            yield world
        finally:
            if world.agent.process.poll() is None:
                world.agent.stop()


@pytest.fixture
def world(running: World) -> World:
    running.settled()
    return running


@pytest.mark.parametrize("version", [4, 6])
def test_verdicts_and_their_flows(world: World, version: int) -> None:
    def ask(client: str, server: str, path: str) -> int:
        return http_status(world.testbed, client, server, path, version=version, timeout=1)

    assert ask("frontend", "backend", "/") == 200
    assert ask("intruder", "backend", "/") == 0
    assert ask("frontend", "api", "/articles/1") == 200
    assert ask("frontend", "api", "/private") == 403
    assert ask("frontend", "api", "/articles/1?x=1") == 403
    assert ask("intruder", "api", "/articles/1") == 0
    said = set()
    deadline = time.monotonic() + 3  # the access log may wait a moment for company
    while time.monotonic() < deadline and ("default/frontend", "default/api", "http-denied") not in said:
        said = {
            (flow["source"]["pod"], flow["destination"]["pod"], flow["reason"])
            for flow in world.api().lines("flows", last="200")
            if (":" in flow["source"]["address"]) == (version == 6)
        }
    assert said >= {
        ("default/frontend", "default/backend", "policy-allowed"),
        ("default/intruder", "default/backend", "default-deny"),
        ("default/frontend", "default/api", "redirected"),
        ("default/frontend", "default/api", "http-allowed"),
        ("default/frontend", "default/api", "http-denied"),
        ("default/intruder", "default/api", "default-deny"),
    }


def _audited(name: str) -> str:
    annotated = "  namespace: default\n  annotations: {spliceway.io/enforcement: audit}\nspec:"
    found = text(name).replace("  namespace: default\nspec:", annotated)
    assert found != text(name)
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_policies_in_audit_change_nothing_and_tell_all(world: World, version: int) -> None:
    """What is denied now passes, at L4 and L7, and is in flows and sums; then it is denied again."""
    names = [path.name for path in sorted(POLICIES.glob("*.yaml"))]

    def ask(client: str, server: str, path: str) -> int:
        return http_status(world.testbed, client, server, path, version=version, timeout=1)

    try:
        for name in names:
            world.edit(name, _audited(name))
        deadline = time.monotonic() + 5
        while world.status()["enforcement"]["policiesInAudit"] < len(names):
            assert time.monotonic() < deadline
        world.settled()
        world.api().delete("audit")
        assert ask("intruder", "backend", "/") == 200
        assert ask("frontend", "api", "/articles/1") == 200
        assert ask("frontend", "api", "/private") not in (0, 403)
        assert ask("intruder", "api", "/articles/1") == 200
        wanted = {
            ("default/intruder", "default/backend", "default-deny", "", 80),
            ("default/frontend", "default/api", "http-denied", "/private", 80),
            ("default/intruder", "default/api", "default-deny", "", 80),
        }
        deadline, told = time.monotonic() + 5, dict[tuple[object, ...], int]()
        while not told.keys() >= wanted and time.monotonic() < deadline:
            told = {
                (one["source"]["pod"], one["destination"]["pod"], one["reason"], one["path"], one["port"]): one["count"]
                for one in world.api().get("audit")["entries"]
            }
        assert told.keys() >= wanted
        assert {told[one] for one in wanted} == {1}
        assert ("default/frontend", "default/api", "http-denied", "/articles/1", 80) not in told
        flows = {
            (flow["source"]["pod"], flow["destination"]["pod"], flow["reason"])
            for flow in world.api().lines("flows", last="2000", verdict="audit")
        }
        assert flows >= {one[:3] for one in wanted}
    finally:
        for name in names:
            world.edit(name, text(name))
    deadline = time.monotonic() + 5
    while world.status()["enforcement"]["policiesInAudit"]:
        assert time.monotonic() < deadline
    world.settled()
    assert ask("intruder", "backend", "/") == 0
    assert ask("frontend", "api", "/private") == 403
    assert ask("frontend", "api", "/articles/1") == 200


def test_an_agent_in_audit_denies_nothing_and_breaks_nothing(world: World) -> None:
    """Started again with the other mode, live connections that both let pass go on."""

    def ask() -> list[int]:
        asked = (("intruder", "backend", "/"), ("frontend", "api", "/private"), ("frontend", "api", "/articles/1"))
        return [http_status(world.testbed, client, server, path, timeout=1) for client, server, path in asked]

    assert ask() == [0, 403, 200]
    with world.client("frontend", "backend") as client:
        for mode, expected in (("audit", [200, 200, 200]), ("enforce", [0, 403, 200])):
            world.agent.stop()
            world.agent = start_agent(world.node, {"enforcement": mode})
            assert world.settled()["enforcement"]["mode"] == mode
            assert ask() == expected
        assert 0 not in client.since(0)


def test_http_edits_reach_live_connections_in_time(world: World) -> None:
    name, times = "4-api-http.yaml", []
    applied = world.status()["policy"]["applied"]
    with world.client("frontend", "api", "/articles/1") as client:
        for _ in range(7):
            when = world.edit(name, text(name).replace("/articles/", "/books/"))
            times.append(client.first(403, when))
            when = world.edit(name, text(name))
            times.append(client.first(200, when))
        assert 0 not in client.since(0)
    assert median(times) < 0.2, times
    assert world.settled()["policy"]["applied"] == applied  # rows were never touched


def test_kernel_edits_reach_live_connections_in_time(world: World) -> None:
    tighter = {name: text(name).replace("role: frontend", "role: nobody") for name in _BACKEND}
    times = []
    with world.client("frontend", "backend", pause=0.005, patience=0.1) as client:
        for _ in range(5):
            for name in _BACKEND:
                when = world.edit(name, tighter[name])
            times.append(client.first(0, when) - 0.1)  # the client's own patience
            for name in _BACKEND:
                when = world.edit(name, text(name))
            times.append(client.first(200, when))
    assert median(times) < 0.2, times


_BACKEND = ("1-backend-ingress.yaml", "3-backend-l4.yaml")


def test_a_live_spliced_connection_is_cut_when_its_rule_goes(world: World) -> None:
    name = "4-api-http.yaml"
    with world.client("frontend", "api", "/articles/1") as client:
        states = {entry["state"] for entry in world.api().get("socks") if entry["endpointPod"] == "default/frontend"}
        assert "spliced" in states
        when = world.edit(name, text(name).replace("role: frontend", "role: nobody"))
        assert client.first(0, when) < 4.0, "it was the client who gave up"
        when = world.edit(name, text(name))
        client.first(200, when)
    world.settled()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("kind: CiliumNetworkPolicy", "kind: [CiliumNetworkPolicy"), "not YAML"),
        (("toPorts:", "toPort:"), "spec.ingress[0].toPort"),
        (('port: "80"', 'port: "70000"'), "70000 is not a port"),
        (("/articles/[0-9]+", "/articles/[0-9"), "rules.http[0].path"),
    ],
)
def test_bad_edits_change_nothing(world: World, change: tuple[str, str], reason: str) -> None:
    name = "4-api-http.yaml"
    before = world.status()["policy"]["revision"]
    world.edit(name, text(name).replace(*change))
    deadline = time.monotonic() + 5
    while not (refusals := world.status()["source"]["refusals"]):
        assert time.monotonic() < deadline
    (refusal,) = refusals
    assert refusal["kept"]
    assert reason in " ".join(map(str, refusal.values()))
    assert http_status(world.testbed, "frontend", "api", "/articles/1") == 200
    assert http_status(world.testbed, "frontend", "api", "/private") == 403
    assert world.status()["policy"]["generation"] == world.settled()["policy"]["generation"]
    world.edit(name, text(name))
    while world.status()["source"]["refusals"]:
        assert time.monotonic() < deadline + 5
    assert world.settled()["policy"]["revision"] >= before


def test_pods_come_go_and_change_their_labels(world: World) -> None:
    def ready() -> dict[str, bool]:
        return {one["name"]: one["ready"] for one in world.api().get("endpoints")}

    world.testbed.add_pod(server_manifest("late", {"role": "frontend"}))
    deadline = time.monotonic() + 10
    while not ready().get("default/late"):
        assert time.monotonic() < deadline
    assert http_status(world.testbed, "late", "backend") == 200
    assert http_status(world.testbed, "late", "api", "/private") == 403
    with world.client("late", "api", "/articles/1") as client:
        (file,) = (path for path in world.node.info.manifests.glob("pods/*") if "late" in path.name)
        told = file.read_text()
        assert "role: frontend" in told
        when = time.monotonic()
        file.with_name(".late").write_text(told.replace("role: frontend", "role: nobody"))
        file.with_name(".late").rename(file)
        assert client.first(0, when) < 4.0, "it was the client who gave up"
        file.with_name(".late").write_text(told)
        when = time.monotonic()
        file.with_name(".late").rename(file)
        client.first(200, when)
    world.testbed.remove_pod("late")
    while "default/late" in ready():
        assert time.monotonic() < deadline + 10
    assert "default/late" not in {entry["endpointPod"] for entry in world.api().get("bpf/ct")}
    # What leaves stays attached until the table is in force; that its interface went sooner is told meanwhile.
    until(lambda: world.settled()["policy"]["endpointError"] == "")
    assert http_status(world.testbed, "frontend", "backend") == 200


def test_a_killed_agent_changes_nothing_and_the_next_one_takes_over(world: World) -> None:
    name = "4-api-http.yaml"
    with (
        world.client("frontend", "api", "/articles/1") as http,
        world.client("frontend", "backend") as plain,
    ):
        begin = time.monotonic()
        generation = world.status()["policy"]["generation"]
        world.agent.kill()
        assert http_status(world.testbed, "intruder", "backend", timeout=1) == 0
        assert http_status(world.testbed, "frontend", "api", "/private") == 403
        assert http_status(world.testbed, "frontend", "api", "/articles/2") == 200
        world.restart()
        status = world.settled()
        assert status["datapath"]["takenOver"]
        assert status["proxy"]["process"]["adopted"]
        assert status["policy"]["generation"] >= generation or status["datapath"]["generation"] >= generation
        when = world.edit(name, text(name).replace("/articles/", "/books/"))
        http.first(403, when)
        when = world.edit(name, text(name))
        http.first(200, when)
        assert plain.since(begin) == {200}
        assert http.since(begin) <= {200, 403}
    assert world.settled()["proxy"]["process"]["restarts"] == 0


def test_without_its_proxy_http_is_closed_and_comes_back(world: World) -> None:
    listeners = world.status()["proxy"]["listeners"]
    assert listeners
    (world.node.info.cgroups.proxy / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 15
    while (status := world.status())["proxy"]["process"]["restarts"] == 0 or status["proxy"]["listeners"] != listeners:
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    assert world.settled()["proxy"]["listeners"] == listeners
    assert http_status(world.testbed, "frontend", "api", "/articles/1") == 200
    assert http_status(world.testbed, "frontend", "api", "/private") == 403


def test_a_listener_port_of_somebody_else_is_left_alone(world: World) -> None:
    name = "3-backend-l4.yaml"
    code = (
        "import socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "print('up', flush=True)\n"
        "listener.accept()\n"
    )
    nacks = world.status()["proxy"]["nacks"]
    taken = max(world.status()["proxy"]["listeners"].values()) + 1
    with world.node.spawn_on_node([sys.executable, "-c", code, str(taken)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "up\n"
            # The same rule as that of 1-backend-ingress.yaml, but for the paths: the two files are edited as one would.
            http = text("4-api-http.yaml").partition("rules:")[2]
            world.edit(
                "1-backend-ingress.yaml", text("1-backend-ingress.yaml").replace("role: frontend", "role: nobody")
            )
            world.edit(name, text(name).rstrip() + "\n          rules:" + http)
            deadline = time.monotonic() + 10
            while len(listeners := world.status()["proxy"]["listeners"]) < 2:
                assert time.monotonic() < deadline, world.status()
            assert taken not in listeners.values()
            assert world.status()["proxy"]["nacks"] == nacks + 1
            assert http_status(world.testbed, "frontend", "backend", "/articles/1") == 200
            assert http_status(world.testbed, "frontend", "backend", "/") == 403
        finally:
            other.kill()
    world.edit(name, text(name))
    world.edit("1-backend-ingress.yaml", text("1-backend-ingress.yaml"))
    while len(world.settled()["proxy"]["listeners"]) > 1:
        pass
    assert http_status(world.testbed, "frontend", "backend", "/") == 200


def test_a_second_agent_and_a_bad_config_end_with_one_line(world: World) -> None:
    argv = [sys.executable, "-m", "spliceway.agent"]
    done = world.node.run_on_node([*argv, "agent", "--config", str(world.agent.config)])
    assert done.returncode == 1
    assert f"belongs to a running agent (pid {world.agent.process.pid})" in done.stderr
    assert "Traceback" not in done.stderr
    config = world.agent.config.with_name("bad.yaml")
    for change, reason in (
        ((str(world.node.info.cgroups.pods), "/sys/fs/nothing"), "cgroups.pods: /sys/fs/nothing is not there"),
        (("kind: embedded", "kind: envoy\n  binary: /no/envoy"), "proxy.binary: /no/envoy is not an executable file"),
        ((str(world.node.info.bpffs), "/tmp"), "bpffs: /tmp"),
        ((str(world.node.info.manifests), "/no/where"), "source.directory: /no/where is not a directory"),
    ):
        state = ("stateDir: " + str(world.node.info.state), "stateDir: " + str(world.node.info.directory / "other"))
        config.write_text(world.agent.config.read_text().replace(*change).replace(*state))
        done = world.node.run_on_node([*argv, "agent", "--config", str(config)])
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_cleanup_leaves_nothing(world: World) -> None:
    argv = [sys.executable, "-m", "spliceway.agent", "cleanup", "--yes", "--config", str(world.agent.config)]
    refused = world.node.run_on_node(argv)
    assert refused.returncode == 1
    assert "belongs to a running agent" in refused.stderr
    assert world.agent.stop() == 0
    assert http_status(world.testbed, "intruder", "backend", timeout=1) == 0  # nobody took the verdicts along
    done = world.node.run_on_node(argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert http_status(world.testbed, "intruder", "backend") == 200
    assert "lookup 2480" not in world.node.run_on_node(["ip", "rule"]).stdout
    assert not (world.node.info.cgroups.proxy / "cgroup.procs").read_text()
    assert world.node.run_on_node(argv).returncode == 0  # twice is no error
