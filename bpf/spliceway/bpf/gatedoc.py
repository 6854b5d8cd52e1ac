"""The tables of docs/kernels.md: `python -m spliceway.bpf.gatedoc docs/kernels.md` writes them between two marks."""

from __future__ import annotations

import sys
from pathlib import Path

from spliceway.bpf.gatetable import FEATURES, ROWS, Row

BEGIN = "<!-- kernel gate: generated -->"
END = "<!-- kernel gate: end -->"


def tables() -> str:
    """Both tables as Markdown, with the marks around them."""
    faults = [
        "| fix | what is wrong without it | bad since | fixed in | switches off |",
        "| --- | --- | --- | --- | --- |",
        *(_fault(row) for row in ROWS),
    ]
    features = [
        "| needed | since | for | without it |",
        "| --- | --- | --- | --- |",
        *(
            f"| {one.name} | {one.since} | {one.why} | {'nothing works' if one.required else 'works, but for that'} |"
            for one in FEATURES
        ),
    ]
    return "\n".join([BEGIN, "", *faults, "", *features, "", END])


def replaced(text: str) -> str:
    """The document with fresh tables. ValueError if a mark is missing."""
    before, rest = text[: text.index(BEGIN)], text[text.index(BEGIN) :]
    return before + tables() + rest[rest.index(END) + len(END) :]


def _fault(row: Row) -> str:
    name = f"[{row.commit}]({row.source})" + (f" {row.cve}" if row.cve else "")
    mended = ", ".join((*row.stable, row.fixed)) + ("" if row.verified else " (not confirmed)")
    return f"| {name} | {row.what} | {', '.join(row.bad)} | {mended} | {row.scope} |"


def main(path: str) -> None:
    """Rewrites the document in place."""
    document = Path(path)
    document.write_text(replaced(document.read_text()))


if __name__ == "__main__":
    main(*sys.argv[1:])
