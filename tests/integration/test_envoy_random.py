"""Random rule sets and requests: a real Envoy and `http.decide()` must say, report and change the same."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.httpmatch import apply
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.policy.verdict import Verdict
from support.envoy import EnvoyThread
from support.steered import read_reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

_SETS, _REQUESTS = 60, 15
#: Few names and values, so that they meet; none that Envoy's codec joins (docs/xds.md).
_NAMES = ("x-a", "x-b", "forwarded", "x_c")
_VALUES = ("", "1", "a,b", "a", "b", "caf\xe9", "%s %REQ(X-A)%")
_PATHS = ("/a", "/a/1", "/b?q=1", "/c;", "/a%25", "/%00", "//a/./b/..")
_PATTERNS = ("", "/a.*", "/b.*", "/[ab].*", "/c", "/a/1")


def _match(draw: random.Random, soft: bool) -> HeaderMatch:
    action = draw.choice([Mismatch.DENY] * 2 + list(Mismatch)) if soft else Mismatch.DENY
    return HeaderMatch(draw.choice(_NAMES), draw.choice([None, *_VALUES]), draw.random() < 0.2, action)


def _rules(draw: random.Random, number: int, soft: bool = True) -> tuple[HttpRule, ...]:
    return tuple(
        HttpRule(
            number + index,
            draw.choice(["", "", "GET", "GET|POST"]),
            draw.choice(_PATTERNS),
            draw.choice(["", "", "api", "a.i", "web"]),
            tuple(_match(draw, soft and index < 4) for _ in range(draw.choice([0, 0, 1, 1, 2]))),
        )
        for index in range(draw.randint(1, 5))
    )


def _end(draw: random.Random, number: int) -> RuleSet:
    shape = draw.choice(["rules", "rules", "both", "audit", "nobody"])
    rules = _rules(draw, number) if shape in ("rules", "both") else None
    audit = _rules(draw, number + 10) if shape in ("both", "audit") else () if shape == "nobody" else None
    return RuleSet(number, f"end {number}", rules, audit)


def _rule_set(draw: random.Random, number: int) -> RuleSet:
    first = _end(draw, 100)
    also = _end(draw, 200) if draw.random() < 0.5 else None
    return RuleSet(number, f"random {number}", first.rules, first.audit, also)


def _request(draw: random.Random) -> HttpRequest:
    headers = [("host", draw.choice(["api", "api", "web", "aPi"]))]
    headers += [(draw.choice(_NAMES), draw.choice(_VALUES)) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
    return HttpRequest.of(draw.choice(["GET", "GET", "POST", "PUT"]), draw.choice(_PATHS), headers)


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    made = EnvoyThread(tmp_path_factory.mktemp("envoy"))
    yield made
    made.close()


def test_envoy_and_the_decision_agree(envoy: EnvoyThread) -> None:
    draw = random.Random(20)
    sets = [_rule_set(draw, number) for number in range(1, _SETS + 1)]
    envoy.run(envoy.node.apply(*sets))
    seen = set()
    for rule_set in sets:
        for _ in range(_REQUESTS):
            seen.add(_compare(envoy, rule_set, _request(draw)))
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
    assert (flow.verdict, flow.reason, flow.rule) == (expected.verdict, expected.reason, expected.rule), what
    assert (status == 200) == (expected.verdict is Verdict.ALLOW), what
    if expected.verdict is Verdict.ALLOW:
        assert flow.mismatches == tuple(sorted({change.name for change in expected.changes})), what
        lines = [line.partition(b":") for line in envoy.node.upstream.heads[0].split(b"\r\n")[1:]]
        arrived = [(name.lower().decode(), value.strip()) for name, _, value in lines]
        wanted = apply(request, expected.changes)
        for name in _NAMES:
            assert [value for key, value in arrived if key == name] == wanted.values(name.encode()), what
    return expected.verdict, expected.reason, bool(expected.rule), bool(expected.changes), rule_set.also is None
