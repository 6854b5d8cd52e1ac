"""Conditions on hosts and headers, rules of both ends, audit and headers that are changed: the embedded proxy.

The same tables as with Envoy (`test_envoy_headers.py`, `test_envoy_ends.py`), random rule sets beside `http.decide()`,
and values of Secrets, which nothing shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.httpmatch import apply
from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from support import endcases, headercases
from support.embeddednode import Asked, EmbeddedThread, Got, as_known
from support.envoycases import raw_of
from support.generated_http import generated_request, generated_rule_sets
from support.waiting import until

pytestmark = pytest.mark.kernel

_SETS, _REQUESTS = 60, 15
#: Rule sets of the two tables have the same numbers: those of the second come after so many.
_ENDS = 100
SETS = (
    *headercases.SETS,
    *(RuleSet(_ENDS + one.id, one.name, one.rules, one.audit, one.also) for one in endcases.SETS),
)
TWICE, HOP = 90, 91
EXTRA = (
    RuleSet(TWICE, "twice", (HttpRule(901, headers=(HeaderMatch("authorization"),)),)),
    RuleSet(HOP, "hop", (HttpRule(911, headers=(HeaderMatch("keep-alive"),)),)),
)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedThread]:
    with EmbeddedThread(tmp_path_factory.mktemp("embedded")) as made:
        made.run(made.node.apply(*SETS, *EXTRA))
        yield made


def ask(proxy: EmbeddedThread, key: int, request: HttpRequest) -> Got:
    """Send a request; what came of it, after a look at whether all agree that it passed."""
    return check(proxy.ask(Asked(key, raw_of(request))))


def check(got: Got) -> Got:
    assert (got.reply.status == 200) == (got.flow.verdict is Verdict.ALLOW) == (len(got.heads) == 1), got
    return got


def request_of(path: str, method: str = "GET", host: str = "api", headers: Sequence[str] = ()) -> HttpRequest:
    pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in headers)]
    return HttpRequest.of(method, path, [("Host", host), *pairs])


@pytest.mark.parametrize("case", [*headercases.CASES, *headercases.H1_ONLY], ids=headercases.name_of)
def test_conditions(proxy: EmbeddedThread, case: tuple[int, str, str, list[str], int]) -> None:
    key, path, host, headers, rule = case
    flow = ask(proxy, key, request_of(path, host=host, headers=headers)).flow
    assert (flow.rule, flow.verdict) == (rule, Verdict.ALLOW if rule else Verdict.DENY)
    assert headercases.SECRET not in repr(flow)


@pytest.mark.parametrize("case", endcases.VERDICTS, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_verdicts(proxy: EmbeddedThread, case: tuple[int, str, str, Verdict, Reason, int, int]) -> None:
    key, method, path, *expected = case
    if key == endcases.AUDIT:
        expected[0] = Verdict.ALLOW  # also what is no HTTP, which Envoy refuses by itself
    flow = ask(proxy, _ENDS + key, request_of(path, method)).flow
    assert [flow.verdict, flow.reason, flow.rule, flow.client_rule] == expected


@pytest.mark.parametrize(
    "case", endcases.CHANGES, ids=lambda case: f"{case[0]} {case[1]} {case[2]} {' '.join(case[3])}"
)
def test_changes(
    proxy: EmbeddedThread, case: tuple[int, str, str, list[str], int, list[str] | None, tuple[str, ...]]
) -> None:
    key, method, path, headers, rule, expected, mismatches = case
    got = ask(proxy, _ENDS + key, request_of(path, method, headers=headers))
    # Envoy notes what the client's end has changed where the server's end then refuses; nothing of it was sent.
    assert (got.flow.rule, got.flow.mismatches) == (rule, mismatches if rule else ())
    if expected is not None:
        lines = got.heads[0].decode("latin-1").split("\r\n")
        assert [line.partition(": ")[2] for line in lines if line.lower().startswith("x-a:")] == expected


def test_the_decision_and_the_proxy_agree(proxy: EmbeddedThread) -> None:
    draw = random.Random(20)
    sets = generated_rule_sets(_SETS, draw, first=200)
    proxy.run(proxy.node.apply(*SETS, *EXTRA, *sets))
    asked = [(rule_set, generated_request(draw)) for rule_set in sets for _ in range(_REQUESTS)]
    answers = proxy.ask_all(Asked(rule_set.id, raw_of(request)) for rule_set, request in asked)
    seen = set()
    for (rule_set, request), got in zip(asked, answers, strict=True):
        expected = decide(request, as_known(rule_set))
        flow = check(got).flow
        what = f"{rule_set}\n{request}\n{expected}\n{flow}"
        assert (flow.verdict, flow.reason, flow.rule) == (expected.verdict, expected.reason, expected.rule), what
        assert flow.nearest_miss == expected.nearest_miss, what
        assert flow.mismatches == tuple(sorted({change.name for change in expected.changes})), what
        if expected.verdict is Verdict.ALLOW:
            lines = [b"%b: %b" % pair for pair in apply(request, expected.changes).headers]
            assert got.heads[0].split(b"\r\n")[1:] == lines, what
        seen.add((flow.verdict, flow.reason, bool(flow.rule), bool(flow.mismatches), rule_set.also is None))
    # Otherwise the test would be about nothing.
    assert len(seen) >= 12, seen


def test_two_lines_stay_two_values(proxy: EmbeddedThread) -> None:
    """Envoy joins them; here the server would read what was not matched."""
    once = ["Authorization: a"]
    assert ask(proxy, TWICE, request_of("/", headers=once)).flow.rule == 901
    assert ask(proxy, TWICE, request_of("/", headers=once * 2)).flow.verdict is Verdict.DENY


def test_headers_about_the_connection_can_be_asked_for(proxy: EmbeddedThread) -> None:
    """Envoy takes them away before the rules; here the server gets them, so the rules see them."""
    assert ask(proxy, HOP, request_of("/", headers=["Keep-Alive: timeout=5"])).flow.rule == 911
    assert ask(proxy, HOP, request_of("/")).flow.verdict is Verdict.DENY


def test_what_shows_no_values_of_secrets(proxy: EmbeddedThread) -> None:
    """Log, state file, metrics, connections and flows. The dump of what is in force has them; its socket is root's."""
    proxy.run(proxy.node.apply(*SETS, *EXTRA))
    got = ask(proxy, headercases.EXACT, request_of("/", headers=[headercases.TOKEN]))
    assert headercases.SECRET not in repr(got.flow)
    miss = ask(proxy, headercases.EXACT, request_of("/", headers=["X-Token: other"]))
    assert miss.flow.verdict is Verdict.DENY
    assert headercases.SECRET not in repr(miss)
    for target in ("/server_info", "/stats?format=json", "/stats/prometheus", "/connections"):
        assert headercases.SECRET not in proxy.run(proxy.node.admin(target)), target
    assert proxy.node.bootstrap.admin_socket.stat().st_mode & 0o777 == 0o600
    state = proxy.node.proxy_settings.state_file
    until(state.exists)
    assert state.stat().st_mode & 0o777 == 0o600
    # Otherwise the test would be about nothing.
    assert b"rule-set-%d" % headercases.PRESENT in state.read_bytes()
    for file in proxy.node.directory.rglob("*"):
        if file.is_file():
            assert headercases.SECRET.encode() not in file.read_bytes(), file
