"""The kernel and the proxy as the whole agent sees them: what `Datapath` and `ProxySupervisor` offer it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from spliceway.agent.control import DatapathControl
from spliceway.agent.proxysupervisor import ProxyStatus
from spliceway.agent.splicing import SpliceKernel
from spliceway.agent.views import DatapathViews
from spliceway.bpf.types import KernelFlow


class AgentDatapath(DatapathControl, DatapathViews, SpliceKernel, Protocol):
    """All that the agent uses of `bpf.Datapath`."""

    @property
    def limits(self) -> Mapping[str, int]:
        """Most entries of each map, by the names of `policy.budget.Limits`."""

    @property
    def proxy_map(self) -> int:
        """Id of the map that knows the proxy's sockets."""

    async def set_disabled(self, disabled: bool) -> None:
        """Pass everything from now on, or (False) judge it again."""

    def is_disabled(self) -> bool:
        """Whether everything passes, as the kernel has it."""

    def events(self) -> AsyncIterator[KernelFlow]:
        """Verdicts from the ring buffer."""

    async def close(self) -> None:
        """Let go, and leave everything in force."""

    async def remove(self) -> None:
        """Take everything out of the kernel."""


class ProxyProcess(Protocol):
    """All that the agent uses of `ProxySupervisor`."""

    async def start(self, socks: int = 0) -> None:
        """Start, or take over what was started under the map with the id `socks`."""

    async def run(self) -> None:
        """Watch and restart."""

    async def stop(self) -> None:
        """End for good."""

    def status(self) -> ProxyStatus:
        """What runs."""

    async def log_share(self, millionths: int) -> None:
        """Write so many of a million allowed requests to the access log."""

    async def logs_written(self) -> tuple[str, int]:
        """Process and count of access log entries."""
