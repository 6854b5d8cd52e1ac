"""The whole agent with many pods in the source: one pod's change costs what changed, and is in force as quickly."""

from __future__ import annotations

import asyncio
import statistics
import time
from ipaddress import ip_address
from pathlib import Path

from spliceway.policy.lookup import identify
from support.agent import pod, policy, run, until
from support.agentsite import Site

PODS, FILES = 20_000, 20
#: The promise for an edit is under 0.2 s in the median; alone with few pods it takes some 10 ms.
MEDIAN_SECONDS = 0.2
EDITS = 9
LATE = ip_address("10.240.2.1")


def _crowd(number: int) -> str:
    """A file with its share of the pods, on other nodes, of 200 workloads."""
    items = []
    for index in range(number * PODS // FILES, (number + 1) * PODS // FILES):
        high, low = divmod(index, 250)
        items.append(
            f"- {{apiVersion: v1, kind: Pod, metadata: {{name: p{index}, labels: {{app: w{index % 200}}}}}, "
            f"spec: {{nodeName: other}}, status: {{podIPs: [{{ip: 10.241.{high}.{low + 1}}}]}}}}"
        )
    return "apiVersion: v1\nkind: List\nitems:\n" + "\n".join(items)


def test_one_pod_among_twenty_thousand(tmp_path: Path) -> None:
    async def body() -> None:
        site = Site(tmp_path)
        for number in range(FILES):
            site.write(f"crowd{number}.yaml", _crowd(number))
        site.write("pods.yaml", pod("client", "10.240.1.10") + "---" + pod("server", "10.240.1.11"))
        site.write("web.yaml", policy("web", "server", 80, peer="w7"))
        site.write("late.yaml", pod("late", "10.240.2.1", node="other", wired=False, app="w7"))
        task = asyncio.create_task(site.agent().run(site.stop))
        await until(lambda: site.datapath.table is not None or task.done(), seconds=90)
        assert site.datapath.table is not None
        assert len(site.datapath.table.ipcache) >= PODS

        seconds = []
        for number in range(EDITS):
            # A workload that is there already, so what the server's policy says of it is known.
            workload = "w7" if number % 2 else "w8"
            there = site.datapath.table
            begin = time.monotonic()
            site.write("late.yaml", pod("late", "10.240.2.1", node="other", wired=False, app=workload))
            await until(lambda there=there: site.datapath.table is not there)  # type: ignore[misc]
            seconds.append(time.monotonic() - begin)
            table = site.datapath.table
            assert f"k8s:app={workload}" in table.identities[identify(table.ipcache, LATE)]
            assert table.delta is not None
            assert len(table.delta.ipcache) == 1
            assert len(table.delta.rows) == 0
        assert statistics.median(seconds) < MEDIAN_SECONDS, seconds
        site.stop.set()
        await task

    run(body, timeout=120)
