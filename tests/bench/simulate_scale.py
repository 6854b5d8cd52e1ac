"""What it costs to tell every node of 5,000 who has which address, by the way in which it is told (docs/scale.md).

.venv/bin/python tests/bench/simulate_scale.py [--nodes 5000] [--pods 300000] [--churn 100] [--memory 10000,50000]

Objects are real: Pods as a Deployment's are, EndpointSlices, identity slices; their sizes are those of their JSON and
of their protobuf wire format. Pods come and go by a seeded simulation of roll-outs, second by second. Measured on
this machine: decoding, and time and memory of the agent's inventory and engine, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec

from support.scaleobjects import (
    NAMESPACES,
    endpoint_slice,
    identity_entry,
    identity_object,
    identity_slice,
    metadata_only,
    pod,
    protobuf,
    steps_of_a_pod,
)

#: How long an operator waits for more before it writes a slice, in seconds.
WINDOW = 1.0
#: How long after a new pod the old one is gone, in seconds.
GRACE = 30
ZONES = 3
HUBS_OF_A_ZONE = 2
SECONDS = 240
WATCH_ENVELOPE = len(b'{"type":"MODIFIED","object":}\n')


class Cluster(NamedTuple):
    """How large, and how much comes and goes: pods that are replaced a second."""

    nodes: int
    pods: int
    workloads: int
    churn: int


class Way(NamedTuple):
    """One way to tell: objects that are listed, events a second and bytes a second, for one watcher; who watches."""

    name: str
    objects: int
    listed: int
    events: float
    bytes: float
    watchers: int
    further: str = ""


def encoded(value: Any) -> tuple[int, int]:
    """Bytes as JSON and as protobuf."""
    return len(msgspec.json.encode(value)), len(protobuf(value))


def sizes(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """Mean sizes, of objects of a hundred workloads."""
    chosen = [
        pod(number, number % cluster.workloads, cluster.nodes) for number in range(0, cluster.pods, cluster.pods // 100)
    ]
    found = {
        "Pod": [encoded(one) for one in chosen],
        "Pod, metadata only": [encoded(metadata_only(one)) for one in chosen],
        "EndpointSlice of 100": [encoded(endpoint_slice(number, 100, cluster.nodes)) for number in range(20)],
        "object for one pod": [encoded(identity_object(one)) for one in chosen],
        "identity entry": [encoded(identity_entry(one)) for one in chosen],
    }
    for length in (100, 300, 1000):
        found[f"identity slice of {length}"] = [encoded(identity_slice(number, length)) for number in range(20)]
    return {
        name: (sum(one for one, _ in both) // len(both), sum(one for _, one in both) // len(both))
        for name, both in found.items()
    }


def rollouts(cluster: Cluster, seed: int = 1) -> Iterator[list[tuple[int, int, int]]]:
    """For each second the pods that are replaced: (workload, old pod, new pod). A roll-out takes a fourth at a time."""
    draw = random.Random(seed)
    members: dict[int, list[int]] = {}
    for number in range(cluster.pods):
        members.setdefault(number % cluster.workloads, []).append(number)
    next_pod = cluster.pods
    running: list[list[int]] = []  # workload, pods still to be replaced
    for _ in range(SECONDS):
        done: list[tuple[int, int, int]] = []
        while len(done) < cluster.churn:
            if not running:
                running = [[workload, len(members[workload])] for workload in draw.sample(sorted(members), 20)]
            for rollout in running:
                step = min(max(1, len(members[rollout[0]]) // 4), rollout[1], cluster.churn - len(done))
                for _ in range(step):
                    old = members[rollout[0]].pop(0)
                    members[rollout[0]].append(next_pod)
                    done.append((rollout[0], old, next_pod))
                    next_pod += 1
                rollout[1] -= step
            running = [rollout for rollout in running if rollout[1] > 0]
        yield done


class Slices:
    """Who is in which slice: those of one identity side by side, so that a roll-out touches few."""

    def __init__(self, cluster: Cluster, length: int) -> None:
        by_workload = sorted(range(cluster.pods), key=lambda number: (number % cluster.workloads, number))
        self._of = {number: place // length for place, number in enumerate(by_workload)}

    def replace(self, old: int, new: int) -> int:
        """The new pod goes to the slice of the old one, which has its identity; which that is."""
        self._of[new] = self._of.pop(old)
        return self._of[new]


def slice_writes(cluster: Cluster, length: int) -> float:
    """Slices that are written a second, when an operator gathers changes for WINDOW.

    A slice is written when a pod comes, and again when the old one is gone, GRACE later.
    """
    slices, written = Slices(cluster, length), 0
    leaving: deque[set[int]] = deque(set() for _ in range(GRACE))
    for second in rollouts(cluster):
        touched = {slices.replace(old, new) for _workload, old, new in second}
        leaving.append(touched)
        written += len(touched | leaving.popleft())
    return written / SECONDS / WINDOW


def ways(cluster: Cluster, size: dict[str, tuple[int, int]]) -> list[Way]:
    """All of them, with protobuf where the API server speaks it, JSON for CRDs (it has no other for those)."""
    events_of_a_pod = steps_of_a_pod()
    pod_events = cluster.churn * events_of_a_pod
    found = []
    for name, kind, which in (
        ("every agent watches all Pods, JSON", "Pod", 0),
        ("the same, protobuf", "Pod", 1),
        ("Pods by metadata only, protobuf", "Pod, metadata only", 1),
    ):
        one = size[kind][which]
        found.append(
            Way(
                name, cluster.pods, cluster.pods * one, pod_events, pod_events * (one + WATCH_ENVELOPE), cluster.nodes,
                "has no addresses" if "metadata" in kind else "",
            )
        )  # fmt: skip
    own, entry_proto = size["object for one pod"][0], size["identity entry"][1]
    found.append(
        Way(
            "an object for each pod (CiliumEndpoint-like), JSON", cluster.pods, cluster.pods * own,
            cluster.churn * 2, cluster.churn * 2 * (own + WATCH_ENVELOPE), cluster.nodes,
        )
    )  # fmt: skip
    for length in (100, 300, 1000):
        one = size[f"identity slice of {length}"][0]
        count, writes = -(-cluster.pods // length), slice_writes(cluster, length)
        found.append(
            Way(
                f"identity slices of {length}, JSON", count, count * one, writes, writes * (one + WATCH_ENVELOPE),
                cluster.nodes,
            )
        )  # fmt: skip
    listed = cluster.pods * entry_proto
    found.append(
        Way(
            "a hub for each zone, deltas by xDS", cluster.pods, listed, cluster.churn * 2,
            cluster.churn * 2 * entry_proto, cluster.nodes, "from the hubs",
        )
    )  # fmt: skip
    hubs = ZONES * HUBS_OF_A_ZONE
    one = size["Pod"][1]
    found.append(
        Way(
            "… and those hubs at the API server, all Pods, protobuf", cluster.pods, cluster.pods * one, pod_events,
            pod_events * (one + WATCH_ENVELOPE), hubs,
        )
    )  # fmt: skip
    return found


def decode_seconds(cluster: Cluster) -> dict[str, float]:
    """Seconds for one object, on this machine: as JSON alone, and as the agent reads a Pod."""
    from spliceway.policy.documents import Document
    from spliceway.policy.parse import parse_document

    texts = [msgspec.json.encode(pod(number, number % cluster.workloads, cluster.nodes)) for number in range(2000)]
    begin = time.process_time()
    contents = [msgspec.json.decode(text) for text in texts]
    decoded = time.process_time()
    for content in contents:
        parse_document(Document("pods", 1, 1, content))
    read = time.process_time()
    slices = [msgspec.json.encode(identity_slice(number, 1000)) for number in range(20)]
    before = time.process_time()
    for text in slices:
        for entry in msgspec.json.decode(text)["entries"]:
            ip_address(entry["ip"])
    after = time.process_time()
    return {
        "decode a Pod": (decoded - begin) / len(texts),
        "read a Pod (decode and parse)": (read - begin) / len(texts),
        "read an identity slice of 1000": (after - before) / len(slices),
    }


def memory(pods: int, workloads: int, nodes: int) -> dict[str, float]:
    """Of this process: RSS in MiB that the inventory, and then the engine, add; seconds; then one more pod's."""
    from spliceway.agent.inventory import Inventory
    from spliceway.agent.manifests import Reading, read_documents
    from spliceway.policy.documents import Document
    from spliceway.policy.engine import Engine, Options
    from spliceway.policy.numbering import Numbering

    def rss() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / (1 << 20)

    base, begin = rss(), time.monotonic()
    inventory = Inventory("node-0")
    from spliceway.agent.sources.events import FileChanged
    from support.scaleobjects import namespace, policy

    files = {f"pod-{number}": [pod(number, number % workloads, nodes)] for number in range(pods)}
    files |= {f"namespace-{number}": [namespace(number)] for number in range(NAMESPACES)}
    files |= {f"policy-{number}": [policy(number)] for number in range(200)}

    def feed(chosen: dict[str, list[dict[str, Any]]]) -> None:
        batch = tuple(FileChanged(name, "") for name in chosen)
        said = {
            name: read_documents([Document(name, 1, 1, one) for one in contents], Reading("node-0"))
            for name, contents in chosen.items()
        }
        inventory.feed(batch, said)

    names = list(files)
    for at in range(0, len(names), 2000):
        feed({name: files.pop(name) for name in names[at : at + 2000]})
    read, after_inventory = time.monotonic() - begin, rss()
    engine = Engine(Options(node="node-0"), Numbering())
    begin = time.monotonic()
    engine.apply([item for item in inventory.changes().values() if item is not None], revision=1)
    first, after_engine = time.monotonic() - begin, rss()
    begin = time.monotonic()
    for more in range(100):
        feed({f"pod-{pods + more}": [pod(pods + more, more % workloads, nodes)]})
        engine.apply([item for item in inventory.changes().values() if item is not None], revision=2 + more)
    return {
        "inventory_mib": after_inventory - base,
        "engine_mib": after_engine - after_inventory,
        "read_seconds": read,
        "first_seconds": first,
        "one_more_ms": (time.monotonic() - begin) * 10,
        "identities": len(engine.table.identities) if engine.table else 0,
        "ipcache": engine.sizes()["ipcache"],
        "rows": engine.sizes()["rows"],
    }


def amount(count: float) -> str:
    """«1.5 GB», decimal."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=300_000)
    parser.add_argument("--workloads", type=int, default=10_000)
    parser.add_argument("--churn", type=int, default=100, help="pods that are replaced a second")
    parser.add_argument("--memory", default="10000,50000,100000", help="counts of pods, or empty")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(memory(given.measure, max(1, given.measure // 30), given.nodes)))
        return
    cluster = Cluster(given.nodes, given.pods, given.workloads, given.churn)
    print(f"{cluster}\n")
    size = sizes(cluster)
    for name, (as_json, as_proto) in size.items():
        print(f"{name:30} {as_json:8} bytes as JSON {as_proto:8} as protobuf")
    print(f"\n{'way':58} {'list':>9} {'events/s':>9} {'to a node':>12} {'all of them':>12} {'a restart of all':>16}")
    for way in ways(cluster, size):
        print(
            f"{way.name:58} {amount(way.listed):>9} {way.events:9.0f} {amount(way.bytes):>10}/s "
            f"{amount(way.bytes * way.watchers):>10}/s {amount(way.listed * way.watchers):>16} {way.further}"
        )
    print()
    for name, seconds in decode_seconds(cluster).items():
        print(f"{name:34} {seconds * 1e6:8.0f} us")
    for pods in filter(None, given.memory.split(",")):
        argv = [sys.executable, __file__, "--measure", pods, "--nodes", str(given.nodes)]
        found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        told = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(f"{int(pods):7} pods: {told}")


if __name__ == "__main__":
    main()
