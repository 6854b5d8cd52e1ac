"""What the pinned maps of a node say, read by whoever may, without a word to the agent; and the same of a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from pathlib import Path
from socket import ntohs
from typing import NamedTuple

from spliceway.bpf import abi
from spliceway.bpf.abi import Enforce
from spliceway.bpf.addresses import unpack_address, unpack_prefix
from spliceway.bpf.maps import ZERO, Maps
from spliceway.policy.table import OTHER_PEERS, ClassKey, EndpointPolicy, IPAddress, IPNetwork, PolicyTable, Row, RowKey
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict

#: Verdict and reason by protocol, port and port bits: all that one class of peers gets.
Rows = frozenset[tuple[tuple[int, int, int], tuple[Verdict, Reason]]]


class Said(NamedTuple):
    """Numbers left out: what each end of an address pair gets, whatever things are called inside.

    `open`: directions of endpoints that no policy covers; `rows`: by endpoint (its first address), direction, and the
    peer's prefix.
    """

    prefixes: frozenset[IPNetwork]
    open: frozenset[tuple[IPAddress, Direction]]
    rows: Mapping[tuple[IPAddress, Direction, IPNetwork], Rows]


def kernel_says(bpffs: Path) -> Said:
    """Of the live slot. Raises KernelRefusedError while there are no maps."""
    maps = Maps(bpffs / "spliceway" / f"v{abi.ABI_VERSION}")
    try:
        return _kernel(maps)
    finally:
        maps.close()


def table_says(table: PolicyTable, endpoints: Mapping[str, IPAddress]) -> Said:
    """Of a table. `endpoints`: the local ones that are wired, with their first address."""
    policies = {endpoints[name]: policy for name, policy in table.endpoints.items() if name in endpoints}
    return _said(policies, table.ipcache, table.classes, table.rows)


def _kernel(maps: Maps) -> Said:
    slot = int.from_bytes(maps.generation.lookup(ZERO) or b"", "little") & 1
    endpoints: dict[IPAddress, EndpointPolicy] = {}
    for _key, raw in maps.endpoints.items():
        one = abi.Endpoint.from_buffer_copy(raw)
        address = min((unpack_address(bytes(a.w)) for a in (one.v4, one.v6) if any(a.w)), key=lambda each: each.version)
        enforce = Enforce(one.enforce[slot])
        if enforce & Enforce.READY:
            flags = bool(enforce & Enforce.INGRESS), bool(enforce & Enforce.EGRESS)
            endpoints[address] = EndpointPolicy(one.identity[slot], one.policy[slot], *flags)
    ipcache = {}
    for key, raw in maps.ipcache.items():
        if identity := abi.IpcacheValue.from_buffer_copy(raw).identity[slot]:
            ipcache[unpack_prefix(key)] = identity
    classes = {}
    for key, raw in maps.classes.items():
        of = abi.ClassKey.from_buffer_copy(key)
        if class_id := abi.ClassValue.from_buffer_copy(raw).class_id[slot]:
            classes[ClassKey(of.policy, Direction(of.direction), of.identity)] = class_id
    rows = {}
    for key, raw in maps.policy.items():
        row, value = abi.PolicyKey.from_buffer_copy(key), abi.PolicyValue.from_buffer_copy(raw)
        if not value.verdict[slot]:
            continue
        any_protocol = row.prefixlen == abi.POLICY_PREFIX_ANY
        protocol = Protocol.ANY if any_protocol else Protocol(row.protocol)
        bits = 0 if any_protocol else row.prefixlen - abi.POLICY_PREFIX_PROTOCOL
        where = RowKey(row.policy, Direction(row.direction), row.class_id, protocol, ntohs(row.port), bits)
        rows[where] = Row(Verdict(value.verdict[slot]), Reason(value.reason[slot]), value.rule[slot])
    return _said(endpoints, ipcache, classes, rows)


def _said(
    endpoints: Mapping[IPAddress, EndpointPolicy],
    ipcache: Mapping[IPNetwork, int],
    classes: Mapping[ClassKey, int],
    rows: Mapping[RowKey, Row],
) -> Said:
    by_class: dict[tuple[int, Direction, int], set[tuple[tuple[int, int, int], tuple[Verdict, Reason]]]]
    by_class = defaultdict(set)
    for key, row in rows.items():
        port = (int(key.protocol), key.port, key.port_bits)
        by_class[key.policy_id, key.direction, key.class_id].add((port, (row.verdict, row.reason)))
    frozen = {key: frozenset(found) for key, found in by_class.items()}
    found: dict[tuple[IPAddress, Direction, IPNetwork], Rows] = {}
    opened = set()
    for address, policy in endpoints.items():
        for direction, covered in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
            if not covered:
                opened.add((address, direction))
                continue
            for prefix, identity in ipcache.items():
                class_id = classes.get(ClassKey(policy.policy_id, direction, identity), OTHER_PEERS)
                found[address, direction, prefix] = frozen.get((policy.policy_id, direction, class_id), frozenset())
    return Said(frozenset(ipcache), frozenset(opened), found)


def without(said: Said, prefixes: Collection[IPNetwork]) -> Said:
    """The same, with these prefixes left out."""
    rows = {key: rows for key, rows in said.rows.items() if key[2] not in prefixes}
    return Said(said.prefixes - frozenset(prefixes), said.open, rows)


def differences(kernel: Said, wanted: Said) -> list[str]:
    """What is not the same, a few of each."""
    told = [f"prefixes only in the kernel: {sorted(map(str, kernel.prefixes - wanted.prefixes))[:5]}"]
    told += [f"prefixes missing: {sorted(map(str, wanted.prefixes - kernel.prefixes))[:5]}"]
    told += [f"open only in the kernel: {sorted(map(str, kernel.open - wanted.open))[:5]}"]
    told += [f"covered only in the kernel: {sorted(map(str, wanted.open - kernel.open))[:5]}"]
    others = [key for key in kernel.rows.keys() | wanted.rows.keys() if kernel.rows.get(key) != wanted.rows.get(key)]
    told += [f"{len(others)} other rows"]
    for key in others[:3]:
        told.append(
            f"{key}: kernel {sorted(kernel.rows.get(key, ()))[:4]}, wanted {sorted(wanted.rows.get(key, ()))[:4]}"
        )
    return told


def first_address(texts: list[str]) -> IPAddress:
    """IPv4 first, as above."""
    return min(map(ip_address, texts), key=lambda each: each.version)
