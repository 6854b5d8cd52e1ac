"""What splicing does to messages of each size: `python tests/bench/bench_splice.py [--proxy envoy] [-o json]`.

A grid of sizes x patterns (ping-pong, a stream up, a stream down) x TCP_NODELAY, on one connection through the proxy,
spliced and not, in turns. A ratio above 1 says that the spliced connection is faster. Needs root and BPF rights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import structlog
from rich.console import Console
from rich.table import Table

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import SpliceClasses
from support.node import pod_manifest
from support.proxied import ProxiedNode

PEER = str(Path(__file__).with_name("splicepeer.py"))
PORT = 8080
SIZES = (64, 512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
PATTERNS = ("ping-pong", "up", "down")
POLICY = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: bench, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{role: server}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{role: client}}}}]
    toPorts: [{{ports: [{{port: "{PORT}", protocol: TCP}}], rules: {{http: [{{method: GET}}]}}}}]
"""


class Cell(NamedTuple):
    """One kind of traffic."""

    pattern: str
    size: int
    nodelay: int

    @property
    def name(self) -> str:
        """For people."""
        size = f"{self.size} B" if self.size < 1024 else f"{self.size >> 10} KiB"
        return f"{self.pattern}, {size}{', NODELAY' if self.nodelay else ''}"


class Result(NamedTuple):
    """Messages per second, by round."""

    cell: Cell
    spliced: list[float]
    plain: list[float]
    whys: dict[str, int]

    @property
    def ratios(self) -> list[float]:
        """Spliced to plain, by round."""
        return [a / b for a, b in zip(self.spliced, self.plain, strict=True)]


def cells(sizes: tuple[int, ...], patterns: tuple[str, ...]) -> Iterator[Cell]:
    """The grid."""
    for pattern in patterns:
        for size in sizes:
            for nodelay in (0, 1):
                yield Cell(pattern, size, nodelay)


def rate(testbed: Testbed, cell: Cell, seconds: float, version: int) -> float:
    """Messages per second of one connection."""
    address = str(testbed.pod("server").address(version))
    arguments = [address, PORT, cell.pattern, cell.size, cell.nodelay, seconds]
    command = ["python", PEER, "client", *map(str, arguments)]
    done = testbed.run("client", command, timeout=60 + 20 * seconds)
    if done.returncode:
        raise RuntimeError(f"{cell.name}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return float(found["messages"] / found["seconds"])


def measure(arguments: argparse.Namespace) -> list[Result]:
    """All of it."""
    say = Console(stderr=True).print
    client = pod_manifest("client", {"role": "client"})
    server = pod_manifest("server", {"role": "server"}, command=["python", PEER, "server", str(PORT)], ports=(PORT,))
    results = [Result(cell, [], [], {}) for cell in cells(arguments.sizes, arguments.patterns)]
    with Testbed.up([client, server]) as testbed, ProxiedNode(testbed.node, POLICY, proxy=arguments.proxy) as node:
        for number in range(arguments.rounds):
            for result in results:
                for spliced in (True, False) if number % 2 else (False, True):
                    node.run(node.datapath.set_splice(SpliceClasses(wanted=spliced)))
                    before = node.datapath.splice_counters()
                    found = rate(testbed, result.cell, arguments.seconds, arguments.version)
                    (result.spliced if spliced else result.plain).append(found)
                    after = node.datapath.splice_counters()
                    if after.spliced - before.spliced != 2 * spliced:
                        raise RuntimeError(f"{result.cell.name}: {after.spliced - before.spliced} sockets were spliced")
                    for why, count in after.by_why.items():
                        if spliced and count > before.by_why[why]:
                            result.whys[why] = result.whys.get(why, 0) + count - before.by_why[why]

                say(f"round {number + 1}, {result.cell.name}: {result.ratios[-1]:.2f}", highlight=False)
    return results


def shown(results: list[Result]) -> Table:
    """The grid, for people."""
    table = Table("traffic", "plain, messages/s", "spliced, messages/s", "ratio", "from", "to", "left because of")
    for result in results:
        ratios = result.ratios
        left = ", ".join(f"{why} ({count})" for why, count in result.whys.items())
        table.add_row(
            result.cell.name,
            f"{statistics.median(result.plain):,.0f}",
            f"{statistics.median(result.spliced):,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f}",
            f"{max(ratios):.2f}",
            left,
        )
    return table


def main() -> None:
    """Measure and print."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", choices=("embedded", "envoy"), default="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    parser.add_argument("--version", type=int, choices=(4, 6), default=4, help="of IP")
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(","))), default=SIZES)
    parser.add_argument("--patterns", type=lambda text: tuple(text.split(",")), default=PATTERNS)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    results = measure(arguments)
    if arguments.output == "json":
        print(json.dumps([result._asdict() | {"ratios": result.ratios} for result in results], indent=2))
    else:
        Console(width=140).print(shown(results))


if __name__ == "__main__":
    main()
