"""What can be asked of a datapath's maps: for status, dumps and metrics."""

from __future__ import annotations

from spliceway.bpf import views
from spliceway.bpf.maps import Maps
from spliceway.bpf.staging import KernelTable
from spliceway.bpf.types import CtEntry, ReasonCount, SockEntry, SpliceCounters


class KernelViews:
    """The part of `Datapath` that only reads."""

    _maps: Maps
    _table: KernelTable

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

    def endpoint_devices(self) -> set[int]:
        """Indexes of the endpoints' devices, also of those that only an earlier agent knows."""
        return {int.from_bytes(key, "little") for key in list(self._maps.endpoints.keys())}

    def knows_endpoints(self) -> bool:
        """Whether the kernel has endpoints, of this agent or of an earlier one."""
        return next(iter(self._maps.endpoints.keys()), None) is not None
