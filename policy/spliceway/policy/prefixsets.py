"""Sets of prefixes that are asked which of them hold an address or a prefix: a lookup for each length that occurs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Generic, TypeVar, cast

from spliceway.policy.model import IPAddress
from spliceway.policy.table import IPNetwork

V = TypeVar("V")
#: Masks of single addresses.
_WHOLE = {4: ip_network("0.0.0.0/32").netmask, 6: ip_network("::/128").netmask}


def host_prefix(address: IPAddress) -> IPNetwork:
    """The /32 or /128 of an address, which is a part of it.

    There is one for each pod of a cluster. The constructor would make another address, and a function `hosts`, twice as
    large as all the rest.
    """
    prefix: Any = IPv4Network.__new__(IPv4Network) if address.version == 4 else IPv6Network.__new__(IPv6Network)
    prefix.network_address, prefix.netmask, prefix._prefixlen = address, _WHOLE[address.version], address.max_prefixlen
    return cast("IPNetwork", prefix)


@lru_cache(maxsize=1 << 16)
def place_of(prefix: IPNetwork) -> tuple[int, int, int]:
    """Family, length and first address: cheap to compare and to hash."""
    return prefix.version, prefix.prefixlen, int(prefix.network_address)


def within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Whether a prefix lies in another one, or is the same."""
    version, length, first = place_of(inner)
    outer_version, outer_length, outer_first = place_of(outer)
    if version != outer_version or length < outer_length:
        return False
    shift = outer.max_prefixlen - outer_length
    return first >> shift << shift == outer_first


class PrefixMap(Generic[V]):
    """Values by prefix, found by what lies inside."""

    def __init__(self) -> None:
        self._levels: dict[int, dict[int, dict[int, tuple[IPNetwork, V]]]] = {4: {}, 6: {}}
        self._lengths: dict[int, list[int]] = {4: [], 6: []}

    def get(self, prefix: IPNetwork) -> V | None:
        """The value of exactly this prefix."""
        version, length, first = place_of(prefix)
        found = self._levels[version].get(length, {}).get(first)
        return found[1] if found else None

    def set(self, prefix: IPNetwork, value: V) -> None:
        """Give a prefix a value."""
        version, length, first = place_of(prefix)
        level = self._levels[version].get(length)
        if level is None:
            level = self._levels[version][length] = {}
            self._lengths[version] = sorted(self._levels[version], reverse=True)
        level[first] = (prefix, value)

    def drop(self, prefix: IPNetwork) -> None:
        """Remove a prefix that is there."""
        version, length, first = place_of(prefix)
        del self._levels[version][length][first]
        if not self._levels[version][length]:
            del self._levels[version][length]
            self._lengths[version] = sorted(self._levels[version], reverse=True)

    def holding(self, version: int, length: int, first: int) -> Iterator[tuple[IPNetwork, V]]:
        """Prefixes that hold this one, the longest first, itself included."""
        bits = 32 if version == 4 else 128
        for known in self._lengths[version]:
            if known <= length:
                shift = bits - known
                found = self._levels[version][known].get(first >> shift << shift)
                if found is not None:
                    yield found

    def longest(self, prefix: IPNetwork) -> tuple[IPNetwork, V] | None:
        """The longest prefix that holds this one."""
        return next(self.holding(*place_of(prefix)), None)

    def __iter__(self) -> Iterator[IPNetwork]:
        for levels in self._levels.values():
            for level in levels.values():
                for prefix, _ in level.values():
                    yield prefix

    def __bool__(self) -> bool:
        return any(self._lengths.values())


class PrefixCounts:
    """Prefixes, counted: one is there as long as somebody names it."""

    def __init__(self) -> None:
        self._counts: PrefixMap[int] = PrefixMap()

    def add(self, prefix: IPNetwork, times: int) -> bool:
        """Name it so much more (or less) often. Gives whether it came or went by that."""
        before = self._counts.get(prefix) or 0
        after = before + times
        if after > 0:
            self._counts.set(prefix, after)
        elif before:
            self._counts.drop(prefix)
        return (before > 0) is not (after > 0)

    def __contains__(self, prefix: IPNetwork) -> bool:
        return self._counts.get(prefix) is not None

    def __iter__(self) -> Iterator[IPNetwork]:
        return iter(self._counts)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def longest(self, prefix: IPNetwork) -> IPNetwork | None:
        """The longest of them that holds this prefix, itself included."""
        found = self._counts.longest(prefix)
        return found[0] if found else None

    def longest_of(self, version: int, length: int, first: int) -> IPNetwork | None:
        """As `longest`, for a prefix in numbers."""
        for prefix, _ in self._counts.holding(version, length, first):
            return prefix
        return None
