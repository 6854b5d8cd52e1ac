"""Memory and time of a source of many pods: what a process has before the first look, after it, and at most.

The parts of the agent that hold objects (source, inventory, names of flows, compiler) run in a process, on the API
server's double in another one. What the kernel and the proxy have is not in it.

    python tests/bench/bench_kubernetes.py --pods 100000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from spliceway.agent.compiler import Compiler
from spliceway.agent.inventory import Inventory
from spliceway.agent.recorder import Recorder
from spliceway.agent.sources.kubernetes.source import KubernetesSource
from spliceway.policy.engine import Options
from spliceway.policy.numbering import Numbering
from support.kubeapi import KubeApi
from support.kubesource import CRDS, policy

NODE = "node1"
#: Pods of one workload, and on one node.
WORKLOAD, ON_A_NODE = 20, 50


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=200, help="changes of one pod after the first look")
    parser.add_argument("--pages", action="store_true", help="a server without WatchList")
    options = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, options.pods, options.pages))
    server.start()
    try:
        url_file = Path(ours.recv())
        print(json.dumps(asyncio.run(measured(url_file, ours, options.pods, options.changes)), indent=2))
    finally:
        ours.send(None)
        server.join()


def serve(control: Connection, pods: int, pages: bool) -> None:
    """The double, until it is told to end; each number that comes changes the pod of that number."""
    with tempfile.TemporaryDirectory() as directory, KubeApi() as api:
        api.put(*CRDS, *(policy(f"p{number}") for number in range(20)))
        for first in range(0, pods, 5000):
            api.put(*(_pod(number) for number in range(first, min(first + 5000, pods))))
        api.watch_list(not pages)
        control.send(str(api.kubeconfig(Path(directory) / "kubeconfig")))
        while (number := control.recv()) is not None:
            api.put(_pod(number, version=time.time()))


async def measured(kubeconfig: Path, server: Connection, pods: int, changes: int) -> dict[str, Any]:
    """The figures; sizes in MiB, times in seconds."""
    inventory, recorder = Inventory(NODE), Recorder(8192)
    compiler = Compiler(Options(node=NODE), Numbering())
    gc.collect()
    before, most, begin, cpu = _rss(), 0.0, time.monotonic(), time.process_time()
    result: dict[str, Any] = {"pods": pods, "beforeMiB": round(before)}
    took: list[float] = []
    sent, left, revision = 0.0, changes, 0
    with KubernetesSource(NODE, kubeconfig=kubeconfig) as source:
        async for batch in source.batches():
            inventory.feed(batch, await asyncio.to_thread(inventory.read, batch))
            most = max(most, _rss())
            if not inventory.synced:
                continue
            found = dict(inventory.changes())

            recorder.pods.update(found.items())
            revision += 1
            compiler.settle(compiler.apply(found, revision))
            most = max(most, _rss())
            if "lookSeconds" not in result:
                assert len(inventory.names("Pod")) == pods
                gc.collect()
                result |= {
                    "lookSeconds": round(time.monotonic() - begin, 1),
                    "lookCpuSeconds": round(time.process_time() - cpu, 1),
                    "afterMiB": round(_rss()),
                    "mostMiB": round(most),
                    "bytesPerPod": round((_rss() - before) * (1 << 20) / pods),
                }
            elif sent:
                took.append(time.monotonic() - sent)
            if not left:
                break
            left -= 1
            sent = time.monotonic()
            server.send(left)
    took.sort()
    return result | {"changeMedianMs": round(1000 * took[len(took) // 2], 1), "changeMostMs": round(1000 * took[-1], 1)}


def _pod(number: int, version: float = 0.0) -> dict[str, Any]:
    """A pod as large as real ones are: some 3 KiB, most of it of no use here."""
    workload = f"workload-{number // WORKLOAD}"
    env = [{"name": f"SETTING_{index}", "value": "x" * 40} for index in range(12)]
    container = {
        "name": "main",
        "image": f"registry.example.com/shop/{workload}:1.2.3",
        "env": env,
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
    }
    address = ip_address("10.0.0.0") + number
    state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{workload}-6d4cf56db6-{number:05x}",
            "namespace": f"team-{number // 500}",
            "uid": f"00000000-0000-0000-0000-{number:012x}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/name": workload,
                "app.kubernetes.io/part-of": "shop",
                "pod-template-hash": "6d4cf56db6",
                **({"seen": str(int(version)) + "-" + str(number)} if version else {}),
            },
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": "0" * 64},
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{workload}-6d4cf56db6", "controller": True}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {"f:phase": {}}}}],
        },
        "spec": {
            "nodeName": f"node-{number // ON_A_NODE}",
            "serviceAccountName": workload,
            "containers": [container],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        },
        "status": {
            "phase": "Running",
            "podIP": str(address),
            "podIPs": [{"ip": str(address)}],
            "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "PodScheduled", "Initialized")],
            "containerStatuses": [{"name": "main", "ready": True, "state": state, "imageID": "sha256:" + "0" * 64}],
        },
    }


def _rss() -> float:
    """Of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


if __name__ == "__main__":
    main()
