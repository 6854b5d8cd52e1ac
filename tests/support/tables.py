"""Compiled tables of a file of cases, and which rule set a case meets in them."""

from __future__ import annotations

from types import MappingProxyType

import msgspec

from spliceway.policy.compile import compile_table
from spliceway.policy.lookup import Judgement, identify, lookup
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction, Verdict
from support.cases import NODE, Case, CaseFile, load_case_files

#: Nodes that have endpoints in the table of cases.
NODES = (NODE, "node2")
FILES = MappingProxyType({file.name: file for file in load_case_files()})


_made: dict[tuple[str, bool], dict[str, PolicyTable]] = {}


def tables_of(file: CaseFile, *, audit: bool = False) -> dict[str, PolicyTable]:
    """The tables of a file, by node; made once. `audit`: with every policy in audit mode."""
    key = file.name, audit
    if key not in _made:
        cluster = msgspec.structs.replace(file.cluster, audit=audit)
        _made[key] = {node: compile_table(cluster, node=node, numbering=Numbering(), revision=1) for node in NODES}
    return _made[key]


def rows_of(file: CaseFile, case: Case, *, audit: bool = False) -> dict[Direction, tuple[str, Judgement]]:
    """Node and row of each end of a case that is a pod, as the kernel would look them up."""
    endpoints = {
        address: pod for pod in file.cluster.pods.values() for address in pod.addresses if not pod.host_network
    }
    found = {}
    for own, peer, direction in (
        (case.source, case.destination, Direction.EGRESS),
        (case.destination, case.source, Direction.INGRESS),
    ):
        pod = endpoints.get(own)
        if pod is not None and case.source != case.destination:
            table = tables_of(file, audit=audit)[pod.node]
            identity = identify(table.ipcache, peer)
            endpoint = table.endpoints[pod.key]
            found[direction] = pod.node, lookup(table, endpoint, direction, identity, case.protocol, case.port)
    return found


def rule_set_of(file: CaseFile, case: Case, *, audit: bool = False) -> tuple[str, PolicyTable, int]:
    """Where a case is steered: node, its table, id of the rule set there (that of both ends if both redirect)."""
    rows = rows_of(file, case, audit=audit)
    steered = {key: (node, row.rule_set) for key, (node, row) in rows.items() if row.verdict is Verdict.REDIRECT}
    if len(steered) < 2:
        ((node, key),) = steered.values()
        return node, tables_of(file, audit=audit)[node], key
    node, egress = steered[Direction.EGRESS]
    other, ingress = steered[Direction.INGRESS]
    assert node == other, "a connection between nodes is steered at each of them"
    table = tables_of(file, audit=audit)[node]
    return node, table, table.pairs[egress, ingress]
