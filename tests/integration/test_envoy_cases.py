"""The table of cases against a real Envoy, over HTTP/1 and HTTP/2: verdict, reason and rule as the interpreter's.

What differs is listed here, with the reason; a difference that goes away is a failure too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from spliceway.policy.verdict import Verdict
from support.cases import Case, CaseFile
from support.envoy import EnvoyThread, port_of
from support.steered import SERVER, read_reply
from support.tables import FILES, rule_set_of

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

CASES = [
    (file, case)
    for file in FILES.values()
    for case in file.cases
    if case.request is not None and case.expect.http is not None and "envoy" in case.paths
]
IDS = [case.id for _, case in CASES]


def difference(case: Case) -> str | None:
    """Why Envoy's answer differs from the interpreter's, None when it must not."""
    assert case.request is not None
    assert case.expect.http is not None
    path = case.request.path.split(b"?")[0].lower()
    if path.startswith((b"http://", b"https://")):
        return "stricter: Envoy would let the target override Host, so every absolute target is refused"
    if case.expect.http.reason == "http-ambiguous" and b"%2e" in path and b";" not in path and b"%252e" not in path:
        return "laxer: Envoy resolves %2e before any filter sees it; what is matched is what is sent on"
    if case.request.version == "1.0" and case.request.values(b"transfer-encoding"):
        return "laxer: Envoy takes the header away before any filter sees it, and frames the body anew"
    return None


def status_of(case: Case) -> int:
    """Status that Envoy answers with."""
    assert case.request is not None
    assert case.expect.http is not None
    if case.request.path == b"*" or b"://" in case.request.path:
        return 404  # `allow_absolute_url: false`
    if case.expect.http.reason == "http-ambiguous" and case.expect.http.status != 200:
        return 403  # what Envoy alone would answer doesn't count: the filter in front of the rules refuses
    return case.expect.http.envoy or case.expect.http.status


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    made = EnvoyThread(tmp_path_factory.mktemp("envoy"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def served(envoy: EnvoyThread) -> dict[tuple[str, str, int], int]:
    """(file, node, rule set id) -> id under which Envoy has it: all that the cases meet, at once."""
    numbers: dict[tuple[str, str, int], int] = {}
    sets = []
    for file, case in CASES:
        node, table, key = rule_set_of(file, case)
        if (file.name, node, key) not in numbers:
            number = numbers[file.name, node, key] = len(numbers) + 1
            sets.append(msgspec.structs.replace(table.rule_sets[key], id=number))
    envoy.run(envoy.node.apply(*sets))
    return numbers


@pytest.mark.parametrize(("file", "case"), CASES, ids=IDS)
def test_http_1(envoy: EnvoyThread, served: dict[tuple[str, str, int], int], file: CaseFile, case: Case) -> None:
    assert case.request is not None
    assert case.expect.http is not None
    node, table, key = rule_set_of(file, case)
    request = case.request
    head = b"%b %b HTTP/%b\r\n" % (request.method, request.path, request.version.encode())
    head += b"".join(b"%b: %b\r\n" % pair for pair in request.headers) + b"\r\n"
    body = b"0\r\n\r\n" if request.values(b"transfer-encoding") else b""
    envoy.node.flows.clear()
    with envoy.node.connect(served[file.name, node, key], case.source.version) as connection:
        port = connection.getsockname()[1]
        connection.sendall(head + body)
        reply = read_reply(connection, request.method == b"HEAD")
    flow = envoy.flow_of(port)
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
def test_http_2(envoy: EnvoyThread, served: dict[tuple[str, str, int], int], file: CaseFile, case: Case) -> None:
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
    verdict = "allow" if case.expect.http.status == 200 else "deny"
    if difference(case) is None:
        assert (flow.protocol, flow.verdict.label, rule) == ("HTTP/2", verdict, case.expect.http.rule), flow
