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
from support.endcases import (
    AUDIT,
    BESIDE,
    BOTH_AUDIT,
    CHANGES,
    CLIENT_AUDIT,
    LOG,
    NOBODY,
    PAIR,
    SERVER_AUDIT,
    SETS,
    VERDICTS,
    A,
    B,
    other,
    with_action,
)
from support.envoy import EnvoyThread, port_of
from support.steered import SERVER, read_reply
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        made.run(made.node.apply(*SETS))
        yield made


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
        until(lambda: len(envoy.node.flows) >= len(loud))
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
