"""What kernel and cgroups counted during the runs of one data path."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.bench.errors import BenchError
from spliceway.agent.cli.client import AgentClient
from spliceway.agent.testbed.node import Node


class Counters(msgspec.Struct, frozen=True):
    """Counters since their beginning, or the difference of two readings.

    `redirected_bytes`: moved from socket to socket by the sk_msg program. `tcp_bytes`: in packets that the TC programs
    of the pods' veths let pass, heads and pure ACKs among them. Of a proxied connection both count each leg and each
    direction once, so that `share` is the part of all bytes that took the splice. `spliced`, `tcp_only`: decisions
    about legs of connections. `agent_seconds`, `proxy_seconds`: CPU time of those two.
    """

    redirected_bytes: int = 0
    tcp_bytes: int = 0
    spliced: int = 0
    tcp_only: int = 0
    agent_seconds: float = 0.0
    proxy_seconds: float = 0.0

    @property
    def share(self) -> float:
        """Redirected part of all bytes, 0 to 1."""
        total = self.redirected_bytes + self.tcp_bytes
        return self.redirected_bytes / total if total else 0.0

    def since(self, before: Counters) -> Counters:
        """What was counted since `before`."""
        return _each(lambda mine, others: mine - others, self, before)

    def __add__(self, other: Counters) -> Counters:
        return _each(lambda mine, others: mine + others, self, other)

    def plain(self) -> dict[str, float]:
        """As the report has it, with the share."""
        return {
            "redirected_bytes": self.redirected_bytes,
            "tcp_bytes": self.tcp_bytes,
            "share": round(self.share, 6),
            "spliced": self.spliced,
            "tcp_only": self.tcp_only,
            "agent_seconds": round(self.agent_seconds, 3),
            "proxy_seconds": round(self.proxy_seconds, 3),
        }


def read(agent: AgentClient, node: Node) -> Counters:
    """Read all of them. Raises ClientError, or BenchError when a cgroup has no cpu.stat."""
    splice = agent.get("status")["splice"]["counters"]
    return Counters(
        redirected_bytes=splice["redirectedBytes"],
        tcp_bytes=veth_bytes(agent.get("bpf/reasons")),
        spliced=splice["spliced"],
        tcp_only=splice["tcpOnly"],
        agent_seconds=_cpu_seconds(node.info.cgroups.agent),
        proxy_seconds=_cpu_seconds(node.info.cgroups.proxy),
    )


def redirected_bytes(agent: AgentClient) -> int:
    """`Counters.redirected_bytes` alone. Raises ClientError."""
    return int(agent.get("status")["splice"]["counters"]["redirectedBytes"])


def veth_bytes(reasons: Iterable[dict[str, Any]]) -> int:
    """Bytes that passed the pods' veths in either direction, of the agent's verdict counters."""
    return sum(row["bytes"] for row in reasons if row["hook"] in ("from-pod", "to-pod") and row["verdict"] in _PASSED)


_PASSED = ("allow", "redirect")


def _cpu_seconds(cgroup: Path) -> float:
    path = cgroup / "cpu.stat"
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6
    except (OSError, KeyError, ValueError) as error:
        raise BenchError(f"{path}: CPU time can't be read: {error}") from error


def _each(combine: Any, one: Counters, other: Counters) -> Counters:
    return Counters(**{name: combine(getattr(one, name), getattr(other, name)) for name in Counters.__struct_fields__})
