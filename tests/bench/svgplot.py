"""A small plot with logarithmic axes, as SVG: no library is needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 180, 40, 50
_COLORS = ("#0b6e99", "#c0392b", "#7fb3c8", "#e0a199", "#555555")

#: x and y of each point.
Points = Sequence[tuple[float, float]]


def plot(title: str, x_title: str, y_title: str, series: Mapping[str, Points]) -> str:
    """All series on one pair of axes; values must be above zero."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low_x, high_x = floor(log10(min(xs))), max(ceil(log10(max(xs))), floor(log10(min(xs))) + 1)
    low_y, high_y = floor(log10(min(ys))), max(ceil(log10(max(ys))), floor(log10(min(ys))) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - low_x) / (high_x - low_x)
        up = (log10(y) - low_y) / (high_y - low_y)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 22, title, size=15),
        _text(_LEFT, _HEIGHT - 12, x_title),
        _text(8, _TOP - 10, y_title),
    ]
    for power in range(low_x, high_x + 1):
        x, bottom = at(10.0**power, 10.0**low_y)
        parts += [_line((x, bottom), (x, _TOP)), _text(x - 8, bottom + 16, f"{10**power:,}")]
    for power in range(low_y, high_y + 1):
        left, y = at(10.0**low_x, 10.0**power)
        parts += [_line((left, y), (_WIDTH - _RIGHT, y)), _text(12, y + 4, f"{10.0**power:g}")]
    for number, (name, points) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        places = [at(x, y) for x, y in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        parts.append(_text(_WIDTH - _RIGHT + 12, _TOP + 18 * number + 8, name, color=color))
    return "\n".join([*parts, "</svg>", ""])


def _line(begin: tuple[float, float], end: tuple[float, float]) -> str:
    return f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, *, color: str = "#222222", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}">{escape(text)}</text>'
