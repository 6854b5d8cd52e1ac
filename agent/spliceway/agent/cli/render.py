"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from spliceway.agent.cli.common import Output


def emit_json(value: Any) -> None:
    """Print indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def emit(value: Any, output: Output, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print `value` as JSON, or a table of `rows` under `columns`."""
    if output is Output.JSON:
        emit_json(value)
    else:
        table(columns, rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: folded to the width of a terminal, or a line for each row into a pipe. No columns: no header."""
    cells = [[cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells)
        return
    lines = [list(columns), *cells] if columns else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        sys.stdout.write("  ".join(map(str.ljust, line, widths)).rstrip() + "\n")


def _print_rich(columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False, show_header=bool(columns))
    for column in columns or cells[0]:
        made.add_column(column, overflow="fold")
    for row in cells:
        made.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in row))
    Console(highlight=False).print(made)


def cell(value: Any) -> str:
    """Text of a cell."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def labels_text(labels: Sequence[str]) -> str:
    """Labels without what every pod has."""
    shown = [label for label in labels if not label.startswith(("k8s:io.cilium.", "k8s:io.kubernetes.pod.namespace="))]
    return ", ".join(shown or labels)


_STYLES = {
    "allow": "green",
    "redirect": "cyan",
    "deny": "red",
    "spliced": "green",
    "tcp-only": "yellow",
    "revoked": "red",
    "yes": "green",
    "no": "dim",
}
