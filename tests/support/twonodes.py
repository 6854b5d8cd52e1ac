"""Two nodes, each with an agent and its proxy, and pods on both: with HTTP rules for the client, the server, or both.

Every node has the pods `client`, `shopper`, `plain` and `guarded`, with the node's number behind the name. A shopper
may send requests for /open and /out (egress), a guarded server takes those for /open and /in (ingress).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.node import Node, Pod
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest
from support.waiting import until

Json = dict[str, Any]

_TESTS = Path(__file__).resolve().parents[1]
_SERVER = str(Path(__file__).with_name("farserver.py"))
_CLIENT = str(Path(__file__).with_name("farclient.py"))
#: Which end has HTTP rules → client and server, without the node's number.
MODES = {"client": ("shopper", "plain"), "server": ("client", "guarded"), "both": ("shopper", "guarded")}

EGRESS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shopper}}
  egress:
  - toEndpoints: [{matchExpressions: [{key: role, operator: In, values: [plain, guarded]}]}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/open.*"}, {path: "/out.*"}]}}]
  - toEntities: [remote-node, host]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/open.*"}]}}]
"""
INGRESS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: guarded}}
  ingress:
  - fromEndpoints: [{matchExpressions: [{key: role, operator: In, values: [client, shopper]}]}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/open.*"}, {path: "/in.*"}]}}]
  - fromEntities: [remote-node]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: "/node.*"}]}}]
"""


def far_server(name: str, labels: Mapping[str, str]) -> Json:
    """A pod that runs `farserver` on TCP 80."""
    return pod_manifest(name, labels, command=("python", _SERVER), ports=(80,))


def manifests() -> list[Json]:
    """The pods of both nodes, and a host outside."""
    found = []
    for number in (1, 2):
        for role in ("client", "shopper", "plain", "guarded"):
            make = far_server if role in ("plain", "guarded") else pod_manifest
            pod = make(f"{role}{number}", {"role": role})
            pod["spec"]["nodeName"] = f"node{number}"
            found.append(pod)
    return [*found, pod_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))]


class Report(NamedTuple):
    """What a client saw: its own port, the answers, and how the server ended the connection where that was waited for.

    An answer has `status` (0: none), `seen` (what the server saw: address, port, sum of the body), `whole`, `sent`.
    """

    port: int
    answers: list[Json]
    end: str

    @property
    def statuses(self) -> list[int]:
        """Of all answers."""
        return [answer["status"] for answer in self.answers]


class TwoNodes:
    """The testbed and its agents by node."""

    def __init__(self, bed: Testbed, agents: dict[str, AgentProcess]) -> None:
        self.bed = bed
        self.agents = agents

    def node(self, number: int) -> Node:
        """The node with this number, 1 or 2."""
        return self.bed.nodes[number - 1]

    def agent(self, number: int) -> AgentProcess:
        """Its agent."""
        return self.agents[f"node{number}"]

    def ask(
        self,
        client: str | Pod,
        server: str,
        *requests: Sequence[str | int],
        version: int = 4,
        end: str = "fin",
        source: int = 0,
        wait: float = 8.0,
    ) -> Report:
        """Send requests ([method, target, size of the body]) on one connection, from a pod to a pod or an address."""
        address = server if set(".:") & set(server) else str(self.bed.pod(server).address(version))
        plan = {
            "address": address, "port": 80, "source": source, "wait": wait, "end": end,
            "requests": [[*request, 0][:3] for request in requests],
        }  # fmt: skip
        pod = self.bed.pod(client) if isinstance(client, str) else client
        argv = [sys.executable, _CLIENT, json.dumps(plan)]
        done = pod.run(argv, timeout=wait * (len(requests) + 2) + 20, env={"PYTHONPATH": str(_TESTS)})
        assert done.returncode == 0, done.stderr
        return Report(**json.loads(done.stdout))

    def get(self, client: str, server: str, *targets: str, version: int = 4, wait: float = 8.0) -> list[int]:
        """Statuses of GETs on one connection; 0: no answer in time."""
        return self.ask(client, server, *(["GET", target] for target in targets), version=version, wait=wait).statuses

    def flows(self, number: int, **wanted: Any) -> list[Json]:
        """Flows that a node's agent has: `path` of the request, `port` of the source, others fields of the flow."""
        return [flow for flow in self.agent(number).client.lines("flows", last="8192") if _is_like(flow, wanted)]

    def flow(self, number: int, **wanted: Any) -> Json:
        """The one flow like this, which may be under way."""
        found: list[Json] = []

        def there() -> bool:
            found[:] = self.flows(number, **wanted)
            return bool(found)

        until(there, told=lambda: f"node{number}: no flow {wanted}: {self.flows(number)[-10:]}")
        assert len(found) == 1, found
        return found[0]

    def write(self, name: str, text: str | None, *numbers: int) -> None:
        """Put a policy in place on these nodes, or remove it (None), and wait until that is in force."""
        for number in numbers or (1, 2):
            before = self.agent(number).client.get("status")["policy"]["wanted"]
            if text is None:
                self.node(number).remove_policy(name)
            else:
                self.node(number).write_policy(name, text)
            agent = self.agent(number)
            until(lambda a=agent, b=before: a.client.get("status")["policy"]["wanted"] > b)  # type: ignore[misc]
            agent.wait_in_force()


def _is_like(flow: Json, wanted: Mapping[str, Any]) -> bool:
    own = {**flow, "port": flow["source"]["port"], "path": flow["http"]["path"] if flow["http"] else ""}
    return all(own[name] == value for name, value in wanted.items())


@contextmanager
def two_nodes(
    profile: Profile | None = None, *, proxy: ProxyKind = "embedded", splice: str = "off", pods: Sequence[Json] = ()
) -> Iterator[TwoNodes]:
    """Build it, with `pods` beside. Both nodes know all policies, as in a cluster."""
    with Testbed.up([*manifests(), *pods], profile=profile) as bed, ExitStack() as stack:
        for node in bed.nodes:
            node.write_policy("out", EGRESS)
            node.write_policy("in", INGRESS)
        settings = {"proxy": {"kind": proxy}, "splice": {"mode": splice}}
        with ThreadPoolExecutor(len(bed.nodes)) as pool:
            started = list(pool.map(lambda node: start_agent(node, settings), bed.nodes))
        site = TwoNodes(bed, {node.name: agent for node, agent in zip(bed.nodes, started, strict=True)})
        for name in site.agents:
            stack.callback(_stop, site, name)
        yield site


def _stop(site: TwoNodes, name: str) -> None:
    agent = site.agents[name]
    if agent.process.poll() is None:
        agent.kill()
