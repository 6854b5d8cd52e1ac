"""What the policy engine costs: `python tests/bench/bench_policy.py --pods 100000 --inventory typical [-o json]`.

One node with 100 endpoints compiles a whole cluster, and then takes over changes of single pods: added, removed,
relabelled (most to label sets that are there, some to new ones), local ones among them. A change is timed from the
changed pod to the packed rows for the kernel (`bpf.rows.delta_rows`).

- `full_compile_s`: from all objects to the first table; `rss_mib`: the process after that, inventory included;
- `pod_change_p50_ms`, `pod_change_p99_ms`: over `--changes` changes; `by_change` has them by kind;
- `churn_per_s`: changes in a row, each compiled, packed and settled, for two seconds;
- `cpu`: the same of full compile and churn by the process's own time, for machines that have other things to do;
- `rows`: port rows of the kernel (`PolicyTable.rows`), beside which `class_entries` stand; `naive_rows`: what a map
  without classes would have, identities × ports for each endpoint.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path

import inventories as inv
import msgspec

from spliceway.bpf.rows import Attached, delta_rows
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.engine import Engine, Options
from spliceway.policy.model import Object, Pod, object_key
from spliceway.policy.numbering import Numbering


class Bench:
    """An engine with a cluster in it, and what changes next."""

    def __init__(self, pods: int, inventory: str) -> None:
        self.inventory = inventory
        self.count = pods
        self.random = random.Random(3)
        self.pods: list[Pod] = [inv.pod(number, inventory) for number in range(pods)]
        self.engine = Engine(Options(node=inv.NODE, pod_cidrs=(inv.POD_CIDR,)), Numbering())
        self.attached: dict[str, Attached] = {}
        self.revision = 0
        self.compile_cpu = 0.0

    def compile(self) -> float:
        """Everything at once; gives the seconds."""
        objects = inv.objects(self.count, self.inventory)
        gc.collect()
        gc.freeze()  # the inventory is no part of the measurement
        begin, cpu = time.perf_counter(), time.process_time()
        self._apply(objects)
        took, self.compile_cpu = time.perf_counter() - begin, time.process_time() - cpu
        for number, pod in enumerate(self.pods[: inv.LOCAL]):
            self.attached[pod.key] = Attached(
                LocalEndpoint(pod.key, f"veth{number}", Path(), pod.addresses), 10 + number, 1
            )
        return took

    def change(self) -> tuple[str, list[Object], list[tuple[str, str]]]:
        """What kind of change, objects changed, and keys removed."""
        pick = self.random.random()
        place = self.random.randrange(inv.LOCAL, len(self.pods))
        number = self.count + self.revision
        workload = self.random.randrange(inv.POLICIES)
        unique = self.inventory != "typical"
        if pick < 0.32:
            new = inv.pod(number, self.inventory, workload=workload)
            self.pods.append(new)
            return "added", [new], []
        if pick < 0.64:
            old = self.pods[place]
            self.pods[place] = self.pods[-1]
            self.pods.pop()
            return "removed", [], [object_key(old)]
        kind, labels = "relabelled", {}
        if pick < 0.94:
            own = int(self.pods[place].namespace.removeprefix("ns")) * 4 + self.random.randrange(4)
            labels = inv.LABELS[self.inventory](own + (number // inv.POLICIES * inv.POLICIES if unique else 0))
        elif pick < 0.98:
            kind, labels = "new label set", {**self.pods[place].labels, "canary": f"c{self.revision}"}
        else:
            kind, place = "local", self.random.randrange(inv.LOCAL)
            labels = {**self.pods[place].labels, "app": self.random.choice(inv.APPS)}
        self.pods[place] = msgspec.structs.replace(self.pods[place], labels=labels)
        return kind, [self.pods[place]], []

    def once(self) -> tuple[str, float]:
        """One change, to its packed rows; gives its kind and the milliseconds."""
        kind, changed, removed = self.change()
        begin = time.perf_counter()
        self._apply(changed, removed)
        return kind, (time.perf_counter() - begin) * 1000

    def _apply(self, changed: list[Object], removed: list[tuple[str, str]] = []) -> None:  # noqa: B006
        self.revision += 1
        table = self.engine.apply(changed, removed, revision=self.revision)
        if table.delta is not None:
            delta_rows(table, table.delta, self.attached)
        self.engine.settle(self.revision)


def rss_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so many are not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(pods: int, inventory: str, changes: int) -> dict[str, object]:
    """All figures."""
    bench = Bench(pods, inventory)
    full = bench.compile()
    # What the agent does after its first table: a full collection walks what changes only.
    gc.collect()
    gc.freeze()
    rss = rss_mib()
    sizes = bench.engine.sizes()
    naive = bench.engine.naive_rows()
    first = bench.engine.table
    assert first is not None
    times: dict[str, list[float]] = {}
    for _ in range(changes):
        kind, took = bench.once()
        times.setdefault(kind, []).append(took)
    every = [took for found in times.values() for took in found]
    begin, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < 2:
        bench.once()
        done += 1
    per_second = done / (time.perf_counter() - begin)
    per_cpu_second = done / (time.process_time() - cpu)
    return {
        "pods": pods,
        "inventory": inventory,
        "full_compile_s": round(full, 2),
        "rss_mib": round(rss),
        "pod_change_p50_ms": round(statistics.median(every), 3),
        "pod_change_p99_ms": round(percentile(every, 0.99), 3),
        "churn_per_s": round(per_second),
        "rows": sizes["rows"],
        "naive_rows": naive,
        "class_entries": sizes["classes"],
        "ipcache": sizes["ipcache"],
        "identities": len(first.identities),
        "rule_sets": sizes["listeners"],
        "cpu": {"full_compile_s": round(bench.compile_cpu, 2), "churn_per_s": round(per_cpu_second)},
        "by_change": {
            kind: {
                "count": len(found),
                "p50_ms": round(statistics.median(found), 3),
                "p99_ms": round(percentile(found, 0.99), 3),
                "max_ms": round(max(found), 3),
            }
            for kind, found in sorted(times.items())
        },
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=100_000)
    parser.add_argument("--inventory", choices=sorted(inv.LABELS), default="typical")
    parser.add_argument("--changes", type=int, default=2_000, help="changes of single pods (default: 2000)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.pods < inv.POLICIES:
        parser.error(f"--pods must be at least {inv.POLICIES}, one of each workload")
    found = measure(options.pods, options.inventory, options.changes)
    if options.output == "json":
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:20} {json.dumps(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
