"""From a PolicyTable to the logical rows of the kernel's two-slot maps. Pure.

A logical row is a key (bytes) and one value (bytes of the fields that a slot holds). The maps hold two of them side
by side, and the generation's lowest bit says which one is live: see `staging.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from spliceway.bpf import abi
from spliceway.bpf.abi import Enforce
from spliceway.bpf.types import LocalEndpoint
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Protocol

_U32x3 = struct.Struct("=III")
_POLICY_KEY = struct.Struct("=IIIBBH")
_IDENTITY = struct.Struct("=I")
_CLASS = struct.Struct("=I")
_ROW = struct.Struct("=IIBB")
_ENDPOINT = struct.Struct("=IIB")

Rows = dict[bytes, bytes]


class Attached(NamedTuple):
    """A local endpoint as the kernel knows it."""

    endpoint: LocalEndpoint
    ifindex: int
    netns_cookie: int


class LogicalRows(NamedTuple):
    """All rows of one revision; `fixed` holds what has no slots: key of `ipcache` → ifindex of the endpoint there."""

    endpoints: Rows
    ipcache: Rows
    classes: Rows
    policy: Rows
    fixed: dict[bytes, int]


def logical_rows(table: PolicyTable, attached: Mapping[str, Attached]) -> LogicalRows:
    """What the kernel must hold for `table`. Endpoints without a policy in the table stay «not ready»."""
    endpoints: Rows = {}
    fixed: dict[bytes, int] = {}
    for name, one in attached.items():
        policy = table.endpoints.get(name)
        if policy is not None:
            enforce = Enforce.READY
            enforce |= Enforce.INGRESS if policy.ingress else Enforce(0)
            enforce |= Enforce.EGRESS if policy.egress else Enforce(0)
            endpoints[one.ifindex.to_bytes(4, "little")] = _ENDPOINT.pack(policy.identity, policy.policy_id, enforce)
        for address in one.endpoint.addresses:
            fixed[(128).to_bytes(4, "little") + abi.pack_address(address)] = one.ifindex
    ipcache = {abi.pack_prefix(prefix): _IDENTITY.pack(identity) for prefix, identity in table.ipcache.items()}
    return LogicalRows(
        endpoints=endpoints,
        ipcache=ipcache,
        classes={
            _U32x3.pack(key.policy_id, key.identity, key.direction): _CLASS.pack(class_id)
            for key, class_id in table.classes.items()
        },
        policy={
            _POLICY_KEY.pack(
                abi.POLICY_PREFIX_ANY if key.protocol is Protocol.ANY else abi.POLICY_PREFIX_PROTOCOL + key.port_bits,
                key.policy_id,
                key.class_id,
                key.direction,
                key.protocol,
                int.from_bytes(key.port.to_bytes(2, "big"), "little"),
            ): _ROW.pack(row.rule, row.rule_set, row.verdict, row.reason)
            for key, row in table.rows.items()
        },
        fixed={key: index for key, index in fixed.items() if key in ipcache},
    )


class Longest:
    """Longest-prefix match over logical rows whose key is (prefix length, data), as the kernel's tries do it."""

    def __init__(self, rows: Rows) -> None:
        """Index the prefix lengths that occur."""
        self._rows = rows
        self._lengths = sorted({int.from_bytes(key[:4], "little") for key in rows}, reverse=True)

    def covering(self, key: bytes) -> bytes | None:
        """The value of the longest prefix that covers `key`, `key` itself included."""
        bits, data = int.from_bytes(key[:4], "little"), key[4:]
        for length in self._lengths:
            if length <= bits:
                found = self._rows.get(length.to_bytes(4, "little") + _mask(data, length))
                if found is not None:
                    return found
        return None


def _mask(data: bytes, bits: int) -> bytes:
    whole, rest = divmod(bits, 8)
    if whole >= len(data):
        return data
    kept = data[:whole] + (bytes([data[whole] & (0xFF00 >> rest & 0xFF)]) if rest else b"")
    return kept.ljust(len(data), b"\0")


def pack_endpoint(attached: Attached, slots: tuple[bytes, bytes]) -> bytes:
    """`struct endpoint`. Empty bytes in a slot mean «not ready»."""
    value = abi.Endpoint(netns_cookie=attached.netns_cookie)
    for address in attached.endpoint.addresses:
        field = value.v4 if address.version == 4 else value.v6
        field.w[:] = list(abi.pack_address(address))
    for i, slot in enumerate(slots):
        if slot:
            value.identity[i], value.policy[i], value.enforce[i] = _ENDPOINT.unpack(slot)
    return bytes(value)


def with_slots(raw: bytes, slots: tuple[bytes, bytes]) -> bytes:
    """`struct endpoint` as it is in the kernel, with other values in its slots."""
    value = abi.Endpoint.from_buffer_copy(raw)
    for i, slot in enumerate(slots):
        value.identity[i], value.policy[i], value.enforce[i] = _ENDPOINT.unpack(slot) if slot else (0, 0, 0)
    return bytes(value)


def unpack_endpoint(value: bytes, slot: int) -> bytes:
    """One slot of `struct endpoint`; empty when not ready."""
    ep = abi.Endpoint.from_buffer_copy(value)
    if not ep.enforce[slot]:
        return b""
    return _ENDPOINT.pack(ep.identity[slot], ep.policy[slot], ep.enforce[slot])


def pack_identity(slots: tuple[bytes, bytes], ifindex: int) -> bytes:
    """`struct ipcache_value`."""
    return (slots[0] or bytes(4)) + (slots[1] or bytes(4)) + ifindex.to_bytes(4, "little")


def unpack_identity(value: bytes, slot: int) -> bytes:
    """One slot of `struct ipcache_value`; empty when none."""
    found = value[slot * 4 : slot * 4 + 4]
    return b"" if found == bytes(4) else found


def pack_class(slots: tuple[bytes, bytes]) -> bytes:
    """`struct class_value`: an absent class is class 0, the peers treated like any other."""
    return (slots[0] or bytes(4)) + (slots[1] or bytes(4))


def unpack_class(value: bytes, slot: int) -> bytes:
    """One slot of `struct class_value`; empty when 0."""
    found = value[slot * 4 : slot * 4 + 4]
    return b"" if found == bytes(4) else found


def pack_row(slots: tuple[bytes, bytes]) -> bytes:
    """`struct policy_value`: an absent row has verdict NONE."""
    a, b = (_ROW.unpack(slot) if slot else (0, 0, 0, 0) for slot in slots)
    return struct.pack("=IIIIBBBB", a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3])


def unpack_row(value: bytes, slot: int) -> bytes:
    """One slot of `struct policy_value`; empty when the verdict is NONE."""
    fields = struct.unpack("=IIIIBBBB", value)
    found = fields[slot::2]
    return _ROW.pack(*found) if found[2] else b""
