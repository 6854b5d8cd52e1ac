"""Host and header conditions on a real Envoy, HTTP/1 and HTTP/2: a header that is there twice never matches."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from spliceway.policy.table import HeaderMatch, HttpRule, RuleSet
from spliceway.policy.verdict import Verdict
from support.envoy import EnvoyThread, port_of
from support.headercases import CASES, H1_ONLY, SECRET, SETS, name_of
from support.steered import SERVER, read_reply

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        made.run(made.node.apply(*SETS))
        yield made


@pytest.mark.parametrize("case", [*CASES, *H1_ONLY], ids=name_of)
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


@pytest.mark.parametrize("case", CASES, ids=name_of)
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
