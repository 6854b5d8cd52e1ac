"""Receive packet steering on the veths of a testbed: packets are handled on another CPU than the one that sent them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from spliceway.agent.testbed.testbed import Testbed

_SCRIPT = """
mount -t sysfs none /sys
for queue in /sys/class/net/*/queues/rx-*/rps_cpus; do
  case $queue in */lo/*) ;; *) echo "$0" > $queue && n=1 ;; esac
done
test "$n" = 1
"""


def set_rps(testbed: Testbed, *, pods: int, node: int) -> None:
    """Steer what pods receive, and what the node receives, to the CPUs in these bit masks."""
    _in(testbed.node.info.netns, f"{node:x}")
    for pod in testbed.node.pods.values():
        _in(pod.netns, f"{pods:x}")


def _in(netns: Path, mask: str) -> None:
    command = [
        "nsenter",
        f"--net={netns}",
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        _SCRIPT,
        mask,
    ]
    subprocess.run(command, check=True)
