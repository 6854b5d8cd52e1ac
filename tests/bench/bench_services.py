"""Services by socket LB and by kube-proxy's iptables: `python tests/bench/bench_services.py [-o json] [--plot FILE]`.

What Cilium's deep-dive talks show of Services, repeated: how long connect() to a Service and a change of one endpoint
take with 1 to 10,000 Services. Parts, `--only` picks some:

- `connect`: of each number of Services, both ways in turns (`--batches` times), in each of `--rounds`: `p50_us` and
  `p99_us` of connect() to Services by chance, `load_s` (all of them into the kernel), `update_p50_ms` and
  `update_p99_ms` (one endpoint more or less, into the kernel; for iptables as kube-proxy writes a change). Ratios by
  round: `ahead` is iptables ÷ socket LB (p50), `flat` is p50 ÷ p50 with the fewest Services, of the same way;
- `load`: 10,000 Services with 100,000 endpoints: seconds from objects to the kernel, memory of the maps and of this
  process; then `--changes` changes of one endpoint, which goes or comes: milliseconds from the objects until new
  connections go by it (`in_force`), and until those that had begun before can't either (`acknowledged`: an RCU grace
  period or two for one that goes).

Both nodes have our programs at their pods' interfaces. Needs root and BPF rights; --iptables legacy needs its module.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import statistics
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import structlog
from rich.console import Console
from rich.table import Table
from servicesways import PORT, PROGRAM, IptablesWay, SocketLbWay, cluster_ips
from svgplot import plot

from spliceway.agent.compiler import Compiler
from spliceway.agent.servicesync import ServiceSync
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import grace, libbpf
from spliceway.bpf import services as servicemaps
from spliceway.bpf.install import pin_root
from spliceway.bpf.maps import SERVICES_LAYOUT
from spliceway.policy.engine import Options
from spliceway.policy.model import EndpointSlice, Object, Service
from spliceway.policy.numbering import Numbering
from spliceway.policy.servicemodel import Endpoint, ServicePort, SlicePort
from spliceway.policy.verdict import Protocol
from support.kernel import KernelNode
from support.node import pod_manifest

COUNTS = (1, 100, 1_000, 2_768, 10_000)
SERVICES, ENDPOINTS = 10_000, 10
Changes = dict[tuple[str, str], Object | None]


def manifests() -> list[dict[str, Any]]:
    """On each of two nodes a client and two servers."""
    made = []
    for node in ("node1", "node2"):
        pods = [pod_manifest(f"client-{node}")]
        for number in (1, 2):
            command = [sys.executable, PROGRAM, "serve", str(PORT)]
            pods.append(pod_manifest(f"server{number}-{node}", command=command, ports=(PORT,)))
        for pod in pods:
            pod["spec"]["nodeName"] = node
        made += pods
    return made


def percentile(found: list[float], share: float) -> float:
    """The value that this share of them is not above."""
    ordered = sorted(found)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def connect(arguments: argparse.Namespace, say: Any) -> list[dict[str, Any]]:
    """The part `connect`: a row for each round, number of Services and way."""
    rows = []
    version = arguments.version
    with (
        Testbed.up(manifests()) as bed,
        KernelNode(bed.nodes[0], socket_lb="on") as first,
        KernelNode(bed.nodes[1]) as second,
    ):
        for node in (first, second):
            node.apply()
        pods = [[bed.pod(f"{name}-{node}") for name in ("client", "server1", "server2")] for node in ("node1", "node2")]
        ways: list[SocketLbWay | IptablesWay] = [
            SocketLbWay(first, pods[0][0], pods[0][1:], version),
            IptablesWay(bed.nodes[1], pods[1][0], pods[1][1:], version, arguments.iptables),
        ]
        for number in range(arguments.rounds):
            for count in arguments.services if number % 2 == 0 else arguments.services[::-1]:
                rows += one_count(ways, count, number, arguments)
                told = ", ".join(f"{row['way']} {row['p50_us']:.1f} µs" for row in rows[-2:])
                say(f"round {number + 1}, {count} Services: {told}")
        for way in ways:
            way.dialler.close()
    return rows


def one_count(
    ways: list[SocketLbWay | IptablesWay], count: int, number: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Both ways with so many Services."""
    loads = [way.load(count) for way in ways]
    gc.collect()
    gc.freeze()  # as the agent does once it has loaded: what both ways keep in this process is not measured
    targets = cluster_ips(count, arguments.version)
    took: list[list[float]] = [[], []]
    for batch in range(arguments.batches):
        for index in (0, 1) if (batch + number) % 2 else (1, 0):
            found = ways[index].dialler.took(targets, arguments.connects // arguments.batches, batch)
            took[index] += [one / 1e3 for one in found]
    chosen = random.Random(number)
    updates: list[list[float]] = [[], []]
    for _ in range(arguments.updates):
        which = chosen.randrange(count)
        for index in (0, 1):
            updates[index] += [1e3 * ways[index].update(which, more=more) for more in (True, False)]
    return [
        {
            "round": number,
            "services": count,
            "way": way.name,
            "p50_us": statistics.median(took[index]),
            "p99_us": percentile(took[index], 0.99),
            "load_s": loads[index],
            "update_p50_ms": statistics.median(updates[index]),
            "update_p99_ms": percentile(updates[index], 0.99),
        }
        for index, way in enumerate(ways)
    ]


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By number of Services: how far ours is ahead, and how flat it is; median, least and most of the rounds."""
    by = {(row["round"], row["services"], row["way"].startswith("iptables")): row["p50_us"] for row in rows}
    rounds, counts = sorted({key[0] for key in by}), sorted({key[1] for key in by})
    found = []
    for count in counts:
        ahead = [by[each, count, True] / by[each, count, False] for each in rounds]
        flat = [by[each, count, False] / by[each, counts[0], False] for each in rounds]
        theirs = [by[each, count, True] / by[each, counts[0], True] for each in rounds]
        found.append({"services": count, "ahead": spread(ahead), "flat": spread(flat), "iptables_flat": spread(theirs)})
    return found


def spread(found: list[float]) -> list[float]:
    """Median, least, most."""
    return [round(one, 3) for one in (statistics.median(found), min(found), max(found))]


def cluster(services: int, endpoints: int) -> Changes:
    """So many Services with so many endpoints each, no pods behind them."""
    found: Changes = {}
    for number, address in enumerate(cluster_ips(services, 4)):
        port = ServicePort("", Protocol.TCP, 80, PORT)
        found["Service", f"bench/s{number}"] = Service(
            "bench", f"s{number}", cluster_ips=(address,), families=(4,), ports=(port,)
        )
        found["EndpointSlice", f"bench/s{number}-1"] = one_slice(number, range(endpoints))
    return found


def one_slice(number: int, which: Any) -> EndpointSlice:
    """The endpoints of a Service, by number."""
    ends = tuple(Endpoint((IPv4Address("10.240.0.0") + 20 * number + each,)) for each in which)
    return EndpointSlice("bench", f"s{number}-1", f"s{number}", ends, ports=(SlicePort("", Protocol.TCP, PORT),))


def load(arguments: argparse.Namespace, say: Any) -> dict[str, Any]:
    """The part `load`."""
    with Testbed.up([pod_manifest("client")]) as bed, KernelNode(bed.node, socket_lb="on") as node:
        sync: ServiceSync

        def on_services(changes: Any) -> None:
            sync.want(changes)

        compiler = Compiler(Options(node.node.name), Numbering(), on_services=(on_services,))
        sync = ServiceSync(node.datapath, lambda: compiler.balance.frontends)

        waits: list[float] = []

        def wait() -> None:
            """What leads to backends is written: new connections go by it, and those that are on their way end."""
            waits.append(time.perf_counter())
            grace.wait_for_programs()

        servicemaps.wait_for_programs = wait  # type: ignore[attr-defined]

        def bring(changes: Changes, revision: int) -> tuple[float, float]:
            """Seconds until new connections go by it, and until it is acknowledged."""
            waits.clear()
            begin = time.perf_counter()
            compiler.apply(changes, revision)
            node.run(sync.leave(lambda _address: True))
            node.run(sync.join())
            end = time.perf_counter()
            return (waits[0] if waits else end) - begin, end - begin

        before, empty = resident(), map_memory(node)
        seconds = bring(cluster(SERVICES, ENDPOINTS), 1)[1]
        found = {"load_s": seconds, "rss_mib": (resident() - before) / 1024, "maps_mib": map_memory(node) - empty}
        say(f"{SERVICES} Services, {SERVICES * ENDPOINTS} endpoints: {seconds:.2f} s")
        chosen, took = random.Random(1), []
        for revision in range(2, arguments.changes + 2, 2):
            number, lacks = chosen.randrange(SERVICES), chosen.randrange(ENDPOINTS)
            key = ("EndpointSlice", f"bench/s{number}-1")
            fewer = one_slice(number, [each for each in range(ENDPOINTS) if each != lacks])
            took.append(bring({key: fewer}, revision))
            took.append(bring({key: one_slice(number, range(ENDPOINTS))}, revision + 1))
        for index, name in enumerate(("in_force", "acknowledged")):
            found[f"{name}_p50_ms"] = 1e3 * statistics.median(one[index] for one in took)
            found[f"{name}_p99_ms"] = 1e3 * percentile([one[index] for one in took], 0.99)
        return found | {"changes": len(took)}


def resident() -> float:
    """Peak memory of this process, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def map_memory(node: KernelNode) -> float:
    """What the maps of Services take, MiB, as the kernel counts it (memlock of fdinfo)."""
    total = 0
    for name in SERVICES_LAYOUT:
        opened = libbpf.open_pin(pin_root(node.settings) / "maps" / name)
        text = Path(f"/proc/self/fdinfo/{opened}").read_text()
        total += int(next(line.split()[1] for line in text.splitlines() if line.startswith("memlock")))
        os.close(opened)
    return total / (1 << 20)


def shown(rows: list[dict[str, Any]], compared: list[dict[str, Any]]) -> list[Table]:
    """For people."""
    table = Table("Services", "way", "p50 µs", "p99 µs", "load s", "update p50 ms", "update p99 ms")
    for count, way in sorted({(row["services"], row["way"]) for row in rows}):
        of = [row for row in rows if (row["services"], row["way"]) == (count, way)]
        names = ("p50_us", "p99_us", "load_s", "update_p50_ms", "update_p99_ms")
        cells = []
        for name in names:
            middle, least, most = spread([row[name] for row in of])
            cells.append(f"{middle:.4g} ({least:.4g} to {most:.4g})")
        table.add_row(f"{count:,}", way, *cells)
    second = Table("Services", "iptables ÷ socket LB", "socket LB ÷ fewest", "iptables ÷ fewest")
    for row in compared:
        found = (row[name] for name in ("ahead", "flat", "iptables_flat"))
        second.add_row(f"{row['services']:,}", *(f"{one[0]:.2f} ({one[1]:.2f} to {one[2]:.2f})" for one in found))
    return [table, second]


def drawn(rows: list[dict[str, Any]]) -> str:
    """p50 and p99 of connect(), medians of the rounds."""
    series: dict[str, list[tuple[float, float]]] = {}
    for count, way in sorted({(row["services"], row["way"]) for row in rows}):
        of = [row for row in rows if (row["services"], row["way"]) == (count, way)]
        for name in ("p50_us", "p99_us"):
            label = f"{way}, {name.removesuffix('_us')}"
            series.setdefault(label, []).append((count, statistics.median(row[name] for row in of)))
    ordered = dict(sorted(series.items(), key=lambda one: "p99" in one[0]))
    return plot("connect() to a Service", "Services", "µs", ordered)


def main() -> None:
    """Measure and print."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("connect", "load"))
    parser.add_argument("--services", type=lambda text: tuple(map(int, text.split(","))), default=COUNTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connects", type=int, default=4000, help="of each way in a round")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--updates", type=int, default=10, help="endpoints that come and go, of each way in a round")
    parser.add_argument("--changes", type=int, default=1000, help="of one endpoint, in the part load")
    parser.add_argument("--iptables", choices=("nft", "legacy"), default="nft")
    parser.add_argument("--version", type=int, choices=(4, 6), default=4, help="of IP")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    rows = connect(arguments, say) if arguments.only != "load" else []
    loaded = load(arguments, say) if arguments.only != "connect" else {}
    compared = ratios(rows) if rows else []
    if arguments.plot and rows:
        arguments.plot.write_text(drawn(rows))
    if arguments.output == "json":
        print(json.dumps({"rounds": rows, "ratios": compared, "load": loaded}, indent=2))
        return
    for table in shown(rows, compared) if rows else ():
        Console(width=150).print(table)
    for name, value in loaded.items():
        print(f"{name:>16}  {value:,.2f}")


if __name__ == "__main__":
    main()
