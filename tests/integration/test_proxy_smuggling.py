"""Request smuggling through the embedded proxy to nginx, Apache httpd and Node.js, judged by what they understood.

A server must have understood a beginning of what a strict reader of the same bytes allows: no request more, none that
begins elsewhere, none with another body. What it may know beside that is the head of an allowed request whose chunks
went wrong on their way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from spliceway.policy.table import RuleSet
from support.embedded import send_to
from support.rawhttp import End, by_bytes, read_answers
from support.smugglingcases import ATTEMPTS
from support.stricthttp import Request, outcomes
from support.torture import RULES, Bench, bench
from support.torturecases import request
from support.webservers import KINDS, Seen, WebServer

pytestmark = pytest.mark.kernel

FIRST_PORT = 8000
_RULE_SETS = {kind: RuleSet(2 + number, kind, RULES.rules) for number, kind in enumerate(KINDS)}
#: How Node.js calls a request that ends in the middle.
_CUT_OFF = [" HPE_INVALID_EOF_STATE"]
_CLOSING = (b"", b"Connection: close\r\n")
_fences = itertools.count()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Bench, dict[str, WebServer]]]:
    with bench(RULES, *_RULE_SETS.values()) as made, ExitStack() as stack:
        ports = {kind: FIRST_PORT + one.id for kind, one in _RULE_SETS.items()}
        send_to(made.net, {one.id: ports[kind] for kind, one in _RULE_SETS.items()})
        yield made, {kind: stack.enter_context(WebServer(kind, made.net, port)) for kind, port in ports.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_servers_see_what_is_allowed(shared: tuple[Bench, dict[str, WebServer]], kind: str) -> None:
    """The judgement can fail: what is allowed arrives, in number, order and body."""
    site, servers = shared
    post = [
        request(extra + b"Content-Length: 5\r\n", line=b"POST /pub/b HTTP/1.1", body=b"hello") for extra in _CLOSING
    ]
    # No half-close: nginx takes that of a client for its end.
    back = site.exchange(request(), *post, rule_set=_RULE_SETS[kind].id)
    assert back.statuses == [200] * 3
    assert [one.line for one in understood(site, servers[kind])] == ["GET /pub/a", "POST /pub/b", "POST /pub/b"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTEMPTS)
def test_nothing_is_smuggled(shared: tuple[Bench, dict[str, WebServer]], kind: str, name: str) -> None:
    site, servers = shared
    data = ATTEMPTS[name]
    rule_set = _RULE_SETS[kind]
    expected = outcomes(data, rule_set)
    allowed = [one.request for one in expected if one.request is not None]
    cut = [one.begun.line for one in expected if one.begun is not None]
    for how, pieces in (("whole", [data]), ("byte by byte", by_bytes(data, 400))):
        back = site.exchange(*pieces, rule_set=rule_set.id, half=True)
        assert back.end is not End.OPEN, how
        seen = understood(site, servers[kind])
        assert [one.line for one in seen[len(allowed) :]] in ([], cut, _CUT_OFF[: len(cut)]), (how, seen, back)
        for found, request_sent in zip(seen, allowed, strict=False):
            assert_same(found, request_sent, kind)
        # What was passed on whole was answered: by the server, or cut off by what followed it.
        assert back.statuses.count(200) <= len(seen), (how, seen, back)


def test_the_attempts_are_attempts() -> None:
    """For a strict reader none of them holds an allowed request that names what is private."""
    for name, data in ATTEMPTS.items():
        for outcome in outcomes(data, RULES):
            assert outcome.request is None or "private" not in outcome.request.line, name
    assert sum(1 for data in ATTEMPTS.values() if any(one.request for one in outcomes(data, RULES))) > 20


def understood(site: Bench, server: WebServer) -> list[Seen]:
    """What the server has understood so far, once everything before has arrived."""
    target = f"/pub/fence/{next(_fences)}"
    for step in ("", "/again"):
        with site.connect(_RULE_SETS[server.kind].id) as connection:
            connection.sendall(request(line=f"GET {target}{step} HTTP/1.1".encode()))
            assert read_answers(connection, 1)[-1].status == 200
    found = server.seen_until(f"{target}/again")
    # Apache's threads may log an earlier request later: what was smuggled would then be found in the next case.
    return [one for one in found if not one.target.startswith("/pub/fence/")]


def assert_same(seen: Seen, expected: Request, kind: str) -> None:
    assert seen.line == expected.line
    assert [seen.host.encode("latin-1")] == expected.head.values(b"host")
    # Apache's module reads no chunks, and nobody looks at the body of a TRACE.
    if kind != "apache" or expected.head.values(b"content-length"):
        assert seen.body.encode("latin-1") in (expected.body, b"") if expected.body else seen.body == ""
