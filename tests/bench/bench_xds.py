"""What the control plane costs: `python tests/bench/bench_xds.py --clients 1000 --resources 500 [-o json]`.

Simulated clients (`support.xdsload`, a process of their own) take a quarter each of clusters, endpoints, listeners and
routes from a real server (`support.xdsserved`, another process) over its Unix socket and acknowledge at once. One
resource is changed at a time, its type in turn. Parts, `--only` picks some:

- `fanout`: sessions, each with a fresh server, `--rounds` times in turning order: `delta` (all clients of one
  snapshot), `delta_tenth` (the same with a tenth of the clients), `delta_own` (a snapshot for each node, sharing the
  resources) and `sotw`. Of each: `first_s`, `first_cpu_ms` (from no client to all answered; CPU of the server for one
  client), `client_kib` (server memory for one client), `ack_p50_ms`, `ack_p99_ms`, `ack_max_ms` (from the change to a
  client's ACK at the server, all changes and clients), `all_ms` (median over the changes of the last one),
  `push_cpu_us` and `messages` (server CPU of a push with its ACK; pushes for one change and client), `bytes_change`
  (per client), `encoded` (how often a resource was serialized for one change);
- `ratios` within each round: `linear` is CPU of a push with all clients ÷ with a tenth of them, `own` the same of a
  snapshot for each ÷ one for all, `sotw_…` state of the world ÷ delta for a change of one type;
- `churn`: `--rate` changes a second for `--seconds`: the server's RSS before, after and at most, and its slope in the
  second half; `settled_ms`: from the last change until every client has all of it;
- `envoy`: so many clusters and so many route configurations (`--envoy`, 0: leave it out) on one Envoy: seconds until
  all is acknowledged, and milliseconds of an edit of one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.commands import Commanded
from support.xdsmade import KINDS

PARTS = ("fanout", "churn", "envoy")


class Session(NamedTuple):
    """How the clients of one session are: so many of `clients`, with one snapshot or their own, which variant."""

    divisor: int = 1
    own: bool = False
    delta: bool = True


SESSIONS = {
    "delta": Session(),
    "delta_tenth": Session(divisor=10),
    "delta_own": Session(own=True),
    "sotw": Session(delta=False),
}


class Bed:
    """A fresh server with resources in it, and a process for its clients."""

    def __init__(self, server: Commanded, fleet: Commanded, clients: int, session: Session) -> None:
        self.server, self.fleet, self.clients, self.session = server, fleet, clients, session

    async def connect(self, resources: int, remember: bool = False) -> dict[str, float]:
        """All clients, until all have been answered."""
        session = self.session
        await self.server.do("serve", resources=resources, nodes=self.clients if session.own else 0)
        before = await self.server.do("usage", collect=True)
        how = {"delta": session.delta, "own": session.own, "remember": remember}
        took = await self.fleet.do("connect", clients=self.clients, resources=resources, **how)
        after = await self.server.do("usage", collect=True)
        return {
            "first_s": took["seconds"],
            "first_cpu_ms": (after["cpu"] - before["cpu"]) / self.clients * 1000,
            "client_kib": (after["rss"] - before["rss"]) * 1024 / self.clients,
        }

    def rss(self) -> float:
        """MiB of the server, read from outside, so that a busy one isn't asked."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024


@contextlib.asynccontextmanager
async def bed(clients: int, session: Session) -> AsyncIterator[Bed]:
    """A Bed, taken down afterwards."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        socket = str(directory / "xds.sock")
        server = await Commanded.start("support.xdsserved", socket, log=directory / "server.log")
        fleet = await Commanded.start("support.xdsload", socket, log=directory / "fleet.log")
        try:
            yield Bed(server, fleet, clients, session)
        finally:
            await fleet.stop()
            await server.stop()


async def fan_out(session: Session, clients: int, resources: int, changes: int) -> dict[str, Any]:
    """One session: what was measured of each change stands in `changes`, by type."""
    async with bed(max(1, clients // session.divisor), session) as made:
        result: dict[str, Any] = await made.connect(resources)
        by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for number in range(changes):
            kind = KINDS[number % len(KINDS)]
            by_kind[kind].append(await made.server.do("change", kind=kind, number=number, acks=made.clients))
        taken = await made.fleet.do("take")
        assert taken["lost"] == 0, "connections were lost"
        status = await made.server.do("status")
        result |= {"status_ms": status["seconds"] * 1000, "clients": made.clients, "changes": by_kind}
        return result


async def churn(clients: int, resources: int, rate: float, seconds: float) -> dict[str, Any]:
    """Changes without pause, of all types in turn."""
    async with bed(clients, Session()) as made:
        await made.connect(resources, remember=True)
        before = await made.server.do("usage", collect=True)
        start = time.monotonic()
        await made.server.do("churn", per_second=rate, kinds=list(KINDS))
        samples: list[tuple[float, float]] = []
        while time.monotonic() - start < seconds:
            await asyncio.sleep(min(0.5, seconds / 20))
            samples.append((time.monotonic() - start, made.rss()))
        published = (await made.server.do("calm"))["published"]
        last = time.monotonic()
        await made.server.do("quiet")
        settled = time.monotonic() - last
        found = await made.fleet.do("behind", digests=await made.server.do("digests"))
        assert found["behind"] == 0, f"{found['behind']} clients never got everything"
        taken = await made.fleet.do("take")
        assert taken["lost"] == 0, "connections were lost"
        after = await made.server.do("usage", collect=True)
        late = [sample for sample in samples if sample[0] >= seconds / 2]
        pushes = after["events"]["push"] - before["events"]["push"]
        return {
            "clients": clients,
            "changes": len(published),
            "changes_per_s": round(len(published) / seconds, 1),
            "pushes": pushes,
            "pushes_per_s": round(pushes / (seconds + settled)),
            "server_cpu_share": round((after["cpu"] - before["cpu"]) / (seconds + settled), 2),
            "push_cpu_us": round((after["cpu"] - before["cpu"]) / max(1, pushes) * 1e6),
            "rss_before_mib": round(before["rss"], 1),
            "rss_after_mib": round(after["rss"], 1),
            "rss_peak_mib": round(max(rss for _, rss in samples), 1),
            "rss_slope_kib_per_s": round(slope(late) * 1024, 1),
            "settled_ms": round(settled * 1000),
            "nacks": after["events"]["nack"],
        }


def slope(samples: list[tuple[float, float]]) -> float:
    """Of the straight line that fits best."""
    return statistics.linear_regression(*zip(*samples, strict=True)).slope if len(samples) > 1 else 0.0


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so many are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one kind of session, over its rounds."""
    clients = runs[0]["clients"]

    def of(changes: list[dict[str, Any]]) -> dict[str, Any]:
        acks = [took * 1000 for change in changes for took in change["seconds"]]
        pushes = sum(change["pushes"] for change in changes)
        return {
            "ack_p50_ms": round(statistics.median(acks), 1),
            "ack_p99_ms": round(percentile(acks, 0.99), 1),
            "ack_max_ms": round(max(acks), 1),
            "all_ms": round(statistics.median(max(change["seconds"]) * 1000 for change in changes), 1),
            "push_cpu_us": round(sum(change["cpu"] for change in changes) / pushes * 1e6),
            "messages": round(pushes / len(changes) / clients, 2),
            "bytes_change": round(sum(change["bytes"] for change in changes) / len(changes) / clients),
            "encoded": max(change["encoded"] for change in changes),
        }

    by_kind = {kind: [change for run in runs for change in run["changes"][kind]] for kind in KINDS}
    return {
        "clients": clients,
        **{
            key: round(statistics.median(run[key] for run in runs), 2)
            for key in ("first_s", "first_cpu_ms", "client_kib", "status_ms")
        },
        **of([change for changes in by_kind.values() for change in changes]),
        "by_type": {kind: of(changes) for kind, changes in by_kind.items() if changes},
    }


def ratios(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Ratios within each round: median, least and most."""

    def cost(run: dict[str, Any], what: str, kind: str | None = None) -> float:
        changes = [c for each, found in run["changes"].items() if kind in (None, each) for c in found]
        per = sum(c["pushes"] for c in changes) if what == "cpu" else len(changes) * run["clients"]
        return float(sum(c[what] for c in changes) / per)

    def spread(values: list[float]) -> dict[str, float]:
        three = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        return {name: round(value, 2) for name, value in three.items()}

    result: dict[str, Any] = {
        "linear": spread([cost(r["delta"], "cpu") / cost(r["delta_tenth"], "cpu") for r in rounds]),
        "own": spread([cost(r["delta_own"], "cpu") / cost(r["delta"], "cpu") for r in rounds]),
    }
    for kind in KINDS:
        for what in ("bytes", "cpu"):
            values = [cost(r["sotw"], what, kind) / cost(r["delta"], what, kind) for r in rounds]
            result[f"sotw_{what}_{kind}"] = spread(values)
    return result


def machine() -> dict[str, object]:
    """On what this runs, and how busy it was before."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "model": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts that were asked for."""
    result: dict[str, Any] = {"machine": machine(), "resources": options.resources}
    if "fanout" in options.only:
        rounds: list[dict[str, dict[str, Any]]] = []
        order = list(SESSIONS)
        for number in range(options.rounds):
            rounds.append({})
            for name in order[number % len(order) :] + order[: number % len(order)]:
                note(f"round {number + 1}: {name}")
                found = await fan_out(SESSIONS[name], options.clients, options.resources, options.changes)
                rounds[-1][name] = found
        result["fanout"] = {name: figures([found[name] for found in rounds]) for name in SESSIONS}
        result["ratios"] = ratios(rounds)
    if "churn" in options.only:
        note(f"{options.rate:g} changes a second for {options.seconds:g} s")
        result["churn"] = await churn(options.clients, options.resources, options.rate, options.seconds)
    if "envoy" in options.only and options.envoy:
        from xds_envoy import bulk

        note(f"{options.envoy} clusters and routes on Envoy")
        result["envoy"] = await bulk(options.envoy, options.edits)
    result["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    return result


def note(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--resources", type=int, default=500, help="of each client (default: 500)")
    parser.add_argument("--changes", type=int, default=20, help="single changes in a session (default: 20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="changes a second of `churn` (default: 100)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of `churn` (default: 60)")
    parser.add_argument("--envoy", type=int, default=5000, help="clusters and routes on one Envoy (default: 5000)")
    parser.add_argument("--edits", type=int, default=10, help="edits of one of them, of each type (default: 10)")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help="parts, with commas")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only: no such part: {', '.join(sorted(unknown))}")
    if options.changes < len(KINDS) or options.resources < 2 * len(KINDS):
        parser.error(f"--changes must be at least {len(KINDS)}, and --resources {2 * len(KINDS)}")
    found = asyncio.run(measure(options))
    if options.output == "json":
        print(json.dumps(found, indent=2))
    else:
        for part, values in found.items():
            print(f"{part:12} {json.dumps(values)}" if not isinstance(values, dict) else part)
            for name, value in values.items() if isinstance(values, dict) else ():
                print(f"  {name:22} {json.dumps(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
