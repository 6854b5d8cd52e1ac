"""Random rule sets and requests: a real Envoy and `http.decide()` must say, report and change the same."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.httpmatch import apply
from spliceway.policy.table import RuleSet
from spliceway.policy.verdict import Reason, Verdict
from support.envoy import EnvoyThread
from support.generated_http import HEADER_NAMES, generated_request, generated_rule_sets
from support.steered import read_reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

_SETS, _REQUESTS = 60, 15


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        yield made


def test_envoy_and_the_decision_agree(envoy: EnvoyThread) -> None:
    draw = random.Random(20)
    sets = generated_rule_sets(_SETS, draw)
    envoy.run(envoy.node.apply(*sets))
    seen = set()
    for rule_set in sets:
        for _ in range(_REQUESTS):
            seen.add(_compare(envoy, rule_set, generated_request(draw)))
    # Otherwise the test would be about nothing.
    assert len(seen) >= 12, seen


def _compare(envoy: EnvoyThread, rule_set: RuleSet, request: HttpRequest) -> tuple[object, ...]:
    expected = decide(request, rule_set)
    head = b"%b %b HTTP/1.1\r\n" % (request.method, request.path)
    head += b"".join(b"%b: %b\r\n" % pair for pair in request.headers) + b"\r\n"
    envoy.node.flows.clear()
    envoy.node.upstream.heads.clear()
    with envoy.node.connect(rule_set.id) as connection:
        connection.sendall(head)
        status = read_reply(connection).status
        flow = envoy.flow_of(connection.getsockname()[1])
    what = f"{rule_set}\n{request}\n{expected}\n{flow}"
    # What is no request Envoy can't pass on, also where only audit asks: docs/modes.md says so.
    verdict = Verdict.DENY if expected.reason is Reason.HTTP_MALFORMED else expected.verdict
    assert (flow.verdict, flow.reason, flow.rule) == (verdict, expected.reason, expected.rule), what
    assert (status == 200) == (verdict is Verdict.ALLOW), what
    if verdict is Verdict.ALLOW:
        assert flow.mismatches == tuple(sorted({change.name for change in expected.changes})), what
        lines = [line.partition(b":") for line in envoy.node.upstream.heads[0].split(b"\r\n")[1:]]
        arrived = [(name.lower().decode(), value.strip()) for name, _, value in lines]
        wanted = apply(request, expected.changes)
        for name in HEADER_NAMES:
            assert [value for key, value in arrived if key == name] == wanted.values(name.encode()), what
    return expected.verdict, expected.reason, bool(expected.rule), bool(expected.changes), rule_set.also is None
