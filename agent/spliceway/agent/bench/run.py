"""A benchmark from nothing to its result: virtual nodes, agents, pods, rounds, teardown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec

from spliceway.agent.bench import machine
from spliceway.agent.bench.load import LOADS
from spliceway.agent.bench.measure import Sample, measure
from spliceway.agent.bench.paths import BARE, DataPath, kinds_of
from spliceway.agent.bench.progress import Say
from spliceway.agent.bench.site import BARE_NODE, Place, Site, node_manifest, require_programs
from spliceway.agent.configsections import ProxyKind
from spliceway.agent.envoyprocess import EnvoyError, find_envoy
from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.testbed import Testbed


class Result(msgspec.Struct, frozen=True):
    """What was measured, and on what."""

    machine: dict[str, Any]
    samples: list[Sample]


def run(paths: Sequence[DataPath], *, rounds: int, seconds: float, workers: int, say: Say) -> Result:
    """Compare `paths`. Leaves nothing behind. Raises an AgentError."""
    require_programs()
    roles = [path.server for path in paths]
    with nodes_with_agents(say, kinds_of(paths), workers=workers, bare=BARE in roles) as (testbed, places):
        site = Site(testbed, places, roles)
        say(f"starting {len(set(roles))} servers")
        site.build()
        described = machine.describe(proxy_statuses(places))
        samples = measure(site, paths, LOADS.values(), rounds=rounds, seconds=seconds, say=say)
        say("taking it all down")
    return Result(described, samples)


def proxy_statuses(places: Mapping[ProxyKind, Place]) -> dict[str, Any]:
    """What each agent says of its proxy's process, by kind."""
    return {kind: place.agent.client.get("status")["proxy"]["process"] for kind, place in places.items()}


def installed_kinds() -> tuple[ProxyKind, ...]:
    """Kinds of proxies that can be measured here: Envoy is an extra."""
    try:
        find_envoy()
    except EnvoyError:
        return ("embedded",)
    return ("embedded", "envoy")


@contextmanager
def nodes_with_agents(
    say: Say, kinds: Sequence[ProxyKind], *, workers: int = 1, bare: bool = False
) -> Iterator[tuple[Testbed, dict[ProxyKind, Place]]]:
    """A virtual node without pods for each kind of proxy, its agent and proxy running; `bare`: and one without any.

    Of one configuration but for the kind.
    """
    if "envoy" in kinds:
        find_envoy()
    names = [f"node{number}" for number in range(1, len(kinds) + 1)]
    say(f"building {len(names)} virtual node{'s' * (len(names) > 1)}")
    with Testbed.up([node_manifest(name) for name in (*names, *([BARE_NODE] if bare else []))]) as testbed:
        say(f"starting agent and proxy: {', '.join(kinds)} (testbed {testbed.run_id})")
        nodes = {node.name: node for node in testbed.nodes}
        with ExitStack() as stack:
            places: dict[ProxyKind, Place] = {}
            for kind, name in zip(kinds, names, strict=True):
                agent = start_agent(nodes[name], {"proxy": {"kind": kind, "workers": workers}})
                stack.callback(agent.kill)
                places[kind] = Place(nodes[name], agent)
            yield testbed, places
