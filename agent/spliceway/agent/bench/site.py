"""The pods of a benchmark, on virtual nodes whose agents run: a client on each, and a server for each kind of path."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spliceway.agent.bench import nginx, wrk
from spliceway.agent.bench.errors import BenchError
from spliceway.agent.bench.load import FILES
from spliceway.agent.bench.paths import BARE
from spliceway.agent.cli.client import AgentClient
from spliceway.agent.configsections import ProxyKind
from spliceway.agent.errors import ClientError
from spliceway.agent.testbed.agentprocess import AgentProcess
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.node import Node, Pod
from spliceway.agent.testbed.testbed import Testbed

NAMESPACE = "bench"
#: The node without an agent, on which the pods of BARE are.
BARE_NODE = "bare"
#: How long the policy may take until it is in force, in seconds.
IN_FORCE_TIMEOUT = 20.0
#: Longest wait for the first answer of each server, in seconds (curl's --max-time).
FIRST_ANSWER = 5
_POLICY = "bench"
#: Label of the servers that the HTTP policy selects.
SERVED = "served"


def require_programs() -> None:
    """Raise BenchError when nginx or wrk is not there."""
    search = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [name for name in ("nginx", "wrk", "curl") if shutil.which(name, path=search) is None]
    if missing:
        raise BenchError(f"not installed: {', '.join(missing)} (Debian: apt-get install nginx-light wrk curl)")


class Place(NamedTuple):
    """A node with an agent."""

    node: Node
    agent: AgentProcess


class Site:
    """Clients and servers. Make it with `build`; `close` takes the pods and the policy away again."""

    def __init__(self, testbed: Testbed, places: Mapping[ProxyKind, Place], roles: Iterable[str]) -> None:
        """`places`: by the kind of the node's proxy; the first has what needs no proxy, too.

        `roles`: which servers there shall be: kinds of proxies, PLAIN, and BARE (needs a node named BARE_NODE).
        """
        self._testbed = testbed
        self._places = dict(places)
        self._roles = tuple(dict.fromkeys(roles))
        self._directory = testbed.directory / "bench"
        self._servers: dict[str, Pod] = {}
        self._clients: dict[str, Pod] = {}
        self._pods: list[str] = []

    def __repr__(self) -> str:
        return f"Site({self._testbed.run_id}, servers={sorted(self._servers)})"

    def script(self, *, unique: bool) -> Path:
        """The Lua script for wrk; `unique`: with another head in each request."""
        return self._directory / ("unique.lua" if unique else "report.lua")

    def node(self, role: str) -> Node:
        """The node whose agent and proxy matter to a role: its own, or of BARE the first."""
        return self._place(role).node

    def agent(self, role: str) -> AgentClient:
        """Client of that node's agent."""
        return self._place(role).agent.client

    def server(self, role: str) -> Pod:
        """The server of a role."""
        return self._servers[role]

    def client(self, role: str) -> Pod:
        """The pod that asks the server of a role, on the same node."""
        return self._clients[self._node_name(role)]

    def url(self, role: str, file: str) -> str:
        """URL of a file on the server of a role."""
        return f"http://{self.server(role).address(4)}/{file}"

    def build(self) -> None:
        """Bring up the pods and the policy; returns when every path answers as it should. Raises an AgentError."""
        nginx.prepare(self._directory, FILES)
        self.script(unique=False).write_text(wrk.SCRIPT)
        self.script(unique=True).write_text(wrk.UNIQUE_SCRIPT)
        for role in self._roles:
            name = self._node_name(role)
            if name not in self._clients:
                self._clients[name] = self._add(f"{name}-client", name, {"bench": "client"})
            label = SERVED if role in self._places else role
            self._servers[role] = self._add(role, name, {"bench": label}, nginx.command(self._directory, role))
        for kind, place in self._places.items():
            if kind in self._roles:
                place.node.write_policy(_POLICY, yaml.safe_dump(http_policy()))
        for role in self._roles:
            self._wait_answers(role)

    def close(self) -> None:
        """Remove policy and pods."""
        for place in self._places.values():
            with suppress(FileNotFoundError):
                place.node.remove_policy(_POLICY)
        while self._pods:
            self._testbed.remove_pod(self._pods.pop())

    def _place(self, role: str) -> Place:
        found = {str(kind): place for kind, place in self._places.items()}
        return found.get(role) or next(iter(found.values()))

    def _node_name(self, role: str) -> str:
        return BARE_NODE if role == BARE else self.node(role).name

    def _add(self, name: str, node: str, labels: Mapping[str, str], argv: Iterable[str] = ()) -> Pod:
        pod = self._testbed.add_pod(pod_manifest(name, node, list(argv), labels))
        self._pods.append(pod.key)
        return pod

    def _wait_answers(self, role: str) -> None:
        """A file is there, and a path outside the policy is refused by the proxy, or unknown to nginx without one."""
        deadline = time.monotonic() + IN_FORCE_TIMEOUT
        wanted = ("200", "403" if role in self._places else "404")
        while (got := (self._status(role, "small"), self._status(role, "no-such-file"))) != wanted:
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{self.server(role).key} answers {' and '.join(got)} instead of {' and '.join(wanted)}; "
                    f"{self._reconcile_status(role)}"
                )
            time.sleep(0.05)

    def _status(self, role: str, file: str) -> str:
        argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", str(FIRST_ANSWER)]
        try:
            return self.client(role).run([*argv, self.url(role, file)], timeout=FIRST_ANSWER + 5).stdout or "nothing"
        except TestbedError as error:
            return str(error)

    def _reconcile_status(self, role: str) -> str:
        try:
            return f"the agent says: {self.agent(role).get('status')['policy']}"
        except ClientError as error:
            return str(error)


def pod_manifest(name: str, node: str, argv: list[str], labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Pod of the benchmark; with `argv` it runs that, and listens on TCP 80."""
    container = {"name": "main", "command": argv, "ports": [{"containerPort": 80}] if argv else []}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"bench": name, **(labels or {})}},
        "spec": {"nodeName": node, "containers": [container]},
    }


def http_policy() -> dict[str, Any]:
    """The policy of the servers behind a proxy: from the client, GET of the files and of nothing else."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": _POLICY, "namespace": NAMESPACE},
        "spec": {
            "endpointSelector": {"matchLabels": {"bench": SERVED}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"bench": "client"}}],
                    "toPorts": [
                        {
                            "ports": [{"port": "80", "protocol": "TCP"}],
                            "rules": {"http": [{"method": "GET", "path": f"/({'|'.join(FILES)})"}]},
                        }
                    ],
                }
            ],
        },
    }


def node_manifest(name: str) -> dict[str, Any]:
    """A Node document."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
