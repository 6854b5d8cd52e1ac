"""Cases in the kernel: the first packet of each connection by BPF_PROG_TEST_RUN, on a node without pods.

A packet of a local pod meets `from_pod`; one from elsewhere meets `from_network` and then `to_pod`. No proxy runs, so
what a row redirects is dropped for want of a listener. `from_network` says before that it redirects, `from_pod` does
not: there, of an audit on top of it, the rule shows, and not the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from spliceway.bpf.types import KernelFlow, LocalEndpoint
from spliceway.policy.model import Cluster
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Reason, Verdict
from support import packets as p
from support.cases import NODE, Case, CaseFile
from support.kernel import KernelNode

_PORTS = count(20000)


def load(node: KernelNode, file: CaseFile, cluster: Cluster | None = None) -> PolicyTable:
    """Make the local pods of a file endpoints of the node, loose veths, and its policies live."""
    pods = [pod for pod in file.cluster.pods.values() if pod.node == NODE and not pod.host_network and pod.addresses]
    netns = node.node.info.netns
    endpoints = [LocalEndpoint(pod.key, f"d{i}", netns, pod.addresses) for i, pod in enumerate(pods)]
    for endpoint in endpoints:
        node.node.run_on_node(
            ["ip", "link", "add", endpoint.interface, "type", "veth", "peer", "name", f"p{endpoint.interface}"]
        )
    node.run(node.datapath.set_endpoints(endpoints))
    return node.apply(cluster=cluster or file.cluster)


def connections(file: CaseFile) -> Mapping[object, Case]:
    """A case for each connection that the kernel is asked about."""
    return {(c.source, c.destination, c.protocol, c.port): c for c in file.cases if "kernel" in c.paths}


def first_packet(case: Case, port: int) -> bytes:
    """The connection's first packet, from this port."""
    source, destination = case.source, case.destination
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


def flow_of(node: KernelNode, file: CaseFile, case: Case) -> KernelFlow:
    """The first record of the verdict that the kernel made."""
    owner = {address: one.name for one in node.endpoints_now() for address in one.addresses}
    own = file.cluster.nodes[NODE].addresses if NODE in file.cluster.nodes else ()
    port = next(_PORTS)  # that no other case uses
    packet = first_packet(case, port)
    seen = len(node.flows)
    if case.source in owner:
        node.judge("from_pod", packet, endpoint=owner[case.source])
    elif case.source in own:
        node.judge("to_pod", packet, endpoint=owner[case.destination])
    else:
        passed = node.judge("from_network", packet) == -1
        if passed and case.destination in owner:
            node.judge("to_pod", packet, endpoint=owner[case.destination], ingress_ifindex=1)
    while True:  # records of an earlier packet may still come
        flow = node.flow_after(seen)
        ends = flow.source, flow.destination, flow.protocol
        if ends == (case.source, case.destination, case.protocol) and flow.source_port in (port, 0):
            return flow
        seen += 1


def redirected(flow: KernelFlow) -> bool:
    """Whether a row redirects it, and only the listener is missing."""
    dropped = flow.verdict is Verdict.DENY and flow.reason is Reason.NO_LISTENER and flow.rule_set != 0
    return dropped or flow.verdict is Verdict.REDIRECT
