"""What the plugin costs a pod's start: ADD of a chain with it and without it, in turn; and a process' start alone.

    python tests/bench/bench_cni.py [--rounds 200] [--pods 0]

As root. One virtual node with an agent; the chain is Debian's bridge with host-local. `--pods`: so many pods of other
nodes are known beside.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support.cninode import CniNode, cni_node
from support.libcni import Runtime

#: Starts of a process that are measured.
STARTS = 200


def quantiles(seconds: Sequence[float]) -> str:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {p50 * 1000:7.2f} ms   p99 {p99 * 1000:7.2f} ms"


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def starts(site: CniNode) -> None:
    """C against Python, each started and ended, in turn."""
    plugin = [str(site.bin_dir / "spliceway-cni")]
    python, isolated = [sys.executable, "-c", "pass"], [sys.executable, "-I", "-S", "-c", "pass"]
    taken: dict[str, list[float]] = {}
    for _ in range(STARTS):
        for name, argv, env in (
            ("spliceway-cni VERSION", plugin, {"CNI_COMMAND": "VERSION"}),
            ("python3 -c pass", python, {}),
            ("python3 -I -S -c pass", isolated, {}),
        ):
            run = lambda argv=argv, env=env: subprocess.run(argv, env=env, check=True, stdout=subprocess.DEVNULL)  # noqa: E731
            taken.setdefault(name, []).append(timed(run))
    for name, seconds in taken.items():
        print(f"{name:24} {quantiles(seconds)}")


def adds(site: CniNode, rounds: int) -> None:
    """ADD and DEL of whole chains, in turn, and our plugin's share of that."""
    taken: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {}
    for number in range(rounds):
        for with_ours in (True, False):
            name = f"pod-{number}-{'with' if with_ours else 'without'}"
            site.describe(name, {"app": "bench"})
            pod = site.sandbox(name)
            runtime: Runtime = site.runtime
            conf = runtime.conf()
            if not with_ours:
                conf["plugins"] = [each for each in conf["plugins"] if each["type"] != "spliceway-cni"]
            time.sleep(0.1)  # the agent has read of the pod, as it has in a cluster
            label = "with" if with_ours else "without"
            for command in ("ADD", "DEL"):
                result, whole = runtime.results.get((pod.container, "eth0")), 0.0
                plugins = conf["plugins"] if command == "ADD" else list(reversed(conf["plugins"]))
                for plugin in plugins:
                    env = runtime.environment(command, pod.container, pod.netns, "eth0", pod.args)
                    began = time.perf_counter()
                    told = runtime.call(conf, plugin, env, result)
                    seconds = time.perf_counter() - began
                    whole += seconds
                    if plugin["type"] == "spliceway-cni":
                        own.setdefault(f"{command} spliceway-cni alone", []).append(seconds)
                    if command == "ADD":
                        result = told
                        runtime.results[pod.container, "eth0"] = told
                taken.setdefault(f"{command} chain {label}", []).append(whole)
            pod.gone()
            site.forget(name)
    for name, each in sorted({**taken, **own}.items()):
        print(f"{name:24} {quantiles(each)}")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--pods", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, cni_node(Path(directory)) as site:
        for number in range(options.pods):
            address = f"10.241.{number >> 8}.{number & 255}"
            site.describe_far(f"far-{number}", {"app": f"a{number % 50}"}, address)
        site.start()
        print(f"{options.rounds} rounds, {options.pods} pods elsewhere")
        starts(site)
        adds(site, options.rounds)


if __name__ == "__main__":
    main()
