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
    """Print a table. On a terminal its cells are folded to the width; into a pipe every row is one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=not console.is_terminal)
    for row in rows:
        made.add_row(*(Text(cell(value), style=_STYLES.get(cell(value), "")) for value in row))
    if not console.is_terminal:
        console.width = max(console.measure(made).maximum, 1)
    console.print(made)


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
