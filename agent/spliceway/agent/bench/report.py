"""The result of a benchmark: the JSON for programs, the tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from spliceway.agent.bench import figures
from spliceway.agent.bench.counters import Counters
from spliceway.agent.bench.figures import Spread, Spreads
from spliceway.agent.bench.latency import LatencyResult
from spliceway.agent.bench.measure import Sample
from spliceway.agent.jsonable import plain

_TITLES = {"rps": "req/s", "p50_us": "p50 µs", "p99_us": "p99 µs", "gb_per_s": "GB/s"}
#: Width of a table that goes into a file or a pipe.
_WIDTH = 150


def as_json(machine: dict[str, Any], rounds: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """`paths` are medians over the rounds; `spread` has [min, max] of each figure; `counters` sums over all runs."""
    found = figures.spreads(samples)
    return {
        "machine": machine,
        "rounds": rounds,
        "paths": figures.medians(found),
        "spread": {
            path: {
                load: {name: [spread.min, spread.max] for name, spread in each.items()} for load, each in loads.items()
            }
            for path, loads in found.items()
        },
        "ratios": figures.ratios(samples),
        "counters": {path: counters.plain() for path, counters in figures.counted(samples).items()},
    }


def print_tables(machine: dict[str, Any], rounds: int, samples: Sequence[Sample]) -> None:
    """Figures, ratios and counters."""
    out = console()
    memory = machine["memory"] / 2**30
    out.print(
        f"{machine['model']}, {machine['cpus']} CPUs, {memory:.0f} GiB, Linux {machine['kernel']}, "
        f"Envoy {machine['envoy']} ({machine['envoy_workers'] or 'all'} workers), nginx {machine['nginx']}"
    )
    found = figures.spreads(samples)
    out.print(spread_table(f"Median of {rounds} rounds (least – most)", "DATA PATH", found))
    if ratios := figures.ratios(samples):
        out.print(spread_table("Ratios in the same round: median (least – most)", "RATIO", ratios))
    out.print(_counter_table(figures.counted(samples)))


def spread_table(title: str, first: str, found: Spreads) -> Table:
    """A row for each path or ratio, a column for each figure of each load."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    made.add_column(first)
    loads = next(iter(found.values()))
    for load, each in loads.items():
        for name in each:
            made.add_column(f"{load} {_TITLES[name]}", justify="right")
    for key, row in found.items():
        made.add_row(key, *(_spread(spread) for each in row.values() for spread in each.values()))
    return made


def console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough when there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def _counter_table(counted: dict[str, Counters]) -> Table:
    title = "Counted by the kernel during the runs"
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    made.add_column("DATA PATH")
    for column in ("redirected MB", "by TCP MB", "redirected", "legs spliced", "on TCP", "agent CPU s", "proxy CPU s"):
        made.add_column(column, justify="right")
    for path, each in counted.items():
        made.add_row(
            path,
            f"{each.redirected_bytes / 1e6:,.1f}",
            f"{each.tcp_bytes / 1e6:,.1f}",
            f"{each.share:.2%}",
            str(each.spliced),
            str(each.tcp_only),
            f"{each.agent_seconds:.2f}",
            f"{each.proxy_seconds:.2f}",
        )
    return made


def _spread(spread: Spread) -> str:
    if spread.min == spread.max:  # one round
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.min)} – {number(spread.max)})"


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def latency_json(result: LatencyResult) -> dict[str, Any]:
    """`latencies` with spread and all values, in milliseconds."""
    return {"machine": result.machine, "latencies": plain(result.latencies)}


def print_latencies(result: LatencyResult) -> None:
    """A row for each kind of edit."""
    title = "From rename() to the first packet or request judged anew, milliseconds"
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in ("RULE", "DATA PATH", "EDIT", "JUDGED ON"):
        made.add_column(column)
    for column in ("EDITS", "MEDIAN", "LEAST", "MOST"):
        made.add_column(column, justify="right")
    for each in result.latencies:
        spread = each.milliseconds
        path = f"{each.data_path} {each.protocol}"
        figures_ = (f"{value:.1f}" for value in (spread.median, spread.min, spread.max))
        made.add_row(each.rule, path, each.edit, each.judged, str(len(each.values)), *figures_)
    console().print(made)
