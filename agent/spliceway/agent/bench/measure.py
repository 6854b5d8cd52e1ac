"""The rounds: every load on every path, the order of the paths turning from round to round."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from spliceway.agent.bench import counters, wrk
from spliceway.agent.bench.counters import Counters
from spliceway.agent.bench.errors import BenchError
from spliceway.agent.bench.load import Load
from spliceway.agent.bench.paths import DataPath, rotations
from spliceway.agent.bench.progress import Say
from spliceway.agent.bench.site import NAMESPACE, Site
from spliceway.agent.cli.client import AgentClient

#: How long the connections of a run may take to close after it, in seconds.
DRAIN_TIMEOUT = 10.0


class Sample(msgspec.Struct, frozen=True):
    """One run: what it gave, and what was counted meanwhile. `round` counts from 1.

    `figures`: of the load, and through a proxy `cpu_us`, microseconds of the proxy's CPU time for a request.
    """

    path: str
    load: str
    round: int
    figures: dict[str, float]
    counters: Counters


def measure(
    site: Site, paths: Sequence[DataPath], loads: Iterable[Load], *, rounds: int, seconds: float, say: Say
) -> list[Sample]:
    """Run `rounds` rounds of `seconds` for each load and path.

    Within a round the paths follow each other for each load, so that what disturbs the machine meets all of them.
    Raises BenchError naming path and load when a run is void.
    """
    loads = tuple(loads)
    samples: list[Sample] = []
    orders = rotations(tuple(paths))
    for number in range(1, rounds + 1):
        order = next(orders)
        for load in loads:
            samples += [_sample(site, path, load, number, seconds) for path in order]
            say(f"round {number} of {rounds}, {load.name}: {_line(samples[-len(order) :])}")
    return samples


def _sample(site: Site, path: DataPath, load: Load, number: int, seconds: float) -> Sample:
    agent, node = site.agent(path.server), site.node(path.server)
    # Before the first connection of the run: a connection keeps the data path it began with.
    if path.splice is not None:
        agent.put("splice", {"mode": path.splice})
    before = counters.read(agent, node)
    result = _run(site, path, load, seconds)
    _drain(agent)
    counted = counters.read(agent, node).since(before)
    figures = load.figures(result)
    if path.proxy is not None:
        figures["cpu_us"] = counted.proxy_seconds * 1e6 / result.requests
    sample = Sample(path.name, load.name, number, figures, counted)
    check_took(path, load, sample.counters)
    return sample


def _run(site: Site, path: DataPath, load: Load, seconds: float) -> wrk.WrkResult:
    script = str(site.script(unique=load.unique))
    argv = wrk.command(script, site.url(path.server, load.file), load.connections, seconds)
    done = site.client(path.server).run(argv, timeout=seconds + 30)
    try:
        if done.returncode != 0:
            raise BenchError(f"wrk ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
        return wrk.parse(done.stdout)
    except BenchError as error:
        raise BenchError(f"path {path.name}, load {load.name}: {error}") from error


def _drain(agent: AgentClient) -> None:
    """Wait until a run is over: what the proxy still had under way when wrk ended belongs to that run.

    Envoy's idle connections to the server may stay a while: the next run's clients don't get those.
    """
    deadline = time.monotonic() + DRAIN_TIMEOUT
    before = None
    while (now := (_clients(agent), counters.redirected_bytes(agent))) != before or now[0]:
        if time.monotonic() > deadline:
            raise BenchError(f"{DRAIN_TIMEOUT:g} s after wrk ended, {now[0]} of its connections are there")
        before = now
        time.sleep(0.03)


def _clients(agent: AgentClient) -> int:
    """How many connections the clients of the benchmark have to the proxy."""
    return sum(
        sock["leg"] == "downstream" and sock["endpointPod"].startswith(f"{NAMESPACE}/") for sock in agent.get("socks")
    )


def check_took(path: DataPath, load: Load, counted: Counters) -> None:
    """Raise BenchError unless the bytes took the path that the figure is named after, on connections that lasted."""
    what = ""
    if path.splice == "auto" and not counted.redirected_bytes:
        what = "not one byte was redirected; is splicing refused here?"
    elif path.splice != "auto" and counted.redirected_bytes:
        what = f"{counted.redirected_bytes} bytes were redirected although splicing is off"
    # wrk doesn't count a connection that the other side closed, it opens another. Two legs each, and one for the
    # connection by which wrk first tries whether there is a server. Envoy's worker knows a destination that was not
    # asked for a while only once its main thread has answered: until then each connection has a host object of its own,
    # and all but one go to the server a second time after their first request (OriginalDstCluster::LoadBalancer).
    each = 3 if path.proxy == "envoy" else 2
    legs, most = counted.spliced + counted.tcp_only, each * load.connections + 1
    if path.proxy is not None and legs > most:
        what = f"{legs} legs of connections instead of {most}: some were closed before the end"
    if what:
        raise BenchError(f"path {path.name}, load {load.name}: {what}")


def _line(samples: Sequence[Sample]) -> str:
    return ", ".join(f"{sample.path} {_short(sample.figures)}" for sample in samples)


def _short(figures: dict[str, float]) -> str:
    return f"{figures['rps']:,.0f}/s" if "rps" in figures else f"{figures['gb_per_s']:.2f} GB/s"
