"""A packet generator runs against the kernel while random edits are applied: each verdict is that of a live table.

Every packet begins a connection of its own. Its verdict must be what `lookup` reads in the table before the edit that
is under way, or in the one after it: nothing in between, in any part.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import count
from random import Random
from typing import NamedTuple

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from spliceway.bpf.install import pin_root
from spliceway.bpf.types import KernelFlow, LocalEndpoint
from spliceway.policy.engine import Engine, Options
from spliceway.policy.entity import Reserved
from spliceway.policy.lookup import Judgement, identify, lookup, lookup_pair
from spliceway.policy.numbering import FIRST_HOST_VARIANT, LAST_HOST_VARIANT, Numbering
from spliceway.policy.table import EndpointPolicy, PolicyTable
from spliceway.policy.verdict import Direction, Reason, Verdict
from support import packets as p
from support.kernel import KernelNode
from support.worlds import POD_CIDRS, PORTS, World

pytestmark = pytest.mark.kernel

EDITS = int(os.environ.get("SPLICEWAY_EDITS", "250"))
#: The pods of `World` in one namespace, whether they are there at the moment or not.
ADDRESSES = {f"one/pod{n}": (ip_address(f"10.240.1.{n + 1}"), ip_address(f"fd00:240:1::{n + 1}")) for n in range(8)}
OUTSIDE = tuple(map(ip_address, ("10.1.2.3", "10.1.2.200", "203.0.113.9", "10.240.1.200", "fd00:99::1", "2001:db8::1")))

Address = IPv4Address | IPv6Address


class Packet(NamedTuple):
    """A connection's first packet."""

    source: Address
    destination: Address
    protocol: int
    sport: int
    dport: int


class Sent(NamedTuple):
    """A packet and the tables (by number) that were live, or became so, while it was judged."""

    packet: Packet
    first: int
    last: int


@pytest.fixture(scope="module")
def node() -> Iterator[KernelNode]:
    with Testbed.up([]) as testbed, KernelNode(testbed.node) as kernel:
        netns = testbed.node.info.netns
        endpoints = [
            LocalEndpoint(name, f"d{i}", netns, addresses) for i, (name, addresses) in enumerate(ADDRESSES.items())
        ]
        for one in endpoints:
            kernel.node.run_on_node(
                ["ip", "link", "add", one.interface, "type", "veth", "peer", "name", f"p{one.interface}"]
            )
        kernel.run(kernel.datapath.set_endpoints(endpoints))
        yield kernel


class Reader:
    """What a table says about a packet, as the programs read it."""

    def __init__(self, table: PolicyTable) -> None:
        self.table = table
        self._identities: dict[Address, int] = {}
        self._known: dict[tuple[object, ...], Judgement | None] = {}

    def judge(self, packet: Packet) -> Judgement | None:
        """The verdict on the connection; None: an endpoint of it has no policy yet."""
        key = (packet.source, packet.destination, packet.protocol, packet.dport)
        if key not in self._known:
            self._known[key] = self._judge(packet)
        return self._known[key]

    def has(self, address: Address) -> bool:
        """Whether the address itself has an identity."""
        return ip_network(address) in self.table.ipcache

    def _judge(self, packet: Packet) -> Judgement | None:
        client, server = self._policy(packet, packet.source), self._policy(packet, packet.destination)
        if isinstance(client, str) or isinstance(server, str):
            return None
        egress = ingress = None
        if client:
            to = self._identity(packet.destination, server)
            egress = lookup(self.table, client, Direction.EGRESS, to, packet.protocol, packet.dport)
        if server:
            of = self._identity(packet.source, client)
            if is_host(of) and owner(packet.source) is None:  # it comes from elsewhere: it was masqueraded
                of = Reserved.WORLD_IPV4 if packet.source.version == 4 else Reserved.WORLD_IPV6
            ingress = lookup(self.table, server, Direction.INGRESS, of, packet.protocol, packet.dport)
        return lookup_pair(self.table, egress, ingress)

    def _policy(self, packet: Packet, address: Address) -> EndpointPolicy | str | None:
        """Of a local endpoint; its name when it has none yet; None when it is no local endpoint.

        The endpoint at whose device the program runs is known by that, the other one by its address.
        """
        name = owner(address)
        here = packet.source if owner(packet.source) else packet.destination
        return (
            None if name is None or not (address == here or self.has(address)) else self.table.endpoints.get(name, name)
        )

    def _identity(self, address: Address, policy: EndpointPolicy | None) -> int:
        if policy is not None and not self.has(address):
            return policy.identity
        if address not in self._identities:
            self._identities[address] = identify(self.table.ipcache, address)
        return self._identities[address]


def is_host(identity: int) -> bool:
    return identity == Reserved.HOST or FIRST_HOST_VARIANT <= identity <= LAST_HOST_VARIANT


def owner(address: Address) -> str | None:
    """The endpoint that is attached with this address."""
    return next((name for name, own in ADDRESSES.items() if address in own), None)


class Traffic:
    """Packets, one after another, from pods and from outside."""

    def __init__(self, node: KernelNode, seed: int) -> None:
        self._node, self._random = node, Random(seed)
        self._sports = count(1)
        self.sent: list[Sent] = []
        self.applied = self.applying = 0
        self.done = False

    async def run(self) -> None:
        """Send until `done`."""
        root = pin_root(self._node.settings) / "programs"
        programs = {hook: libbpf.open_pin(root / hook) for hook in ("from_pod", "to_pod")}
        try:
            while not self.done:
                for _ in range(8):
                    self._send(programs)
                await asyncio.sleep(0)
        finally:
            for descriptor in programs.values():
                os.close(descriptor)

    def _send(self, programs: dict[str, int]) -> None:
        name = self._random.choice(list(ADDRESSES))
        own = self._random.choice(ADDRESSES[name])
        others = [a for pair in ADDRESSES.values() for a in pair if a.version == own.version and a != own]
        outside = [a for a in OUTSIDE if a.version == own.version]
        protocol = self._random.choice((p.TCP, p.TCP, p.UDP))
        number, port = next(self._sports), self._random.choice(PORTS[1:])
        # Many more packets than ports: the destination's port and the ends make the tuple unique.
        sport = number % 60_000 + 1
        inbound = self._random.random() < 0.3
        peer = self._random.choice(outside if inbound else [*others, *outside])
        packet = Packet(peer, own, protocol, sport, port) if inbound else Packet(own, peer, protocol, sport, port)
        make: Callable[..., bytes] = p.tcp if protocol == p.TCP else p.udp
        ends = (packet.source, packet.destination)
        frame = p.frame(p.ip(*ends, protocol, make(*ends, sport, port)))
        first = self.applied
        ifindex = self._node.ifindex(name)
        if inbound:
            libbpf.run_on_packet(programs["to_pod"], frame, ifindex=ifindex, ingress_ifindex=1)
        else:
            libbpf.run_on_packet(programs["from_pod"], frame, ifindex=ifindex)
        self.sent.append(Sent(packet, first, self.applying))


async def edit(node: KernelNode, traffic: Traffic, world: World, tables: list[PolicyTable]) -> None:
    """Apply random edits, one after another, and end the traffic."""
    engine = Engine(Options(node="node1", pod_cidrs=POD_CIDRS), Numbering())
    changes = (list(world.objects.values()), list[tuple[str, str]]())
    try:
        for number in range(EDITS):
            table = await asyncio.to_thread(engine.apply, *changes, revision=number + 1)
            tables.append(table)
            traffic.applying = number
            await node.datapath.apply(table)
            traffic.applied = number
            changes = world.change()
    finally:
        traffic.done = True


@pytest.mark.timeout(1200)
def test_every_verdict_is_of_a_table_that_was_live(node: KernelNode) -> None:
    world, traffic = World(EDITS), Traffic(node, EDITS)
    tables: list[PolicyTable] = []

    async def both() -> None:
        traffic.applied = traffic.applying = -1
        task = asyncio.create_task(edit(node, traffic, world, tables))
        while traffic.applied < 0 and not task.done():  # the first table is no edit  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.gather(traffic.run(), task)

    node.loop.run(both(), timeout=1100)
    readers = [Reader(table) for table in tables]
    flows = wait_for_flows(node, traffic.sent)
    wrong, seen, changed = [], set(), 0
    for sent in traffic.sent:
        flow = flows.get(sent.packet)
        if flow is None:
            continue  # lost, or its tuple was used twice
        span = readers[sent.first : sent.last + 1]
        allowed = [reader.judge(sent.packet) for reader in span]
        changed += len(set(map(outcome, allowed))) > 1
        seen.add(flow.verdict)
        if not any(agrees(flow, judgement) for judgement in allowed):
            wrong.append((sent, flow, allowed))
    assert not wrong, f"{len(wrong)} of {len(flows)}, the first: {wrong[0]}"
    assert len(flows) > 20 * EDITS, "too few packets to mean anything"
    assert changed > EDITS // 10, "hardly a packet met an edit"
    print(f"{EDITS} edits, {len(flows)} packets, {changed} of them while their verdict changed")


def wait_for_flows(node: KernelNode, sent: list[Sent]) -> dict[Packet, KernelFlow]:
    """Records by packet, once all that are still under way have come. Tuples that came twice are left out."""
    node.flows_seen(0.5)
    found: dict[Packet, KernelFlow] = {}
    twice: set[Packet] = set()
    for flow in node.flows:
        ends = flow.source, flow.destination
        packet = Packet(*ends, flow.protocol, flow.source_port, flow.destination_port)
        if packet in found:
            twice.add(packet)
        found[packet] = flow
    all_sent = [one.packet for one in sent]
    assert len(found) > len(all_sent) * 0.9
    return {packet: flow for packet, flow in found.items() if packet not in twice}


def outcome(judgement: Judgement | None) -> tuple[object, ...]:
    """What of a judgement shows."""
    return () if judgement is None else (judgement.verdict, judgement.reason, judgement.rule, judgement.rule_set)


def agrees(flow: KernelFlow, judgement: Judgement | None) -> bool:
    """Without a proxy a redirect shows as a drop with its rule set."""
    if judgement is None:
        return flow.reason is Reason.NOT_READY
    if judgement.verdict is Verdict.REDIRECT:
        steering = flow.reason in (Reason.NO_LISTENER, Reason.NOT_STEERED)
        return steering and (flow.rule, flow.rule_set) == (judgement.rule, judgement.rule_set)
    return (flow.verdict, flow.reason, flow.rule) == (judgement.verdict, judgement.reason, judgement.rule)
