"""Cases with requests against a real proxy: rule sets as they are compiled, one request each; Envoy's differences."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from spliceway.policy.http import HttpRequest
from spliceway.xds.accesslog.flow import HttpFlow
from support.cases import Case, CaseFile
from support.envoy import EnvoyThread
from support.generated_http import generated_http
from support.steered import Reply, read_reply
from support.tables import FILES, rule_set_of

_REQUESTS = tuple(
    (file, case)
    for file in FILES.values()
    for case in file.cases
    if case.request is not None and case.expect.http is not None
)
#: Every case with a request that Envoy is asked about, and that the embedded proxy is.
CASES = tuple((file, case) for file, case in _REQUESTS if "envoy" in case.paths)
EMBEDDED = tuple((file, case) for file, case in _REQUESTS if "embedded" in case.paths)

#: Requests that a generator made.
GENERATED = tuple((file, case) for file in generated_http(12, 1, 10) for case in file.cases)

Numbers = dict[tuple[str, str, int], int]


def serve(envoy: EnvoyThread, cases: Iterable[tuple[CaseFile, Case]], *, audit: bool = False) -> Numbers:
    """Serve all rule sets that the cases meet; (file, node, rule set id) -> id under which Envoy has it."""
    numbers: Numbers = {}
    sets = []
    for file, case in cases:
        node, table, key = rule_set_of(file, case, audit=audit)
        if (file.name, node, key) not in numbers:
            number = numbers[file.name, node, key] = len(numbers) + 1
            sets.append(msgspec.structs.replace(table.rule_sets[key], id=number))
    envoy.run(envoy.node.apply(*sets))
    return numbers


def send(envoy: EnvoyThread, rule_set: int, case: Case) -> tuple[Reply, HttpFlow]:
    """Send the case's request over HTTP/1 on a connection of its own: the answer, and the access log's entry."""
    assert case.request is not None
    request = case.request
    envoy.node.flows.clear()
    with envoy.node.connect(rule_set, case.source.version) as connection:
        port = connection.getsockname()[1]
        connection.sendall(raw_of(request))
        reply = read_reply(connection, request.method == b"HEAD")
    return reply, envoy.flow_of(port)


def raw_of(request: HttpRequest) -> bytes:
    """A request as it is sent; with an empty body in chunks if it has Transfer-Encoding."""
    head = b"%b %b HTTP/%b\r\n" % (request.method, request.path, request.version.encode())
    head += b"".join(b"%b: %b\r\n" % pair for pair in request.headers) + b"\r\n"
    return head + b"0\r\n\r\n" if request.values(b"transfer-encoding") else head


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
