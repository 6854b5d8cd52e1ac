"""The addresses that Services are dialled by, for the kernel: what is sent there is judged where it leads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from spliceway.policy.lbmodel import Frontend
from spliceway.policy.loadbalancing import Changes
from spliceway.policy.table import IPAddress
from spliceway.policy.verdict import Protocol

_PROTOCOLS = (Protocol.TCP, Protocol.UDP)


class ServiceAddresses:
    """Kept up by the changes of load balancing. `update` and `take` are not for two threads at once."""

    def __init__(self) -> None:
        self._frontends: set[Frontend] = set()
        self._counts: Counter[IPAddress] = Counter()
        self._changes: dict[IPAddress, bool] = {}

    def __repr__(self) -> str:
        return f"ServiceAddresses({len(self._counts)} addresses, {len(self._changes)} changes)"

    def update(self, changes: Changes) -> None:
        """These frontends are so from now on; None: there is none any more."""
        for frontend, state in changes.items():
            if frontend.protocol not in _PROTOCOLS or (state is not None) == (frontend in self._frontends):
                continue
            address = frontend.address
            if state is not None:
                self._frontends.add(frontend)
                self._counts[address] += 1
            else:
                self._frontends.discard(frontend)
                self._counts[address] -= 1
                if not self._counts[address]:
                    del self._counts[address]
            self._changes[address] = address in self._counts

    def take(self) -> Mapping[IPAddress, bool]:
        """Addresses that are Services' now, or (False) are not any more, since this was asked last."""
        taken, self._changes = self._changes, {}
        return taken
