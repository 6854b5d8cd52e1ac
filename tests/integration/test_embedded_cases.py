"""The table of cases against the embedded proxy: status, verdict, reason and rule as the interpreter's, none excepted.

What reaches the server is what the interpreter makes of the request, in the order and case in which it came. The whole
table is asked a second time with every policy in audit.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spliceway.policy.http import decide
from spliceway.policy.httpmatch import apply
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.table import RuleSet
from spliceway.policy.verdict import Verdict
from spliceway.xds.accesslog.flow import HttpFlow
from support.cases import Case, CaseFile
from support.embeddednode import EmbeddedThread
from support.envoycases import EMBEDDED, GENERATED, Numbers, send, serve
from support.steered import Reply
from support.tables import FILES, rule_set_of

pytestmark = pytest.mark.kernel

ALL = (*EMBEDDED, *GENERATED)
#: Cases with policies that are in audit anyway expect what only those do.
AUDITED = tuple((file, case) for file, case in EMBEDDED if file.name != "audit.yaml")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedThread]:
    made = EmbeddedThread(tmp_path_factory.mktemp("embedded"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(proxy: EmbeddedThread) -> Numbers:
    return serve(proxy, ALL)


@pytest.fixture(scope="module")
def audited(proxy: EmbeddedThread) -> Numbers:
    return serve(proxy, AUDITED, audit=True)


@pytest.mark.parametrize(("file", "case"), ALL, ids=[case.id for _, case in ALL])
def test_as_the_interpreter(proxy: EmbeddedThread, served: Numbers, file: CaseFile, case: Case) -> None:
    assert case.expect.http is not None
    node, table, key = rule_set_of(file, case)
    reply, flow = ask(proxy, served[file.name, node, key], case)
    rule = str(table.rules[flow.rule]) if flow.rule else None
    expect = case.expect.http
    assert (reply.status, flow.reason.label, rule) == (expect.status, expect.reason, expect.rule), f"{reply} {flow}"
    check(proxy, case, table.rule_sets[key], reply, flow)


@pytest.mark.parametrize(("file", "case"), AUDITED, ids=[case.id for _, case in AUDITED])
def test_in_audit(proxy: EmbeddedThread, audited: Numbers, file: CaseFile, case: Case) -> None:
    """Nothing is denied but what no proxy can pass on, and what is said is what would be enforced."""
    assert case.expect.http is not None
    node, table, key = rule_set_of(file, case, audit=True)
    reply, flow = ask(proxy, audited[file.name, node, key], case)
    rule = str(table.rules[flow.rule]) if flow.rule else None
    status = 400 if case.expect.http.reason == "http-malformed" else 200
    assert (reply.status, flow.reason.label, rule) == (status, case.expect.http.reason, case.expect.http.rule)
    check(proxy, case, table.rule_sets[key], reply, flow)


def ask(proxy: EmbeddedThread, rule_set: int, case: Case) -> tuple[Reply, HttpFlow]:
    proxy.node.upstream.heads.clear()
    return send(proxy, rule_set, case)


def check(proxy: EmbeddedThread, case: Case, rule_set: RuleSet, reply: Reply, flow: HttpFlow) -> None:
    """Whatever the interpreter says of the request is what the flow says, and the server got what it would send on."""
    assert case.request is not None
    decision = decide(case.request, rule_set)
    assert (flow.verdict, flow.reason, flow.rule) == (decision.verdict, decision.reason, decision.rule)
    assert reply.status == decision.status
    assert flow.nearest_miss == decision.nearest_miss
    assert flow.mismatches == tuple(sorted({change.name for change in decision.changes}))
    heads = proxy.node.upstream.heads
    if decision.verdict is Verdict.DENY:
        assert not heads
        return
    request = apply(case.request, decision.changes)
    path = decision.path or _as_it_came(request.path)
    lines = [b"%b %b HTTP/%b" % (request.method, path, request.version.encode())]
    lines += [b"%b: %b" % pair for pair in request.headers]
    assert heads == [b"\r\n".join(lines)]


def _as_it_came(target: bytes) -> bytes:
    """A target that passes because of audit is one that can't be normalised."""
    with pytest.raises(TargetError):
        normalise(target)
    return target


def test_every_case_is_here() -> None:
    """The interpreter's cases that have a request are the embedded proxy's, with no exception."""
    wanted = {case.id for file in FILES.values() for case in file.cases if case.request and case.expect.http}
    assert {case.id for _, case in EMBEDDED} == wanted
