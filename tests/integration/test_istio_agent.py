"""An agent beside Istio: pods' annotations and the configuration decide whose inner connections are spliced."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.istiopods import AMBIENT, STATUS
from spliceway.agent.optout import SPLICE
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.istio.mesh import STATUS as INJECTED
from support.istio.mesh import mesh
from support.socketmaker import SocketMaker
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy, pytest.mark.timeout(300)]


class World:
    """A mesh of two pods, one with a native sidecar's manifest, and an agent."""

    def __init__(self, testbed: Testbed) -> None:
        self.testbed = testbed
        self.maker = SocketMaker(testbed.pod("client").spawn)
        over = {"istio": {"enabled": True}, "splice": {"mode": "force"}}
        self.agent: AgentProcess = start_agent(testbed.node, over)

    def legs(self) -> dict[str, tuple[str, str]]:
        """Ask on a new connection; state and reason of the newest leg inside of each pod then."""
        sock = self.maker.make(socket.AF_INET)
        sock.settimeout(10)
        address = str(self.testbed.pod("server").address(4))
        sock.connect((address, 80))
        connection = http.client.HTTPConnection(address)
        connection.sock = sock
        connection.request("GET", "/answer", headers={"Connection": "close"})
        reply = connection.getresponse()
        found: list[dict[str, Any]] = self.agent.client.get("socks")
        assert reply.status == 200
        own = [one for one in found if one["leg"] == "sidecar"]
        own.sort(key=lambda one: -one["ageSeconds"])
        connection.close()
        return {one["endpointPod"].rpartition("/")[2]: (one["state"], one["why"]) for one in own}

    def annotate(self, **annotations: str) -> None:
        """Of the client's pod."""
        self.testbed.set_annotations("client", {STATUS: INJECTED, **annotations})

    def close(self) -> None:
        self.maker.close()
        self.agent.stop()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("mesh")
    for each in (directory, *directory.parents[:3]):  # the sidecars are not root
        each.chmod(0o755)
    with mesh(directory, native=True) as testbed:
        made = World(testbed)
        try:
            yield made
        finally:
            made.close()


def test_what_annotations_say(world: World) -> None:
    spliced = ("spliced", "")
    until(lambda: world.legs().get("client") == spliced, 60)
    done = subprocess.run(
        [sys.executable, "-m", "spliceway.agent", "sock", "summary", "--socket", str(world.agent.socket)],
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    assert "spliced" in done.stdout
    world.annotate(**{SPLICE: "false"})
    until(lambda: world.legs().get("client") == ("tcp-only", "opted-out"), 30)
    world.annotate(**{AMBIENT: "enabled"})
    until(lambda: "client" not in world.legs(), 30)
    world.annotate()
    until(lambda: world.legs().get("client") == spliced, 30)
    assert world.legs()["server"] == spliced


def spliceway(world: World, *arguments: str, status: int = 0) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "spliceway.agent", *arguments, "--socket", str(world.agent.socket)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_status_and_endpoints_tell_istios_pods(world: World) -> None:
    # What was annotated last may be on its way into the kernel still.
    found = json.loads(spliceway(world, "status", "--wait", "60", "-o", "json"))["istio"]
    assert found == {
        "enabled": True,
        "pods": {"native-sidecar": 2},
        "accelerated": 2,
        "leftAloneBySocketLb": 0,
        "httpRulesLeft": {"rules": 0, "pods": 0},
    }
    assert "2 pods: 2 native-sidecar; 2 accelerated" in spliceway(world, "status")
    assert spliceway(world, "endpoint", "list").count("native-sidecar, accelerated") == 2
    world.annotate(**{AMBIENT: "enabled"})
    until(lambda: world.agent.client.get("status")["istio"]["pods"] == {"ambient": 1, "native-sidecar": 1}, 30)
    assert world.agent.client.get("status")["istio"]["accelerated"] == 1
    assert "has no sidecar: its mesh is ambient" in spliceway(world, "xds", "dump", "--sidecar", "client", status=1)
    world.annotate()
    until(lambda: world.agent.client.get("status")["istio"]["pods"] == {"native-sidecar": 2}, 30)


def test_what_a_sidecar_has_is_shown_beside_ours(world: World) -> None:
    """By the admin port of a real Envoy in the pod's network namespace, which nobody outside of the pod can reach."""
    rows = json.loads(spliceway(world, "xds", "dump", "--sidecar", "default/server", "-o", "json"))
    theirs = {(one["type"], one["name"]): one["state"] for one in rows if one["source"] == "sidecar"}
    assert {("LDS", "inbound4"), ("LDS", "outbound6"), ("CDS", "outbound"), ("CDS", "inbound4")} <= theirs.keys()
    assert set(theirs.values()) == {"STATIC"}
    assert {one["node"] for one in rows if one["source"] == "sidecar"} == {"default/server"}
    only = spliceway(world, "xds", "dump", "--sidecar", "server", "--type", "listeners", "--name", "inbound4")
    assert "inbound4" in only
    assert "outbound" not in only
    assert "nobody" in spliceway(world, "xds", "dump", "--sidecar", "nobody", status=2)
