"""Splicing with the embedded proxy, on a node with an agent: both sockets spliced, every byte counted and in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.largebody import echoed
from support.node import http_status, pod_manifest, server_manifest
from support.talk import Talk

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

CONNECTIONS = int(os.environ.get("SPLICEWAY_ECHO_CONNECTIONS", "500"))
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: echo, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: /x}, {method: POST, path: /echo}]}
"""


class World:
    """A client's and a server's pod, and an agent with its default proxy."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.agent: AgentProcess = start_agent(testbed.node)

    def socks(self) -> list[dict[str, Any]]:
        """`spliceway sock list`."""
        command = [sys.executable, "-m", "spliceway.agent", "sock", "list", "-o", "json"]
        done = subprocess.run(
            [*command, "--socket", str(self.agent.socket)], capture_output=True, text=True, check=True, timeout=60
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def legs(self, known: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, dict[str, Any]]:
        """The sockets of the one connection that there is, by leg."""
        return {sock["leg"]: sock for sock in self.socks() if known(sock)}

    def counters(self) -> dict[str, int]:
        """Of splicing, since the programs were loaded."""
        found: dict[str, int] = self.agent.client.get("status")["splice"]["counters"]
        return found


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    manifests = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as testbed:
        (testbed.node.info.policies / "echo.yaml").write_text(POLICY)
        made = World(testbed)
        try:
            yield made
        finally:
            made.agent.stop()


def test_the_proxy_is_the_embedded_one(world: World) -> None:
    assert world.agent.client.get("status")["proxy"]["kind"] == "embedded"


@pytest.mark.parametrize("version", [4, 6])
def test_sock_list_shows_both_sockets_spliced(world: World, version: int) -> None:
    with Talk(world.testbed, "client", "server", version=version) as talk:
        for _ in range(3):
            assert talk.ask() == "200"
        before = world.legs(lambda sock: sock["toProxyMessages"] >= 3)
        assert set(before) == {"downstream", "upstream"}
        assert {sock["state"] for sock in before.values()} == {"spliced"}
        for _ in range(5):
            assert talk.ask() == "200"
        after = world.legs(lambda sock: sock["toProxyMessages"] >= 8)
        for leg, sock in after.items():
            assert sock["toProxyMessages"] == before[leg]["toProxyMessages"] + 5
            assert sock["toProxyBytes"] > before[leg]["toProxyBytes"]
    assert set(after) == {"downstream", "upstream"}


@pytest.mark.parametrize("version", [4, 6])
def test_thousands_of_connections_that_send_at_once(world: World, version: int) -> None:
    script = Path(__file__).parents[1] / "support" / "echo.py"
    address = str(world.testbed.pod("server").address(version))
    arguments = [address, str(CONNECTIONS), "32", str(version)]
    before = world.counters()
    done = world.testbed.run("client", ["python", str(script), *arguments], timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["failed"] == []
    assert result["ok"] == CONNECTIONS
    after = world.counters()
    spliced, tcp_only = (after[name] - before[name] for name in ("spliced", "tcpOnly"))
    assert spliced >= 0.95 * (spliced + tcp_only) > 0
    assert after["redirectedBytes"] - before["redirectedBytes"] > result["bytes"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("version", [4, 6])
def test_large_bodies_come_back_whole_and_in_order(world: World, version: int, framing: str) -> None:
    size = 32 << 20
    address = str(world.testbed.pod("server").address(version))
    assert echoed(world.testbed.pod("client"), address, size, framing) == f"200 {size} True"


def test_a_tightened_policy_reaches_a_spliced_connection(world: World) -> None:
    file = world.testbed.node.info.policies / "echo.yaml"
    with Talk(world.testbed, "client", "server") as talk:
        assert talk.ask() == "200"
        assert {sock["state"] for sock in world.legs().values()} == {"spliced"}
        file.write_text(POLICY.replace("path: /x", "path: /y"))
        for _ in range(200):
            if (said := talk.ask()) != "200":
                break
        assert said == "403"
        # The connection goes on, under the new rules.
        assert talk.ask("/y") == "200"
    file.write_text(POLICY)
    for _ in range(200):
        if http_status(world.testbed, "client", "server", "/x") == 200:
            break
    else:
        raise AssertionError("the policy is not back")
