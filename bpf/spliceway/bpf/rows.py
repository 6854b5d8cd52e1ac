"""From a PolicyTable to the logical rows of the kernel's two-slot maps. Pure.

A logical row is a key (bytes) and one value (bytes of the fields that a slot holds). The maps hold two of them side
by side, and the generation's lowest bit says which one is live: see `staging.py`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_network
from typing import NamedTuple

import msgspec

from spliceway.bpf import abi
from spliceway.bpf.abi import Enforce
from spliceway.bpf.addresses import pack_address, pack_prefix
from spliceway.bpf.types import IPAddress, LocalEndpoint
from spliceway.policy.table import ClassKey, IPNetwork, PolicyTable, Row, RowKey, TableDelta
from spliceway.policy.verdict import Protocol

_U32x2 = struct.Struct("=II")
_U32x3 = struct.Struct("=III")
_POLICY_KEY = struct.Struct("=IIIBBH")
_IDENTITY = struct.Struct("=II")  # identity, ifindex of the endpoint that has this address
_CLASS = struct.Struct("=I")
_PAIR = struct.Struct("=I")
_ROW = struct.Struct("=IIBB")
_ENDPOINT = struct.Struct("=IIB")

Rows = dict[bytes, bytes]
#: Values that differ; None: the key is gone.
Edits = dict[bytes, bytes | None]


class Attached(NamedTuple):
    """A local endpoint as the kernel knows it. `bridge`: index of the one that its veth is a port of, or 0."""

    endpoint: LocalEndpoint
    ifindex: int
    netns_cookie: int
    bridge: int = 0

    def is_of(self, wanted: LocalEndpoint) -> bool:
        """Whether it is this endpoint, whatever they say about splicing and meshes."""
        mine = self.endpoint
        like = {name: getattr(mine, name) for name in ("splice", "unspliced_ports", "sidecar", "mesh")}
        return msgspec.structs.replace(wanted, **like) == mine

    def is_there(self, links: Mapping[str, int]) -> bool:
        """Whether the device (`links`: name → index) is the one that was attached: no index is used a second time."""
        return links.get(self.endpoint.interface) == self.ifindex


class LogicalRows(NamedTuple):
    """All rows of one revision. `pairs` have no slots."""

    endpoints: Rows
    ipcache: Rows
    classes: Rows
    policy: Rows
    pairs: Rows


class RowEdits(NamedTuple):
    """What leads from one revision to another. Values that are there already do no harm."""

    endpoints: Edits
    ipcache: Edits
    classes: Edits
    policy: Edits
    pairs: Edits


def logical_rows(table: PolicyTable, attached: Mapping[str, Attached], served: Iterable[IPAddress] = ()) -> LogicalRows:
    """What the kernel must hold for `table`. Endpoints without a policy in the table stay «not ready».

    `served`: addresses by which processes of the node answer, though they are not the host's by their identity.
    """
    local = addresses(attached, served)
    ipcache = {}
    for prefix, identity in table.ipcache.items():
        key = pack_prefix(prefix)
        ipcache[key] = _identity(identity, local.get(key, 0))
    return LogicalRows(
        endpoints={key: value for key, value in _endpoints(table, attached).items() if value is not None},
        ipcache=ipcache,
        classes={_class_key(key): _CLASS.pack(class_id) for key, class_id in table.classes.items()},
        policy={_policy_key(key): _row(table, row) for key, row in table.rows.items()},
        pairs={_U32x2.pack(*pair): _PAIR.pack(_steered(table, rule_set)) for pair, rule_set in table.pairs.items()},
    )


def delta_rows(
    table: PolicyTable, delta: TableDelta, attached: Mapping[str, Attached], served: Iterable[IPAddress] = ()
) -> RowEdits:
    """What may differ in the kernel since the table of revision `delta.base`, in time that grows with the delta.

    Of the endpoints, and of their addresses, everything: there are few on a node, and no table knows what is attached.
    """
    edits = RowEdits(_endpoints(table, attached), {}, {}, {}, {})
    local = [(address, one.ifindex) for one in attached.values() for address in one.endpoint.addresses]
    for address, index in (*((address, abi.SERVED_BY_NODE) for address in served), *local):
        identity = table.ipcache.get(_own_prefix(address))
        edits.ipcache[_address_key(address)] = None if identity is None else _identity(identity, index)
    for prefix in delta.ipcache:
        key = pack_prefix(prefix)
        if key not in edits.ipcache:
            identity = table.ipcache.get(prefix)
            edits.ipcache[key] = None if identity is None else _identity(identity, 0)
    for class_key in delta.classes:
        class_id = table.classes.get(class_key)
        edits.classes[_class_key(class_key)] = None if class_id is None else _CLASS.pack(class_id)
    for row_key in delta.rows:
        row = table.rows.get(row_key)
        edits.policy[_policy_key(row_key)] = None if row is None else _row(table, row)
    for pair in delta.pairs:
        rule_set = table.pairs.get(pair)
        edits.pairs[_U32x2.pack(*pair)] = None if rule_set is None else _PAIR.pack(_steered(table, rule_set))
    return edits


def full_edits(old: LogicalRows, new: LogicalRows) -> RowEdits:
    """What leads from some rows to others, by looking at all of them."""

    def edits(before: Rows, after: Rows) -> Edits:
        return {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    return RowEdits(*(edits(before, after) for before, after in zip(old, new, strict=True)))


def addresses(attached: Mapping[str, Attached], served: Iterable[IPAddress] = ()) -> dict[bytes, int]:
    """Keys of `ipcache` for the endpoints' own addresses, with their interfaces, and for those that the node serves."""
    found = dict.fromkeys(map(_address_key, served), abi.SERVED_BY_NODE)
    for one in attached.values():
        found.update(dict.fromkeys(map(_address_key, one.endpoint.addresses), one.ifindex))
    return found


def nobody_there(value: bytes) -> bytes:
    """A row of `ipcache` without its endpoint."""
    return value[:4] + bytes(4)


def _endpoints(table: PolicyTable, attached: Mapping[str, Attached]) -> Edits:
    found: Edits = {}
    for name, one in attached.items():
        policy = table.endpoints.get(name)
        key = one.ifindex.to_bytes(4, "little")
        if policy is None:
            found[key] = None
            continue
        enforce = Enforce.READY.value
        enforce |= Enforce.INGRESS.value if policy.ingress else 0
        enforce |= Enforce.EGRESS.value if policy.egress else 0
        found[key] = _ENDPOINT.pack(policy.identity, policy.policy_id, enforce)
    return found


@lru_cache(maxsize=1 << 14)
def _identity(number: int, ifindex: int) -> bytes:
    """Many pods have the same one: it is kept once."""
    return _IDENTITY.pack(number, ifindex)


@lru_cache(maxsize=4096)
def _address_key(address: IPAddress) -> bytes:
    return (128).to_bytes(4, "little") + pack_address(address)


@lru_cache(maxsize=4096)
def _own_prefix(address: IPAddress) -> IPNetwork:
    return ip_network(address)


def _class_key(key: ClassKey) -> bytes:
    return _U32x3.pack(key.policy_id, key.identity, key.direction)


def _policy_key(key: RowKey) -> bytes:
    return _POLICY_KEY.pack(
        abi.POLICY_PREFIX_ANY if key.protocol is Protocol.ANY else abi.POLICY_PREFIX_PROTOCOL + key.port_bits,
        key.policy_id,
        key.class_id,
        key.direction,
        key.protocol,
        int.from_bytes(key.port.to_bytes(2, "big"), "little"),
    )


def _row(table: PolicyTable, row: Row) -> bytes:
    return _ROW.pack(row.rule, _steered(table, row.rule_set), row.verdict, row.reason)


def _steered(table: PolicyTable, number: int) -> int:
    """A rule set as rows name it: marked when it enforces nothing at either end.

    The mark follows from what the number stands for, which never changes, so that a delta needs no look at rule sets.
    """
    rule_set = table.rule_sets.get(number)
    if rule_set is None or rule_set.rules is not None or (rule_set.also and rule_set.also.rules is not None):
        return number
    return number | abi.RULE_SET_AUDIT


class Longest:
    """Longest-prefix match over logical rows whose key is (prefix length, data), as the kernel's tries do it."""

    def __init__(self, rows: Rows) -> None:
        """Take over `rows`, which from now on change by `put` only."""
        self.rows = rows
        self._counts = Counter(int.from_bytes(key[:4], "little") for key in rows)
        self._lengths = sorted(self._counts, reverse=True)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set one row, or take it out."""
        length = int.from_bytes(key[:4], "little")
        if value is not None:
            if key not in self.rows:
                self._counts[length] += 1
                if self._counts[length] == 1:
                    self._lengths = sorted([*self._lengths, length], reverse=True)
            self.rows[key] = value
        elif self.rows.pop(key, None) is not None:
            self._counts[length] -= 1
            if not self._counts[length]:
                self._lengths.remove(length)

    def covering(self, key: bytes) -> bytes | None:
        """The value of the longest prefix that covers `key`, `key` itself included."""
        bits, data = int.from_bytes(key[:4], "little"), key[4:]
        for length in self._lengths:
            if length <= bits:
                found = self.rows.get(length.to_bytes(4, "little") + _mask(data, length))
                if found is not None:
                    return found
        return None

    @property
    def lengths(self) -> Sequence[int]:
        """Lengths of the prefixes that there are, the longest first."""
        return self._lengths

    @staticmethod
    def prefix(key: bytes, length: int) -> bytes:
        """The key of the prefix of this length that covers `key`."""
        return length.to_bytes(4, "little") + _mask(key[4:], length)


def _mask(data: bytes, bits: int) -> bytes:
    whole, rest = divmod(bits, 8)
    if whole >= len(data):
        return data
    kept = data[:whole] + (bytes([data[whole] & (0xFF00 >> rest & 0xFF)]) if rest else b"")
    return kept.ljust(len(data), b"\0")


def pack_endpoint(attached: Attached, slots: tuple[bytes, bytes]) -> bytes:
    """`struct endpoint`. Empty bytes in a slot mean «not ready»."""
    value = abi.Endpoint(
        netns_cookie=attached.netns_cookie, unspliced=not attached.endpoint.splice, bridge=attached.bridge
    )
    for address in attached.endpoint.addresses:
        field = value.v4 if address.version == 4 else value.v6
        field.w[:] = list(pack_address(address))
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


def pack_identity(slots: tuple[bytes, bytes]) -> bytes:
    """`struct ipcache_value`."""
    a, b = (slot or bytes(8) for slot in slots)
    return a[:4] + b[:4] + a[4:] + b[4:]


def unpack_identity(value: bytes, slot: int) -> bytes:
    """One slot of `struct ipcache_value`; empty when there is no identity."""
    number, ifindex = _U32x2.unpack(value[slot * 4 : slot * 4 + 4] + value[8 + slot * 4 : 12 + slot * 4])
    return _identity(number, ifindex) if number else b""


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
