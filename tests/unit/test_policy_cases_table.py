"""The table of cases against the compiled table, read as the kernel does: it says what the interpreter says."""

from __future__ import annotations

import pytest

from spliceway.policy.compile import compile_table
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import decide
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable, RuleSet
from spliceway.policy.verdict import Direction, Verdict
from support.cases import NODE, Case, load_case_files

FILES = load_case_files()
CASES = [(file.cluster, case) for file in FILES for case in file.cases if "interpreter" in case.paths]
IDS = [case.id for _, case in CASES]
TABLES = {
    file.name: {
        node: compile_table(file.cluster, node=node, numbering=Numbering(), revision=1) for node in (NODE, "node2")
    }
    for file in FILES
}


@pytest.mark.parametrize(("cluster", "case"), CASES, ids=IDS)
def test_compiled_table(cluster: Cluster, case: Case) -> None:
    """Each half of the connection, on the node of its endpoint, and the request against the rule sets found there."""
    decision = evaluate(cluster, Connection(case.source, case.destination, case.protocol, case.port), case.request)
    by_address = {address: pod for pod in cluster.pods.values() for address in pod.addresses if not pod.host_network}
    found_sets: dict[Direction, tuple[PolicyTable, int]] = {}
    for half, own, peer in (
        (decision.egress, case.source, case.destination),
        (decision.ingress, case.destination, case.source),
    ):
        if half is None:
            continue
        pod = by_address[own]
        table = TABLES[case.file][pod.node]
        found = lookup(
            table,
            table.endpoints[pod.key],
            half.direction,
            identify(table.ipcache, peer),
            case.protocol,
            case.port,
        )
        assert (found.verdict, found.reason, table.rules.get(found.rule)) == (half.verdict, half.reason, half.rule)
        if found.verdict is Verdict.REDIRECT:
            found_sets[half.direction] = table, found.rule_set
    if decision.http is None or case.request is None:
        return
    table, rule_set = _rule_set(found_sets)
    http = decide(case.request, rule_set, table.rules)
    assert (http.verdict, http.reason, http.path) == (
        decision.http.verdict,
        decision.http.reason,
        decision.http.path,
    )
    assert table.rules.get(http.rule) == decision.http_rule
    assert http.nearest_miss == decision.http.nearest_miss


def _rule_set(found: dict[Direction, tuple[PolicyTable, int]]) -> tuple[PolicyTable, RuleSet]:
    """The rule set that asks all halves. Both ends are on one node: their pair is in its table."""
    if len(found) == 1:
        ((table, key),) = found.values()
        return table, table.rule_sets[key]
    table, egress = found[Direction.EGRESS]
    other, ingress = found[Direction.INGRESS]
    assert table is other
    return table, table.rule_sets[table.pairs[egress, ingress]]
