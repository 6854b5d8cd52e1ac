"""The table of cases against the reference interpreter, and against the compiled table read as the kernel does."""

from __future__ import annotations

import pytest

from spliceway.policy.compile import compile_table
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import decide
from spliceway.policy.lookup import identify, lookup
from spliceway.policy.model import Cluster
from spliceway.policy.numbering import Numbering
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Direction
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


def test_the_table_covers_what_it_must() -> None:
    cases = [case for _, case in CASES]
    assert len({case.request.path for case in cases if case.request is not None}) >= 40
    assert {case.source.version for case in cases} == {4, 6}
    assert {case.expect.verdict for case in cases} == {"allow", "deny", "redirect"}


@pytest.mark.parametrize(("cluster", "case"), CASES, ids=IDS)
def test_interpreter(cluster: Cluster, case: Case) -> None:
    connection = Connection(case.source, case.destination, case.protocol, case.port)
    decision = evaluate(cluster, connection, case.request)
    rule = str(decision.rule) if decision.rule else None
    assert (decision.verdict.label, decision.reason.label, rule) == (
        case.expect.verdict,
        case.expect.reason,
        case.expect.rule,
    )
    if case.expect.http is None:
        assert decision.http is None
    else:
        assert decision.http is not None
        http_rule = str(decision.http_rule) if decision.http_rule else None
        found = decision.http.status, decision.http.reason.label, http_rule
        assert found == (case.expect.http.status, case.expect.http.reason, case.expect.http.rule)


@pytest.mark.parametrize(("cluster", "case"), CASES, ids=IDS)
def test_compiled_table(cluster: Cluster, case: Case) -> None:
    """Each half of the connection, on the node of its endpoint, and the request against the rule set found there."""
    decision = evaluate(cluster, Connection(case.source, case.destination, case.protocol, case.port), case.request)
    by_address = {address: pod for pod in cluster.pods.values() for address in pod.addresses if not pod.host_network}
    for half, own, peer in (
        (decision.egress, case.source, case.destination),
        (decision.ingress, case.destination, case.source),
    ):
        if half is None:
            continue
        pod = by_address[own]
        table: PolicyTable = TABLES[case.file][pod.node]
        found = lookup(
            table,
            table.endpoints[pod.key],
            half.direction,
            identify(table.ipcache, peer),
            case.protocol,
            case.port,
        )
        assert (found.verdict, found.reason, table.rules.get(found.rule)) == (half.verdict, half.reason, half.rule)
        if decision.http is not None and case.request is not None and half.direction is Direction.INGRESS:
            http = decide(case.request, table.rule_sets[found.rule_set], table.rules)
            assert (http.verdict, http.reason, http.path) == (
                decision.http.verdict,
                decision.http.reason,
                decision.http.path,
            )
            assert table.rules.get(http.rule) == decision.http_rule
            assert http.nearest_miss == decision.http.nearest_miss
