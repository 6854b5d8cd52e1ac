"""Marks of Services' addresses in `ipcache`: they follow the prefixes around them, and cost what changes."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address, ip_address, ip_network

import msgspec

from spliceway.agent.serviceaddresses import ServiceAddresses
from spliceway.bpf import abi
from spliceway.bpf.addresses import pack_prefix
from spliceway.bpf.rows import Edits, Longest
from spliceway.bpf.servicemarks import ServiceMarks
from spliceway.policy.lbmodel import CLUSTER_IP, Frontend, FrontendState
from spliceway.policy.lookup import identify
from spliceway.policy.numbering import FIRST_CIDR_IDENTITY
from spliceway.policy.table import IPNetwork, PolicyTable
from spliceway.policy.verdict import Protocol

_PAIR = struct.Struct("=II")
WORLD = {ip_network("0.0.0.0/0"): 9, ip_network("::/0"): 10}
EMPTY = PolicyTable(1, {}, {}, {}, {}, {}, {}, {})


def table_of(ipcache: dict[IPNetwork, int]) -> PolicyTable:
    return msgspec.structs.replace(EMPTY, ipcache=ipcache)


def step(
    marks: ServiceMarks, trie: Longest, old: dict[IPNetwork, int], new: dict[IPNetwork, int], local: set[bytes]
) -> Edits:
    """What staging does with a delta, in short."""
    edits: Edits = {}
    for prefix in old.keys() | new.keys():
        if old.get(prefix) != new.get(prefix):
            edits[pack_prefix(prefix)] = _PAIR.pack(new[prefix], 0) if prefix in new else None
    for key in local:
        edits[key] = _PAIR.pack(300, 7)
    marks.edit(edits, table_of(new), trie, local, frozenset(local))
    changed = {key: value for key, value in edits.items() if trie.rows.get(key) != value}
    for key, value in changed.items():
        trie.put(key, value)
    marks.done()
    return changed


def test_marks_follow_the_prefixes_around_them() -> None:
    rng = random.Random(7)
    marks, trie = ServiceMarks(1000), Longest({})
    pool = [ip_address(0x0A600000 + n) for n in range(24)]
    prefixes = [ip_network((0x0A600000 + n, bits), strict=False) for n in range(24) for bits in (8, 24, 28, 30, 31, 32)]
    wanted: set[IPv4Address] = set()
    old: dict[IPNetwork, int] = {}
    for _ in range(400):
        new = dict(old) | WORLD
        for prefix in rng.sample(prefixes, 2):
            if new.pop(prefix, None) is None or rng.random() < 0.4:
                new[prefix] = rng.choice((FIRST_CIDR_IDENTITY + 1, FIRST_CIDR_IDENTITY + 2, 1, 3, 6, 300))
        changes = {one: rng.random() < 0.5 for one in rng.sample(pool, rng.randint(0, 2))}
        wanted = {one for one in {*wanted, *changes} if changes.get(one, True)}
        marks.want(changes)
        step(marks, trie, old, new, set())
        old = new
        expected = {pack_prefix(prefix): (identity, 0) for prefix, identity in new.items()}
        for address in wanted:
            identity = identify(new, address)
            if identity in (9, 10) or identity >= FIRST_CIDR_IDENTITY:
                expected[pack_prefix(ip_network(address))] = identity, abi.SERVICE_ADDRESS
        assert {key: _PAIR.unpack(value) for key, value in trie.rows.items()} == expected
        assert not marks.pending


def test_a_change_of_one_service_touches_one_row() -> None:
    marks, trie = ServiceMarks(20_000), Longest({})
    marks.want({ip_address(0x0A600000 + n): True for n in range(10_000)})
    assert len(step(marks, trie, {}, dict(WORLD), set())) == 10_002
    marks.want({ip_address("10.96.0.5"): False, ip_address("fd00:96::5"): True})
    pods = {**WORLD, ip_network("10.240.1.7/32"): 400}
    assert len(step(marks, trie, dict(WORLD), pods, set())) == 3
    assert step(marks, trie, pods, pods, set()) == {}


def test_without_room_an_address_is_judged_by_itself_until_there_is_some() -> None:
    marks, trie = ServiceMarks(2), Longest({})
    first, second, third = (ip_address(f"10.96.0.{n}") for n in (1, 2, 3))
    marks.want(dict.fromkeys((first, second, third), True))
    step(marks, trie, {}, dict(WORLD), set())
    assert (marks.left_out, marks.pending, len(trie.rows)) == (1, False, 4)
    marks.want({first: False})
    step(marks, trie, dict(WORLD), dict(WORLD), set())
    assert (marks.left_out, len(trie.rows)) == (0, 4)


def test_an_address_with_another_meaning_keeps_it() -> None:
    marks, trie = ServiceMarks(10), Longest({})
    address = ip_address("10.96.0.1")
    key = pack_prefix(ip_network(address))
    marks.want({address: True})
    step(marks, trie, {}, dict(WORLD), {key})
    assert _PAIR.unpack(trie.rows[key]) == (300, 7)
    edits: Edits = {}
    marks.edit(edits, table_of(dict(WORLD)), trie, set(), {key})
    assert edits == {key: _PAIR.pack(9, abi.SERVICE_ADDRESS)}, "it has lost the other one"


def test_where_devices_can_not_be_read_nothing_is_marked() -> None:
    marks, trie = ServiceMarks(10), Longest({})
    marks.want({ip_address("10.96.0.1"): True})
    step(marks, trie, {}, dict(WORLD), set())
    marks.hold("devices", ["ib0"])
    assert marks.pending
    step(marks, trie, dict(WORLD), dict(WORLD), set())
    assert len(trie.rows) == 2
    marks.hold("devices", [])
    step(marks, trie, dict(WORLD), dict(WORLD), set())
    assert len(trie.rows) == 3


def test_an_address_is_a_services_as_long_as_one_has_it() -> None:
    addresses = ServiceAddresses()
    first, second = ip_address("10.96.0.1"), ip_address("10.96.0.2")
    state = FrontendState("a/b", "", CLUSTER_IP, ())
    http, https = (Frontend(first, port, Protocol.TCP) for port in (80, 443))
    addresses.update({http: state, https: state, Frontend(second, 80, Protocol.SCTP): state})
    assert addresses.take() == {first: True}
    addresses.update({http: None})
    addresses.update({https: msgspec.structs.replace(state, service="a/c")})
    assert addresses.take() in ({}, {first: True})
    addresses.update({https: None})
    assert addresses.take() == {first: False}
    addresses.update({http: state})
    addresses.update({http: None})
    assert addresses.take() == {first: False}
