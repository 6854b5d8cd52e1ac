"""Addresses of Services in the kernel: marked beside their identity, and judged where they lead."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support import packets as p
from support.kernel import KernelNode

pytestmark = pytest.mark.kernel

PASS, DROP = -1, 2
ME = "default/frontend"
A4, A6 = "10.240.1.10", "fd00:240:1::10"
SERVICES = ("10.96.0.80", "fd00:96::80")
DENY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: shut, namespace: default}
spec: {endpointSelector: {}, egress: [{toCIDR: [192.0.2.0/24]}]}
"""
CIDR = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cidr, namespace: default}
spec: {endpointSelector: {}, egress: [{toCIDR: [10.96.0.0/16, "fd00:96::/64"]}]}
"""


@pytest.fixture(scope="module")
def node(demo_testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(demo_testbed.node) as kernel:
        yield kernel


@pytest.fixture
def marked(node: KernelNode) -> Iterator[KernelNode]:
    node.apply(DENY)
    mark(node, *SERVICES)
    yield node
    mark(node, *SERVICES, are=False)


def mark(node: KernelNode, *addresses: str, are: bool = True) -> None:
    node.run(node.datapath.set_service_addresses({ip_address(one): are for one in addresses}))


def rows(node: KernelNode, *addresses: str) -> list[tuple[int, bool] | None]:
    """Identity and mark of addresses that have rows of their own."""
    found = {
        str(row["prefix"]): (int(str(row["identity"])), bool(row["service"])) for row in node.datapath.dump_ipcache()
    }
    return [found.get(f"{one}/{128 if ':' in one else 32}") for one in addresses]


def frame(source: str, service: str, port: int, protocol: int = p.TCP, server_port: int = 80, flags: int = 2) -> bytes:
    if protocol == p.TCP:
        return p.tcp_frame(source, service, port, server_port, flags=flags)
    if protocol == p.UDP:
        return p.frame(p.ip(source, service, p.UDP, p.udp(source, service, port, server_port)))
    return p.frame(p.ip(source, service, protocol, port.to_bytes(2, "big") + server_port.to_bytes(2, "big") + bytes(8)))


def deferred(node: KernelNode) -> int:
    """Packets that from_pod has left to where they lead."""
    found = node.datapath.reasons()
    return sum(one.packets for one in found if one.hook is Hook.FROM_POD and one.reason is Reason.SERVICE)


def why(node: KernelNode, hook: str, packet: bytes, **options: int) -> Reason | None:
    """The reason that was counted for the drop, or None when it passed."""

    def denied() -> dict[Reason, int]:
        found = node.datapath.reasons()
        return {one.reason: one.packets for one in found if one.hook.label == hook and one.verdict is Verdict.DENY}

    before = denied()
    endpoint = ME if hook.endswith("pod") else ""
    result = node.judge(hook.replace("-", "_"), packet, endpoint=endpoint, **options)
    changed = [reason for reason, packets in denied().items() if packets != before.get(reason, 0)]
    assert (result == DROP) == bool(changed)
    return changed[0] if changed else None


BOTH = pytest.mark.parametrize(("source", "service"), list(zip((A4, A6), SERVICES, strict=True)), ids=["v4", "v6"])


@BOTH
def test_a_service_is_not_judged_by_its_own_address(marked: KernelNode, source: str, service: str) -> None:
    seen, counted = marked.flows_seen(), deferred(marked)
    assert why(marked, "from-pod", frame(source, service, 40001)) is None
    assert why(marked, "from-pod", frame(source, service, 40001, p.UDP)) is None
    assert deferred(marked) == counted + 2
    assert marked.flows_seen() == seen, "the hook that decides records it"
    entries = [one.reason for one in marked.datapath.conntrack() if one.endpoint_port == 40001]
    assert set(entries) == {Reason.SERVICE}
    assert why(marked, "from-pod", frame(source, service, 40001, 132)) is Reason.DEFAULT_DENY
    other = "10.96.0.81" if ":" not in service else "fd00:96::81"
    assert why(marked, "from-pod", frame(source, other, 40001)) is Reason.DEFAULT_DENY


@BOTH
def test_what_nobody_translates_is_judged_where_it_leaves(marked: KernelNode, source: str, service: str) -> None:
    """By the address itself, and so are its answers."""
    for protocol, port in ((p.TCP, 40010), (p.UDP, 40011)):
        packet = frame(source, service, port, protocol)
        assert why(marked, "from-pod", packet) is None
        here = marked.ifindex(ME)
        assert (
            why(marked, "to-network", frame(source, service, port, p.TCP), ingress_ifindex=here) is Reason.DEFAULT_DENY
        )
        answer = p.tcp_frame(service, source, 80, 40010, flags=0x12)
        if protocol == p.UDP:
            answer = frame(service, source, 80, p.UDP, port)
        assert why(marked, "from-network", answer) in (Reason.UNTRACKED, Reason.DEFAULT_DENY)


@BOTH
def test_a_deferred_connection_stays_so(marked: KernelNode, source: str, service: str) -> None:
    """Whatever becomes of policy and mark."""
    packet = frame(source, service, 40020)
    assert why(marked, "from-pod", packet) is None
    marked.apply(CIDR)
    marked.apply(DENY)
    assert why(marked, "from-pod", packet) is None
    mark(marked, service, are=False)
    assert why(marked, "from-pod", packet) is None
    assert why(marked, "from-pod", frame(source, service, 40021)) is Reason.DEFAULT_DENY
    mark(marked, service)
    assert why(marked, "from-pod", frame(source, service, 40021)) is None


@BOTH
def test_a_connection_older_than_the_policy_is_deferred(marked: KernelNode, source: str, service: str) -> None:
    marked.apply()
    packet = frame(source, service, 40030)
    assert why(marked, "from-pod", packet) is None
    marked.apply(DENY)
    counted = deferred(marked)
    assert why(marked, "from-pod", p.tcp_frame(source, service, 40030, 80, flags=0x10)) is None
    assert deferred(marked) == counted + 1


def test_segments_from_the_middle_of_nothing(marked: KernelNode) -> None:
    """They are deferred when their ports tell that the pod is the client, and their sender is noted all the same."""
    middle = p.tcp_frame(A4, SERVICES[0], 40040, 80, flags=0x10)
    assert why(marked, "from-pod", middle) is None
    (entry,) = [one for one in marked.datapath.conntrack() if one.endpoint_port == 40040]
    assert (entry.reason, entry.endpoint_is_client) == (Reason.SERVICE, True)


def test_marks_follow_the_identities_of_prefixes(node: KernelNode) -> None:
    """And flip with the generation: what is in both slots is checked by the agent that follows."""
    node.apply()
    mark(node, *SERVICES)
    world = rows(node, *SERVICES)
    assert world == [(9, True), (10, True)]
    node.apply(CIDR)
    found = rows(node, *SERVICES)
    assert all(one and one[1] and one[0] >= 1 << 24 for one in found)
    assert len({one and one[0] for one in found}) == 2
    exact = CIDR.replace("10.96.0.0/16", "10.96.0.80/32").replace("/64", "/128").replace("fd00:96::", "fd00:96::80")
    node.apply(exact)
    again = rows(node, *SERVICES)
    assert all(one and one[1] and one[0] >= 1 << 24 for one in again)
    mark(node, *SERVICES, are=False)
    assert rows(node, *SERVICES) == [one and (one[0], False) for one in again], "policy's own rows stay"
    mark(node, *SERVICES)
    node.apply()
    assert rows(node, *SERVICES) == world
    mark(node, *SERVICES, are=False)
    assert rows(node, *SERVICES) == [None, None]


def test_what_means_something_else_is_not_marked(node: KernelNode) -> None:
    """Pods, nodes and what belongs to the pods' range; an address that the node serves, until it does no more."""
    node.apply()
    own = str(next(one for one in node.node.info.addresses if one.version == 4))
    mark(node, A4, A6, own, "10.240.1.77", SERVICES[0])
    before = node.datapath.dump_ipcache()
    assert [row["prefix"] for row in before if row["service"]] == [f"{SERVICES[0]}/32"]
    assert next(row for row in before if row["prefix"] == f"{A4}/32")["endpoint"] == node.ifindex(ME)
    node.run(node.datapath.set_served(frozenset({ip_address(SERVICES[0])})))
    assert not any(row["service"] for row in node.datapath.dump_ipcache())
    node.run(node.datapath.set_served(frozenset()))
    assert node.datapath.dump_ipcache() == before
    mark(node, A4, A6, own, "10.240.1.77", SERVICES[0], are=False)
    assert not any(row["service"] for row in node.datapath.dump_ipcache())
