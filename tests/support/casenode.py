"""A datapath with the embedded proxy on the first node of a testbed, for one file of cases after another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from spliceway.agent.hostaddresses import own_addresses, with_own
from spliceway.bpf.types import KernelFlow, LocalEndpoint
from spliceway.policy.model import Node
from spliceway.policy.table import PolicyTable
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.resources.settings import ResourceSettings
from support.casebed import CaseBed
from support.cases import NODE, CaseFile
from support.proxied import ProxiedNode
from support.waiting import LIMIT


class CaseNode(ProxiedNode):
    """`ProxiedNode` on the first node of a `CaseBed`. It knows of the cluster what the file says that is loaded."""

    resources = ResourceSettings(log_flush_interval=0.02)

    def __init__(self, bed: CaseBed) -> None:
        self._bed = bed
        super().__init__(bed.bed.node)

    def load(self, file: CaseFile) -> PolicyTable:
        """Make the file's pods of this node endpoints, and its policies live. The node has its addresses besides."""
        self.run(self.datapath.set_endpoints([]))
        named = file.cluster.nodes.get(NODE) or Node(NODE)
        node = with_own(named, self.run(own_addresses()))
        table = self.apply(cluster=file.cluster.with_objects([node]))
        self.run(self.serve())
        pods = [
            pod for pod in file.cluster.pods.values() if pod.node == NODE and not pod.host_network and pod.addresses
        ]
        homes = [(pod, self._bed.home(pod.addresses[0])) for pod in pods]
        self.run(
            self.datapath.set_endpoints(
                [LocalEndpoint(pod.key, home.interface, home.netns, pod.addresses) for pod, home in homes]
            )
        )
        return table

    def wait_flows(
        self, since: int, done: Callable[[list[KernelFlow]], bool], patience: float = LIMIT
    ) -> list[KernelFlow]:
        """The records behind the first `since`, when `done` says that all are there, or after `patience` seconds."""

        async def wait() -> None:
            async with asyncio.timeout(patience):
                while not done(self.flows[since:]):
                    self._arrived.clear()
                    await self._arrived.wait()

        with contextlib.suppress(TimeoutError):
            self.run(wait())
        return self.flows[since:]

    def wait_requests(self, since: int, count: int, patience: float = LIMIT) -> list[HttpFlow]:
        """Entries of the access log behind the first `since`, when there are so many, or after `patience` seconds."""

        async def wait() -> None:
            async with asyncio.timeout(patience):
                while len(self.requests) < since + count:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        with contextlib.suppress(TimeoutError):
            self.run(wait())
        return self.requests[since:]
