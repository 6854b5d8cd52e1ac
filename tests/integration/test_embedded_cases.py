"""The table of cases against the embedded proxy: status, verdict, reason and rule as the interpreter's, none excepted.

What reaches the server is what the interpreter makes of the request, in the order and case in which it came. The whole
table is asked a second time with every policy in audit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from spliceway.policy.http import decide, origin_form
from spliceway.policy.httpmatch import apply
from spliceway.policy.httppath import TargetError, normalise
from spliceway.policy.table import RuleSet
from spliceway.policy.verdict import Verdict
from support.cases import Case, CaseFile
from support.embeddednode import Asked, EmbeddedThread, Got, as_known
from support.envoycases import EMBEDDED, GENERATED, raw_of, serve
from support.tables import FILES, rule_set_of

pytestmark = pytest.mark.kernel

ALL = (*EMBEDDED, *GENERATED)
#: Cases with policies that are in audit anyway expect what only those do.
AUDITED = tuple((file, case) for file, case in EMBEDDED if file.name != "audit.yaml")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedThread]:
    with EmbeddedThread(tmp_path_factory.mktemp("embedded")) as made:
        yield made


@pytest.fixture(scope="module")
def answers(proxy: EmbeddedThread) -> dict[str, Got]:
    return ask(proxy, ALL)


@pytest.fixture(scope="module")
def audited(proxy: EmbeddedThread) -> dict[str, Got]:
    return ask(proxy, AUDITED, audit=True)


def ask(proxy: EmbeddedThread, cases: Sequence[tuple[CaseFile, Case]], *, audit: bool = False) -> dict[str, Got]:
    """What came of each case, by its id."""
    numbers = serve(proxy, cases, audit=audit)
    requests = []
    for file, case in cases:
        assert case.request is not None
        node, _, key = rule_set_of(file, case, audit=audit)
        requests.append(Asked(numbers[file.name, node, key], raw_of(case.request), case.source.version))
    return dict(zip((case.id for _, case in cases), proxy.ask_all(requests), strict=True))


@pytest.mark.parametrize(("file", "case"), ALL, ids=[case.id for _, case in ALL])
def test_as_the_interpreter(answers: dict[str, Got], file: CaseFile, case: Case) -> None:
    expect = case.expect.http
    assert expect is not None
    _, table, key = rule_set_of(file, case)
    got = answers[case.id]
    rule = str(table.rules[got.flow.rule]) if got.flow.rule else None
    assert (got.reply.status, got.flow.reason.label, rule) == (expect.status, expect.reason, expect.rule), got
    check(case, table.rule_sets[key], got)


@pytest.mark.parametrize(("file", "case"), AUDITED, ids=[case.id for _, case in AUDITED])
def test_in_audit(audited: dict[str, Got], file: CaseFile, case: Case) -> None:
    """Nothing is denied, and what is said is what would be enforced. What is no request goes on as it came."""
    expect = case.expect.http
    assert expect is not None
    _, table, key = rule_set_of(file, case, audit=True)
    got = audited[case.id]
    rule = str(table.rules[got.flow.rule]) if got.flow.rule else None
    assert (got.flow.reason.label, rule) == (expect.reason, expect.rule), got
    assert case.request is not None
    try:
        origin_form(case.request)
    except TargetError:
        # It went on unread (test_proxy_audit), and what the server makes of it is the server's matter.
        assert got.flow.verdict is Verdict.ALLOW
    else:
        assert got.reply.status == 200
        check(case, table.rule_sets[key], got)


def check(case: Case, rule_set: RuleSet, got: Got) -> None:
    """Whatever the interpreter says of the request is what the flow says, and the server got what it would send on."""
    assert case.request is not None
    decision = decide(case.request, rule_set)
    flow = got.flow
    assert (flow.verdict, flow.reason, flow.rule) == (decision.verdict, decision.reason, decision.rule)
    assert got.reply.status == decision.status
    assert flow.nearest_miss == decide(case.request, as_known(rule_set)).nearest_miss
    assert flow.mismatches == tuple(sorted({change.name for change in decision.changes}))
    if decision.verdict is Verdict.DENY:
        assert not got.heads
        return
    request = apply(case.request, decision.changes)
    path = decision.path or _as_it_came(request.path)
    lines = [b"%b %b HTTP/%b" % (request.method, path, request.version.encode())]
    lines += [b"%b: %b" % pair for pair in request.headers]
    assert got.heads == (b"\r\n".join(lines),)


def _as_it_came(target: bytes) -> bytes:
    """A target that passes because of audit is one that can't be normalised."""
    with pytest.raises(TargetError):
        normalise(target)
    return target


def test_every_case_is_here() -> None:
    """The interpreter's cases that have a request are the embedded proxy's, with no exception."""
    wanted = {case.id for file in FILES.values() for case in file.cases if case.request and case.expect.http}
    assert {case.id for _, case in EMBEDDED} == wanted
