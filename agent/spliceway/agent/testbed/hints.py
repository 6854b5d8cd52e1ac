"""What to type next on a testbed that has just come up: lines that work as they stand. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from spliceway.agent.testbed.node import NodeInfo
from spliceway.agent.testbed.plan import PodPlan


def hints(program: str, run: str, pods: Sequence[PodPlan]) -> list[str]:
    """Return «Try: …» and «End: …».

    `program` is how this command line is called; `run` names the testbed, empty when it is the only one that is up;
    `pods` are pods and hosts.
    """
    option = ["--run", run] if run else []
    lines = []
    if tried := _try(pods):
        lines.append(f"Try:  {program} {shlex.join(['testbed', 'exec', *option, *tried])}")
    lines.append(f"End:  {program} {shlex.join(['testbed', 'down', *([run] if run else [])])}")
    return lines


def places(nodes: Sequence[NodeInfo]) -> list[str]:
    """Where policies and logs are: each node's agent reads its own directory."""
    if len(nodes) == 1:
        return [f"Edit policies in {nodes[0].policies}; logs are in {nodes[0].logs}."]
    lines = [f"{node.name}: policies in {node.policies}, logs in {node.logs}" for node in nodes]
    return [*lines, "Each node's agent reads its own directory: edit a policy in all of them, as a cluster would."]


def _try(pods: Sequence[PodPlan]) -> list[str]:
    """Arguments of an `exec` in which one pod asks another; in which a pod lists its addresses if none can be asked."""
    ports = {pod.key: [port for container in pod.containers for port in container.ports] for pod in pods}
    inside_first = sorted(pods, key=lambda pod: pod.outside)
    # A server on port 80 is most likely one for HTTP; the last, so that the first, usually the client, stays one.
    servers = sorted((pod for pod in inside_first if ports[pod.key]), key=lambda pod: 80 in ports[pod.key])
    for server in reversed(servers):
        client = next((pod for pod in inside_first if pod.key != server.key), None)
        families = {address.version for address in client.addresses} if client else set()
        shared = [address for address in server.addresses if address.version in families]
        if client and shared:
            port = 80 if 80 in ports[server.key] else ports[server.key][0]
            host = f"[{shared[0]}]" if shared[0].version == 6 else str(shared[0])
            return [client.key, "--", "curl", "-i", f"http://{host}{'' if port == 80 else f':{port}'}/"]
    return [inside_first[0].key, "--", "ip", "address"] if inside_first else []
