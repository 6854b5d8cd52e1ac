"""Memory of a whole agent in a large cluster: a virtual node, an API server's double with many pods, and the kernel.

    python tests/bench/bench_agent_memory.py [--pods 100000] [--pages] [--policies 20]

As root. Sizes in MiB: of the agent's process as /proc tells them, of its maps as the kernel tells them (`memlock` of a
map's fdinfo), which are no part of the process.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_kubernetes import _pod

from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.bpf import libbpf
from support.clusternode import ClusterNode, cluster_node
from support.kubesource import policy

#: Seconds for the first look and the first table.
START_SECONDS = 300.0
#: Seconds after that, for what is cleaned up later.
QUIET_SECONDS = 8.0
_MIB = 1024.0


def process(pid: int) -> dict[str, float]:
    """Resident now, at most so far, and how much of it is no file's."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    return {
        name: round(int(found[key]) / _MIB)
        for name, key in (("rss", "VmRSS"), ("most", "VmHWM"), ("anonymous", "RssAnon"))
    }


def maps(site: ClusterNode) -> float:
    """Memory of all pinned maps."""
    total = 0
    for pin in sorted((site.node.info.bpffs / "spliceway").glob("v*/maps/*")):
        descriptor = libbpf.open_pin(pin)
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        total += int((re.search(r"^memlock:\s+(\d+)$", text, re.MULTILINE) or ["", "0"])[1])
    return round(total / _MIB / _MIB, 1)


def measure(pods: int, policies: int, *, pages: bool, cni: bool, once: bool) -> dict[str, Any]:
    """Start an agent without pods, then one with them."""
    with tempfile.TemporaryDirectory() as directory, cluster_node(Path(directory)) as site:
        if not cni:
            site.cni["enabled"] = False
        result: dict[str, Any] = {"pods": pods, "pages": pages, "cni": cni}
        begin(site)
        assert site.agent is not None
        time.sleep(QUIET_SECONDS)
        result["empty"] = process(site.agent.process.pid) | {"maps": maps(site)}
        site.agent.stop()
        site.api.watch_list(not pages)
        site.api.put(*(policy(f"p{number}") for number in range(policies)))
        for first in range(0, pods, 5000):
            site.api.put(*(_pod(number) for number in range(first, min(first + 5000, pods))))
        for what in ("first",) if once else ("first", "restarted"):
            begun = time.monotonic()
            begin(site)
            seconds = round(time.monotonic() - begun, 1)
            time.sleep(QUIET_SECONDS)
            result[what] = process(site.agent.process.pid) | {"maps": maps(site), "seconds": seconds}
            site.agent.stop()
        return result


def begin(site: ClusterNode) -> None:
    """An agent; its first look may take long."""
    site.agent = start_agent(site.node, {**site.config(), "cni": site.cni}, timeout=START_SECONDS)


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=100_000)
    parser.add_argument("--policies", type=int, default=20)
    parser.add_argument("--pages", action="store_true", help="a server without WatchList")
    parser.add_argument("--no-cni", action="store_true", help="pods are not wired by the CNI plugin")
    parser.add_argument("--once", action="store_true", help="without a second agent after the first")
    options = parser.parse_args()
    print(
        json.dumps(
            measure(options.pods, options.policies, pages=options.pages, cni=not options.no_cni, once=options.once),
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
