"""Deltas: the kernel holds after them what it would hold after the whole table, and they cost what changed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping
from ipaddress import IPv4Network, ip_network
from typing import Any, TypeVar

import msgspec
import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.rows import logical_rows
from spliceway.policy.table import ClassKey, EndpointPolicy, IPNetwork, PolicyTable, Row, RowKey, TableDelta
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.kernel import SMALL, KernelNode
from support.maps import expected, live
from support.steps import steps

pytestmark = pytest.mark.kernel

NAMES = ("default/frontend", "default/backend", "default/elsewhere")
K = TypeVar("K", bound=Hashable)
MAPPINGS = ("ipcache", "endpoints", "classes", "rows", "pairs")


@pytest.fixture(scope="module")
def node(demo_testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(demo_testbed.node, **SMALL) as kernel:
        yield kernel


def edited(rng: random.Random, before: Mapping[K, Any], key: Any, value: Any) -> dict[K, Any]:
    """Some entries go, some change, some come."""
    after = {k: value() if rng.random() < 0.1 else v for k, v in before.items() if rng.random() > 0.1}
    return after | {key(): value() for _ in range(rng.randint(0, 4))}


def next_table(rng: random.Random, last: PolicyTable, own: tuple[IPNetwork, ...]) -> PolicyTable:
    """A random edit of a table, with prefixes and port rows that nest, and its delta."""

    def prefix() -> IPNetwork:
        if rng.random() < 0.3:
            return rng.choice(own)
        bits = rng.choice((0, 4, 8, 9, 16, 31, 32))
        return ip_network((rng.choice((0x0A000000, 0x0AF00000)) | rng.getrandbits(6), bits), strict=False)

    def row_key() -> RowKey:
        bits = rng.choice((0, 8, 12, 16))
        port = rng.getrandbits(4) << 12 >> (16 - bits) << (16 - bits)
        key = RowKey(rng.randint(1, 3), rng.choice(list(Direction)), rng.randint(0, 2), Protocol.TCP, port, bits)
        return key if rng.random() > 0.2 else key._replace(protocol=Protocol.ANY, port=0, port_bits=0)

    def number() -> int:
        return rng.randint(256, 290)

    new = msgspec.structs.replace(
        last,
        revision=last.revision + 1,
        ipcache=edited(rng, last.ipcache, prefix, number),
        endpoints=edited(
            rng, last.endpoints, lambda: rng.choice(NAMES), lambda: EndpointPolicy(256, rng.randint(1, 3), True, False)
        ),
        classes=edited(
            rng,
            last.classes,
            lambda: ClassKey(rng.randint(1, 3), Direction.INGRESS, number()),
            lambda: rng.randint(1, 3),
        ),
        rows=edited(
            rng,
            last.rows,
            row_key,
            lambda: Row(rng.choice((Verdict.ALLOW, Verdict.DENY)), Reason.POLICY_ALLOWED, rng.randint(1, 9)),
        ),
        pairs=edited(rng, last.pairs, lambda: (rng.randint(1, 4), rng.randint(5, 9)), lambda: rng.randint(10, 99)),
    )
    return msgspec.structs.replace(new, delta=delta(rng, last, new))


def delta(rng: random.Random, last: PolicyTable, new: PolicyTable) -> TableDelta:
    """What differs, and a little more: a delta may name what stayed as it is."""
    found = {}
    for name in MAPPINGS:
        before, after = getattr(last, name), getattr(new, name)
        keys = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        found[name] = frozenset(keys | {k for k in after if rng.random() < 0.05})
    return TableDelta(last.revision, **found)


def empty(revision: int) -> PolicyTable:
    return PolicyTable(revision, {}, {}, {}, {}, {}, {}, {})


@pytest.mark.parametrize("seed", range(5))
def test_the_kernel_holds_what_the_whole_table_says(
    node: KernelNode, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    own = tuple(ip_network(address) for one in node.endpoints for address in one.addresses)
    table = empty(1000 * seed)
    node.run(node.datapath.apply(table))
    with monkeypatch.context() as patch:
        patch.setattr("spliceway.bpf.staging.full_edits", None)  # whatever falls back to it fails
        for _ in range(40):
            table = next_table(rng, table, own)
            node.run(node.datapath.apply(table))
            one, other = live(node)
            assert one == other == expected(logical_rows(table, node.datapath._attached))
        generation = node.datapath._table.generation
        assert node.run(node.datapath.apply(table)) == generation, "nothing differs"


def test_endpoints_come_and_go_between_deltas(node: KernelNode) -> None:
    rng = random.Random(9)
    own = tuple(ip_network(address) for one in node.endpoints for address in one.addresses)
    table = empty(20_000)
    node.run(node.datapath.apply(table))
    for step in range(12):
        some = node.endpoints if step % 2 else [one for one in node.endpoints if rng.random() < 0.5]
        node.run(node.datapath.set_endpoints(some))
        table = next_table(rng, table, own)
        node.run(node.datapath.apply(table))
        one, other = live(node)
        assert one == other == expected(logical_rows(table, node.datapath._attached))


def test_a_delta_against_another_table_is_not_trusted(node: KernelNode) -> None:
    """One was left out, or failed: then all is compared."""
    rng = random.Random(5)
    own = tuple(ip_network(address) for one in node.endpoints for address in one.addresses)
    first = next_table(rng, empty(30_000), own)
    node.run(node.datapath.apply(first))
    for _ in range(5):
        left_out = next_table(rng, first, own)
        first = next_table(rng, left_out, own)
        node.run(node.datapath.apply(first))
        one, other = live(node)
        assert one == other == expected(logical_rows(first, node.datapath._attached))


@pytest.mark.parametrize("failing", ["classes", "ipcache", "policy", "endpoints"])
def test_a_write_that_fails_is_undone(node: KernelNode, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Also what the tries answer for keys that come next, which is kept in memory."""
    rng = random.Random(6)
    own = tuple(ip_network(address) for one in node.endpoints for address in one.addresses)
    table = next_table(rng, empty(40_000), own)
    node.run(node.datapath.apply(table))
    before, generation = live(node), node.datapath._table.generation
    target = getattr(node.datapath._maps, failing)
    with monkeypatch.context() as patch:
        calls = []

        def refuse(items: list[tuple[bytes, bytes]]) -> None:
            calls.append(len(items))
            if len(calls) == 1:
                type(target).update_many(target, items[: len(items) // 2])
                raise KernelRefusedError("write", 12)
            type(target).update_many(target, items)

        patch.setattr(target, "update_many", refuse, raising=False)
        changed = next_table(rng, table, own)
        while not getattr(changed.delta, {"policy": "rows"}.get(failing, failing)):
            changed = next_table(rng, table, own)
        with pytest.raises(KernelRefusedError):
            node.run(node.datapath.apply(changed))
    assert live(node) == before
    assert node.datapath._table.generation == generation
    for _ in range(5):
        table = next_table(rng, table, own)
        node.run(node.datapath.apply(table))
        one, other = live(node)
        assert one == other == expected(logical_rows(table, node.datapath._attached))


def test_what_an_interrupted_clean_up_left_is_done_first(node: KernelNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the switch: the new rows are live, the idle slot still has the old ones."""
    rng = random.Random(7)
    own = tuple(ip_network(address) for one in node.endpoints for address in one.addresses)
    table = next_table(rng, empty(50_000), own)
    node.run(node.datapath.apply(table))
    target = node.datapath._maps.policy
    with monkeypatch.context() as patch:
        calls = []

        def refuse(items: list[tuple[bytes, bytes]]) -> None:
            calls.append(items)
            if len(calls) == 2:
                raise KernelRefusedError("write", 12)
            type(target).update_many(target, items)

        patch.setattr(target, "update_many", refuse, raising=False)
        table = next_table(rng, table, own)
        with pytest.raises(KernelRefusedError):
            node.run(node.datapath.apply(table))
    assert live(node)[0] == expected(logical_rows(table, node.datapath._attached))
    for _ in range(3):
        table = next_table(rng, table, own)
        node.run(node.datapath.apply(table))
        one, other = live(node)
        assert one == other == expected(logical_rows(table, node.datapath._attached))


@pytest.mark.parametrize("size", [2_000, 100_000])
def test_one_pod_among_many_costs_little(node: KernelNode, size: int) -> None:
    """One pod added, or removed, takes as many steps among 100,000 addresses as among 2,000: some hundreds."""
    pods: dict[IPNetwork, int] = {IPv4Network((0x0B000000 + i, 32)): 256 + i % 2000 for i in range(size)}
    table = msgspec.structs.replace(empty(60_000), ipcache={ip_network("0.0.0.0/0"): 9, **pods})
    kernel, attached = node.datapath._table, node.datapath._attached
    kernel.apply(table, attached)
    taken = []
    for i in range(6):
        new = IPv4Network((0x0C000000 + i // 2, 32))
        if i % 2:
            del pods[new]
        else:
            pods[new] = 300
        ipcache = {ip_network("0.0.0.0/0"): 9, **pods}
        delta = TableDelta(table.revision, ipcache=frozenset({new}))
        table = msgspec.structs.replace(table, revision=table.revision + 1, ipcache=ipcache, delta=delta)
        taken.append(steps(lambda table=table: kernel.apply(table, attached)))  # type: ignore[misc]
    assert min(taken) > 10, taken
    assert max(taken) < 1_000, taken
    kernel.apply(empty(70_000), attached)
