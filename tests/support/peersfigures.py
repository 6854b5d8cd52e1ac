"""Loads and figures of the benchmark of proxies: what is asked, what a run came to, medians and ratios. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from spliceway.agent.bench.figures import Spread
from spliceway.agent.bench.wrk import SCRIPT, WrkResult

#: What every proxy that can filter lets pass: «METHOD PATH», the path a regular expression for the whole of it.
RULES = (r"GET /(small|large)(\?.*)?", r"POST /post(\?.*)?")
#: Path of a request that no rule lets pass, and that the server does not have either.
DENIED = "/other"
SMALL, LARGE, BODY = 256, 65536, 1024
#: What is told of each run, and how it is called in tables.
TITLES = {
    "rps": "req/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "cpu_us": "CPU µs/req",
    "core_rps": "req/s of a core",
    "busy": "of the core",
}
#: Figures whose extremes a table has room for.
WIDE = ("rps", "cpu_us")
#: Ratios that are told, of these figures.
PAIRS = (
    ("embedded", "proxy.py"),
    ("embedded", "mitmproxy"),
    ("embedded-h11", "proxy.py"),
    ("embedded-h11", "mitmproxy"),
    ("embedded", "envoy"),
    ("embedded-whole", "envoy"),
    ("embedded", "bytes"),
)
COMPARED = ("rps", "core_rps")
#: Path, other path, load: how many times the requests a second of a core at least, and whether it must be so.
GOALS = (
    ("embedded", "mitmproxy", 5.0, True),
    ("embedded-h11", "mitmproxy", 5.0, True),
    ("embedded-h11", "proxy.py", 1.0, True),
    ("embedded-h11", "proxy.py", 2.0, False),
    ("embedded", "proxy.py", 2.0, False),
)
#: The goals are for small replies to requests without a body, when there is more than one at a time.
_GOAL_LOADS = ("small-*-16", "small-*-64")


class Load(NamedTuple):
    """What wrk asks: `unique` heads have another query and another X-Request-Id in each request."""

    what: str
    unique: bool
    connections: int

    @property
    def name(self) -> str:
        """Such as `small-unique-16`."""
        return f"{self.what}-{'unique' if self.unique else 'repeated'}-{self.connections}"


LOADS = {
    load.name: load
    for load in (
        Load(what, unique, connections)
        for what in ("small", "large", "post")
        for unique in (False, True)
        for connections in (1, 16, 64)
    )
}

#: Both kinds build the request in a function, so that wrk's own work differs by one concatenation.
_REQUEST = """
local number = {first}
request = function()
  number = number + 1
  return {parts}
end
"""


class Sample(NamedTuple):
    """Figures of one run of one load on one path."""

    path: str
    load: str
    round: int
    figures: dict[str, float]


def chosen_loads(patterns: str) -> list[Load]:
    """Loads whose names match any of the patterns (shell's, comma between). Raises ValueError for one without any."""
    found: dict[str, Load] = {}
    for pattern in patterns.split(","):
        matching = {name: load for name, load in LOADS.items() if fnmatchcase(name, pattern.strip())}
        if not matching:
            raise ValueError(f"no load is called {pattern!r}; there are {', '.join(LOADS)}")
        found |= matching
    return list(found.values())


def wrk_script(load: Load, first: int) -> str:
    """Wrk's script for one run; `first` is the number of its first request, so that no two runs share a head."""
    method = "POST" if load.what == "post" else "GET"
    start = f"{method} /{load.what}"
    fields = "Host: server\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
    body = "x" * BODY if load.what == "post" else ""
    if body:
        fields += f"Content-Type: text/plain\r\nContent-Length: {BODY}\r\n"
    end = f"\r\n\r\n{body}"
    if load.unique:
        parts = [json.dumps(f"{start}?n="), "number", json.dumps(f" HTTP/1.1\r\n{fields}X-Request-Id: "), "number"]
    else:
        parts = [json.dumps(f"{start} HTTP/1.1\r\n{fields}X-Request-Id: 0")]
    return _REQUEST.format(first=first, parts=" .. ".join([*parts, json.dumps(end)])) + SCRIPT


def figures(result: WrkResult, cpu_seconds: float) -> dict[str, float]:
    """What a run came to; `cpu_seconds`: user and system time of all processes of the proxy meanwhile.

    `core_rps` is what one core would do if it had nothing else: the reciprocal of the CPU time of a request.
    """
    cpu_us = cpu_seconds * 1e6 / result.requests
    return {
        "rps": result.requests_per_second,
        "p50_us": result.p50_us,
        "p99_us": result.p99_us,
        "cpu_us": cpu_us,
        "core_rps": 1e6 / cpu_us,
        "busy": cpu_seconds * 1e6 / result.duration_us,
    }


def spreads(samples: Iterable[Sample]) -> dict[str, dict[str, dict[str, Spread]]]:
    """Path → load → figure → spread over the rounds."""
    return {
        path: {
            load: {name: Spread.of(one[name] for one in rounds.values()) for name in TITLES}
            for load, rounds in loads.items()
        }
        for path, loads in _collect(samples).items()
    }


def ratios(samples: Iterable[Sample]) -> dict[str, dict[str, dict[str, Spread]]]:
    """«path/path» → load → figure → spread of the ratios within each round."""
    values = _collect(samples)
    return {
        f"{over}/{under}": {
            load: {
                name: Spread.of(one[name] / values[under][load][number][name] for number, one in rounds.items())
                for name in COMPARED
            }
            for load, rounds in values[over].items()
        }
        for over, under in PAIRS
        if over in values and under in values
    }


def goals(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """What was asked for and what came out, for each load that counts: `met` is about the median."""
    found = ratios(samples)
    return [
        {"over": over, "under": under, "load": load, "times": times, "must": must,
         "found": each["core_rps"].median, "met": each["core_rps"].median >= times}
        for over, under, times, must in GOALS
        for load, each in found.get(f"{over}/{under}", {}).items()
        if any(fnmatchcase(load, pattern) for pattern in _GOAL_LOADS)
    ]  # fmt: skip


def rotated(paths: Sequence[str], number: int) -> list[str]:
    """The order of the paths in that round: each is first, second, … equally often."""
    start = number % len(paths)
    return [*paths[start:], *paths[:start]]


def _collect(samples: Iterable[Sample]) -> Mapping[str, dict[str, dict[int, dict[str, float]]]]:
    """By path, load and round."""
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for sample in samples:
        found.setdefault(sample.path, {}).setdefault(sample.load, {})[sample.round] = sample.figures
    return found
