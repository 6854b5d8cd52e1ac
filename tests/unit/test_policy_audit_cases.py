"""Audit over the whole table of cases: nothing is denied, and what is said is what would be enforced."""

from __future__ import annotations

import msgspec
import pytest

from spliceway.policy.evaluate import Connection, Decision, evaluate
from spliceway.policy.http import decide
from spliceway.policy.model import Cluster
from spliceway.policy.verdict import Verdict
from support.cases import Case, CaseFile
from support.generated import generated_files
from support.tables import FILES, rows_of, rule_set_of, tables_of

ALL = [*FILES.values(), *generated_files(20, 2, 25)]


def enforced(cluster: Cluster) -> Cluster:
    """The cluster with no policy in audit."""
    policies = {key: msgspec.structs.replace(policy, audit=False) for key, policy in cluster.policies.items()}
    return msgspec.structs.replace(cluster, policies=policies, audit=False)


def ask(cluster: Cluster, case: Case) -> Decision:
    return evaluate(cluster, Connection(case.source, case.destination, case.protocol, case.port), case.request)


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.name)
def test_the_interpreter_says_and_does_not_do(file: CaseFile) -> None:
    real, audited = enforced(file.cluster), msgspec.structs.replace(file.cluster, audit=True)
    for case in file.cases:
        would, does = ask(real, case), ask(audited, case)
        assert does.verdict is not Verdict.DENY, case.id
        assert (does.reason, does.rule) == (would.reason, would.rule), case.id
        if would.verdict is not Verdict.DENY:
            assert does.verdict is would.verdict, case.id
        if would.http is None:
            continue
        assert does.http is not None
        assert does.http.verdict is Verdict.ALLOW, case.id
        assert (does.http.reason, does.http_rule) == (would.http.reason, would.http_rule), case.id
        assert not does.http.changes, case.id


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.name)
def test_the_table_says_and_does_not_do(file: CaseFile) -> None:
    audited = msgspec.structs.replace(file.cluster, audit=True)
    for case in file.cases:
        decision = ask(audited, case)
        halves = {half.direction: half for half in (decision.egress, decision.ingress) if half is not None}
        for direction, (node, row) in rows_of(file, case, audit=True).items():
            half = halves[direction]
            found = row.verdict, row.reason, tables_of(file, audit=True)[node].rules.get(row.rule)
            assert row.verdict is not Verdict.DENY, case.id
            assert found == (half.verdict, half.reason, half.rule), case.id
        if decision.http is None or case.request is None:
            continue
        _, table, key = rule_set_of(file, case, audit=True)
        rule_set = table.rule_sets[key]
        assert rule_set.rules is None
        http = decide(case.request, rule_set, table.rules)
        assert (http.verdict, http.reason) == (decision.http.verdict, decision.http.reason), case.id
