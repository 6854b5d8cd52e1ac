"""The table of cases against the kernel programs: each connection's first packet by BPF_PROG_TEST_RUN.

A packet of a local pod meets `from_pod`; one from elsewhere meets `from_network` and then `to_pod`. No proxy runs
here, so «redirect» shows as a drop for want of a listener by a row that redirects; of an audit on top of it the rule
shows, and not the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import KernelFlow, LocalEndpoint
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Reason, Verdict
from support import packets as p
from support.cases import NODE, Case, CaseFile, load_case_files
from support.generated import generated_files
from support.kernel import KernelNode

pytestmark = pytest.mark.kernel

_PORTS = count(20000)


@pytest.fixture(scope="module")
def bare_node() -> Iterator[KernelNode]:
    """A node without pods: endpoints are loose veths, as the programs are run by hand."""
    with Testbed.up([]) as testbed, KernelNode(testbed.node) as kernel:
        yield kernel


@pytest.fixture(scope="module", params=[*load_case_files(), *generated_files(8, 1, 40)], ids=lambda file: file.name)
def loaded(request: pytest.FixtureRequest, bare_node: KernelNode) -> tuple[KernelNode, CaseFile, PolicyTable]:
    file: CaseFile = request.param
    pods = [pod for pod in file.cluster.pods.values() if pod.node == NODE and not pod.host_network and pod.addresses]
    netns = bare_node.node.info.netns
    endpoints = [LocalEndpoint(pod.key, f"d{i}", netns, pod.addresses) for i, pod in enumerate(pods)]
    for endpoint in endpoints:
        bare_node.node.run_on_node(
            ["ip", "link", "add", endpoint.interface, "type", "veth", "peer", "name", f"p{endpoint.interface}"]
        )
    bare_node.run(bare_node.datapath.set_endpoints(endpoints))
    return bare_node, file, bare_node.apply(cluster=file.cluster)


def first_packet(case: Case) -> bytes:
    """The connection's first packet, from a port that no other case uses."""
    source, destination, port = case.source, case.destination, next(_PORTS)
    if case.protocol == p.TCP:
        return p.tcp_frame(source, destination, port, case.port)
    if case.protocol == p.UDP:
        return p.frame(p.ip(source, destination, p.UDP, p.udp(source, destination, port, case.port)))
    if case.protocol == p.ICMP:
        message = p.icmp(case.port >> 8, case.port & 255, port.to_bytes(2, "big") + b"\0\1")
        return p.frame(p.ip(source, destination, p.ICMP, message))
    if case.protocol == p.ICMPV6:
        message = p.icmp6(source, destination, case.port >> 8, case.port & 255, port.to_bytes(2, "big") + b"\0\1")
        return p.frame(p.ip(source, destination, p.ICMPV6, message))
    body = port.to_bytes(2, "big") + case.port.to_bytes(2, "big") + bytes(8)
    return p.frame(p.ip(source, destination, case.protocol, body))


def own_addresses(file: CaseFile) -> tuple[object, ...]:
    """The node's own addresses."""
    return file.cluster.nodes[NODE].addresses if NODE in file.cluster.nodes else ()


def verdict_of(node: KernelNode, file: CaseFile, case: Case) -> KernelFlow:
    """The record of the verdict that the kernel made."""
    owner = {address: one.name for one in node.endpoints_now() for address in one.addresses}
    packet = first_packet(case)
    seen = len(node.flows)
    if case.source in owner:
        node.judge("from_pod", packet, endpoint=owner[case.source])
    elif case.source in own_addresses(file):
        node.judge("to_pod", packet, endpoint=owner[case.destination])
    else:
        passed = node.judge("from_network", packet) == -1
        if passed and case.destination in owner:
            node.judge("to_pod", packet, endpoint=owner[case.destination], ingress_ifindex=1)
    return node.flow_after(seen)


def test_kernel_agrees(loaded: tuple[KernelNode, CaseFile, PolicyTable], subtests: pytest.Subtests) -> None:
    node, file, table = loaded
    cases = {(c.source, c.destination, c.protocol, c.port): c for c in file.cases if "kernel" in c.paths}
    assert cases
    for case in cases.values():
        with subtests.test(case.id):
            flow = verdict_of(node, file, case)
            redirect = flow.reason is Reason.NO_LISTENER and flow.rule_set != 0
            verdict = Verdict.REDIRECT if redirect else flow.verdict
            reason = case.expect.reason if redirect else flow.reason.label
            rule = str(table.rules[flow.rule]) if flow.rule else None
            assert (verdict.label, reason, rule) == (case.expect.verdict, case.expect.reason, case.expect.rule)
