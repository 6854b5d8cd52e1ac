"""Addresses and prefixes as policies and objects write them."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from spliceway.policy.fields import Where, shown
from spliceway.policy.model import IPAddress
from spliceway.policy.table import IPNetwork


def parse_address(text: str, where: Where) -> IPAddress:
    """An IP address. IPv4 inside IPv6 and zones are refused: packets never look like that."""
    try:
        found = ip_address(text)
    except ValueError:
        where.refuse(f"{shown(text)} is not an IP address")
    if isinstance(found, IPv6Address) and (found.ipv4_mapped is not None or found.scope_id is not None):
        where.refuse(f"{shown(text)} is not an address of packets (IPv4-mapped or with a zone)")
    return found


def parse_network(text: str, where: Where) -> IPNetwork:
    """A prefix in CIDR notation, the host bits cleared (as Cilium and net.ParseCIDR do). Netmasks are refused."""
    address, slash, bits = text.partition("/")
    if not slash:
        where.refuse(f"{shown(text)} is not a CIDR (no prefix length)")
    base = parse_address(address, where)
    if (
        not (bits.isascii() and bits.isdigit())
        or len(bits) > 3
        or (len(bits) > 1 and bits[0] == "0")
        or int(bits) > base.max_prefixlen
    ):
        where.refuse(f"{shown(text)} is not a CIDR (prefix length 0 to {base.max_prefixlen})")
    return ip_network((base, int(bits)), strict=False)


def parse_block(text: str, where: Where) -> IPNetwork:
    """A CIDR, or one address as the prefix that has only it (Cilium's fromCIDR and toCIDR take both)."""
    if "/" in text:
        return parse_network(text, where)
    address = parse_address(text, where)
    return ip_network((address, address.max_prefixlen))


def parse_excepts(value: list[str], cidr: IPNetwork, where: Where, *, strict: bool) -> tuple[IPNetwork, ...]:
    """Exceptions of a prefix, which must lie inside it. `strict`: and be smaller than it (NetworkPolicy)."""
    found = []
    for place, text in where.items(value, str):
        block = parse_network(text, place)
        if block.version != cidr.version or not block.subnet_of(cidr):  # type: ignore[arg-type]
            place.refuse(f"{shown(text)} is not inside {cidr}")
        if strict and block == cidr:
            place.refuse(f"{shown(text)} is all of {cidr}: an exception must be smaller")
        found.append(block)
    return tuple(dict.fromkeys(found))
