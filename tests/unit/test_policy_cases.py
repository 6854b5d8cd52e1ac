"""The table of cases against the reference interpreter."""

from __future__ import annotations

from collections import Counter

import pytest

from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.evaluator import Evaluator
from spliceway.policy.model import Cluster
from support.cases import Case, CaseFile, load_case_files
from support.generated import generated_files

FILES = load_case_files()
CASES = [(file.cluster, case) for file in FILES for case in file.cases if "interpreter" in case.paths]
IDS = [case.id for _, case in CASES]


def test_the_table_covers_what_it_must() -> None:
    cases = [case for _, case in CASES]
    assert len({(case.file, case.name) for case in cases}) >= 400
    assert len({case.request.path for case in cases if case.request is not None}) >= 40
    assert {case.source.version for case in cases} == {4, 6}
    assert {case.expect.verdict for case in cases} == {"allow", "deny", "redirect"}
    kinds = Counter(kind for file in FILES for kind, _ in file.cluster.policies)
    assert set(kinds) == {
        "CiliumNetworkPolicy",
        "CiliumClusterwideNetworkPolicy",
        "NetworkPolicy",
        "ClusterNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "AuthorizationPolicy",
    }


def test_each_case_says_where_its_value_comes_from() -> None:
    assert not [case.id for _, case in CASES if not all(len(source) > 20 for source in case.spec) or not case.spec]


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


@pytest.mark.parametrize("file", [*FILES, *generated_files(20, 3, 25)], ids=lambda file: file.name)
def test_the_indexed_interpreter_says_the_same(file: CaseFile) -> None:
    evaluator = Evaluator(file.cluster)
    for case in file.cases:
        connection = Connection(case.source, case.destination, case.protocol, case.port)
        found = evaluator.evaluate(connection, case.request)
        assert found == evaluate(file.cluster, connection, case.request), case.id
