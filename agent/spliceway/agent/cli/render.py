"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from spliceway.agent.cli.common import FullOutput, Output
from spliceway.agent.printable import one_line

if TYPE_CHECKING:
    from rich.text import Text

#: In a pipe, a cell that is longer than this moves those behind it in its own row only.
_PADDED = 64


def emit_json(value: Any) -> None:
    """Print indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def emit_full(values: Sequence[Any], output: FullOutput, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print `values` as one JSON array or as a YAML document each, or a table of `rows` under `columns`."""
    if output is FullOutput.JSON:
        emit_json(values)
    elif output is FullOutput.YAML:
        import yaml

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        yaml.dump_all(values, sys.stdout, dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)
    else:
        table(columns, rows)


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
    widths = [min(max(map(len, column)), _PADDED) for column in zip(*lines, strict=True)]
    for line in lines:
        sys.stdout.write("  ".join(map(str.ljust, line, widths)).rstrip() + "\n")


def _print_rich(columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich.console import Console

    out = Console(highlight=False)
    for line in styled(columns, cells, out.width) if columns or cells else ():
        out.print(line, soft_wrap=True)


def styled(columns: Sequence[str], cells: Sequence[Sequence[str]], room: int) -> Iterator[Text]:
    """Lines of a table for a terminal of `room` columns, see `columns.fit`."""
    from rich.text import Text

    from spliceway.agent.cli.columns import GAP, fit, fold

    layout = fit(columns, cells, room)
    for row in [columns, *cells] if columns else cells:
        header = row is columns
        folded = {place: fold(row[place], width) for place, width in layout.shown.items()}
        for number in range(max(map(len, folded.values()))):
            line = Text()
            for place, width in layout.shown.items():
                text = folded[place][number] if number < len(folded[place]) else ""
                line.append(text.ljust(width + GAP), "bold" if header else _STYLES.get(row[place], ""))
            line.rstrip()
            yield line
        if not header:
            told = "; ".join(f"{columns[place]} {row[place]}" for place in layout.below if row[place] != "-")
            yield from (Text("  " + text, "dim") for text in fold(told, max(1, room - 2)) if text)


def cell(value: Any) -> str:
    """Text of a cell, in one line."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return one_line(", ".join(map(str, value)))
    return one_line(str(value))


def address(host: str, port: int) -> str:
    """«10.0.0.1:80», «[fd00::1]:80»."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def labels_text(labels: Sequence[str], *, derived: bool = True) -> str:
    """«namespace: labels», without what every pod has.

    Without `derived` also without what is there only because policies ask for it (docs/cli.md), as far as something
    else is left.
    """
    namespace = next((label.partition("=")[2] for label in labels if label.startswith(_NAMESPACE)), "")
    shown = [label for label in labels if not label.startswith(("k8s:io.cilium.", _NAMESPACE))]
    plain = [label for label in shown if derived or not label.startswith(_DERIVED)]
    text = ", ".join(plain or shown or labels)
    return f"{namespace}: {text}" if namespace and shown else text


#: The identity label that has a pod's namespace.
_NAMESPACE = "k8s:io.kubernetes.pod.namespace="
_DERIVED = ("block:", "node:", "port:", "k8s:spliceway:")

_STYLES = {
    "allow": "green",
    "redirect": "cyan",
    "deny": "red",
    "audit": "yellow",
    "spliced": "green",
    "tcp-only": "yellow",
    "revoked": "red",
    "SYNCED": "green",
    "STALE": "yellow",
    "NOT SENT": "yellow",
    "NACK": "red",
    "applied": "green",
    "waiting": "yellow",
    "refused": "red",
    "same": "green",
    "differs": "red",
    "missing": "red",
    "extra": "red",
    "warming": "yellow",
    "error": "red",
    "yes": "green",
    "no": "dim",
}
