"""Heads of requests: what the strict scan, h11 and the reference make of them. Torture tests have the long lists."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spliceway.policy.http import HttpRequest, decide
from spliceway.policy.table import HttpRule, HttpTest, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.http import head as head_module
from spliceway.proxy.http.decision import Judge
from spliceway.proxy.http.head import CHUNKED, Head, HeadError, read_by_connection, read_by_reader, read_head

EVERYTHING = RuleSet(1, "everything", (HttpRule(1),))

TOKENS = st.text("abcXYZ-_.!", min_size=1, max_size=6)
LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("Host: a", "host:b", "Host: a:80", "Content-Length: 5", "content-length: 0", "Content-Length: 5, 5"),
                *("Transfer-Encoding: chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding: gzip, chunked"),
                *(
                    "Connection: close",
                    "Connection: x-a",
                    "X-A: \t b \t",
                    "X-B:",
                    "Upgrade: websocket",
                    "Expect: 100-continue",
                ),
                *(
                    "Connection: Upgrade, HTTP2-Settings",
                    "X-C: caf\xe9",
                    "X D: no",
                    " folded",
                    "X-E : no",
                    ": no",
                    "X-F: a\x0bb",
                ),
            ]
        ),
        st.builds("{}: {}".format, TOKENS, st.text('abc \t,;"\xff', max_size=8)),
    ),
    max_size=6,
)
REQUEST_LINES = st.builds(
    "{} {} HTTP/{}".format,
    st.sampled_from(["GET", "POST", "get", "CONNECT", "OPTIONS", "G@T"]),
    st.sampled_from(["/", "/a/../b", "/a%2fb", "*", "http://a/x", "http://c/x", "/a b", "/caf\xe9", "//", "/%41?b#c"]),
    st.sampled_from(["1.1", "1.0", "1.2", "2.0"]),
)


def whole(first: str, lines: list[str], end: str = "\r\n") -> bytes:
    return "".join(f"{line}{end}" for line in (first, *lines, "")).encode("latin-1")


def outcome(raw: bytes) -> Head | HeadError:
    try:
        return read_head(raw, 100)
    except HeadError as error:
        return error


@settings(max_examples=2000, deadline=None)
@given(REQUEST_LINES, LINES)
def test_both_ways_into_h11_are_one(first: str, lines: list[str]) -> None:
    found = []
    for read in (read_by_connection, read_by_reader):
        try:
            event = read(whole(first, lines))
            assert isinstance(event, h11.Request)
            found.append((event.method, event.target, event.http_version, event.headers.raw_items()))
        except h11.ProtocolError:
            found.append("refused")
    assert found[0] == found[1]


@settings(max_examples=2000, deadline=None)
@given(REQUEST_LINES, LINES)
def test_what_is_accepted_is_what_the_reference_sees(first: str, lines: list[str]) -> None:
    """The reference gets the same fields, split by hand."""
    found = outcome(whole(first, lines))
    if isinstance(found, HeadError):
        assert found.status == 400
        return
    method, target, version = first.split(" ")
    fields = [line.partition(":") for line in lines]
    headers = tuple((name.encode("latin-1"), value.strip(" \t").encode("latin-1")) for name, _, value in fields)
    expected = HttpRequest(method.encode(), target.encode("latin-1"), headers, version.removeprefix("HTTP/"))
    lowered = tuple((name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in headers)
    assert found.request.headers == lowered
    decision = decide(expected, EVERYTHING)
    judged = Judge(EVERYTHING).judge(found)
    if judged.status == 200:
        assert decision.verdict is Verdict.ALLOW
        assert judged.decision == decision
        # What is sent on is read as the same request, with the path as it was matched.
        again = outcome(judged.forward)
        assert isinstance(again, Head)
        assert (again.request.headers, again.length, again.target) == (
            found.request.headers,
            found.length,
            decision.path,
        )
    elif judged.status == 403 and found.upgrade:
        assert found.upgrade != b"websocket"
    else:
        assert (judged.decision.reason, judged.status) == (decision.reason, decision.status)


def test_what_an_explanation_costs_is_told_by_rules_and_tests() -> None:
    told: list[int] = []
    tests = ((HttpTest(path="/no", negated=True),), (HttpTest(path="/a"), HttpTest(path="/b")))
    rule_set = RuleSet(1, "two rules, three tests", (HttpRule(1, tests=tests), HttpRule(2, "PUT")))
    judge = Judge(rule_set, lambda units: bool(told.append(units)))
    assert judge.judge(read_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 100)).decision.nearest_miss == ""
    assert told == [5]
    # What passes takes nothing, so that it leaves enough for what is refused.
    assert judge.judge(read_head(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n", 100)).status == 200
    assert told == [5]
    generous = Judge(rule_set).judge(read_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 100))
    assert generous.decision.nearest_miss.endswith("not allowed by another rule, another rule")


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_other_line_ends_are_no_head(end: str) -> None:
    assert isinstance(outcome(whole("GET / HTTP/1.1", ["Host: a"], end)), HeadError)


@pytest.mark.parametrize(
    ("lines", "length", "close", "expect", "upgrade"),
    [
        ([], 0, False, False, b""),
        (["Content-Length: 12"], 12, False, False, b""),
        (["Transfer-Encoding: CHUNKED"], CHUNKED, False, False, b""),
        (["Connection: a, Close"], 0, True, False, b""),
        (["Connection: keep-alive", "Keep-Alive: timeout=5"], 0, False, False, b""),
        (["Expect: 100-Continue"], 0, False, True, b""),
        (["Upgrade: websocket"], 0, False, False, b""),
        (["Upgrade: WebSocket", "Connection: keep-alive", "Connection: upgrade"], 0, False, False, b"websocket"),
    ],
)
def test_what_a_head_says(lines: list[str], length: int, close: bool, expect: bool, upgrade: bytes) -> None:
    found = read_head(whole("GET / HTTP/1.1", ["Host: a", *lines]), 100)
    assert (found.length, found.close, found.expect, found.upgrade) == (length, close, expect, upgrade)


@pytest.mark.parametrize(("keep", "close"), [([], True), (["Connection: keep-alive"], False)])
def test_http_1_0_closes_unless_it_asks_not_to(keep: list[str], close: bool) -> None:
    assert read_head(whole("GET / HTTP/1.0", ["Host: a", *keep]), 100).close is close


def test_so_many_headers_and_no_more() -> None:
    lines = ["Host: a", *(f"X-{number}: b" for number in range(4))]
    assert read_head(whole("GET / HTTP/1.1", lines), 5)
    with pytest.raises(HeadError) as caught:
        read_head(whole("GET / HTTP/1.1", lines), 4)
    assert (caught.value.status, caught.value.reason) == (431, Reason.HTTP_HEAD_TOO_LARGE)


def test_h11s_reader_is_where_it_was() -> None:
    """Without it every head costs half as much again; then `by_h11` needs another way in."""
    assert head_module._read_by_h11 is read_by_reader
