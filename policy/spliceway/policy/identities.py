"""Identities of labels: numbered, and there as long as an address or an endpoint has them."""

from __future__ import annotations

from collections import Counter

from spliceway.policy.addresses import Addresses
from spliceway.policy.labelsets import LabelSet
from spliceway.policy.members import Member
from spliceway.policy.numbering import Numbering
from spliceway.policy.peersets import PeerSets
from spliceway.policy.sharing import SharedMap
from spliceway.policy.table import IPNetwork


class Identities:
    """`identities` and `ipcache` are as in PolicyTable."""

    def __init__(self, numbering: Numbering, peer_sets: PeerSets) -> None:
        self._numbering = numbering
        self._peer_sets = peer_sets
        self._uses: Counter[int] = Counter()
        self._unused: dict[int, None] = {}
        self._came: list[Member] = []
        self.identities: SharedMap[int, tuple[str, ...]] = SharedMap()
        self.ipcache: SharedMap[IPNetwork, int] = SharedMap()

    def uses(self, number: int) -> int:
        """How many addresses and policies have an identity."""
        return self._uses.get(number, 0)

    def of(self, labels: tuple[str, ...]) -> int:
        """The identity of these labels, held until `leave`."""
        number = self._numbering.identity(labels)
        self.hold(number, labels)
        return number

    def hold(self, number: int, labels: tuple[str, ...]) -> None:
        """Something has this identity."""
        if number not in self._uses:
            self.identities.set(number, labels)
            self._came.append(self._peer_sets.add(number, labels))
            self._uses[number] = 0
        self._uses[number] += 1

    def leave(self, number: int) -> None:
        """Something that had this identity has it no more."""
        self._uses[number] -= 1
        if not self._uses[number]:
            self._unused[number] = None

    def label(self, prefix: IPNetwork, addresses: Addresses) -> bool:
        """Give a prefix the identity of its labels; whether that is another one than before."""
        old = self.ipcache.get(prefix)
        found = addresses.labels(prefix)
        if found is None:
            new = None
        else:
            labels, label_set, extra = found
            if label_set is None:
                new = self._numbered(tuple(sorted((*labels, *extra))), prefix)
            else:
                new = self._of_label_set(label_set, extra, prefix)
        if new == old:
            return False
        if new is None:
            self.ipcache.drop(prefix)
        else:
            self.ipcache.set(prefix, new)
        if old is not None:
            self.leave(old)
        return True

    def take_moved(self) -> tuple[list[Member], list[Member]]:
        """Identities that came, and those that went: nothing has them any more."""
        came, self._came = self._came, []
        unused, self._unused = self._unused, {}
        went = []
        for number in unused:
            if not self._uses[number]:
                del self._uses[number]
                self.identities.drop(number)
                went.append(self._peer_sets.remove(number))
        return came, went

    def _of_label_set(self, label_set: LabelSet, extra: tuple[str, ...], prefix: IPNetwork) -> int:
        known = label_set.numbers.get(extra)
        if known is not None:
            number, labels = known
            if self.identities.get(number) == labels:
                if self.ipcache.get(prefix) != number:
                    self._uses[number] += 1
                return number
        labels = tuple(sorted((*label_set.labels, *extra))) if extra else label_set.labels
        number = self._numbered(labels, prefix)
        label_set.numbers[extra] = (number, labels)
        return number

    def _numbered(self, labels: tuple[str, ...], prefix: IPNetwork) -> int:
        """The identity of these labels, held if the prefix did not have it already."""
        number = self._numbering.identity(labels)
        if self.ipcache.get(prefix) != number:
            self.hold(number, labels)
        return number
