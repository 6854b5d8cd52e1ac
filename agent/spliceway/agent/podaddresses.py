"""Who has an address that two pods claim: what an old pod's status still says is not its own any more.

A pod that goes keeps its address in its status for a while, and the network plugin may have given it to another one
already. As long as both say that they have it, one that stays has it before one that is being deleted, and a younger
one before an older (`Entry.rank`). What a pod has lost in this way it does not get back before its status has said
another address: its network is gone. Where neither can be told from the other both keep it, and it is nobody's
(`unmanaged`). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from spliceway.agent.manifests import Entry, Key
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.model import IPAddress, Object, Pod

#: So many claims of pods that are gone are kept before they are looked for.
_SPARE = 10_000
#: The bits of a rank that are a pod's age.
_AGE = (1 << 40) - 1


class _Lost(msgspec.Struct, frozen=True):
    """What the pod of this age has lost: another pod of its name begins anew."""

    age: int
    addresses: frozenset[IPAddress]


class PodAddresses:
    """Follows the pods; `complete` takes from changes what is not theirs."""

    def __init__(self, entry: Callable[[Key], Entry | None]) -> None:
        """`entry`: an object that is in force."""
        self._entry = entry
        self._holders: dict[IPAddress, str] = {}  # their names
        self._rivals: dict[IPAddress, frozenset[Key]] = {}  # who has it besides, since neither comes first
        self._lost: dict[Key, _Lost] = {}
        self._known = 0

    def __repr__(self) -> str:
        return f"PodAddresses(addresses={len(self._holders)}, lost={len(self._lost)})"

    def complete(self, changes: dict[Key, Object | None]) -> None:
        """Take in what changed, and give each address to one pod."""
        losers: set[Key] = set()
        for key, item in changes.items():
            if key[0] != "Pod":
                continue
            lost = self._lost.pop(key, None)
            if not isinstance(item, Pod) or item.host_network:
                continue
            if lost and lost.age == self._rank(key) & _AGE and (still := lost.addresses.intersection(item.addresses)):
                self._lost[key] = _Lost(lost.age, still)
            for address in item.addresses:
                if not self._has_lost(key, address):
                    losers |= self._claim(address, key)
        for key in losers:
            entry = self._entry(key)
            if entry is not None:
                changes.setdefault(key, entry.item)
        for key in self._lost.keys() & changes.keys():
            changes[key] = self._without(key, changes[key])
        if len(self._holders) > 2 * self._known + _SPARE:
            self._forget()

    def endpoints(self, wired: Iterable[LocalEndpoint]) -> tuple[LocalEndpoint, ...]:
        """Endpoints with what is theirs; those that have nothing are left out."""
        found = []
        for one in wired:
            kept = tuple(address for address in one.addresses if not self._has_lost(("Pod", one.name), address))
            if kept:
                found.append(one if kept == one.addresses else msgspec.structs.replace(one, addresses=kept))
        return tuple(found)

    def _claim(self, address: IPAddress, key: Key) -> frozenset[Key]:
        """A pod says that it has this address; pods that have lost it by that."""
        holder = self._holders.get(address)
        if holder is None:
            self._holders[address] = key[1]
            return frozenset()
        others = {("Pod", holder), *self._rivals.pop(address, ())} - {key}
        ranks = {one: self._rank(one) for one in (key, *others) if one == key or self._holds(one, address)}
        first = max(ranks.values()) if all(ranks.values()) else 0
        having = frozenset(one for one, rank in ranks.items() if not first or rank == first)
        self._holders[address] = min(having)[1]
        if len(having) > 1:
            self._rivals[address] = having - {min(having)}
        losers = frozenset(ranks.keys() - having)
        for one in losers:
            before = self._lost[one].addresses if one in self._lost else frozenset[IPAddress]()
            self._lost[one] = _Lost(ranks[one] & _AGE, before | {address})
        return losers

    def _has_lost(self, key: Key, address: IPAddress) -> bool:
        return key in self._lost and address in self._lost[key].addresses

    def _holds(self, key: Key, address: IPAddress) -> bool:
        entry = self._entry(key)
        pod = entry.item if entry else None
        there = isinstance(pod, Pod) and not pod.host_network and address in pod.addresses
        return there and not self._has_lost(key, address)

    def _rank(self, key: Key) -> int:
        entry = self._entry(key)
        return entry.rank if entry else 0

    def _without(self, key: Key, item: Object | None) -> Object | None:
        if not isinstance(item, Pod):
            return item
        kept = tuple(address for address in item.addresses if not self._has_lost(key, address))
        return msgspec.structs.replace(item, addresses=kept)

    def _forget(self) -> None:
        """Drop claims of pods that are gone, or that have other addresses."""
        holders = self._holders.items()
        self._holders = {address: name for address, name in holders if self._holds(("Pod", name), address)}
        self._known = len(self._holders)
