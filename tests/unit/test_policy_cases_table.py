"""The table of cases against the compiled table, read as the kernel does: it says what the interpreter says."""

from __future__ import annotations

import pytest

from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.http import decide
from support.cases import Case, CaseFile
from support.generated import generated_files
from support.tables import FILES, rows_of, rule_set_of, tables_of

CASES = [(file, case) for file in FILES.values() for case in file.cases if "interpreter" in case.paths]
IDS = [case.id for _, case in CASES]


@pytest.mark.parametrize("file", generated_files(40, 1, 25), ids=lambda file: file.name)
def test_generated(file: CaseFile) -> None:
    for case in file.cases:
        compare(file, case)


@pytest.mark.parametrize(("file", "case"), CASES, ids=IDS)
def test_compiled_table(file: CaseFile, case: Case) -> None:
    compare(file, case)


def compare(file: CaseFile, case: Case) -> None:
    """Each half of the connection, on the node of its endpoint, and the request against the rule set found there."""
    connection = Connection(case.source, case.destination, case.protocol, case.port)
    decision = evaluate(file.cluster, connection, case.request)
    halves = {half.direction: half for half in (decision.egress, decision.ingress) if half is not None}
    rows = rows_of(file, case)
    assert set(rows) == set(halves)
    for direction, (node, row) in rows.items():
        half, rules = halves[direction], tables_of(file)[node].rules
        found = row.verdict, row.reason, rules.get(row.rule)
        assert found == (half.verdict, half.reason, half.rule), case.id
    if decision.http is None or case.request is None:
        return
    _, table, key = rule_set_of(file, case)
    http = decide(case.request, table.rule_sets[key], table.rules)
    assert (http.verdict, http.reason, http.path) == (decision.http.verdict, decision.http.reason, decision.http.path)
    assert table.rules.get(http.rule) == decision.http_rule
    assert (http.nearest_miss, http.changes) == (decision.http.nearest_miss, decision.http.changes)
