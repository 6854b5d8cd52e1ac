"""Which pod has an address, kept up with the changes of the source. For names only: verdicts go by identities."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from spliceway.policy.model import Object, Pod

IPAddress = IPv4Address | IPv6Address


class AddressBook:
    """Address → «namespace/name». Of several pods with one address, the one that came last is named."""

    def __init__(self) -> None:
        self._pods: dict[IPAddress, str | tuple[str, ...]] = {}  # mostly one, and then without a tuple around it
        self._addresses: dict[str, tuple[IPAddress, ...]] = {}

    def __repr__(self) -> str:
        return f"AddressBook(pods={len(self._addresses)}, addresses={len(self._pods)})"

    def update(self, changes: Iterable[tuple[tuple[str, str], Object | None]]) -> None:
        """Take in changed objects (kind and key, and what it is now; None: it went)."""
        for (kind, key), item in changes:
            if kind != "Pod":
                continue
            had = self._addresses.pop(key, ())
            after = item.addresses if isinstance(item, Pod) else ()
            if len(after) > 1:
                after = tuple(dict.fromkeys(after))
            for address in had:
                rest = tuple(other for other in self._named(address) if other != key)
                if rest:
                    self._pods[address] = rest if len(rest) > 1 else rest[0]
                else:
                    del self._pods[address]
            for address in after:
                before = self._named(address)
                self._pods[address] = (*before, key) if before else key
            if after:
                self._addresses[key] = after

    def get(self, address: IPAddress) -> str:
        """The pod with this address; empty for none."""
        return (self._named(address) or ("",))[-1]

    def _named(self, address: IPAddress) -> tuple[str, ...]:
        found = self._pods.get(address, ())
        return (found,) if isinstance(found, str) else found
