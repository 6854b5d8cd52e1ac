"""Staging on real maps: one switch, nothing left behind, a failure that changes nothing, state that is taken over."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.datapath import Datapath
from spliceway.bpf.errors import KernelRefusedError
from spliceway.bpf.rows import LogicalRows, logical_rows
from spliceway.policy.table import ClassKey, EndpointPolicy, PolicyTable, Row, RowKey, RuleRef
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support import packets as p
from support.kernel import SMALL, KernelNode
from support.maps import expected, live

pytestmark = pytest.mark.kernel

ME = "default/frontend"


@pytest.fixture(scope="module")
def node(demo_testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(demo_testbed.node, **SMALL) as kernel:
        yield kernel


def table(rng: random.Random, revision: int, rows: int = 20) -> PolicyTable:
    """A random table, with prefixes and port rows that nest."""
    prefixes = {
        ip_network((rng.getrandbits(32), rng.choice((0, 4, 8, 9, 16, 31, 32))), strict=False) for _ in range(30)
    }
    v6 = {ip_network((rng.getrandbits(128), rng.choice((0, 3, 64, 127, 128))), strict=False) for _ in range(10)}
    ipcache = {prefix: rng.randint(256, 280) for prefix in prefixes | v6}
    ipcache |= {ip_network("0.0.0.0/0"): 9, ip_network("::/0"): 10}
    made: dict[RowKey, Row] = {}
    while len(made) < rows:
        bits = rng.choice((0, 8, 12, 16))
        port = rng.getrandbits(16) >> (16 - bits) << (16 - bits)
        key = RowKey(rng.randint(1, 3), rng.choice(list(Direction)), rng.randint(0, 3), Protocol.TCP, port, bits)
        if rng.random() < 0.2:
            key = key._replace(protocol=Protocol.ANY, port=0, port_bits=0)
        made[key] = Row(rng.choice((Verdict.ALLOW, Verdict.DENY)), Reason.POLICY_ALLOWED, rng.randint(1, 9))
    return PolicyTable(
        revision=revision,
        identities={},
        ipcache=ipcache,
        endpoints={ME: EndpointPolicy(256, rng.randint(1, 3), ingress=rng.random() < 0.5, egress=True)},
        classes={
            ClassKey(rng.randint(1, 3), rng.choice(list(Direction)), rng.randint(256, 280)): rng.randint(1, 3)
            for _ in range(20)
        },
        rows=made,
        rule_sets={},
        rules={i: RuleRef("test", str(i)) for i in range(1, 10)},
    )


@pytest.mark.parametrize("seed", range(4))
def test_maps_hold_exactly_the_table_in_both_slots(node: KernelNode, seed: int) -> None:
    rng = random.Random(seed)
    for revision in range(6):
        wanted = table(rng, revision)
        before = node.datapath._table.generation
        after = node.run(node.datapath.apply(wanted))
        assert after == before + 1
        one, other = live(node)
        assert one == other == expected(logical_rows(wanted, node.datapath._attached))
    assert node.run(node.datapath.apply(wanted)) == after, "an equal table is no new generation"


def test_what_does_not_fit_changes_nothing(node: KernelNode) -> None:
    rng = random.Random(1)
    good = table(rng, 1)
    generation = node.run(node.datapath.apply(good))
    before = live(node)
    with pytest.raises(KernelRefusedError, match=r"map policy: 400 elements needed, .* room for 256"):
        node.run(node.datapath.apply(table(rng, 2, rows=400)))
    assert node.datapath._table.generation == generation
    assert live(node) == before
    assert node.run(node.datapath.apply(table(rng, 3))) == generation + 1


def test_a_new_agent_takes_over_what_is_live(node: KernelNode) -> None:
    rng = random.Random(2)
    wanted = table(rng, 1)
    node.run(node.datapath.apply(wanted))
    rows = node.datapath._table.rows

    async def again() -> tuple[LogicalRows, bool, int]:
        second = await Datapath.open(node.settings)
        try:
            return second._table.rows, second.status().taken_over, second._table.generation
        finally:
            await second.close()

    taken, taken_over, generation = node.run(again())
    assert (taken, taken_over) == (rows, True)
    assert generation == node.datapath._table.generation


def test_an_agent_that_died_while_staging_leaves_nothing(node: KernelNode) -> None:
    """Values in the idle slot, a key that only the idle slot knows: settled by the next agent."""
    rng = random.Random(3)
    node.run(node.datapath.apply(table(rng, 1)))
    good = live(node)
    maps, slot = node.datapath._maps, node.datapath._table.generation & 1
    for key, raw in list(maps.policy.items())[:5]:
        idle = bytearray(raw)
        idle[16 + 1 - slot] = Verdict.ALLOW  # verdict[idle]
        idle[4 * (1 - slot)] ^= 0xFF  # rule[idle]
        maps.policy.update(key, bytes(idle))
    for key, raw in list(maps.endpoints.items()):
        if raw[40 + 16 + slot]:  # enforce[live]
            idle = bytearray(raw)
            idle[40 + 16 + 1 - slot] = 4  # ready, and no policy in any direction
            maps.endpoints.update(key, bytes(idle))
    stray = bytearray(16)
    stray[4 * (1 - slot)] = 7
    maps.ipcache.update((128).to_bytes(4, "little") + bytes(15) + b"\5", bytes(stray))
    assert live(node) != good

    async def again() -> None:
        second = await Datapath.open(node.settings)
        await second.close()

    node.run(again())
    assert live(node) == good


def test_before_its_first_policy_an_endpoint_drops_everything(demo_testbed: Testbed, node: KernelNode) -> None:
    empty = PolicyTable(9, {}, {ip_network("0.0.0.0/0"): 9}, {}, {}, {}, {}, {})
    node.run(node.datapath.apply(empty))
    seen = node.flows_seen()
    assert node.judge("from_pod", p.tcp_frame("10.240.1.10", "8.8.8.8", 1, 2), endpoint=ME) == 2
    assert node.flow_after(seen).reason is Reason.NOT_READY
