"""When Envoy's workers have taken over what its main thread has acknowledged.

The main thread posts a change to each worker's event loop before it sends the ACK, and nobody tells when they have got
to it: on a busy machine a worker waits for a CPU. One that has gone to sleep since has done what was posted.
"""

from __future__ import annotations

from pathlib import Path

from support.waiting import until

_PREFIX = "wrk:worker_"


def wait_workers(pid: int) -> None:
    """Return once each worker of this Envoy sleeps, or has slept since the call."""
    left = {task: _sleeps(task) for task in Path(f"/proc/{pid}/task").iterdir() if _name(task).startswith(_PREFIX)}
    assert left, f"process {pid} has no workers of Envoy"

    def all_slept() -> bool:
        for task, before in list(left.items()):
            if _state(task) == "S" or _sleeps(task) > before:
                del left[task]
        return not left

    until(all_slept, told=lambda: f"workers that never sleep: {sorted(map(_name, left))}")


def _name(task: Path) -> str:
    return (task / "comm").read_text().strip()


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(") ")[2][0]


def _sleeps(task: Path) -> int:
    """How often it gave its CPU away to wait for something."""
    lines = (task / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])
