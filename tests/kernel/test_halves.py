"""Two halves of a connection become one verdict in the kernel: every combination, from tables made by hand."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import count, product
from typing import NamedTuple

import msgspec
import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import abi
from spliceway.bpf.types import CtEntry, Hook, Leg
from spliceway.policy.table import ClassKey, EndpointPolicy, PolicyTable, Row, RowKey, RuleSet
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support import packets as p
from support.kernel import KernelNode

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "default/frontend", "default/backend"
FIRST_PORT = 1000
EGRESS_SET, INGRESS_SET, BOTH = 501, 502, 503


class Half(NamedTuple):
    """What one end's policy says. Rules are numbered 1 (egress) and 2 (ingress)."""

    verdict: Verdict
    reason: Reason
    ruled: bool = True

    def row(self, direction: Direction) -> Row:
        rule_set = (INGRESS_SET, EGRESS_SET)[direction] if self.verdict is Verdict.REDIRECT else 0
        return Row(self.verdict, self.reason, (2, 1)[direction] if self.ruled else 0, rule_set)


HALVES = {
    "allow": Half(Verdict.ALLOW, Reason.POLICY_ALLOWED),
    "nothing": Half(Verdict.ALLOW, Reason.NO_POLICY, ruled=False),
    "redirect": Half(Verdict.REDIRECT, Reason.REDIRECTED),
    "deny": Half(Verdict.DENY, Reason.POLICY_DENIED),
    "default": Half(Verdict.DENY, Reason.DEFAULT_DENY, ruled=False),
    "audit": Half(Verdict.ALLOW, Reason.DEFAULT_DENY, ruled=False),
    "audit-rule": Half(Verdict.ALLOW, Reason.POLICY_DENIED),
    "audit-redirect": Half(Verdict.REDIRECT, Reason.POLICY_DENIED),
}
COMBINATIONS = {pair: FIRST_PORT + i for i, pair in enumerate(product(HALVES, HALVES))}


def expected(out: Half, into: Half) -> tuple[Verdict, Reason, int, int]:
    """Verdict, reason, rule and rule set, as docs/policy.md has it."""
    for half, rule in ((out, 1), (into, 2)):
        if half.verdict is Verdict.DENY:
            return Verdict.DENY, half.reason, rule if half.ruled else 0, 0
    redirects = (out.verdict is Verdict.REDIRECT, into.verdict is Verdict.REDIRECT)
    verdict = Verdict.REDIRECT if any(redirects) else Verdict.ALLOW
    rule_set = {(True, True): BOTH, (True, False): EGRESS_SET, (False, True): INGRESS_SET}.get(redirects, 0)
    candidates = [
        (out, 1, out.reason.denies),
        (into, 2, into.reason.denies),
        (out, 1, redirects[0]),
        (into, 2, redirects[1]),
        (into, 2, into.reason is not Reason.NO_POLICY),
        (out, 1, True),
    ]
    named, rule, _ = next(candidate for candidate in candidates if candidate[2])
    return verdict, named.reason, rule if named.ruled else 0, rule_set


@pytest.fixture(scope="module")
def node(demo_testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(demo_testbed.node) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def ends(demo_testbed: Testbed) -> dict[int, tuple[str, str]]:
    pods = [demo_testbed.pod(name.split("/")[1]) for name in (CLIENT, SERVER)]
    return {version: (str(pods[0].address(version)), str(pods[1].address(version))) for version in (4, 6)}


_REVISIONS = count(1)
_PORTS = count(30000)


def table(
    ends: dict[int, tuple[str, str]], combinations: dict[tuple[str, str], int], *, pairs: bool = True
) -> PolicyTable:
    """One port for each combination of the client's egress (policy 1) and the server's ingress (policy 2)."""
    rows = {}
    for (out, into), port in combinations.items():
        rows[RowKey(1, Direction.EGRESS, 0, Protocol.TCP, port, 16)] = HALVES[out].row(Direction.EGRESS)
        rows[RowKey(2, Direction.INGRESS, 0, Protocol.TCP, port, 16)] = HALVES[into].row(Direction.INGRESS)
    ipcache = {ip_network("0.0.0.0/0"): 9, ip_network("::/0"): 10}
    for pair in ends.values():
        ipcache |= {ip_network(address): 256 + i for i, address in enumerate(pair)}
    return PolicyTable(
        revision=next(_REVISIONS),
        identities={},
        ipcache=ipcache,
        endpoints={
            CLIENT: EndpointPolicy(256, 1, ingress=False, egress=True),
            SERVER: EndpointPolicy(257, 2, ingress=True, egress=False),
        },
        classes={},
        rows=rows,
        rule_sets={n: RuleSet(n, str(n), ()) for n in (EGRESS_SET, INGRESS_SET, BOTH)},
        rules={},
        pairs={(EGRESS_SET, INGRESS_SET): BOTH} if pairs else {},
    )


def entry(node: KernelNode, sport: int) -> CtEntry | None:
    return next((e for e in node.datapath.conntrack() if e.endpoint_port == sport), None)


def counted(node: KernelNode, hook: Hook, reason: Reason) -> int:
    """Packets at a hook that passed and have a reason."""
    return sum(
        c.packets
        for c in node.datapath.reasons()
        if c.hook is hook and c.reason is reason and c.verdict is not Verdict.DENY
    )


@pytest.mark.parametrize("version", [4, 6])
def test_every_combination(
    node: KernelNode, ends: dict[int, tuple[str, str]], version: int, subtests: pytest.Subtests
) -> None:
    node.run(node.datapath.apply(table(ends, COMBINATIONS)))
    client, server = ends[version]
    node.flows_seen()
    for (out, into), port in COMBINATIONS.items():
        with subtests.test(f"{out} + {into}"):
            sport, seen = next(_PORTS), len(node.flows)
            wanted = expected(HALVES[out], HALVES[into])
            result = node.judge("from_pod", p.tcp_frame(client, server, sport, port), endpoint=CLIENT)
            flow = node.flow_after(seen, port=sport)
            assert result == (-1 if wanted[0] is Verdict.ALLOW else 2)  # without a listener no redirect gets on
            if wanted[0] is Verdict.DENY:
                assert entry(node, sport) is None
                assert (flow.verdict, flow.reason, flow.rule, flow.audit) == (*wanted[:3], False)
                continue
            made = entry(node, sport)
            assert made is not None
            assert (made.verdict, made.reason, made.rule, made.rule_set) == wanted
            if wanted[0] is Verdict.ALLOW:
                assert (flow.verdict, flow.reason, flow.rule, flow.rule_set) == wanted
                assert flow.audit == wanted[1].denies


def test_without_its_pair_a_connection_is_denied(node: KernelNode, ends: dict[int, tuple[str, str]]) -> None:
    only = {("redirect", "redirect"): 80, ("redirect", "allow"): 81}
    node.run(node.datapath.apply(table(ends, only, pairs=False)))
    seen, sport = node.flows_seen(), next(_PORTS)
    assert node.judge("from_pod", p.tcp_frame(*ends[4], sport, 80), endpoint=CLIENT) == 2
    flow = node.flow_after(seen, port=sport)
    assert (flow.verdict, flow.reason, flow.rule_set) == (Verdict.DENY, Reason.NO_LISTENER, 0)


def test_pairs_come_and_go_with_the_table(node: KernelNode, ends: dict[int, tuple[str, str]]) -> None:
    node.run(node.datapath.apply(table(ends, COMBINATIONS)))
    key, value = (EGRESS_SET.to_bytes(4, "little") + INGRESS_SET.to_bytes(4, "little")), BOTH.to_bytes(4, "little")
    assert dict(node.datapath._maps.pairs.items()) == {key: value}
    node.run(node.datapath.apply(table(ends, COMBINATIONS, pairs=False)))
    assert dict(node.datapath._maps.pairs.items()) == {}


def test_an_audit_counts_once_for_a_connection(node: KernelNode, ends: dict[int, tuple[str, str]]) -> None:
    node.run(node.datapath.apply(table(ends, {("audit", "allow"): 80})))
    (client, server), sport = ends[4], next(_PORTS)
    before, seen = counted(node, Hook.FROM_POD, Reason.DEFAULT_DENY), node.flows_seen()
    for flags in (p.SYN, p.ACK, p.ACK):
        assert node.judge("from_pod", p.tcp_frame(client, server, sport, 80, flags), endpoint=CLIENT) == -1
    assert counted(node, Hook.FROM_POD, Reason.DEFAULT_DENY) == before + 1
    assert node.flow_after(seen, port=sport).audit
    other = next(_PORTS)
    assert node.judge("from_pod", p.tcp_frame(client, server, other, 80), endpoint=CLIENT) == -1
    node.flow_after(seen, port=other)
    records = [flow for flow in node.flows[seen:] if flow.source_port == sport]
    assert len(records) == 1, "packets of a known connection made a record"


def test_a_live_connection_shows_that_it_is_in_audit_from_now_on(
    node: KernelNode, ends: dict[int, tuple[str, str]]
) -> None:
    node.run(node.datapath.apply(table(ends, {("allow", "allow"): 80})))
    (client, server), sport = ends[6], next(_PORTS)
    packet = p.tcp_frame(client, server, sport, 80)
    more = p.tcp_frame(client, server, sport, 80, p.ACK)
    assert node.judge("from_pod", packet, endpoint=CLIENT) == -1
    before, seen = counted(node, Hook.FROM_POD, Reason.POLICY_DENIED), node.flows_seen()
    node.run(node.datapath.apply(table(ends, {("audit-rule", "allow"): 80})))
    for _ in range(3):
        assert node.judge("from_pod", more, endpoint=CLIENT) == -1
    assert counted(node, Hook.FROM_POD, Reason.POLICY_DENIED) == before + 1
    flow = node.flow_after(seen, port=sport)
    assert (flow.audit, flow.reason, flow.rule, flow.source_port) == (True, Reason.POLICY_DENIED, 1, sport)
    node.run(node.datapath.apply(table(ends, {("deny", "allow"): 80})))
    assert node.judge("from_pod", more, endpoint=CLIENT) == 2
    node.run(node.datapath.apply(table(ends, {("audit-rule", "allow"): 80})))
    assert node.judge("from_pod", more, endpoint=CLIENT) == -1
    assert counted(node, Hook.FROM_POD, Reason.POLICY_DENIED) == before + 2


@pytest.mark.parametrize(("before", "after"), [("redirect", "allow"), ("allow", "redirect")])
def test_a_syn_begins_anew_under_another_policy(
    node: KernelNode, ends: dict[int, tuple[str, str]], before: str, after: str
) -> None:
    """The end of the old one can't be shown to anyone: a client whose SYNs are all dropped would wait a minute."""
    (client, server), sport = ends[4], next(_PORTS)
    syn, answer = p.tcp_frame(client, server, sport, 80), p.tcp_frame(server, client, 80, sport, p.SYN | p.ACK)
    middle = p.tcp_frame(client, server, sport, 80, p.ACK)
    node.run(node.datapath.apply(table(ends, {(before, "allow"): 80})))
    node.judge("from_pod", syn, endpoint=CLIENT)
    node.run(node.datapath.apply(table(ends, {(after, "allow"): 80})))
    seen = node.flows_seen()
    # Nobody listens for the rule set here, so that what is steered is dropped for that reason.
    assert node.judge("from_pod", syn, endpoint=CLIENT) == (-1 if after == "allow" else 2)
    wanted = Reason.POLICY_ALLOWED if after == "allow" else Reason.NO_LISTENER
    assert node.flow_after(seen, port=sport).reason is wanted

    if after == "allow":
        # Once there was an answer, what belongs to it stays what it is, and a SYN does not belong to it.
        assert node.judge("to_pod", answer, endpoint=CLIENT, ingress_ifindex=node.ifindex(SERVER)) == -1
        node.run(node.datapath.apply(table(ends, {(before, "allow"): 80})))
        for packet, why in ((middle, Reason.RULE_SET_CHANGED), (syn, Reason.NO_LISTENER), (middle, Reason.NO_LISTENER)):
            seen = node.flows_seen()
            assert node.judge("from_pod", packet, endpoint=CLIENT) == 2
            assert node.flow_after(seen, port=sport).reason is why


@pytest.mark.parametrize(("identity", "passes"), [(1, True), (63, False), (64, True), (127, True), (128, False)])
def test_variants_of_the_host_are_the_host(
    node: KernelNode, ends: dict[int, tuple[str, str]], identity: int, passes: bool
) -> None:
    """Only the host may open connections from the node itself, and nothing from outside may have its address."""
    base = table(ends, {("allow", "allow"): 80})
    some = ip_address("192.0.2.7")
    cluster = {**base.ipcache, ip_network(some): identity}
    node.run(
        node.datapath.apply(
            PolicyTable(base.revision, {}, cluster, base.endpoints, {}, base.rows, base.rule_sets, {}, base.pairs)
        )
    )
    packet = p.tcp_frame(some, ends[4][1], next(_PORTS), 80)
    assert node.judge("to_pod", packet, endpoint=SERVER) == (-1 if passes else 2)
    assert node.judge("from_network", packet) == (2 if passes else -1)


def test_a_peer_is_who_its_address_is(node: KernelNode, ends: dict[int, tuple[str, str]]) -> None:
    """Policies may tell apart the addresses of one pod: as a peer it has the identity of the one that it uses."""
    base = table(ends, {("allow", "allow"): 80})
    identities = {**base.ipcache, ip_network(ends[6][0]): 300, ip_network(ends[6][1]): 301}
    denied = {
        RowKey(2, Direction.INGRESS, 1, Protocol.TCP, 80, 16): HALVES["deny"].row(Direction.INGRESS),
        RowKey(1, Direction.EGRESS, 1, Protocol.TCP, 81, 16): HALVES["deny"].row(Direction.EGRESS),
        RowKey(1, Direction.EGRESS, 0, Protocol.TCP, 81, 16): HALVES["allow"].row(Direction.EGRESS),
        RowKey(2, Direction.INGRESS, 0, Protocol.TCP, 81, 16): HALVES["allow"].row(Direction.INGRESS),
        RowKey(2, Direction.INGRESS, 1, Protocol.TCP, 81, 16): HALVES["allow"].row(Direction.INGRESS),
    }
    classes = {ClassKey(2, Direction.INGRESS, 300): 1, ClassKey(1, Direction.EGRESS, 301): 1}
    rows = {**base.rows, **denied}
    node.run(
        node.datapath.apply(
            PolicyTable(base.revision, {}, identities, base.endpoints, classes, rows, base.rule_sets, {}, base.pairs)
        )
    )
    for version, port, result in ((4, 80, -1), (6, 80, 2), (4, 81, -1), (6, 81, 2)):
        packet = p.tcp_frame(*ends[version], next(_PORTS), port)
        assert node.judge("from_pod", packet, endpoint=CLIENT) == result, (version, port)


def audited(found: PolicyTable, *sets: int) -> PolicyTable:
    """The same with these rule sets of policies in audit alone: every request passes."""
    changed = {number: RuleSet(number, str(number), None, ()) for number in sets}
    return msgspec.structs.replace(found, rule_sets={**found.rule_sets, **changed})


@pytest.mark.parametrize("version", [4, 6])
def test_what_only_audit_steers_passes_without_a_proxy(
    node: KernelNode, ends: dict[int, tuple[str, str]], version: int
) -> None:
    """A connection that is there already, one that begins while no listener is, and their packets at the server."""
    client, server = ends[version]
    old, new = next(_PORTS), next(_PORTS)

    def pass_all(sport: int, flags: int, wanted: int = -1) -> None:
        assert node.judge("from_pod", p.tcp_frame(client, server, sport, 80, flags), endpoint=CLIENT) == wanted
        if wanted == -1:
            ifindex = node.ifindex(CLIENT)
            packet = p.tcp_frame(client, server, sport, 80, flags)
            assert node.judge("to_pod", packet, endpoint=SERVER, ingress_ifindex=ifindex) == wanted

    node.run(node.datapath.apply(table(ends, {("allow", "allow"): 80})))
    pass_all(old, p.SYN)
    for combination in (("allow", "redirect"), ("redirect", "allow"), ("redirect", "redirect")):
        live = table(ends, {combination: 80})
        node.run(node.datapath.apply(audited(live, EGRESS_SET, INGRESS_SET, BOTH)))
        pass_all(old, p.ACK)
        new = next(_PORTS)
        pass_all(new, p.SYN)
        pass_all(new, p.ACK)
        made = entry(node, new)
        assert made is not None
        assert (made.verdict, made.leg) == (Verdict.ALLOW, Leg.DIRECT)
    # Enforced, the same rows drop all of it.
    node.run(node.datapath.apply(live))
    pass_all(old, p.ACK, 2)
    pass_all(new, p.ACK, 2)
    pass_all(next(_PORTS), p.SYN, 2)


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_that_another_processor_saw_later_is_known(
    node: KernelNode, ends: dict[int, tuple[str, str]], version: int
) -> None:
    """This one has looked at the clock before: no time has passed since, and not all of it."""
    node.run(node.datapath.apply(table(ends, {("allow", "allow"): 80})))
    client, server = ends[version]
    sport = next(_PORTS)
    conntrack = node.datapath._maps.conntrack
    for packets in range(1, 4):
        flags = p.ACK if packets > 1 else p.SYN
        frame = p.tcp_frame(client, server, sport, 80, flags=flags)
        assert node.judge("from_pod", frame, endpoint=CLIENT) == -1
        for key, raw in list(conntrack.items()):
            if abi.CtKey.from_buffer_copy(key).local_port == socket.htons(sport):
                value = abi.CtValue.from_buffer_copy(raw)
                assert value.packets == packets, "begun anew"
                value.seen = time.monotonic_ns() + 1_000_000_000
                conntrack.update(key, bytes(value))
                break
        else:
            raise AssertionError("no entry")
