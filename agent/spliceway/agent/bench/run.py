"""A benchmark from nothing to its result: virtual node, agent, pods, rounds, teardown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from spliceway.agent.bench import machine
from spliceway.agent.bench.load import LOADS
from spliceway.agent.bench.measure import Sample, measure
from spliceway.agent.bench.paths import BARE, DataPath
from spliceway.agent.bench.progress import Say
from spliceway.agent.bench.site import BARE_NODE, Site, node_manifest, require_programs
from spliceway.agent.envoyprocess import find_envoy
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed

NODE = "node1"


class Result(msgspec.Struct, frozen=True):
    """What was measured, and on what."""

    machine: dict[str, Any]
    samples: list[Sample]


def run(paths: Sequence[DataPath], *, rounds: int, seconds: float, workers: int, say: Say) -> Result:
    """Compare `paths`. Leaves nothing behind. Raises an AgentError."""
    require_programs()
    roles = [path.server for path in paths]
    with node_with_agent(say, workers=workers, bare=BARE in roles) as (testbed, agent):
        site = Site(testbed, agent, roles)
        say(f"starting {len(set(roles))} servers")
        site.build()
        described = machine.describe(agent.client.get("status"), workers)
        samples = measure(site, paths, LOADS.values(), rounds=rounds, seconds=seconds, say=say)
        say("taking the node down")
    return Result(described, samples)


@contextmanager
def node_with_agent(say: Say, *, workers: int = 1, bare: bool = False) -> Iterator[tuple[Testbed, AgentProcess]]:
    """A virtual node without pods, whose agent and proxy run; `bare`: and one more without an agent."""
    find_envoy()
    say("building a virtual node")
    with Testbed.up([node_manifest(name) for name in (NODE, *([BARE_NODE] if bare else []))]) as testbed:
        say(f"starting the agent and Envoy on it (testbed {testbed.run_id})")
        agent = start_agent(testbed.node, {"proxy": {"workers": workers}})
        try:
            yield testbed, agent
        finally:
            agent.kill()
