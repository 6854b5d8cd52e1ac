"""What can be asked of a datapath's maps: for status, dumps and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from spliceway.bpf import abi, views
from spliceway.bpf.events import EventStream
from spliceway.bpf.install import measuring
from spliceway.bpf.maps import ZERO, Maps
from spliceway.bpf.servicemarks import SHARE
from spliceway.bpf.splicecontrol import SpliceControl
from spliceway.bpf.staging import KernelTable
from spliceway.bpf.sweep import Sweeper, SweepTotals
from spliceway.bpf.types import CtEntry, DatapathSettings, KernelFlow, ReasonCount, SockEntry, SpliceCounters


class KernelViews:
    """The part of `Datapath` that only reads."""

    _maps: Maps
    _settings: DatapathSettings
    _table: KernelTable
    _events: EventStream
    _splices: SpliceControl
    _sweeper: Sweeper

    async def events(self) -> AsyncIterator[KernelFlow]:
        """Verdicts as they are made. One consumer."""
        async for flow in self._events.flows():
            yield flow

    def conntrack(self) -> list[CtEntry]:
        """All connections that the kernel tracks."""
        return views.conntrack(self._maps)

    def socks(self) -> list[SockEntry]:
        """All redirected connections that are alive: spliced or not, and why."""
        return views.socks(self._maps)

    def reasons(self) -> list[ReasonCount]:
        """Counters by hook, verdict and reason."""
        return views.reasons(self._maps)

    def splice_counters(self) -> SpliceCounters:
        """Node-wide splice counters."""
        return views.splice_counters(self._maps)

    def dump_policy(self) -> list[dict[str, object]]:
        """Policy rows as they are in the kernel."""
        return views.policy(self._maps, self._table.generation & 1)

    def dump_ipcache(self) -> list[dict[str, object]]:
        """Prefixes and identities as they are in the kernel."""
        return views.ipcache(self._maps, self._table.generation & 1)

    def is_disabled(self) -> bool:
        """Whether the programs pass everything (the kill switch). Others may have written it: `killswitch.turn`."""
        raw = self._maps.config.lookup(ZERO)
        return raw is not None and bool(abi.Config.from_buffer_copy(raw).flags & abi.ConfigFlag.DISABLED)

    @property
    def sweeps(self) -> SweepTotals:
        """What became of connections that a change of policy or listeners ended."""
        return self._sweeper.totals

    async def swept(self, seconds: float) -> None:
        """Return when connections that may not go on have been ended, or after so many seconds."""
        await self._sweeper.done(seconds)

    @property
    def measured(self) -> str:
        """Empty when the programs can see what a reader has not read, else why not."""
        return measuring()[1]

    async def measure(self) -> int:
        """Look at all readers that were behind; returns how many spliced bytes wait unread on the node."""
        await asyncio.to_thread(self._splices.measure)
        return self._splices.unread()

    def pressed(self) -> bool:
        """Whether a fourth of what may wait unread is counted, for an endpoint or for the node."""
        return self._splices.pressed()

    def endpoint_devices(self) -> set[int]:
        """Indexes of the endpoints' devices, also of those that only an earlier agent knows."""
        return {int.from_bytes(key, "little") for key in list(self._maps.endpoints.keys())}

    def endpoint_bridges(self) -> dict[int, int]:
        """The same devices, each with the index of the bridge that it is a port of, 0: none."""
        rows = list(self._maps.endpoints.items())
        return {int.from_bytes(key, "little"): abi.Endpoint.from_buffer_copy(raw).bridge for key, raw in rows}

    def knows_endpoints(self) -> bool:
        """Whether the kernel has endpoints, of this agent or of an earlier one."""
        return next(iter(self._maps.endpoints.keys()), None) is not None

    @property
    def limits(self) -> dict[str, int]:
        """How many elements a PolicyTable may bring: endpoints, ipcache, classes, rows, listeners, pairs.

        While a revision is staged, the keys that go are there together with those that come.
        """
        maps, (low, high) = self._maps, self._settings.listener_ports
        return {
            "endpoints": maps.endpoints.max_entries,
            "ipcache": maps.ipcache.max_entries - maps.ipcache.max_entries // SHARE,
            "classes": maps.classes.max_entries,
            "rows": maps.policy.max_entries,
            "listeners": min(maps.listeners.max_entries, high - low + 1),
            "pairs": maps.pairs.max_entries,
        }
