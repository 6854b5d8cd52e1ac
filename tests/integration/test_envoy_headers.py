"""Host and header conditions on a real Envoy, HTTP/1 and HTTP/2: a header that is there twice never matches."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet
from spliceway.policy.verdict import Verdict
from support.envoy import EnvoyThread, port_of
from support.steered import SERVER, read_reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

EXACT, PRESENT, BOTH, HOST, COMMA, LATIN, EMPTY, NEVER, MIXED, NAMES, HOSTED = range(1, 12)
SECRET = "s3cr3t-never-shown"
SETS = (
    RuleSet(EXACT, "exact", (HttpRule(11, headers=(HeaderMatch("x-token", SECRET, secret=True),)),)),
    RuleSet(PRESENT, "present", (HttpRule(21, headers=(HeaderMatch("x-any"),)),)),
    RuleSet(BOTH, "both", (HttpRule(31, "GET", "/a", "api", (HeaderMatch("x-a", "1"), HeaderMatch("x-b"))),)),
    RuleSet(HOST, "host", (HttpRule(41, host="a.c(:80)?"),)),
    RuleSet(COMMA, "comma", (HttpRule(51, headers=(HeaderMatch("x-list", "a,b"),)),)),
    RuleSet(LATIN, "latin", (HttpRule(61, headers=(HeaderMatch("x-name", "Jos\xe9 (a+b)"),)),)),
    RuleSet(EMPTY, "empty", (HttpRule(71, headers=(HeaderMatch("x-e", ""),)),)),
    RuleSet(NEVER, "never", (HttpRule(81, headers=(HeaderMatch("x-token", "\n", secret=True),)),)),
    RuleSet(MIXED, "mixed", (HttpRule(91, headers=(HeaderMatch("x-a", "1"),)), HttpRule(92, path="/open"))),
    RuleSet(NAMES, "names", (HttpRule(101, headers=(HeaderMatch("x!#$&'*+.^_`~-1"), HeaderMatch("host", "api"))),)),
    RuleSet(HOSTED, "hosted", (HttpRule(111, headers=(HeaderMatch("host"),)),)),
)
TOKEN = f"X-Token: {SECRET}"

#: rule set, path, Host, further headers, rule that lets pass (0: none)
CASES = [
    (EXACT, "/", "api", [TOKEN], 11),
    (EXACT, "/", "api", [TOKEN.replace("X-T", "x-t")], 11),
    (EXACT, "/", "api", [], 0),
    (EXACT, "/", "api", ["X-Token: other"], 0),
    (EXACT, "/", "api", [TOKEN + "x"], 0),
    (EXACT, "/", "api", [TOKEN.upper()], 0),
    (EXACT, "/", "api", [TOKEN, TOKEN], 0),
    (EXACT, "/", "api", [TOKEN, "X-Token: other"], 0),
    (EXACT, "/", "api", ["X-Token: other", TOKEN], 0),
    (EXACT, "/", "api", [TOKEN, "X-Other: 1", "x-token: "], 0),
    (EXACT, "/", "api", [f"{TOKEN},{SECRET}"], 0),
    (EXACT, "/", "api", [f"{TOKEN}, other"], 0),
    (PRESENT, "/", "api", ["X-Any: 1"], 21),
    (PRESENT, "/", "api", ["X-Any: a, b,c"], 21),
    (PRESENT, "/", "api", ["X-Any: -"], 21),
    (PRESENT, "/", "api", ["X-Any: h\xe9"], 21),
    (PRESENT, "/", "api", ["X-Any: %REQ(X)% 100%"], 21),
    (PRESENT, "/", "api", ["X-Any:" + " v" * 10_000], 21),
    (PRESENT, "/", "api", [], 0),
    (PRESENT, "/", "api", ["X-Any: 1", "X-Any: 1"], 0),
    (PRESENT, "/", "api", ["X-Any: 1", "X-Any: 2"], 0),
    (PRESENT, "/", "api", ["X-Any: a,b", "X-Any: c"], 0),
    (PRESENT, "/", "api", ["X-Anyone: 1"], 0),
    (BOTH, "/a", "api", ["X-A: 1", "X-B: 2"], 31),
    (BOTH, "/b", "api", ["X-A: 1", "X-B: 2"], 0),
    (BOTH, "/a", "web", ["X-A: 1", "X-B: 2"], 0),
    (BOTH, "/a", "api", ["X-A: 2", "X-B: 2"], 0),
    (BOTH, "/a", "api", ["X-A: 1"], 0),
    (BOTH, "/a", "api", ["X-A: 1", "X-B: 2", "X-B: 2"], 0),
    (BOTH, "/a", "api", ["X-A: 1", "X-A: 1", "X-B: 2"], 0),
    (HOST, "/", "abc", [], 41),
    (HOST, "/", "a.c", [], 41),
    (HOST, "/", "abc:80", [], 41),
    (HOST, "/", "abc:8080", [], 0),
    (HOST, "/", "ABC", [], 0),
    (HOST, "/", "xabc", [], 0),
    (HOST, "/", "abc.", [], 0),
    (COMMA, "/", "api", ["X-List: a,b"], 51),
    (COMMA, "/", "api", ["X-List: a", "X-List: b"], 0),
    (COMMA, "/", "api", ["X-List: a, b"], 0),
    (LATIN, "/", "api", ["X-Name: Jos\xe9 (a+b)"], 61),
    (LATIN, "/", "api", ["X-Name: Jose (a+b)"], 0),
    (LATIN, "/", "api", ["X-Name: Jos\xc3\xa9 (a+b)"], 0),
    (EMPTY, "/", "api", ["X-E: x"], 0),
    (EMPTY, "/", "api", [], 0),
    (NEVER, "/", "api", [TOKEN], 0),
    (NEVER, "/", "api", [], 0),
    (MIXED, "/", "api", ["X-A: 1"], 91),
    (MIXED, "/open", "api", ["X-A: 1", "X-A: 1"], 92),
    (NAMES, "/", "api", ["X!#$&'*+.^_`~-1: y"], 101),
    (HOSTED, "/", "web", [], 111),
    (NAMES, "/", "web", ["X!#$&'*+.^_`~-1: y"], 0),
]
H1_ONLY = [
    (EMPTY, "/", "api", ["X-E:"], 71),
    (EMPTY, "/", "api", ["X-E:", "X-E:"], 0),
    (PRESENT, "/", "api", ["X-Any:"], 21),
    (PRESENT, "/", "api", ["X-Any:", "X-Any: 1"], 0),
    (PRESENT, "/", "api", ["X-Any: 1", "X-Any:"], 0),
]


def _id(case: tuple[int, str, str, list[str], int]) -> str:
    name = SETS[case[0] - 1].name
    return f"{name} {case[1]} {case[2]} {' '.join(case[3])[:60]}"


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    made = EnvoyThread(tmp_path_factory.mktemp("envoy"))
    try:
        made.run(made.node.apply(*SETS))
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("case", [*CASES, *H1_ONLY], ids=_id)
def test_http_1(envoy: EnvoyThread, case: tuple[int, str, str, list[str], int]) -> None:
    key, path, host, headers, rule = case
    envoy.node.flows.clear()
    lines = "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""])
    with envoy.node.connect(key) as connection:
        connection.sendall(lines.encode("latin-1"))
        assert read_reply(connection).status == (200 if rule else 403)
        flow = envoy.flow_of(connection.getsockname()[1])
    assert (flow.rule, flow.verdict) == (rule, Verdict.ALLOW if rule else Verdict.DENY)
    assert SECRET not in repr(flow)


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_http_2(envoy: EnvoyThread, case: tuple[int, str, str, list[str], int]) -> None:
    """The same with HTTP/2 from the client; the server does not speak it, so the status says nothing."""
    key, path, host, headers, rule = case
    envoy.node.flows.clear()
    command: list[str | bytes] = [
        *("nsenter", f"--net={envoy.node.net.client}", "curl", "-s", "-m", "5", "-o", "/dev/null"),
        *("-w", "%{local_port}", "--http2-prior-knowledge", "-H", f"Host: {host}"),
    ]
    for header in headers:
        # An empty value is written with a semicolon; «Name:» would take the header away.
        name, _, value = header.partition(":")
        command += ["-H", (header if value.strip() else f"{name};").encode("latin-1")]
    command.append(f"http://{SERVER[4]}:{port_of(key)}{path}")
    done = subprocess.run(command, capture_output=True, check=False)
    flow = envoy.flow_of(int(done.stdout))
    assert (flow.protocol, flow.rule) == ("HTTP/2", rule)
    assert flow.verdict is (Verdict.ALLOW if rule else Verdict.DENY)


def test_what_the_codec_joins_is_one_value_for_the_rules_and_for_the_server(envoy: EnvoyThread) -> None:
    rules = (HttpRule(201, headers=(HeaderMatch("authorization", "a,b"),)),)
    envoy.run(envoy.node.apply(*SETS, RuleSet(20, "joined", rules)))
    envoy.node.upstream.heads.clear()
    request = b"GET / HTTP/1.1\r\nHost: api\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n"
    assert envoy.node.ask(20, request).status == 200
    [head] = envoy.node.upstream.heads
    assert [line for line in head.lower().split(b"\r\n") if line.startswith(b"authorization")] == [
        b"authorization: a,b"
    ]


@pytest.mark.parametrize("name", ["connection", "keep-alive", "transfer-encoding"])
def test_what_is_for_the_next_hop_only_is_never_there(envoy: EnvoyThread, name: str) -> None:
    envoy.run(envoy.node.apply(*SETS, RuleSet(20, "hop", (HttpRule(201, headers=(HeaderMatch(name),)),))))
    value = "chunked" if name == "transfer-encoding" else "x"
    request = f"GET / HTTP/1.1\r\nHost: api\r\n{name}: {value}\r\n\r\n0\r\n\r\n"
    assert envoy.node.ask(20, request.encode()).status == 403


def test_the_log_of_envoy_does_not_tell_secrets(envoy: EnvoyThread) -> None:
    assert SECRET not in (envoy.node.directory / "envoy.log").read_text()
