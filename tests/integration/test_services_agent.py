"""Services by an agent: documents come and go, pods dial the Service's address, and policy judges its backend."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import loaded
from spliceway.bpf.links import SOCKET_LB_LINKS
from support.foreign import cgroup_program
from support.lbpod import PORT, Remote, server
from support.node import pod_manifest, server_manifest
from support.profiled import status
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

_CLI = (sys.executable, "-m", "spliceway.agent")
_PATIENCE = 20.0
WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
SHOP = {4: "10.96.0.20", 6: "fd00:96::20"}
NAMES = {"one", "two"}
HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shop}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
"""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    manifests = [
        pod_manifest("client", {"role": "client"}),
        server("one"),
        server("two"),
        server_manifest("shop", {"role": "shop"}),
    ]
    with Testbed.up(manifests) as made:
        made.node.write_policy("http", HTTP)
        yield made


@pytest.fixture
def client(testbed: Testbed) -> Iterator[Remote]:
    with Remote.of(testbed.pod("client")) as made:
        yield made


@contextmanager
def running(testbed: Testbed, mode: str = "auto") -> Iterator[AgentProcess]:
    """An agent, and nothing of it or of the Services afterwards."""
    agent = start(testbed, mode)
    try:
        yield agent
    finally:
        agent.kill()
        forget(testbed)
        done = cli(testbed, "cleanup", *places(testbed), "--yes", "--state")
        assert done.returncode == 0, done.stderr


def start(testbed: Testbed, mode: str = "auto", **sizes: int) -> AgentProcess:
    return start_agent(testbed.node, {"splice": {"mode": "off"}, "datapath": {"socketLb": mode, **sizes}})


def cli(testbed: Testbed, *arguments: str) -> Any:
    return testbed.node.run_on_node([*_CLI, *arguments], timeout=60)


def places(testbed: Testbed) -> tuple[str, ...]:
    info = testbed.node.info
    return "--bpffs", str(info.bpffs), "--state-dir", str(info.state)


def service(name: str, addresses: Mapping[int, str], port: int, *, protocols: Sequence[str] = ("TCP", "UDP")) -> str:
    """A Service of both families; ports by protocol."""
    listed = list(addresses.values())
    spec = {
        "clusterIP": listed[0],
        "clusterIPs": listed,
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": each.lower(), "port": port, "protocol": each} for each in protocols],
    }
    return yaml.safe_dump(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    )


def slices(testbed: Testbed, name: str, pods: Sequence[str], port: int) -> str:
    """EndpointSlices of these pods, one for each family."""
    return "---\n".join(
        yaml.safe_dump(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-{version}",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": f"IPv{version}",
                "endpoints": [{"addresses": [str(testbed.pod(each).address(version))]} for each in pods],
                "ports": [{"name": each.lower(), "port": port, "protocol": each} for each in ("TCP", "UDP")],
            }
        )
        for version in (4, 6)
    )


def write(testbed: Testbed, *pods: str) -> None:
    """The Service `web` with these endpoints."""
    testbed.node.write_policy("web", service("web", WEB, 80))
    testbed.node.write_policy("web-slices", slices(testbed, "web", pods, PORT))


def forget(testbed: Testbed) -> None:
    for path in testbed.node.info.policies.iterdir():
        if path.stem != "http":
            path.unlink()


def held(agent: AgentProcess) -> dict[str, set[str]]:
    """Frontends in the kernel, with the addresses of their backends."""
    return {
        f"{each['address']} {each['port']}/{each['protocol']}": {one["address"] for one in each["backends"]}
        for each in agent.client.get("bpf/lb")
    }


def addresses(testbed: Testbed, *pods: str) -> dict[int, set[str]]:
    return {version: {str(testbed.pod(each).address(version)) for each in pods} for version in (4, 6)}


def expected(testbed: Testbed, *pods: str) -> dict[str, set[str]]:
    """What `held` says of the Service `web`."""
    backends = addresses(testbed, *pods)
    return {f"{host} 80/{protocol}": backends[version] for version, host in WEB.items() for protocol in ("TCP", "UDP")}


def in_force(testbed: Testbed, agent: AgentProcess, *pods: str) -> None:
    wanted = expected(testbed, *pods)
    until(lambda: held(agent) == wanted, _PATIENCE)


def attached(testbed: Testbed) -> set[str]:
    """Our programs at the hooks of the pods' cgroup where Services are translated."""
    cgroup = testbed.node.info.cgroups.pods
    found = {name for kind in SOCKET_LB_LINKS.values() for name in loaded.of_cgroup(cgroup, kind, effective=False)}
    return {loaded.name_of(number) for number in found} & set(SOCKET_LB_LINKS)


def metrics(testbed: Testbed, agent: AgentProcess) -> dict[str, float]:
    text = testbed.node.run_on_node(
        ["curl", "--silent", "--unix-socket", str(agent.socket), "http://agent/metrics"]
    ).stdout
    return {name: float(value) for name, value in re.findall(r"^spliceway_socket_lb_(\w+) (\S+)$", text, re.MULTILINE)}


def names(client: Remote, version: int) -> tuple[set[str], set[str]]:
    """Who answers by TCP, and who by connected UDP."""
    host = WEB[version]
    client.do(
        f"udp = set()\nfor _ in range(20):\n    with new({version}, DGRAM) as made:\n"
        f"        made.connect(('{host}', 80))\n        udp.add(ask(made))"
    )
    return set(client.ask(f"many(20, {version}, '{host}')")), set(client.ask("list(udp)"))


@pytest.mark.parametrize("version", [4, 6])
def test_pods_reach_what_the_documents_say(testbed: Testbed, client: Remote, version: int) -> None:
    write(testbed, "one", "two")
    with running(testbed) as agent:
        in_force(testbed, agent, "one", "two")
        assert names(client, version) == (NAMES, NAMES)
        client.do(f"loose = new({version}, DGRAM)")
        name, sender = client.ask(f"ask_to(loose, '{WEB[version]}')")
        assert (name in NAMES, sender) == (True, [WEB[version], 80])
        write(testbed, "two")
        in_force(testbed, agent, "two")
        assert names(client, version) == ({"two"}, {"two"})
        assert client.ask(f"ask_to(loose, '{WEB[version]}')") == ["two", [WEB[version], 80]]
        write(testbed)
        in_force(testbed, agent)
        assert client.error(f"name_of({version}, '{WEB[version]}')") == "ECONNREFUSED"
        write(testbed, "one")
        in_force(testbed, agent, "one")
        assert names(client, version) == ({"one"}, {"one"})
        forget(testbed)
        until(lambda: held(agent) == {}, _PATIENCE)
        # It goes its way: nobody else knows this address.
        assert client.error(f"dial({version}, '{WEB[version]}')") not in ("", "ECONNREFUSED")


@pytest.mark.parametrize("version", [4, 6])
def test_http_rules_of_the_backend_apply(testbed: Testbed, version: int) -> None:
    testbed.node.write_policy("shop", service("shop", SHOP, 8000))
    testbed.node.write_policy("shop-slices", slices(testbed, "shop", ["shop"], 80))
    with running(testbed) as agent:
        until(lambda: len(held(agent)) == 4, _PATIENCE)
        pod = testbed.pod("client")
        assert (status(pod, SHOP[version], 8000, "/open"), status(pod, SHOP[version], 8000, "/closed")) == (200, 403)
        at = ("--socket", str(agent.socket), "-o", "json")
        backend = str(testbed.pod("shop").address(version))

        def told() -> set[tuple[str, str, int]]:
            lines = cli(testbed, "flows", "--service", "default/shop", *at).stdout.splitlines()
            flows = [one for one in map(json.loads, lines) if one["destination"]["address"] == backend]
            return {(one["hook"], one["verdict"], one["http"]["status"] if one["http"] else 0) for one in flows}

        wanted = {("from-pod", "redirect", 0), ("proxy", "allow", 200), ("proxy", "deny", 403)}
        until(lambda: wanted <= told(), _PATIENCE)
        assert not cli(testbed, "flows", "--service", "default/web", *at).stdout


def test_what_changed_while_no_agent_ran(testbed: Testbed, client: Remote) -> None:
    write(testbed, "one", "two")
    testbed.node.write_policy("old", service("old", SHOP, 80))
    with running(testbed) as agent:
        until(lambda: len(held(agent)) == 8, _PATIENCE)
        client.do(f"kept = new(4, DGRAM); kept.connect(('{WEB[4]}', 80))")
        first = client.ask("ask(kept)")
        agent.kill()
        other = next(iter(NAMES - {first}))
        assert set(client.ask(f"many(20, 4, '{WEB[4]}')")) == NAMES, "it goes on without an agent"
        testbed.node.remove_policy("old")
        write(testbed, other)
        agent = start(testbed)
        try:
            in_force(testbed, agent, other)
            assert names(client, 4) == ({other}, {other})
            assert client.error("ask(kept)") in ("ECONNABORTED", "EDESTADDRREQ"), "its backend has gone"
        finally:
            agent.kill()


def test_list_status_and_metrics(testbed: Testbed) -> None:
    write(testbed, "one", "two")
    with running(testbed) as agent:
        in_force(testbed, agent, "one", "two")
        at = ("--socket", str(agent.socket))
        table = cli(testbed, "bpf", "lb", "list", *at).stdout
        assert re.search(r"default/web +tcp +ClusterIP +10\.96\.0\.10:80/TCP +\d+ +2 +\d+=10\.", table), table
        (documents,) = yaml.safe_load_all(cli(testbed, "bpf", "lb", "list", "-o", "yaml", *at).stdout)
        assert documents == agent.client.get("bpf/lb")
        assert {each["service"] for each in documents} == {"default/web"}
        told = cli(testbed, "status", *at)
        assert re.search(r"socket-lb +auto: 4 frontends, 8 backends in the kernel", told.stdout), told.stdout
        found = metrics(testbed, agent)
        assert found == {"active": 1, "frontends": 4, "backends": 8, "changes_total": 4, "failures_total": 0}


def test_off_attaches_nothing(testbed: Testbed, client: Remote) -> None:
    write(testbed, "one", "two")
    with running(testbed, "off") as agent:
        assert attached(testbed) == set()
        assert held(agent) == {}
        assert metrics(testbed, agent)["active"] == 0
        agent.stop()
        agent = start(testbed, "on")
        try:
            in_force(testbed, agent, "one", "two")
            assert attached(testbed) == set(SOCKET_LB_LINKS)
            agent.stop()
            agent = start(testbed, "off")
            assert attached(testbed) == set()
            assert client.error(f"dial(4, '{WEB[4]}')")
        finally:
            agent.kill()


def test_no_room_is_told_and_keeps_what_there_was(testbed: Testbed, client: Remote) -> None:
    write(testbed, "one")
    with running(testbed, "off") as agent:
        agent.stop()
        agent = start(testbed, "on", maxFrontends=4)
        try:
            in_force(testbed, agent, "one")
            testbed.node.write_policy("shop", service("shop", SHOP, 80))
            until(lambda: agent.client.get("status")["policy"]["serviceError"], _PATIENCE)
            said = cli(testbed, "status", "--socket", str(agent.socket))
            assert said.returncode == 1
            assert re.search(
                r"! services: .*stay as they were: 4 \(.*\): map lb_frontends: .*raise datapath\.maxFrontends",
                said.stdout,
            ), said.stdout
            assert metrics(testbed, agent)["failures_total"] >= 1
            write(testbed, "two")
            in_force(testbed, agent, "two")
            assert names(client, 4) == ({"two"}, {"two"})
            testbed.node.remove_policy("shop")
            until(lambda: not agent.client.get("status")["policy"]["serviceError"], _PATIENCE)
            in_force(testbed, agent, "two")
        finally:
            agent.kill()


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_it_makes_way_for_others(testbed: Testbed, mode: str) -> None:
    write(testbed, "one")
    above = testbed.node.info.cgroups.pods.parent
    with cgroup_program(above, SOCKET_LB_LINKS["lb_connect4"]), running(testbed, mode) as agent:
        assert attached(testbed) == set()
        told = cli(testbed, "status", "--socket", str(agent.socket))
        assert f"{mode}, but off: others translate: cil_sock4_conn" in told.stdout
        problem = "! datapath: socket load balancing is off"
        assert (problem in told.stdout, told.returncode) == ((True, 1) if mode == "on" else (False, 0)), told.stdout
        assert metrics(testbed, agent)["active"] == 0


def test_it_makes_way_while_it_runs_and_comes_back(testbed: Testbed, client: Remote) -> None:
    """Nothing of the Services changes meanwhile: it is looked at every few seconds."""
    write(testbed, "one")
    above = testbed.node.info.cgroups.pods.parent
    with running(testbed, "auto") as agent:
        in_force(testbed, agent, "one")
        assert names(client, 4) == ({"one"}, {"one"})
        with cgroup_program(above, SOCKET_LB_LINKS["lb_connect6"]):
            until(lambda: attached(testbed) == set(), _PATIENCE)
            assert metrics(testbed, agent)["active"] == 0
            assert "cil_sock4_conn" in cli(testbed, "status", "--socket", str(agent.socket)).stdout
            check = preflight(testbed, agent)
            assert check["status"] == "info"
            assert "Cilium's socket LB translates for pods' sockets: cil_sock4_conn (id " in check["found"]
            write(testbed, "two")  # the maps are kept up
            in_force(testbed, agent, "two")
            assert client.error(f"dial(4, '{WEB[4]}')"), "nobody translates it"
        until(lambda: attached(testbed) == set(SOCKET_LB_LINKS), _PATIENCE)
        assert names(client, 4) == ({"two"}, {"two"})
        assert preflight(testbed, agent)["status"] == "ok"


def preflight(testbed: Testbed, agent: AgentProcess) -> dict[str, str]:
    """What it says of who translates."""
    done = cli(testbed, "preflight", "--config", str(agent.config), "--no-self-test", "-o", "json")
    (found,) = (each for each in json.loads(done.stdout)["checks"] if each["name"] == "socket-lb")
    return dict(found)
