"""The table of cases against a real Envoy, over HTTP/1 and HTTP/2: verdict, reason and rule as the interpreter's.

What differs is listed in `support.envoycases`, with the reason; a difference that goes away is a failure too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from spliceway.policy.verdict import Verdict
from support.cases import Case, CaseFile
from support.envoy import EnvoyThread, port_of
from support.envoycases import CASES, GENERATED, Numbers, difference, send, serve, status_of
from support.steered import SERVER
from support.tables import rule_set_of

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

ALL = (*CASES, *GENERATED)
IDS = [case.id for _, case in ALL]


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        yield made


@pytest.fixture(scope="module")
def served(envoy: EnvoyThread) -> Numbers:
    return serve(envoy, ALL)


@pytest.mark.parametrize(("file", "case"), ALL, ids=IDS)
def test_http_1(envoy: EnvoyThread, served: Numbers, file: CaseFile, case: Case) -> None:
    assert case.expect.http is not None
    node, table, key = rule_set_of(file, case)
    reply, flow = send(envoy, served[file.name, node, key], case)
    rule = str(table.rules[flow.rule]) if flow.rule else None
    found = reply.status, flow.reason.label, rule
    if why := difference(case):
        lax = flow.verdict is Verdict.ALLOW and case.expect.http.status != 200
        assert found != (status_of(case), case.expect.http.reason, case.expect.http.rule), f"no difference: {why}"
        assert not lax or why.startswith("laxer"), f"{reply} {flow}"
    else:
        assert found == (status_of(case), case.expect.http.reason, case.expect.http.rule), f"{reply} {flow}"


H2_CASES = [
    (file, case)
    for file, case in CASES
    if case.request is not None
    and case.request.version == "1.1"
    and {name.lower() for name, _ in case.request.headers} == {b"host"}
    and len(case.request.headers) == 1
    and case.request.path.startswith(b"/")
    and case.request.path.isascii()
    and case.source.version == 4
]


@pytest.mark.parametrize(("file", "case"), H2_CASES, ids=[case.id for _, case in H2_CASES])
def test_http_2(envoy: EnvoyThread, served: Numbers, file: CaseFile, case: Case) -> None:
    """The same verdict with HTTP/2 from the client; the server does not speak it, so the status says nothing."""
    assert case.request is not None
    assert case.expect.http is not None
    node, table, key = rule_set_of(file, case)
    request = case.request
    envoy.node.flows.clear()
    host = request.values(b"host")[0].decode() or ";"
    command = [
        *("nsenter", f"--net={envoy.node.net.client}", "curl", "-s", "-m", "5", "-o", "/dev/null"),
        *("-w", "%{local_port}", "--http2-prior-knowledge", "-X", request.method.decode(), "-H", f"Host: {host}"),
        *("--request-target", request.path.decode(), f"http://{SERVER[4]}:{port_of(served[file.name, node, key])}/"),
    ]
    if request.method == b"HEAD":
        command.append("-I")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    flow = envoy.flow_of(int(done.stdout))
    rule = str(table.rules[flow.rule]) if flow.rule else None
    # What is no request Envoy can't pass on, whoever asks: docs/modes.md says so.
    passes = case.expect.http.status == 200 and case.expect.http.reason != "http-malformed"
    verdict = "allow" if passes else "deny"
    if difference(case) is None:
        assert (flow.protocol, flow.verdict.label, rule) == ("HTTP/2", verdict, case.expect.http.rule), flow
