"""The result of a benchmark: the JSON for programs, the tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spliceway.agent.bench import figures
from spliceway.agent.bench.counters import Counters
from spliceway.agent.bench.figures import Spread, Spreads
from spliceway.agent.bench.latency import LatencyResult
from spliceway.agent.bench.measure import Sample
from spliceway.agent.bench.paths import BARE

_TITLES = {"rps": "req/s", "p50_us": "p50 µs", "p99_us": "p99 µs", "gb_per_s": "GB/s", "cpu_us": "proxy CPU µs/req"}
_COUNTED = ("redirected MB", "by TCP MB", "redirected", "legs spliced", "on TCP", "agent CPU s", "proxy CPU s")
#: Width of a table that goes into a file or a pipe.
_WIDTH = 160


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
        f"{_proxies(machine['proxies'])}, nginx {machine['nginx']}"
    )
    found = figures.spreads(samples)
    print_spreads(out, f"Median of {rounds} round{'' if rounds == 1 else 's'} (least – most)", found)
    ratios = figures.ratios(samples)
    for to_direct in (False, True):  # eight columns of ratios have no room beside each other
        if part := {name: each for name, each in ratios.items() if _to_direct(name) == to_direct}:
            print_spreads(out, "Ratios in the same round: median (least – most)", part)
    _print_counters(out, figures.counted(samples))


def _to_direct(ratio: str) -> bool:
    return ratio.rpartition("/")[2] in ("direct", BARE)


def print_spreads(out: Console, title: str, found: Spreads) -> None:
    """A column for each path or ratio, a row for each figure of each load."""
    made = _table("", *found)
    for load in next(iter(found.values())):
        for name in dict.fromkeys(name for loads in found.values() for name in loads[load]):
            made.add_row(f"{load} {_TITLES[name]}", *(_spread(loads[load].get(name)) for loads in found.values()))
    _print(out, title, made)


def _print(out: Console, title: str, made: Table) -> None:
    # Not as the table's own title: that would be folded to the table's width.
    out.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    out.print(made)


def _table(*columns: str, left: int = 1) -> Table:
    """An empty table, its first `left` columns aligned to the left."""
    made = Table(header_style="dim", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place < left else "right")
    return made


def console(width: int = _WIDTH) -> Console:
    """Where tables go: as wide as the terminal, or `width` columns when there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


def _print_counters(out: Console, counted: dict[str, Counters]) -> None:
    made = _table("", *_COUNTED)
    for path, each in counted.items():
        made.add_row(
            path,
            f"{each.redirected_bytes / 1e6:,.1f}",
            f"{each.tcp_bytes / 1e6:,.1f}",
            f"{each.share:.3%}",
            str(each.spliced),
            str(each.tcp_only),
            f"{each.agent_seconds:.2f}",
            f"{each.proxy_seconds:.2f}",
        )
    _print(out, "Counted during the runs", made)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    if spread.min == spread.max:  # one round
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.min)} – {number(spread.max)})"


def _proxies(proxies: dict[str, Any]) -> str:
    """«embedded 0.1.0 (1 worker), envoy 1.40.0 (1 worker)»."""
    return ", ".join(
        f"{kind} {one['version']} ({one['workers']} worker{'' if one['workers'] == 1 else 's'})"
        for kind, one in proxies.items()
    )


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def latency_json(result: LatencyResult) -> dict[str, Any]:
    """`latencies` with spread and all values, in milliseconds."""
    return {"machine": result.machine, "latencies": result.latencies}


def print_latencies(result: LatencyResult) -> None:
    """A row for each kind of edit."""
    made = _table("RULE", "DATA PATH", "EDIT", "JUDGED ON", "EDITS", "MEDIAN", "LEAST", "MOST", left=4)
    for each in result.latencies:
        spread = each.milliseconds
        path = f"{each.data_path} {each.protocol}"
        figures_ = (f"{value:.1f}" for value in (spread.median, spread.min, spread.max))
        made.add_row(each.rule, path, each.edit, each.judged, str(len(each.values)), *figures_)
    _print(console(), "From rename() to the first packet or request judged anew, milliseconds", made)
