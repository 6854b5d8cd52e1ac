"""What kernel and proxy report becomes flows and audits, named as is in force then; what gets lost is counted."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from spliceway.agent.addresses import AddressBook
from spliceway.agent.audit import AuditLog
from spliceway.agent.flowlog import FlowLog
from spliceway.agent.flows import Names, as_opened
from spliceway.agent.servicenames import ServiceNames
from spliceway.agent.sides import AgentDatapath, ProxyProcess
from spliceway.agent.verdicts import is_audit
from spliceway.bpf.types import KernelFlow
from spliceway.policy.table import IPAddress, PolicyTable
from spliceway.policy.verdict import Protocol
from spliceway.xds.accesslog.flow import HttpFlow, LossCounter
from spliceway.xds.accesslog.sampling import WHOLE, Sampler
from spliceway.xds.errors import AdminError
from spliceway.xds.server.server import XdsServer

#: How often lost access log entries are counted, in seconds.
LOSS_INTERVAL = 5.0
#: How often the share of allowed requests in the access log is looked at, in seconds.
SAMPLE_INTERVAL = 0.5


class Recorder:
    """`flows` and `audit` have what was reported; by `pods` and `services`, kept by their owner, it is named."""

    def __init__(self, buffer_size: int) -> None:
        """`buffer_size`: how many flows are kept."""
        self.flows = FlowLog(buffer_size)
        self.audit = AuditLog()
        self.pods = AddressBook()
        self.services = ServiceNames()
        self._names = Names(None, self.pods)
        self._losses = LossCounter()
        self._sampler = Sampler()

    def __repr__(self) -> str:
        return f"Recorder({self.flows!r}, {self.audit!r})"

    @property
    def names(self) -> Names:
        """As they are now."""
        return self._names

    @property
    def share(self) -> float:
        """Share of allowed requests that the proxy writes to its access log."""
        return self._sampler.share / WHOLE

    def use(self, table: PolicyTable) -> None:
        """Name what comes from now on by this table."""
        self._names = Names(table, self.pods, self._names)

    def http(self, record: HttpFlow) -> None:
        """An entry of the access log."""
        names, ends = self._names, self._names.ends(record)
        services = self.services.of(record.destination, record.destination_port, Protocol.TCP)
        self.flows.publish(partial(names.http, record, ends, services))
        if is_audit(record.verdict, record.reason):
            self.audit.add(names.http(record, ends), "")

    async def follow(self, datapath: AgentDatapath) -> None:
        """Take the kernel's records, until cancelled."""
        async for record in datapath.events():
            names, ends = self._names, self._names.ends(record)
            services = self.services.of(*_server(record), record.protocol)
            self.flows.publish(partial(names.kernel, record, ends, services))
            if is_audit(record.verdict, record.reason) and not names.told_before(record, ends):
                opened = as_opened(record)
                ends = names.ends(opened)
                self.audit.add(names.kernel(opened, ends), names.direction(opened, ends))

    async def count_losses(self, proxy: ProxyProcess, server: XdsServer) -> None:
        """Compare what the proxy wrote with what came, until cancelled."""
        while True:
            await asyncio.sleep(LOSS_INTERVAL)
            with contextlib.suppress(AdminError):  # the proxy is away: nothing to count
                process, written = await proxy.logs_written()
                self._losses.observe(process, written, server.flows_received)

    async def sample(self, proxy: ProxyProcess, server: XdsServer) -> None:
        """Tell the proxy which share of allowed requests to write, until cancelled."""
        told = (0, -1)
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL)
            share = self._sampler.observe(server.flows_received, SAMPLE_INTERVAL)
            now = (proxy.status().pid, share)  # a new process writes them all
            if now != told:
                try:
                    await proxy.log_share(share)
                    told = now
                except AdminError:
                    told = (0, -1)  # the proxy is away, or starting: tell it when it is there

    def lost(self, datapath: AgentDatapath, server: XdsServer) -> dict[str, int]:
        """Records that never became flows, by where they got lost."""
        return {
            "kernel": datapath.status().lost_events,
            "access-log": self._losses.lost + server.flows_skipped,
        }


def _server(record: KernelFlow) -> tuple[IPAddress, int]:
    if record.reply:
        return record.source, record.source_port
    return record.destination, record.destination_port
