"""The table of cases, and generated ones, against the kernel programs: verdict, reason and rule of the first packet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.table import PolicyTable
from spliceway.policy.verdict import Reason, Verdict
from support.cases import CaseFile, load_case_files
from support.generated import generated_files
from support.kernel import KernelNode
from support.kernelcases import connections, flow_of, load, redirected

pytestmark = pytest.mark.kernel

FILES = [*load_case_files(), *generated_files(8, 1, 40)]


@pytest.fixture(scope="module")
def bare_node() -> Iterator[KernelNode]:
    """A node without pods: endpoints are loose veths, as the programs are run by hand."""
    with Testbed.up([]) as testbed, KernelNode(testbed.node) as kernel:
        yield kernel


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.name)
def loaded(request: pytest.FixtureRequest, bare_node: KernelNode) -> tuple[KernelNode, CaseFile, PolicyTable]:
    file: CaseFile = request.param
    return bare_node, file, load(bare_node, file)


def test_kernel_agrees(loaded: tuple[KernelNode, CaseFile, PolicyTable], subtests: pytest.Subtests) -> None:
    node, file, table = loaded
    cases = connections(file)
    assert cases
    for case in cases.values():
        with subtests.test(case.id):
            flow = flow_of(node, file, case)
            verdict = "redirect" if redirected(flow) else flow.verdict.label
            reason = flow.reason.label
            if flow.reason is Reason.NO_LISTENER:
                reason = case.expect.reason
            elif flow.verdict is Verdict.ALLOW and flow.rule_set:
                # HTTP rules in audit only: without a listener it passes by.
                assert table.rule_sets[flow.rule_set].rules is None
                verdict, reason = "redirect", "redirected" if flow.reason is Reason.POLICY_ALLOWED else reason
            rule = str(table.rules[flow.rule]) if flow.rule else None
            assert (verdict, reason, rule) == (case.expect.verdict, case.expect.reason, case.expect.rule)
            if redirected(flow):
                asked = evaluate(file.cluster, Connection(case.source, case.destination, case.protocol, case.port))
                ends = [end.verdict is Verdict.REDIRECT for end in (asked.egress, asked.ingress) if end is not None]
                assert (table.rule_sets[flow.rule_set].also is not None) == (ends == [True, True])
