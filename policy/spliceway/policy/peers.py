"""Whom rules mean, for many identities at once: sets of identities as the bits of one integer.

With 10,000 identities, asking every selector about every identity is what makes a compiler slow. Here each label is a
set of identities, a selector is an intersection of unions, and partitions are a few operations on large integers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network

from spliceway.policy.entity import ENTITY_SELECTORS, Reserved
from spliceway.policy.labels import Operator, Requirement, Selector, split
from spliceway.policy.model import CidrPeer, Peers
from spliceway.policy.table import IPNetwork

_WORLD_PREFIX: Mapping[int, IPNetwork] = {
    int(Reserved.WORLD_IPV4): ip_network("0.0.0.0/0"),
    int(Reserved.WORLD_IPV6): ip_network("::/0"),
}


def members(identities: int) -> Iterator[int]:
    """Positions of the bits of a set."""
    digits = f"{identities:b}"[::-1]
    position = digits.find("1")
    while position >= 0:
        yield position
        position = digits.find("1", position + 1)


class PeerIndex:
    """Answers which of the known identities a selector, a CIDR rule or a whole `Peers` means.

    `numbers` gives the identity of each bit.
    """

    def __init__(self, identities: Mapping[int, tuple[str, ...]]) -> None:
        prefixes = sorted(
            (_sort_key(prefix), number)
            for number, labels in identities.items()
            if (prefix := _prefix(number, labels)) is not None
        )
        # Prefixes first and in order, so that all those inside another one are a run of bits.
        self._prefixes = [key for key, _ in prefixes]
        first = [number for _, number in prefixes]
        seen = set(first)
        self.numbers = (*first, *sorted(number for number in identities if number not in seen))
        self.all = (1 << len(self.numbers)) - 1
        self._position = {number: position for position, number in enumerate(self.numbers)}
        self._by_key: dict[tuple[str, str], int] = {}
        self._by_value: dict[tuple[str, str, str], int] = {}
        for position, number in enumerate(self.numbers):
            bit = 1 << position
            for label in identities[number]:
                source, key, value = split(label)
                for name in (source, "any"):
                    self._by_key[name, key] = self._by_key.get((name, key), 0) | bit
                    self._by_value[name, key, value] = self._by_value.get((name, key, value), 0) | bit
        self._selected: dict[Selector, int] = {}
        self._peers: dict[Peers, int] = {}

    def only(self, number: int) -> int:
        """The set of one identity; empty when it is not known here."""
        position = self._position.get(number)
        return 0 if position is None else 1 << position

    def selector(self, selector: Selector) -> int:
        """Identities that a selector means."""
        found = self._selected.get(selector)
        if found is None:
            found = self.all
            for requirement in selector.requirements:
                found &= self._requirement(requirement)
            self._selected[selector] = found
        return found

    def peers(self, peers: Peers) -> int:
        """Identities that a rule's peers mean."""
        found = self._peers.get(peers)
        if found is None:
            found = 0
            for selector in peers.endpoints:
                found |= self.selector(selector)
            for cidr in peers.cidrs:
                found |= self._cidr(cidr)
            for entity in peers.entities:
                for selector in ENTITY_SELECTORS[entity]:
                    found |= self.selector(selector)
            self._peers[peers] = found
        return found

    def _requirement(self, requirement: Requirement) -> int:
        if requirement.operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST):
            found = self._by_key.get((requirement.source, requirement.key), 0)
            return found if requirement.operator is Operator.EXISTS else self.all & ~found
        found = 0
        for value in requirement.values:
            found |= self._by_value.get((requirement.source, requirement.key, value), 0)
        return found if requirement.operator is Operator.IN else self.all & ~found

    def _cidr(self, peer: CidrPeer) -> int:
        assert peer.cidr is not None
        found = self._inside(peer.cidr)
        for block in peer.excepts:
            found &= ~self._inside(block)
        return found

    def _inside(self, prefix: IPNetwork) -> int:
        """Prefix identities that lie inside a prefix."""
        version, address, length = _sort_key(prefix)
        size = 1 << (prefix.max_prefixlen - length)
        begin = bisect_left(self._prefixes, (version, address, length))
        end = bisect_left(self._prefixes, (version, address + size, -1))
        return ((1 << (end - begin)) - 1) << begin if end > begin else 0


def partition(everything: int, sets: Iterable[int]) -> list[tuple[int, frozenset[int]]]:
    """Split identities so that all in one part belong to the same of the sets: (part, indices of its sets)."""
    parts = [everything] if everything else []
    inside: list[list[int]] = [[] for _ in parts]
    owner = dict.fromkeys(members(everything), 0)
    for index, chosen in enumerate(sets):
        if chosen.bit_count() < len(parts):
            touched: Iterable[int] = {owner[position] for position in members(chosen)}
        else:
            touched = range(len(parts))
        for number in touched:
            common = parts[number] & chosen
            if not common:
                continue
            rest = parts[number] ^ common
            if not rest:
                inside[number].append(index)
                continue
            parts.append(common)
            inside.append([*inside[number], index])
            if common.bit_count() > rest.bit_count():
                # The smaller half moves, so that an identity moves few times.
                parts[number], parts[-1] = common, rest
                inside[number], inside[-1] = inside[-1], inside[number]
            else:
                parts[number] = rest
            owner.update(dict.fromkeys(members(parts[-1]), len(parts) - 1))
    return [(part, frozenset(found)) for part, found in zip(parts, inside, strict=True)]


def _prefix(number: int, labels: Iterable[str]) -> IPNetwork | None:
    """The prefix that an identity stands for, if it is one outside the cluster."""
    for label in labels:
        if label.startswith("cidr:"):
            return ip_network(label.removeprefix("cidr:"))
    return _WORLD_PREFIX.get(number)


def _sort_key(prefix: IPNetwork) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
