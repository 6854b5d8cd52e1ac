"""Which pod has an address, kept up with the changes of the source. For names only: verdicts go by identities."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from spliceway.policy.model import Object, Pod

IPAddress = IPv4Address | IPv6Address


class AddressBook:
    """Address → «namespace/name». Of several pods with one address, the one that came last is named."""

    def __init__(self) -> None:
        self._pods: dict[IPAddress, tuple[str, ...]] = {}
        self._addresses: dict[str, tuple[IPAddress, ...]] = {}

    def __repr__(self) -> str:
        return f"AddressBook(pods={len(self._addresses)}, addresses={len(self._pods)})"

    def update(self, changes: Iterable[tuple[tuple[str, str], Object | None]]) -> None:
        """Take in changed objects (kind and key, and what it is now; None: it went)."""
        for (kind, key), item in changes:
            if kind != "Pod":
                continue
            before = self._addresses.pop(key, ())
            after = item.addresses if isinstance(item, Pod) else ()
            if len(after) > 1:
                after = tuple(dict.fromkeys(after))
            for address in before:
                rest = tuple(other for other in self._pods[address] if other != key)
                if rest:
                    self._pods[address] = rest
                else:
                    del self._pods[address]
            for address in after:
                self._pods[address] = (*self._pods.get(address, ()), key)
            if after:
                self._addresses[key] = after

    def get(self, address: IPAddress) -> str:
        """The pod with this address; empty for none."""
        return self._pods.get(address, ("",))[-1]
