"""The demo's result: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.padding import Padding
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
    out = console(_WIDTH)
    print_requests(out, rows)
    if samples:
        shown = [msgspec.structs.replace(one, figures=_without_tail(one.figures)) for one in samples]
        print_spreads(out, "Small replies: median (least – most)", figures.spreads(shown))
        print_spreads(
            out,
            "Ratios in the same round: median (least – most); faster is rps above 1, us below 1",
            figures.ratios(shown),
        )
        out.print()
    _print_end(out, rows)


def print_requests(out: Console, rows: Sequence[Row]) -> None:
    """Chapter by chapter; a request that came out alike over both families is one line.

    Whatever was judged stays whole. Where not all fits side by side, the rule is a line of its own below its row;
    what is missing then is taken from the request, which is folded.
    """
    chapters: dict[str, list[dict[str, str]]] = {}
    for row, families in _merged(rows):
        cells = dict(zip(_COLUMNS, _cells(row, families), strict=True))
        chapters.setdefault(row.chapter, []).append(cells)
    widths = {
        name: max(len(name), *(len(each[name]) for lines in chapters.values() for each in lines)) for name in _COLUMNS
    }
    beside = _total(widths) <= out.width
    if not beside:
        del widths[_RULE]
        widths[_REQUEST] = max(_LEAST_REQUEST, min(widths[_REQUEST], widths[_REQUEST] + out.width - _total(widths)))
    for number, (title, lines) in enumerate(chapters.items()):
        out.print(Text(f"\n{title}", style="bold cyan"), soft_wrap=True)
        made = _table(widths, header=number == 0)
        for cells in lines:
            made.add_row(*(Text(cells[name], style=_STYLES.get(cells[name], "")) for name in widths))
            if not beside and cells[_RULE] != "-":
                out.print(made)
                out.print(Padding(Text(cells[_RULE], style="dim", overflow="fold"), (0, 0, 0, 2), expand=False))
                made = _table(widths, header=False)
        if made.row_count:
            out.print(made)


def _total(widths: dict[str, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _table(widths: dict[str, int], *, header: bool) -> Table:
    made = Table(header_style="dim", box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), show_header=header)
    for name, width in widths.items():
        made.add_column(name, overflow="fold", width=width, min_width=width, no_wrap=name != _REQUEST)
    return made


def _without_tail(found: dict[str, float]) -> dict[str, float]:
    """Rounds as short as the demo's say nothing about the 99th percentile."""
    return {name: value for name, value in found.items() if name != "p99_us"}


def _merged(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Rows with the families they are about: «4+6» for two that differ in the family alone."""
    found: dict[Row, list[int]] = {}
    for row in rows:
        found.setdefault(msgspec.structs.replace(row, family=0), []).append(row.family)
    return [(row, "+".join(map(str, families))) for row, families in found.items()]


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


_REQUEST, _RULE = "REQUEST", "RULE"
_COLUMNS = (_REQUEST, "IP", "EXPECTED", "ACTUAL", "REASON", _RULE, "DATA PATH", "")
_GAP = "  "
#: Width of what goes into a file or a pipe.
_WIDTH = 120
#: A request is not folded to less.
_LEAST_REQUEST = 8
_STYLES = {
    "200": "green",
    "echo": "green",
    "403": "red",
    "no answer": "red",
    "proxy + splice": "cyan",
    "ok": "green",
    "DIFFERS": "bold red",
}
