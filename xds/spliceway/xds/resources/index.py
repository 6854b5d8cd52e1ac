"""What all resources of one type have to do with others, kept from one set to the next. Pure but for its cache.

A change is of one resource among thousands, and looking at all of them again costs tens of milliseconds. So the index
of a set is made from that of the set it grew out of (`TypeSet.base`), and only what changed is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from spliceway.xds.errors import InconsistentSnapshotError
from spliceway.xds.protocol.snapshot import TypeSet
from spliceway.xds.resources.facts import NOUNS, Address, Facts

#: Facts of a resource by type URL, name and body; raises InconsistentSnapshotError.
Reader = Callable[[str, str, bytes], Facts]
_KEPT = 16
_Key = TypeVar("_Key")


class Index:
    """Facts of the resources of one set, and how often each address, port and name is in them.

    `wants`: type URL -> name -> how often it is named. `listening`: how many addresses there are, equal ones too.
    """

    __slots__ = ("addresses", "facts", "listening", "ports", "wants")

    def __init__(self, base: Index | None = None) -> None:
        self.facts: dict[str, Facts] = dict(base.facts) if base else {}
        self.wants: dict[str, dict[str, int]] = {url: dict(names) for url, names in base.wants.items()} if base else {}
        self.addresses: dict[Address, int] = dict(base.addresses) if base else {}
        self.ports: dict[int, int] = dict(base.ports) if base else {}
        self.listening: int = base.listening if base else 0

    def __repr__(self) -> str:
        return f"<Index of {len(self.facts)} resources>"

    def put(self, name: str, facts: Facts | None) -> None:
        """Take in the facts of a resource in place of those that it had; None: it is gone."""
        old = self.facts.pop(name, None)
        if old is not None:
            self._count(old, -1)
        if facts is not None:
            self.facts[name] = facts
            self._count(facts, 1)

    def _count(self, facts: Facts, step: int) -> None:
        for want in facts.wants:
            _add(self.wants.setdefault(want.url, {}), want.name, step)
        for address in facts.addresses:
            _add(self.addresses, address, step)
            _add(self.ports, address.port, step)
        self.listening += step * len(facts.addresses)


class Indexes:
    """Makes the indexes of sets, and keeps the latest."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._kept: OrderedDict[tuple[int, frozenset[str]], Index] = OrderedDict()

    def of(self, url: str, held: TypeSet, others: Iterable[str] = (), read_others: Reader | None = None) -> Index:
        """The index of a set. `others`: names that `read_others` reads.

        Raises:
            InconsistentSnapshotError: a resource is not what its reader asks for, or calls itself something else.
        """
        different = frozenset(others)
        key = (held.serial, different)
        if found := self._kept.get(key):
            self._kept.move_to_end(key)
            return found
        base = self._kept.get((held.base, different)) if held.base else None
        made = Index(base)
        for name in held.changed if base else held.resources:
            resource = held.resources.get(name)
            if resource is None:
                made.put(name, None)
                continue
            read = read_others if read_others and name in different else self._read
            facts = read(url, name, resource.body)
            if facts.name != name:
                reason = f"is stored under this name, but calls itself {facts.name!r}"
                raise InconsistentSnapshotError(f"{NOUNS[url]} {name!r}: {reason}")
            made.put(name, facts)
        self._kept[key] = made
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made


def _add(counts: dict[_Key, int], key: _Key, step: int) -> None:
    """Count, and forget what is there no more."""
    left = counts.get(key, 0) + step
    if left:
        counts[key] = left
    else:
        counts.pop(key, None)
