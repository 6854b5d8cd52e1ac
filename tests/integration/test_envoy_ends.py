"""Rules of both ends, audit, and headers that are changed on their way: a real Envoy, HTTP/1 and HTTP/2."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator, Sequence

import pytest

from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.envoyadmin import admin_get
from spliceway.xds.resources.names import RUNTIME_LOG_ALLOWED
from support.envoy import EnvoyThread, port_of
from support.steered import SERVER, read_reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

A, B, C = (HttpRule(number, path=f"/{letter}.*") for number, letter in ((11, "a"), (12, "b"), (13, "c")))
ANY = HttpRule(14)
PAIR, AUDIT, NOBODY, BESIDE, CLIENT_AUDIT, SERVER_AUDIT, BOTH_AUDIT = range(1, 8)
ADD, DELETE, REPLACE, LOG, PAIRED, SEVERAL, SECOND, AUDITED, GIVEN = range(11, 20)
ALLOWED, DENIED, AMBIGUOUS, MALFORMED = (
    Reason.HTTP_ALLOWED,
    Reason.HTTP_DENIED,
    Reason.HTTP_AMBIGUOUS,
    Reason.HTTP_MALFORMED,
)


def header(name: str, value: str | None, action: Mismatch) -> HeaderMatch:
    return HeaderMatch(name, value, mismatch=action)


def with_action(rule: int, action: Mismatch, value: str | None = "right", path: str = "") -> HttpRule:
    return HttpRule(rule, path=path, headers=(header("x-a", value, action),))


def other(*rules: HttpRule, audit: tuple[HttpRule, ...] | None = None) -> RuleSet:
    return RuleSet(99, "other end", rules or None, audit)


SETS = (
    RuleSet(PAIR, "pair", (HttpRule(21, "GET"), HttpRule(22, path="/b.*")), also=other(A, B)),
    RuleSet(AUDIT, "audit", None, audit=(A,)),
    RuleSet(NOBODY, "nobody", None, audit=()),
    RuleSet(BESIDE, "beside", (A, B), audit=(HttpRule(23, path="/b.*"),)),
    RuleSet(CLIENT_AUDIT, "client audit", None, audit=(A,), also=other(A, B)),
    RuleSet(SERVER_AUDIT, "server audit", (A, B), also=other(audit=(A,))),
    RuleSet(BOTH_AUDIT, "both audit", None, audit=(A, B), also=other(audit=(A,))),
    RuleSet(ADD, "add", (with_action(31, Mismatch.ADD),)),
    RuleSet(DELETE, "delete", (with_action(31, Mismatch.DELETE),)),
    RuleSet(REPLACE, "replace", (with_action(31, Mismatch.REPLACE),)),
    RuleSet(LOG, "log", (with_action(31, Mismatch.LOG),)),
    # The client's end gives a token, the server's end asks for it.
    RuleSet(
        PAIRED,
        "paired",
        (with_action(31, Mismatch.REPLACE, path="/[ab].*"), with_action(32, Mismatch.DELETE, path="/c"), ANY),
        also=other(HttpRule(33, headers=(HeaderMatch("x-a", "right"),)), HttpRule(34, headers=(HeaderMatch("x-a"),))),
    ),
    RuleSet(
        SEVERAL,
        "several",
        (
            HttpRule(41, path="/a.*", headers=(HeaderMatch("x-b"), header("x-a", "one", Mismatch.ADD))),
            HttpRule(42, "GET", headers=(header("x-a", "two", Mismatch.ADD), header("x-c", None, Mismatch.LOG))),
            HttpRule(43, path="/a.*"),
            HttpRule(44, "GET", headers=(header("x-a", "two", Mismatch.ADD),)),
            HttpRule(45, path="/a/d", headers=(header("x-a", "two", Mismatch.DELETE),)),
        ),
    ),
    RuleSet(SECOND, "second", (B,), also=other(with_action(51, Mismatch.REPLACE, "caf\xe9 100%"))),
    RuleSet(
        GIVEN,
        "given",
        (with_action(61, Mismatch.REPLACE, path="/a"), ANY),
        also=other(HttpRule(62, headers=(HeaderMatch("x-a"),))),
    ),
    RuleSet(AUDITED, "audited", None, audit=(with_action(52, Mismatch.DELETE),)),
)


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    made = EnvoyThread(tmp_path_factory.mktemp("envoy"))
    try:
        made.run(made.node.apply(*SETS))
        yield made
    finally:
        made.close()


def ask(envoy: EnvoyThread, key: int, path: str, method: str = "GET", headers: Sequence[str] = ()) -> HttpFlow:
    """One request over HTTP/1; the flow, after a look at the status."""
    envoy.node.flows.clear()
    envoy.node.upstream.heads.clear()
    lines = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: api", *headers, "", ""])
    with envoy.node.connect(key) as connection:
        connection.sendall(lines.encode("latin-1"))
        status = read_reply(connection).status
        flow = envoy.flow_of(connection.getsockname()[1])
    assert (status == 200) == (flow.verdict is Verdict.ALLOW), (status, flow)
    assert len(envoy.node.upstream.heads) == (flow.verdict is Verdict.ALLOW)
    return flow


def ask_2(envoy: EnvoyThread, key: int, path: str, method: str = "GET", headers: Sequence[str] = ()) -> HttpFlow:
    """One request over HTTP/2, which the server does not speak: the flow has the verdict."""
    envoy.node.flows.clear()
    command: list[str | bytes] = [
        *("nsenter", f"--net={envoy.node.net.client}", "curl", "-s", "-m", "5", "-o", "/dev/null"),
        *("-w", "%{local_port}", "--http2-prior-knowledge", "-X", method, "-H", "Host: api"),
        *("--request-target", path),
    ]
    for each in headers:
        command += ["-H", each.encode("latin-1")]
    command.append(f"http://{SERVER[4]}:{port_of(key)}/")
    done = subprocess.run(command, capture_output=True, check=False)
    flow = envoy.flow_of(int(done.stdout))
    assert flow.protocol == "HTTP/2"
    return flow


#: rule set, method, path, verdict, reason, rule, rule of the client
VERDICTS = [
    (PAIR, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 21),
    (PAIR, "GET", "/b", Verdict.ALLOW, ALLOWED, 12, 21),
    (PAIR, "POST", "/b", Verdict.ALLOW, ALLOWED, 12, 22),
    (PAIR, "POST", "/a", Verdict.DENY, DENIED, 0, 0),  # the client's end refuses
    (PAIR, "GET", "/c", Verdict.DENY, DENIED, 0, 0),  # the server's end refuses
    (PAIR, "POST", "/c", Verdict.DENY, DENIED, 0, 0),
    (PAIR, "GET", "/a;x", Verdict.DENY, AMBIGUOUS, 0, 0),
    (AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 0),
    (AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (AUDIT, "GET", "/a;x", Verdict.ALLOW, AMBIGUOUS, 0, 0),
    (AUDIT, "GET", "/b%00", Verdict.DENY, MALFORMED, 0, 0),
    (NOBODY, "GET", "/a", Verdict.ALLOW, DENIED, 0, 0),
    (NOBODY, "GET", "/a%25", Verdict.ALLOW, AMBIGUOUS, 0, 0),
    (BESIDE, "GET", "/a", Verdict.ALLOW, DENIED, 0, 0),
    (BESIDE, "GET", "/b", Verdict.ALLOW, ALLOWED, 12, 0),
    (BESIDE, "GET", "/c", Verdict.DENY, DENIED, 0, 0),
    (BESIDE, "GET", "/b;", Verdict.DENY, AMBIGUOUS, 0, 0),
    (CLIENT_AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 11),
    (CLIENT_AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (CLIENT_AUDIT, "GET", "/c", Verdict.DENY, DENIED, 0, 0),
    (CLIENT_AUDIT, "GET", "/a;", Verdict.DENY, AMBIGUOUS, 0, 0),
    (SERVER_AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 11),
    (SERVER_AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (SERVER_AUDIT, "GET", "/c", Verdict.DENY, DENIED, 0, 0),
    (SERVER_AUDIT, "GET", "/a;", Verdict.DENY, AMBIGUOUS, 0, 0),
    (BOTH_AUDIT, "GET", "/a", Verdict.ALLOW, ALLOWED, 11, 11),
    (BOTH_AUDIT, "GET", "/b", Verdict.ALLOW, DENIED, 0, 0),
    (BOTH_AUDIT, "GET", "/c", Verdict.ALLOW, DENIED, 0, 0),
    (BOTH_AUDIT, "GET", "/c;", Verdict.ALLOW, AMBIGUOUS, 0, 0),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: f"{SETS[case[0] - 1].name} {case[1]} {case[2]}")
def test_verdicts(envoy: EnvoyThread, case: tuple[int, str, str, Verdict, Reason, int, int], version: int) -> None:
    key, method, path, *expected = case
    flow = (ask if version == 1 else ask_2)(envoy, key, path, method)
    assert [flow.verdict, flow.reason, flow.rule, flow.client_rule] == expected


@pytest.mark.parametrize("key", [AUDIT, NOBODY, BOTH_AUDIT])
def test_audit_does_not_let_a_bad_host_pass(envoy: EnvoyThread, key: int) -> None:
    assert envoy.node.ask(key, b"GET /a HTTP/1.1\r\nHost: a@b\r\n\r\n").status == 403
    assert envoy.node.ask(key, b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").status == 403


#: rule set, method, path, headers, rule, headers x-a as they reach the server, mismatches
CHANGES = [
    (ADD, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (ADD, "GET", "/", ["X-A: wrong"], 31, ["wrong", "right"], ("x-a",)),
    (ADD, "GET", "/", [], 31, ["right"], ("x-a",)),
    (ADD, "GET", "/", ["X-A: right", "X-A: right"], 31, ["right", "right", "right"], ("x-a",)),
    (DELETE, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (DELETE, "GET", "/", ["X-A: wrong"], 31, [], ("x-a",)),
    (DELETE, "GET", "/", [], 31, [], ()),
    (DELETE, "GET", "/", ["X-A: right", "X-A: right"], 31, [], ("x-a",)),
    (REPLACE, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (REPLACE, "GET", "/", ["X-A: wrong"], 31, ["right"], ("x-a",)),
    (REPLACE, "GET", "/", [], 31, ["right"], ("x-a",)),
    (REPLACE, "GET", "/", ["X-A: a", "X-B: 1", "X-A: right"], 31, ["right"], ("x-a",)),
    (LOG, "GET", "/", ["X-A: right"], 31, ["right"], ()),
    (LOG, "GET", "/", ["X-A: wrong"], 31, ["wrong"], ("x-a",)),
    (LOG, "GET", "/", [], 31, [], ("x-a",)),
    (PAIRED, "GET", "/a", ["X-A: wrong"], 33, ["right"], ("x-a",)),
    (PAIRED, "GET", "/b", [], 33, ["right"], ("x-a",)),
    (PAIRED, "GET", "/d", ["X-A: wrong"], 34, ["wrong"], ()),
    (PAIRED, "GET", "/a", ["X-A: w", "X-A: right"], 33, ["right"], ("x-a",)),
    (PAIRED, "GET", "/d", [], 0, None, ()),
    (PAIRED, "GET", "/c", ["X-A: wrong"], 0, None, ("x-a",)),
    (PAIRED, "GET", "/c", ["X-A: right"], 33, ["right"], ()),
    (SEVERAL, "GET", "/a", ["X-B: 1"], 41, ["one", "two"], ("x-a", "x-c")),
    (SEVERAL, "GET", "/a", ["X-B: 1", "X-A: two"], 41, ["two", "one"], ("x-a", "x-c")),
    (SEVERAL, "GET", "/a", ["X-B: 1", "X-A: one"], 41, ["one", "two"], ("x-a", "x-c")),
    (SEVERAL, "GET", "/a", ["X-B: 1", "X-B: 1", "X-C: 1"], 42, ["two"], ("x-a",)),
    (SEVERAL, "GET", "/b", ["X-C: 1"], 42, ["two"], ("x-a",)),
    (SEVERAL, "POST", "/a", [], 43, [], ()),
    (SEVERAL, "POST", "/a", ["X-B: 1"], 41, ["one"], ("x-a",)),
    (SEVERAL, "GET", "/a/d", ["X-A: zero", "X-C: 1"], 42, [], ("x-a",)),
    (SEVERAL, "POST", "/b", [], 0, None, ()),
    (SECOND, "GET", "/b", ["X-A: wrong"], 51, ["caf\xe9 100%"], ("x-a",)),
    (SECOND, "GET", "/b", ["X-A: caf\xe9 100%"], 51, ["caf\xe9 100%"], ()),
    (SECOND, "GET", "/a", ["X-A: wrong"], 0, None, ()),
    (GIVEN, "GET", "/a", [], 62, ["right"], ("x-a",)),
    (GIVEN, "GET", "/a", ["X-A: wrong"], 62, ["right"], ("x-a",)),
    (GIVEN, "GET", "/a", ["X-A: a", "X-A: b"], 62, ["right"], ("x-a",)),
    (GIVEN, "GET", "/b", [], 0, None, ()),
    (GIVEN, "GET", "/b", ["X-A: a", "X-A: b"], 0, None, ()),
    (GIVEN, "GET", "/b", ["X-A: a"], 62, ["a"], ()),
    (AUDITED, "GET", "/", ["X-A: wrong"], 52, ["wrong"], ()),
]


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: f"{case[0]} {case[1]} {case[2]} {' '.join(case[3])}")
def test_changes(
    envoy: EnvoyThread, case: tuple[int, str, str, list[str], int, list[str] | None, tuple[str, ...]]
) -> None:
    key, method, path, headers, rule, expected, mismatches = case
    flow = ask(envoy, key, path, method, headers)
    assert (flow.rule, flow.mismatches) == (rule, mismatches)
    if expected is not None:
        lines = envoy.node.upstream.heads[0].decode("latin-1").split("\r\n")
        assert [line.partition(": ")[2] for line in lines if line.lower().startswith("x-a:")] == expected


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: f"{case[0]} {case[1]} {case[2]} {' '.join(case[3])}")
def test_changes_with_http_2(
    envoy: EnvoyThread, case: tuple[int, str, str, list[str], int, list[str] | None, tuple[str, ...]]
) -> None:
    key, method, path, headers, rule, _, mismatches = case
    flow = ask_2(envoy, key, path, method, headers)
    assert (flow.rule, flow.mismatches) == (rule, mismatches)


def test_what_audit_would_deny_is_logged_however_busy_the_node_is(envoy: EnvoyThread) -> None:
    async def share(millionths: int) -> None:
        target = f"/runtime_modify?{RUNTIME_LOG_ALLOWED}={millionths}"
        await admin_get(envoy.node.bootstrap.admin_socket, target, method="POST")

    envoy.run(share(0))
    try:
        envoy.node.flows.clear()
        quiet = [(AUDIT, "/a"), (SERVER_AUDIT, "/a"), (PAIR, "/a")]
        loud = [(AUDIT, "/b"), (AUDIT, "/a;"), (SERVER_AUDIT, "/b"), (BESIDE, "/a"), (PAIR, "/c"), (LOG, "/")]
        loud += [(CLIENT_AUDIT, "/b"), (PAIR, "/a;"), (PAIR, "/%00")]
        for key, path in quiet + loud:
            envoy.node.get(key, path)
        for _ in range(100):
            if len(envoy.node.flows) >= len(loud):
                break
            envoy.run(asyncio.sleep(0.02))
        envoy.run(asyncio.sleep(0.1))  # what should not come would come now
        assert len(envoy.node.flows) == len(loud), envoy.node.flows
    finally:
        envoy.run(share(1_000_000))


def test_enforcement_and_audit_change_places_on_a_live_connection(envoy: EnvoyThread) -> None:
    request = b"GET /b HTTP/1.1\r\nHost: api\r\n\r\n"
    key = 30
    shapes = (
        (RuleSet(key, "x", (A,)), 403),
        (RuleSet(key, "x", None, audit=(A,)), 200),
        (RuleSet(key, "x", (A, B), also=other(A)), 403),
        (RuleSet(key, "x", (A, B), also=other(audit=(A,))), 200),
        (RuleSet(key, "x", (with_action(1, Mismatch.ADD),)), 200),
        (RuleSet(key, "x", (HttpRule(1, headers=(HeaderMatch("x-a"),)),)), 403),
        (RuleSet(key, "x", (B,)), 200),
    )
    envoy.run(envoy.node.apply(*SETS, shapes[0][0]))
    with envoy.node.connect(key) as connection:
        for rule_set, status in shapes:
            envoy.run(envoy.node.apply(*SETS, rule_set))
            connection.sendall(request)
            assert read_reply(connection).status == status, rule_set
