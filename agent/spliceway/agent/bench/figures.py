"""From samples to medians, spreads and ratios. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from statistics import median

import msgspec

from spliceway.agent.bench.counters import Counters
from spliceway.agent.bench.measure import Sample
from spliceway.agent.bench.paths import comparisons

#: path → load → figure → value.
Figures = dict[str, dict[str, dict[str, float]]]


class Spread(msgspec.Struct, frozen=True):
    """Median and extremes of a figure over the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = sorted(values)
        return cls(_rounded(median(found)), _rounded(found[0]), _rounded(found[-1]))


#: path, or «path/path» for ratios → load → figure → spread.
Spreads = dict[str, dict[str, dict[str, Spread]]]


def spreads(samples: Iterable[Sample]) -> Spreads:
    """Each figure over the rounds."""
    return {
        path: {
            load: {figure: Spread.of(values) for figure, values in figures.items()} for load, figures in loads.items()
        }
        for path, loads in _collect(samples).items()
    }


def medians(found: Spreads) -> Figures:
    """The medians alone."""
    return {
        path: {load: {figure: spread.median for figure, spread in figures.items()} for load, figures in loads.items()}
        for path, loads in found.items()
    }


def ratios(samples: Sequence[Sample]) -> Spreads:
    """Figures of one path by those of another, in the same round: what slows the machine down slows both.

    Keys are «envoy+splice/envoy»; which pairs there are, `paths.comparisons` says.
    """
    values = _collect(samples)
    return {
        f"{over}/{under}": {
            load: {
                figure: Spread.of(a / b for a, b in zip(ours, theirs, strict=True) if b)
                for figure, ours in figures.items()
                # Without a proxy there is no CPU time of it; what is too short to have any gives no ratio.
                if (theirs := values[under][load].get(figure)) and any(theirs)
            }
            for load, figures in values[over].items()
        }
        for over, under in comparisons(values)
    }


def counted(samples: Iterable[Sample]) -> dict[str, Counters]:
    """Sum of the counters of all runs of each path."""
    found: dict[str, list[Counters]] = defaultdict(list)
    for sample in samples:
        found[sample.path].append(sample.counters)
    return {path: reduce(add, each) for path, each in found.items()}


def _collect(samples: Iterable[Sample]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By path, load and figure: values in the order of the rounds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for sample in sorted(samples, key=lambda one: one.round):
        figures = found.setdefault(sample.path, {}).setdefault(sample.load, {})
        for figure, value in sample.figures.items():
            figures.setdefault(figure, []).append(value)
    return found


def _rounded(value: float) -> float:
    """Four significant digits, more than any of these figures has."""
    return float(f"{value:.4g}")
