"""Requests between two pods with sidecars, mTLS between them: off and on in turns, in one run.

    .venv/bin/python tests/bench/bench_istio.py [--rounds 9] [--seconds 3] [--path answer] [--relay http] [--pin]

wrk in the client's pod, nginx in the server's, an Envoy beside each, which understands HTTP or (as for ports whose
protocol Istio does not know) relays bytes; TLS between the two in both cases. Before each turn the connections between
the server's sidecar and nginx are ended: what a connection is, was decided when it began. `cpu` is what all processes
of both pods used for a request, with what the kernel does in their name (cpu.stat of their cgroups). Ratios are medians
of the ratios of turns that followed each other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spliceway.agent.bench import wrk
from support.istio.rules import Rules
from support.istio.site import PORT, Site, site
from support.waiting import until

CONNECTIONS = (1, 4, 16, 64)
WARM_UP = 1.0


class Turn(NamedTuple):
    """One run of wrk: requests a second, microseconds, microseconds of CPU time for a request."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Row(msgspec.Struct, frozen=True):
    """A number of connections: medians off and on, and of the ratios on to off; `best` and `worst` of the rates'."""

    version: int
    connections: int
    rounds: int
    off: Turn
    on: Turn
    ratio: Turn
    worst: float
    best: float


def cpu_seconds(place: Site) -> float:
    """Of all processes of both pods, since they are there."""
    total = 0
    for name in ("client", "server"):
        text = (place.testbed.pod(name).cgroup / "cpu.stat").read_text()
        total += int(dict(line.split() for line in text.splitlines())["usage_usec"])
    return total / 1e6


def pin(place: Site) -> None:
    """Give each pod a CPU of its own, as the kubelet's static CPU manager does."""
    for number, name in enumerate(("client", "server")):
        for pid in (place.testbed.pod(name).cgroup / "cgroup.procs").read_text().split():
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {number})


def turn(
    place: Site, script: Path, path: str, version: int, connections: int, seconds: float, *, on: bool, pinned: bool
) -> Turn:
    """One run, after the decision has reached every connection."""
    place.accelerate(on)
    place.drop_pools()
    until(lambda: not place.legs())
    address = place.testbed.pod("server").address(version)
    url = f"http://{f'[{address}]' if version == 6 else address}:{PORT}/{path}"
    client = place.testbed.pod("client")
    where = ["taskset", "-c", "0"] if pinned else []
    client.run([*where, *wrk.command(str(script), url, connections, WARM_UP)])
    before = cpu_seconds(place)
    done = client.run([*where, *wrk.command(str(script), url, connections, seconds)], timeout=seconds + 30)
    used = cpu_seconds(place) - before
    result = wrk.parse(done.stdout + done.stderr)
    return Turn(result.requests_per_second, result.p50_us, result.p99_us, used / result.requests * 1e6)


def measure(place: Site, script: Path, version: int, connections: int, asked: argparse.Namespace) -> Row:
    """Turns off and on; which comes first changes from round to round."""
    pairs = []
    for number in range(asked.rounds):
        order = (False, True) if number % 2 else (True, False)
        turns = {
            on: turn(place, script, asked.path, version, connections, asked.seconds, on=on, pinned=asked.pin)
            for on in order
        }
        pairs.append((turns[False], turns[True]))
    off, on, ratios = (
        [each[0] for each in pairs],
        [each[1] for each in pairs],
        [Turn(*(b / a for a, b in zip(*each, strict=True))) for each in pairs],
    )
    rates = [each.rate for each in ratios]
    return Row(version, connections, asked.rounds, _median(off), _median(on), _median(ratios), min(rates), max(rates))


def _median(turns: Sequence[Turn]) -> Turn:
    return Turn(*map(statistics.median, zip(*turns, strict=True)))


HEAD = (
    "| IPv | connections | req/s off | on | ratio (worst–best) | p50 µs off | on | ratio "
    "| cpu µs/req off | on | ratio |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def line(row: Row) -> str:
    """Of the table."""
    off, on, ratio = row.off, row.on, row.ratio
    rates = f"{off.rate:,.0f} | {on.rate:,.0f} | {ratio.rate:.2f} ({row.worst:.2f}–{row.best:.2f})"
    medians = f"{off.p50:,.0f} | {on.p50:,.0f} | {ratio.p50:.2f}"
    cpu = f"{off.cpu:,.0f} | {on.cpu:,.0f} | {ratio.cpu:.2f}"
    return f"| {row.version} | {row.connections} | {rates} | {medians} | {cpu} |"


@contextmanager
def open_directory() -> Iterator[Path]:
    """One that the sidecars can read: they are not root."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="requests between two pods with sidecars, off and on")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rules", choices=get_args(Rules), default="iptables")
    parser.add_argument("--connections", type=int, nargs="*", default=CONNECTIONS)
    parser.add_argument("--versions", type=int, nargs="*", choices=(4, 6), default=(4, 6))
    parser.add_argument("--relay", choices=("http", "tcp"), default="http", help="what the sidecars take it for")
    parser.add_argument("--path", choices=("answer", "small", "large"), default="answer", help="what is asked for")
    parser.add_argument("--pin", action="store_true", help="each pod has a CPU of its own")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    with open_directory() as directory, site(directory, asked.rules, http=asked.relay == "http") as place:
        script = directory / "result.lua"
        script.write_text(wrk.SCRIPT)
        if asked.pin:
            pin(place)
        print(HEAD, flush=True)
        for version in asked.versions:
            for connections in asked.connections:
                row = measure(place, script, version, connections, asked)
                rows.append(row)
                print(line(row), flush=True)
        counters = place.node.datapath.splice_counters()
    left = {why: count for why, count in counters.by_why.items() if count}
    print(f"\n{counters.sidecar_spliced} legs spliced, {counters.sidecar_tcp_only} not; went on by TCP: {left}")
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


if __name__ == "__main__":
    main()
