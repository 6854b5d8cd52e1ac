"""A node with an agent and the demo's pods and policies, for tests of what the agent does not enforce."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from spliceway.agent.cli.client import _UnixConnection
from spliceway.agent.testbed.agentprocess import AgentProcess, agent_config, config_text, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.node import demo_manifests, http_status

_POLICIES = Path(__file__).parents[2] / "examples" / "demo" / "policies"


class Switched:
    """The node. `file`: what its agent's kill switch looks at."""

    def __init__(self, testbed: Testbed, overrides: Mapping[str, Any]) -> None:
        self.testbed, self.node = testbed, testbed.node
        self.file = self.node.info.directory / "switch" / "disabled"
        self.overrides = {"killSwitch": {"file": str(self.file)}, **overrides}
        self.config = self.node.info.directory / "agent.yaml"
        self.agent: AgentProcess | None = None

    def start(self) -> dict[str, Any]:
        """Start the agent, or the next one; its status once all is in force."""
        self.agent = start_agent(self.node, self.overrides)
        return self.status()

    def write_config(self) -> None:
        """The agent's configuration, for commands, where no agent has been started."""
        self.config.write_text(config_text(agent_config(self.node, self.overrides)))

    def status(self) -> dict[str, Any]:
        assert self.agent is not None
        found: dict[str, Any] = self.agent.client.get("status")
        return found

    def cli(self, *arguments: str, status: int = 0) -> str:
        """What a command of the node prints."""
        done = self.node.run_on_node([sys.executable, "-m", "spliceway.agent", *arguments], timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def turn(self, what: str, status: int = 0) -> dict[str, Any]:
        """`spliceway kill-switch`."""
        found: dict[str, Any] = json.loads(
            self.cli("kill-switch", what, "--config", str(self.config), "-o", "json", status=status) or "{}"
        )
        return found

    def ask(self, client: str, server: str, path: str = "/", *, version: int = 4) -> int:
        """Status of a request on a new connection; 0: none came."""
        return http_status(self.testbed, client, server, path, version=version, timeout=1)

    def metrics(self) -> str:
        """All of the agent's own."""
        assert self.agent is not None
        connection = _UnixConnection(self.agent.socket, 5.0)
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def annotate_node(self, annotations: Mapping[str, str]) -> None:
        """Give the Node object these annotations, and no others."""
        for path in sorted(self.node.info.manifests.rglob("*.yaml")):
            documents = list(yaml.safe_load_all(path.read_text()))
            nodes = [
                one for one in documents if one["kind"] == "Node" and one["metadata"]["name"] == self.node.info.name
            ]
            if nodes:
                nodes[0]["metadata"]["annotations"] = dict(annotations)
                beside = path.with_name(f".{path.name}")
                beside.write_text(yaml.safe_dump_all(documents))
                beside.rename(path)
                return
        raise AssertionError("the testbed has no manifest of its node")

    def stop(self) -> None:
        """End the agent, if it runs."""
        if self.agent is not None and self.agent.process.poll() is None:
            self.agent.stop()


@contextmanager
def switched(overrides: Mapping[str, Any] | None = None) -> Iterator[Switched]:
    """The node, without an agent so far."""
    with Testbed.up(demo_manifests(), policies=[_POLICIES]) as testbed:
        site = Switched(testbed, overrides or {})
        try:
            yield site
        finally:
            site.stop()


class Stream:
    """Requests without end from a pod, each on a new connection, at least some every second; what became of them."""

    _CODE = """
import http.client, sys, time
while True:
    connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=1)
    try:
        connection.request("GET", sys.argv[2])
        print(connection.getresponse().status, flush=True)
    except OSError:
        print(0, flush=True)
    connection.close()
    time.sleep(0.01)
"""

    def __init__(self, site: Switched, client: str, server: str, version: int, path: str = "/") -> None:
        address = str(site.testbed.pod(server).address(version))
        argv = [sys.executable, "-c", self._CODE, address, path]
        self._process = site.testbed.spawn(client, argv, stdout=subprocess.PIPE, text=True)

    def stop(self) -> list[int]:
        """All results."""
        self._process.kill()
        told = self._process.communicate()[0]
        return [int(line) for line in told.splitlines()]
