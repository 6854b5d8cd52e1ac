"""The table of cases with real packets: what a node's rows say, what is told of it, and what arrives.

What a profile's own rules forbid, whatever policy says, is in `hidden`, by what docs/testbed.md says of the profile.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from spliceway.agent.testbed.overlay import VXLAN_PORT
from spliceway.bpf.types import KernelFlow
from spliceway.policy.table import PolicyTable
from support import packets as p
from support.casebed import CaseBed
from support.caseears import Arrival, first_packet
from support.casenode import CaseNode
from support.cases import Case, CaseFile
from support.kernelcases import connections

#: Types of ICMP that netfilter takes for the beginning of something (nf_conntrack_proto_icmp.c); of IPv6 by version 6.
_BEGINS = {4: (8, 13, 15, 17), 6: (128,)}
#: Ports that a node with DROP in INPUT leaves open.
_OPEN = {(p.TCP, 22), (p.TCP, 10250), (p.UDP, VXLAN_PORT)}
#: Seconds in which what must not arrive would.
_MOMENT = 0.05


class Sent(NamedTuple):
    """A connection's first packet, under way. `left` False: its own node's rules forbade it."""

    case: Case
    number: int
    left: bool

    @property
    def arrival(self) -> Arrival:
        """It, where it should get to."""
        return Arrival(self.case.destination, self.case.protocol, self.number)

    @property
    def answer(self) -> Arrival:
        """What the other end, or the proxy, answers to TCP and ping."""
        return Arrival(self.case.source, self.case.protocol, self.number, answer=True)


class Numbers:
    """Numbers of packets, each used once on a testbed, and so their source ports."""

    def __init__(self) -> None:
        self._numbers = count(10_000)

    def __call__(self) -> int:
        number = next(self._numbers)
        assert number < 23_000, "from here on they are listeners' ports"
        return number


def silent(bed: CaseBed, case: Case) -> bool:
    """Whether the node that should send it does not: OUTPUT has the policy DROP, and ICMP passes."""
    sender = bed.home(case.source).kind
    return sender == "node" and "OUTPUT" in bed.profile.drop and not _icmp(case)


def hidden(bed: CaseBed, case: Case) -> bool:
    """Whether the profile's own rules keep the packet from arriving, whatever policy says."""
    profile = bed.profile
    source, destination = bed.home(case.source), bed.home(case.destination)
    if silent(bed, case):
        return True
    if destination.kind == "node":
        # Calico accepts what its workloads send to their own node (DefaultEndpointToHostAction).
        accepted = profile.name == "calico-like" and source.kind == "pod" and source.node == destination.node
        opened = _icmp(case) or (case.protocol, case.port) in _OPEN
        return "INPUT" in profile.drop and not opened and not accepted
    # kube-proxy in iptables mode drops what netfilter calls invalid when it is forwarded (KUBE-FORWARD); a bridge
    # without br_netfilter shows it nothing between its own ports.
    forwarded = source.kind != "node" and not (
        profile.bridged and not profile.br_netfilter and source.kind == "pod" and source.node == destination.node
    )
    begins = not _icmp(case) or case.port >> 8 in _BEGINS[case.source.version]
    return forwarded and not begins and (profile.kube_proxy == "iptables" or profile.name == "calico-like")


def without_programs(bed: CaseBed, numbers: Numbers, files: Iterable[CaseFile]) -> list[str]:
    """Send every first packet of the table; what is wrong: what is not there, or is though the profile forbids it."""
    wanted = {key: case for file in files for key, case in connections(file).items()}
    wrong = []
    for batch in rounds(wanted.values()):
        sent = [_send(bed, case, numbers()) for case in batch]
        there = [one for one in sent if not hidden(bed, one.case)]
        _listen(bed, {*(one.arrival for one in there), *(one.answer for one in there if _answered(one.case))})
        for one in sent:
            free = one in there
            got = one.left, one.arrival in bed.ears.arrived, one.answer in bed.ears.arrived
            if got != (not silent(bed, one.case), free, free and _answered(one.case)):
                wrong.append(f"{_ends(bed, one.case)}: left {got[0]}, arrived {got[1]}, answered {got[2]}")
    return wrong


def packets(
    bed: CaseBed, node: CaseNode, numbers: Numbers, file: CaseFile, table: PolicyTable
) -> tuple[int, list[str]]:
    """Send the first packet of each connection of a file that is loaded: how many, and what is wrong."""
    total, wrong = 0, []
    for batch in rounds(connections(file).values()):
        since = len(node.flows)
        sent = [_send(bed, case, numbers()) for case in batch]
        total += len(sent)
        flows = _by_case(sent, _wait_flows(node, since, [one for one in sent if not silent(bed, one.case)]))
        arrivals = {one.arrival for one in sent if _arrives(bed, one.case)}
        _listen(bed, arrivals | {one.answer for one in sent if _is_answered(bed, one.case)})
        wrong += [text for one in sent for text in _complaints(bed, table, one, flows.get(one))]
    return total, wrong


def rounds(cases: Iterable[Case]) -> Iterator[list[Case]]:
    """In as few batches as can be, with no two in one that the records could not tell apart."""
    left = list(cases)
    while left:
        batch: list[Case] = []
        later: list[Case] = []
        ends = set()
        for case in left:
            key = (case.source, case.destination, case.protocol)
            (later if _icmp(case) and key in ends else batch).append(case)
            ends.add(key)
        yield batch
        left = later


def _send(bed: CaseBed, case: Case, number: int) -> Sent:
    return Sent(case, number, bed.send(case.source, first_packet(case, number)))


def _wait_flows(node: CaseNode, since: int, told: Sequence[Sent]) -> list[KernelFlow]:
    """Records behind the first `since`, when each of these has one."""

    def done(flows: list[KernelFlow]) -> bool:
        return len(flows) >= len(told) and len(_by_case(told, flows)) == len(told)

    return node.wait_flows(since, done)


def _by_case(sent: Sequence[Sent], flows: Iterable[KernelFlow]) -> Mapping[Sent, KernelFlow]:
    """The first record of each of these; echo requests have their number for both ports, other ICMP has none."""
    wanted = {}
    for one in sent:
        case = one.case
        for port in (one.number, 0) if _icmp(case) else (one.number,):
            wanted[case.source, case.destination, case.protocol, port] = one
    found: dict[Sent, KernelFlow] = {}
    for flow in sorted(flows, key=lambda flow: flow.time):
        which = wanted.get((flow.source, flow.destination, flow.protocol, flow.source_port))
        if which is not None and not flow.ended:
            found.setdefault(which, flow)
    return found


def _arrives(bed: CaseBed, case: Case) -> bool:
    """Whether it should get to where its destination lives; what is redirected, the proxy gets."""
    return case.expect.verdict == "allow" and not hidden(bed, case)


def _is_answered(bed: CaseBed, case: Case) -> bool:
    """By the other end, or by the proxy, to which every SYN gets that is redirected."""
    steered = case.expect.verdict == "redirect" and case.protocol == p.TCP and not silent(bed, case)
    return steered or (_arrives(bed, case) and _answered(case))


def _complaints(bed: CaseBed, table: PolicyTable, one: Sent, flow: KernelFlow | None) -> Iterator[str]:
    case, expect = one.case, one.case.expect
    if one.left == silent(bed, case):
        yield f"{case.id}: {_ends(bed, case)}: {'left' if one.left else 'did not leave'} its node"
    elif one.left and flow is None:
        yield f"{case.id}: {_ends(bed, case)}: no record"
    elif flow is not None:
        rule = str(table.rules[flow.rule]) if flow.rule else None
        got, wanted = (flow.verdict.label, flow.reason.label, rule), (expect.verdict, expect.reason, expect.rule)
        if got != wanted:
            yield f"{case.id}: {_ends(bed, case)}: {got}, not {wanted} ({flow.hook.label})"
    arrived = one.arrival in bed.ears.arrived
    if arrived != _arrives(bed, case):
        yield f"{case.id}: {_ends(bed, case)}: {'arrived' if arrived else 'did not arrive'}"
    answered = one.answer in bed.ears.arrived
    if answered != _is_answered(bed, case):
        yield f"{case.id}: {_ends(bed, case)}: {'an' if answered else 'no'} answer"


def _ends(bed: CaseBed, case: Case) -> str:
    homes = [
        f"{address} ({bed.home(address).kind} {bed.home(address).node})" for address in (case.source, case.destination)
    ]
    return f"{homes[0]} to {homes[1]}, protocol {case.protocol} port {case.port}"


def _answered(case: Case) -> bool:
    """Whether a host answers it: TCP where nobody listens, too, and pings of whatever code."""
    return case.protocol == p.TCP or (_icmp(case) and case.port >> 8 == (8 if case.source.version == 4 else 128))


def _listen(bed: CaseBed, wanted: Iterable[Arrival]) -> None:
    """Hear all of these, and what else comes."""
    bed.ears.wait(wanted)
    time.sleep(_MOMENT)
    bed.ears.listen()


def _icmp(case: Case) -> bool:
    return case.protocol == (p.ICMP if case.source.version == 4 else p.ICMPV6)
