"""Fitting a table to a terminal: words stay whole, long texts are folded, what has no room goes below its row. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

GAP = 2
#: Columns of texts: they are folded between words, and in words when these are longer than _TEXT.
TEXTS = frozenset(
    {"LABELS", "RULE", "RULE SET", "RULENAME", "RULESETNAME", "HTTP", "WHY", "PEERS", "POLICY", "DESIRED", "ENVOY"}
)
_TEXT = 16


class Layout(NamedTuple):
    """`shown`: position → width of the columns side by side; `below`: positions of those below each row."""

    shown: dict[int, int]
    below: tuple[int, ...]


def fit(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> Layout:
    """Choose widths so that a line has at most `room` characters. No columns: no header, and the last one is a text.

    From the right, columns go below until the rest has room; the first always stays.
    """
    count = len(columns) or len(rows[0])
    names = list(columns) or [""] * count
    natural = [max(map(len, (names[place], *(row[place] for row in rows)))) for place in range(count)]
    least = [_least(names[place], [row[place] for row in rows]) for place in range(count)]
    if not columns:
        least[-1] = min(least[-1], _TEXT)
    shown = list(range(count))
    while columns and len(shown) > 1 and _total([least[place] for place in shown]) > room:
        shown.pop()
    spare = room - _total([least[place] for place in shown])
    widths = {}
    for place in shown:
        more = max(0, min(spare, natural[place] - least[place]))
        widths[place] = least[place] + more
        spare -= more
    return Layout(widths, tuple(range(len(shown), count)))


def fold(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken between words, or in a word that is longer than a line."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if len(joined) <= width:
            lines[-1] = joined
            continue
        pieces = [word[start : start + width] for start in range(0, len(word), width)]
        lines = [*lines, *pieces] if lines[-1] else [*lines[:-1], *pieces]
    return lines


def _least(name: str, cells: Sequence[str]) -> int:
    word = max((len(word) for cell in cells for word in cell.split(" ")), default=0)
    return max(len(name), min(word, _TEXT) if name in TEXTS else word)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
