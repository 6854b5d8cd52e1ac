"""Addresses and prefixes as maps and events have them: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_MAPPED = b"\0" * 10 + b"\xff\xff"


def pack_address(address: IPv4Address | IPv6Address) -> bytes:
    """16 bytes in network order."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def unpack_address(packed: bytes) -> IPv4Address | IPv6Address:
    """The inverse of `pack_address`."""
    return IPv4Address(packed[12:]) if packed.startswith(_MAPPED) else IPv6Address(packed)


def pack_prefix(network: IPv4Network | IPv6Network) -> bytes:
    """`struct ipcache_key` of a prefix: IPv4 prefixes lie below ::ffff:0:0/96."""
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    return bits.to_bytes(4, "little") + pack_address(network.network_address)


def unpack_prefix(key: bytes) -> IPv4Network | IPv6Network:
    """The inverse of `pack_prefix`."""
    bits, address = int.from_bytes(key[:4], "little"), unpack_address(key[4:20])
    if address.version == 4 and bits >= 96:
        return IPv4Network((address.packed, bits - 96))
    return IPv6Network((key[4:20], bits))
