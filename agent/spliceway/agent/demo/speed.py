"""What splicing gains, measured on the demo's own node: small replies, alternating."""

from __future__ import annotations

from collections.abc import Sequence

from spliceway.agent.bench.load import LOADS
from spliceway.agent.bench.measure import Sample, measure
from spliceway.agent.bench.paths import PLAIN, default_paths, parse_paths
from spliceway.agent.bench.progress import Say
from spliceway.agent.bench.site import Place, Site
from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed.agentprocess import AgentProcess
from spliceway.agent.testbed.testbed import Testbed

#: Which loads, and for how many rounds and seconds each.
SPEED_LOADS = ("c1", "c16")
ROUNDS, SECONDS = 3, 1.0
QUICK_ROUNDS = 1


def measure_speed(
    testbed: Testbed, agent: AgentProcess, proxy: ProxyKind, *, quick: bool, say: Say
) -> Sequence[Sample]:
    """Samples of no proxy and of the node's, spliced and not. Pods for it go again, and splicing is on after it."""
    site = Site(testbed, {proxy: Place(testbed.node, agent)}, (PLAIN, proxy))
    try:
        site.build()
        loads = [LOADS[name] for name in SPEED_LOADS]
        rounds = QUICK_ROUNDS if quick else ROUNDS
        return measure(site, parse_paths(default_paths(proxy)), loads, rounds=rounds, seconds=SECONDS, say=say)
    finally:
        site.close()
        agent.client.put("splice", {"mode": "auto"})
