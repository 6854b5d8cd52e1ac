"""The whole table of cases with every policy in audit, in the kernel and with a real Envoy.

No packet and no request is denied (but those that no proxy can pass on), and what is said is what would be enforced.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.policy.verdict import Verdict
from support.cases import Case, CaseFile, load_case_files
from support.envoy import EnvoyThread
from support.envoycases import CASES, Numbers, difference, send, serve, status_of
from support.kernel import KernelNode
from support.kernelcases import connections, flow_of, load
from support.tables import rule_set_of

pytestmark = pytest.mark.kernel

#: Cases with policies that are in audit anyway expect what only those do.
FILES = [file for file in load_case_files() if file.name != "audit.yaml"]
REQUESTS = [(file, case) for file, case in CASES if file.name != "audit.yaml"]


@pytest.fixture(scope="module")
def bare_node() -> Iterator[KernelNode]:
    with Testbed.up([]) as testbed, KernelNode(testbed.node) as kernel:
        yield kernel


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_packet_is_denied(bare_node: KernelNode, file: CaseFile, subtests: pytest.Subtests) -> None:
    cluster = msgspec.structs.replace(file.cluster, audit=True)
    table = load(bare_node, file, cluster)
    for case in connections(file).values():
        with subtests.test(case.id):
            would = case.expect
            flow = flow_of(bare_node, file, case)
            rule = str(table.rules[flow.rule]) if flow.rule else None
            # No proxy is there, and not even that drops.
            assert (flow.verdict, rule) == (Verdict.ALLOW, would.rule)
            assert flow.audit == (would.verdict == "deny" or would.reason == "policy-denied")  # a dry run, too
            if flow.rule_set:  # a listener that lets every request pass; a denial at one end is said all the same
                rule_set = table.rule_sets[flow.rule_set]
                assert rule_set.rules is None
                assert rule_set.also is None or rule_set.also.rules is None
            if would.verdict == "redirect":
                assert flow.rule_set
            else:
                assert flow.reason.label == would.reason


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        yield made


@pytest.fixture(scope="module")
def served(envoy: EnvoyThread) -> Numbers:
    return serve(envoy, REQUESTS, audit=True)


@pytest.mark.envoy
@pytest.mark.parametrize(("file", "case"), REQUESTS, ids=[case.id for _, case in REQUESTS])
def test_no_request_is_denied(envoy: EnvoyThread, served: Numbers, file: CaseFile, case: Case) -> None:
    assert case.expect.http is not None
    node, table, key = rule_set_of(file, case, audit=True)
    reply, flow = send(envoy, served[file.name, node, key], case)
    # What is no request Envoy can't pass on: docs/modes.md says so.
    if case.expect.http.reason == "http-malformed" or (difference(case) or "").startswith("stricter"):
        assert reply.status == status_of(case) != 200
        return
    assert (reply.status, flow.verdict) == (200, Verdict.ALLOW), f"{reply} {flow}"
    if difference(case) is None:
        rule = str(table.rules[flow.rule]) if flow.rule else None
        assert (flow.reason.label, rule) == (case.expect.http.reason, case.expect.http.rule), f"{reply} {flow}"
