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
from spliceway.xds.accesslog.flow import HttpFlow
from support import endcases, headercases
from support.embeddednode import EmbeddedThread
from support.generated_http import generated_request, generated_rule_sets
from support.steered import read_reply

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
    made = EmbeddedThread(tmp_path_factory.mktemp("embedded"))
    try:
        made.run(made.node.apply(*SETS, *EXTRA))
        yield made
    finally:
        made.close()


def ask(proxy: EmbeddedThread, key: int, request: HttpRequest) -> HttpFlow:
    """Send a request; the flow, after a look at the status and at what arrived."""
    proxy.node.flows.clear()
    proxy.node.upstream.heads.clear()
    head = b"%b %b HTTP/1.1\r\n" % (request.method, request.path)
    with proxy.node.connect(key) as connection:
        connection.sendall(head + b"".join(b"%b: %b\r\n" % pair for pair in request.headers) + b"\r\n")
        status = read_reply(connection).status
        flow = proxy.flow_of(connection.getsockname()[1])
    assert (status == 200) == (flow.verdict is Verdict.ALLOW) == (len(proxy.node.upstream.heads) == 1), (status, flow)
    return flow


def request_of(path: str, method: str = "GET", host: str = "api", headers: Sequence[str] = ()) -> HttpRequest:
    pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in headers)]
    return HttpRequest.of(method, path, [("Host", host), *pairs])


@pytest.mark.parametrize("case", [*headercases.CASES, *headercases.H1_ONLY], ids=headercases.name_of)
def test_conditions(proxy: EmbeddedThread, case: tuple[int, str, str, list[str], int]) -> None:
    key, path, host, headers, rule = case
    flow = ask(proxy, key, request_of(path, host=host, headers=headers))
    assert (flow.rule, flow.verdict) == (rule, Verdict.ALLOW if rule else Verdict.DENY)
    assert headercases.SECRET not in repr(flow)


@pytest.mark.parametrize("case", endcases.VERDICTS, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_verdicts(proxy: EmbeddedThread, case: tuple[int, str, str, Verdict, Reason, int, int]) -> None:
    key, method, path, *expected = case
    flow = ask(proxy, _ENDS + key, request_of(path, method))
    assert [flow.verdict, flow.reason, flow.rule, flow.client_rule] == expected


@pytest.mark.parametrize(
    "case", endcases.CHANGES, ids=lambda case: f"{case[0]} {case[1]} {case[2]} {' '.join(case[3])}"
)
def test_changes(
    proxy: EmbeddedThread, case: tuple[int, str, str, list[str], int, list[str] | None, tuple[str, ...]]
) -> None:
    key, method, path, headers, rule, expected, mismatches = case
    flow = ask(proxy, _ENDS + key, request_of(path, method, headers=headers))
    # Envoy notes what the client's end has changed where the server's end then refuses; nothing of it was sent.
    assert (flow.rule, flow.mismatches) == (rule, mismatches if rule else ())
    if expected is not None:
        lines = proxy.node.upstream.heads[0].decode("latin-1").split("\r\n")
        assert [line.partition(": ")[2] for line in lines if line.lower().startswith("x-a:")] == expected


def test_the_decision_and_the_proxy_agree(proxy: EmbeddedThread) -> None:
    draw = random.Random(20)
    sets = generated_rule_sets(_SETS, draw, first=200)
    proxy.run(proxy.node.apply(*SETS, *EXTRA, *sets))
    seen = set()
    for rule_set in sets:
        for _ in range(_REQUESTS):
            request = generated_request(draw)
            expected = decide(request, rule_set)
            flow = ask(proxy, rule_set.id, request)
            what = f"{rule_set}\n{request}\n{expected}\n{flow}"
            assert (flow.verdict, flow.reason, flow.rule) == (expected.verdict, expected.reason, expected.rule), what
            assert flow.nearest_miss == expected.nearest_miss, what
            assert flow.mismatches == tuple(sorted({change.name for change in expected.changes})), what
            if expected.verdict is Verdict.ALLOW:
                lines = [line.partition(b": ") for line in proxy.node.upstream.heads[0].split(b"\r\n")[1:]]
                assert tuple((name, value) for name, _, value in lines) == apply(request, expected.changes).headers, (
                    what
                )
            seen.add((flow.verdict, flow.reason, bool(flow.rule), bool(flow.mismatches), rule_set.also is None))
    # Otherwise the test would be about nothing.
    assert len(seen) >= 12, seen


def test_two_lines_stay_two_values(proxy: EmbeddedThread) -> None:
    """Envoy joins them; here the server would read what was not matched."""
    once = ["Authorization: a"]
    assert ask(proxy, TWICE, request_of("/", headers=once)).rule == 901
    assert ask(proxy, TWICE, request_of("/", headers=once * 2)).verdict is Verdict.DENY


def test_headers_about_the_connection_can_be_asked_for(proxy: EmbeddedThread) -> None:
    """Envoy takes them away before the rules; here the server gets them, so the rules see them."""
    assert ask(proxy, HOP, request_of("/", headers=["Keep-Alive: timeout=5"])).rule == 911
    assert ask(proxy, HOP, request_of("/")).verdict is Verdict.DENY


def test_nothing_shows_values_of_secrets(proxy: EmbeddedThread) -> None:
    """Log, state file and metrics; and Envoy's dump is the only one that has them, of mode 0600."""
    proxy.run(proxy.node.apply(*SETS, *EXTRA))
    ask(proxy, headercases.EXACT, request_of("/", headers=[headercases.TOKEN]))
    secret = headercases.SECRET.encode()
    for target in ("/stats?format=json", "/stats/prometheus", "/connections", "/config_dump?include_eds"):
        assert headercases.SECRET not in proxy.run(proxy.node.admin(target)), target
    directory = proxy.node.directory
    files = [file for file in directory.rglob("*") if file.is_file()]
    assert {"embedded.log", "proxy-state"} <= {file.name for file in files}
    for file in files:
        assert secret not in file.read_bytes(), file
    assert (proxy.node.proxy_settings.state_file.stat().st_mode & 0o777) == 0o600
