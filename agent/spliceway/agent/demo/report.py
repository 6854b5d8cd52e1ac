"""The demo's result: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spliceway.agent.bench import figures
from spliceway.agent.bench.measure import Sample
from spliceway.agent.bench.report import console, print_spreads
from spliceway.agent.demo.judge import Row
from spliceway.agent.jsonable import plain


def as_json(rows: Sequence[Row], samples: Sequence[Sample]) -> dict[str, Any]:
    """`rows` as in the table, `speed` medians of the paths and `ratios` with [min, max], `ok` when all rows are."""
    found = figures.spreads(samples)
    return {
        "ok": all(row.ok for row in rows),
        "rows": [{**plain(row), "ok": row.ok} for row in rows],
        "speed": {"paths": figures.medians(found), "ratios": figures.ratios(samples)},
    }


def print_tables(rows: Sequence[Row], samples: Sequence[Sample]) -> None:
    """Requests chapter by chapter, then figures and ratios, then what differs."""
    out = console()
    _print_requests(out, rows)
    if samples:
        shown = [msgspec.structs.replace(one, figures=_without_tail(one.figures)) for one in samples]
        print_spreads(out, "Small replies: median (least – most)", figures.spreads(shown))
        print_spreads(out, "Ratios in the same round: median (least – most)", figures.ratios(shown))
        out.print()
    _print_end(out, rows)


def _print_requests(out: Console, rows: Sequence[Row]) -> None:
    """Chapter by chapter; a request that came out alike over both families is one line."""
    chapters: dict[str, list[tuple[str, ...]]] = {}
    for row, families in _merged(rows):
        chapters.setdefault(row.chapter, []).append(_cells(row, families))
    widths = [
        max(map(len, column))
        for column in zip(_COLUMNS, *(line for each in chapters.values() for line in each), strict=True)
    ]
    for number, (title, lines) in enumerate(chapters.items()):
        made = Table(header_style="dim", box=None, pad_edge=False, show_header=number == 0)
        for column, width in zip(_COLUMNS, widths, strict=True):
            # On a narrow terminal only these two are folded.
            made.add_column(column, overflow="fold", width=width, no_wrap=column not in ("REQUEST", "RULE"))
        out.print(Text(f"\n{title}", style="bold cyan"), soft_wrap=True)
        for line in lines:
            made.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in line))
        out.print(made)


def _without_tail(found: dict[str, float]) -> dict[str, float]:
    """Rounds as short as the demo's say nothing about the 99th percentile."""
    return {name: value for name, value in found.items() if name != "p99_us"}


def _merged(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Rows with the families they are about: «4, 6» for two that differ in the family alone."""
    found: dict[Row, list[int]] = {}
    for row in rows:
        found.setdefault(msgspec.structs.replace(row, family=0), []).append(row.family)
    return [(row, ", ".join(map(str, families))) for row, families in found.items()]


def _cells(row: Row, families: str) -> tuple[str, ...]:
    ok = "ok" if row.ok else "DIFFERS"
    return (row.request, families, row.expected, row.actual, row.reason, short_rule(row.rule), row.data_path, ok)


def short_rule(rule: str) -> str:
    """A rule without what all rules of the demo begin with: `api-http ingress[0].toPorts[0].rules.http[0]`."""
    return rule.removeprefix("CiliumNetworkPolicy default/").replace(" spec.", " ") or "-"


def _print_end(out: Console, rows: Sequence[Row]) -> None:
    wrong = [row for row in rows if not row.ok]
    for row in wrong:
        out.print(Text(f"{row.request} (IPv{row.family}): {'; '.join(row.differs)}", style="red"))
    out.print(
        f"{len(wrong)} of {len(rows)} requests are not as expected." if wrong else f"All {len(rows)} are as expected."
    )


_COLUMNS = ("REQUEST", "IP", "EXPECTED", "ACTUAL", "REASON", "RULE", "DATA PATH", "")
_STYLES = {
    "200": "green",
    "echo": "green",
    "403": "red",
    "no answer": "red",
    "proxy + splice": "cyan",
    "ok": "green",
    "DIFFERS": "bold red",
}
