"""A storm of connections from one client to one server, more than there are ports: through both proxies, and without.

The splice has no part in it, and is off. Client and node have SPLICEWAY_STORM_PORTS of them (default 500; `make soak`
takes as many as there are).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.portuse import PortUse, port_use
from support import kinds
from support.node import pod_manifest, server_manifest
from support.storm import StormOptions, StormResult
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

FIRST = 32_768
PORTS = int(os.environ.get("SPLICEWAY_STORM_PORTS", "500"))
#: Seconds for which a proxy holds the port of a connection to a server when its client has gone: TIME_WAIT, which is
#: reused after 1 s (up to 2, the clock is one of seconds), and in Envoy the idle time of connections to servers (4 s).
HELD: dict[ProxyKind, float] = {"embedded": 2.0, "envoy": 6.0}
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: storm, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: /x}]}
"""
_TESTS = Path(__file__).parents[1]


@contextmanager
def built(proxy: ProxyKind | None) -> Iterator[tuple[Testbed, AgentProcess | None]]:
    manifests = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as bed:
        agent = None
        try:
            if proxy is not None:
                (bed.node.info.policies / "storm.yaml").write_text(POLICY)
                agent = start_agent(bed.node, {"proxy": {"kind": proxy}, "splice": {"mode": "off"}})
            for place in (bed.pod("client").netns, bed.node.info.netns):
                netns.call(place, partial(_port_range, PORTS))
            yield bed, agent
        finally:
            if agent is not None:
                agent.kill()


def _port_range(count: int) -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{FIRST} {FIRST + count - 1}")


def start(client: Pod, server: Pod, version: int, connections: int, rate: float) -> subprocess.Popen[str]:
    options = StormOptions(str(server.address(version)), connections, 32, rate)
    argv = [sys.executable, "-m", "support.storm", msgspec.json.encode(options).decode()]
    search = os.pathsep.join((str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])))
    pipe = subprocess.PIPE
    return client.spawn(argv, env={"PYTHONPATH": search}, stdout=pipe, stderr=pipe, text=True)


def result(process: subprocess.Popen[str]) -> StormResult:
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err[-2000:]
    return msgspec.json.decode(out, type=StormResult)


def storm(bed: Testbed, connections: int, rate: float) -> list[StormResult]:
    """Over IPv4 and IPv6 side by side: a port of one is a port of the other, too, but for other pairs."""
    client, server = bed.pod("client"), bed.pod("server")
    running = [start(client, server, version, connections, rate) for version in (4, 6)]
    return [result(process) for process in running]


@pytest.mark.parametrize("proxy", [None, *kinds.BOTH])
def test_a_storm_with_more_connections_than_ports(proxy: ProxyKind | None) -> None:
    """No request is lost, and none waits, as without a proxy: with ports that are free again in time."""
    connections = PORTS * 6 // 5
    with built(proxy) as (bed, _):
        found = storm(bed, connections, rate=0.8 * PORTS / HELD[proxy] if proxy else 1e6)
        use = netns.call(bed.node.info.netns, port_use)
        print(f"\n{proxy}: {found} {use}")
        for one in found:
            assert (one.ok, one.failed, one.stalled) == (connections, {}, 0)
        assert use.most <= PORTS
        assert bool(use.most) == (proxy is not None)


def test_it_is_told_who_runs_short_of_ports() -> None:
    """A client that holds nearly all ports towards one server: status says which, and what is left."""
    with built("embedded") as (bed, agent):
        assert agent is not None
        for place in (bed.pod("client").netns, bed.node.info.netns):
            netns.call(place, partial(_port_range, 60))
        client, server = bed.pod("client"), bed.pod("server")
        held = client.spawn(
            [sys.executable, "-c", _HOLD, str(server.address(4)), "55"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert held.stdout is not None
            assert held.stdout.readline() == "held\n"
            seen = netns.call(bed.node.info.netns, port_use)
            assert seen == PortUse(60, 55, 0, 55, str(client.address(4)), f"{server.address(4)}:80")
            text = f"ports: connections of {client.address(4)} to {server.address(4)}:80 hold 55 of 60; "
            until(lambda: any(text in one for one in agent.client.get("status")["proxy"]["warnings"]))
            use = agent.client.get("status")["proxy"]["ports"]
            assert (use["ports"], use["most"], use["open"]) == (60, 55, 55)
        finally:
            held.kill()
            held.communicate()


_HOLD = """
import http.client, sys, time
held = []
for _ in range(int(sys.argv[2])):
    connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=10)
    connection.request("GET", "/x")
    assert connection.getresponse().read()
    held.append(connection)
print("held", flush=True)
time.sleep(600)
"""
