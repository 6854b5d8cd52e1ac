"""One meaning of a request: what two servers could read differently is refused, in one piece or byte by byte."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support import kinds
from support.attack import Site, attack, attacked_site

pytestmark = pytest.mark.kernel

_H = "Host: api\r\n"
_GOOD = f"GET /articles/1 HTTP/1.1\r\n{_H}\r\n"
_CHUNKED = _H + "Transfer-Encoding: chunked\r\n"
_BAD = f"GET /private HTTP/1.1\r\n{_H}\r\n"


def _get(path: str, headers: str = _H, method: str = "GET", version: str = "HTTP/1.1") -> str:
    return f"{method} {path} {version}\r\n{headers}\r\n"


#: Requests that must never reach the server, whatever the answer is (http.md, «refused before matching» and the table).
REFUSED = {
    "matrix": _get("/articles/1;x"),
    "query": _get("/articles/1?x=1"),
    "dots-encoded": _get("/articles/%2e%2e;/private"),
    "dots-semicolon": _get("/articles/..;/private"),
    "slash-encoded": _get("/articles%2f1"),
    "backslash-encoded": _get("/articles%5c1"),
    "backslash": _get("/private\\..\\articles\\1;"),
    "percent-percent": _get("/articles/%251"),
    "percent-cut": _get("/articles/1%"),
    "percent-bad": _get("/articles/%zz"),
    "nul": _get("/articles/1%00"),
    "newline-encoded": _get("/articles/1%0a"),
    "overlong": _get("/articles/%c0%ae%c0%ae/private"),
    "high-byte": _get("/articles/\xe91"),
    "fragment": _get("/articles/1#/private"),
    "no-slash": _get("articles/1"),
    "empty-target": _get(""),
    "asterisk": _get("*", method="OPTIONS"),
    "absolute": _get("http://other/articles/1"),
    "absolute-same": _get("http://api/private"),
    "two-hosts": _get("/articles/1", _H + "Host: other\r\n"),
    "empty-host": _get("/articles/1", "Host:\r\n"),
    "user-in-host": _get("/articles/1", "Host: a@b\r\n"),
    "no-host": _get("/articles/1", ""),
    "lower-method": _get("/articles/1", method="get"),
    "other-method": _get("/articles/1", method="FOO"),
    "connect": _get("api:80", method="CONNECT"),
    "connect-path": _get("/articles/1", method="CONNECT"),
    "trace": _get("/articles/1", method="TRACE"),
    "post": _get("/articles/1", _H + "Content-Length: 0\r\n", method="POST"),
    "length-and-chunked": _get("/articles/1", _H + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
    "two-lengths": _get("/articles/1", _H + "Content-Length: 0\r\nContent-Length: 5\r\n") + "GET /",
    "two-equal-lengths": _get("/articles/1", _H + "Content-Length: 3\r\nContent-Length: 3\r\n") + "abc",
    "length-list": _get("/articles/1", _H + "Content-Length: 3, 3\r\n") + "abc",
    "length-sign": _get("/articles/1", _H + "Content-Length: +3\r\n") + "abc",
    "length-minus": _get("/articles/1", _H + "Content-Length: -3\r\n") + "abc",
    "length-hex": _get("/articles/1", _H + "Content-Length: 0x3\r\n") + "abc",
    "chunked-twice": _get("/articles/1", _H + "Transfer-Encoding: chunked, chunked\r\n") + "0\r\n\r\n",
    "chunked-odd": _get("/articles/1", _H + "Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n",
    "chunked-identity": _get("/articles/1", _H + "Transfer-Encoding: chunked, identity\r\n") + "0\r\n\r\n",
    "chunk-size-bad": _get("/articles/1/echo", _CHUNKED, "POST") + "0x3\r\nabc\r\n0\r\n\r\n",
    "chunk-size-huge": _get("/articles/1/echo", _CHUNKED, "POST") + "f" * 17 + "\r\nabc\r\n",
    "space-before-colon": _get("/articles/1", _H + "Content-Length : 3\r\n") + "abc",
    "nul-in-header": _get("/articles/1", _H + "X: a\0b\r\n"),
    "bad-version": _get("/articles/1", version="HTTP/1.1x"),
    "http-0.9": "GET /articles/1\r\n",
    "many-headers": _get("/articles/1", _H + "".join(f"X-{n}: 1\r\n" for n in range(120))),
    "huge-head": _get("/articles/1", _H + f"X: {'a' * 70000}\r\n"),
}  # fmt: skip

#: Accepted by Envoy, and harmless only when they mean the same behind it: answers are those of one allowed request.
HARMLESS = {
    "bare-lf": "GET /articles/7 HTTP/1.1\nHost: api\n\n",
    "obs-fold": _get("/articles/7", _H + "X: a\r\n b\r\n"),
    "empty-line-first": "\r\n" + _get("/articles/7"),
    "dot-encoded": _get("/articles/%2e/7"),
    "dots": _get("/private/../articles/7"),
    "slashes": _get("//articles///7"),
    "encoded-letter": _get("/%61rticles/7"),
    # Framed anew for the server; Envoy closes the connection behind it, as RFC 9112 (section 6.1) wants.
    "chunked-1.0": _get("/articles/7", _CHUNKED, version="HTTP/1.0") + "0\r\n\r\n",
    "http-2.0-text": _get("/articles/7", version="HTTP/2.0"),
    "trailers": _get("/articles/7/echo", _H + "Transfer-Encoding: chunked\r\nTrailer: X\r\n", "POST")
    + "3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
}


@pytest.fixture(scope="module", params=kinds.BOTH)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with attacked_site(request.param) as built:
        yield built


def served(answer: str) -> list[str]:
    """What the server says that it was asked for."""
    return re.findall(r"^api (.*)$", answer, re.MULTILINE)


def statuses(answer: str) -> list[int]:
    return [int(status) for status in re.findall(r"HTTP/1\.[01] (\d+)", answer)]


@pytest.mark.parametrize("version", [4, 6])
def test_ambiguous_requests_do_not_reach_the_server(site: Site, version: int) -> None:
    address = str(site.api.address(version))
    # An allowed request behind each: whether it is answered doesn't matter, the refused one must not be.
    cases = [[REFUSED[name] + _get("/articles/99999")] for name in REFUSED]
    reports = attack(site.frontend, "exchanges", address=address, port=80, cases=cases, wait=0.7)
    for name, report in zip(REFUSED, reports, strict=True):
        assert set(served(report["answer"])) <= {"GET /articles/99999"}, (name, report)
        assert statuses(report["answer"])[:1] != [200], (name, report)


def test_harmless_oddities_mean_one_request(site: Site) -> None:
    cases = [[text] for text in HARMLESS.values()]
    address = str(site.api.address(4))
    for name, report in zip(
        HARMLESS, attack(site.frontend, "exchanges", address=address, port=80, cases=cases, wait=0.7), strict=True
    ):
        assert len(statuses(report["answer"])) == 1, (name, report)
        assert set(served(report["answer"])) <= {"GET /articles/7"}, (name, report)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("delay", [0.0, 0.002], ids=["whole", "bytes"])
def test_allowed_and_denied_on_one_connection(site: Site, version: int, delay: float) -> None:
    """Pipelined in one piece, and byte by byte: each request has its own verdict."""
    orders = [[_GOOD, _BAD], [_BAD, _GOOD], [_GOOD, _BAD, _GOOD, _BAD], [_BAD] * 3, [_GOOD] * 3]
    body = "GET /private HTTP/1.1\r\nHost: api\r\n\r\n"  # a request inside a body is a body
    hidden = f"POST /articles/5/echo HTTP/1.1\r\n{_H}Content-Length: {len(body)}\r\n\r\n{body}"
    cases = [["".join(order)] if not delay else list("".join(order)) for order in orders]
    cases.append([hidden + _BAD] if not delay else list(hidden + _BAD))
    reports = attack(
        site.frontend, "exchanges", address=str(site.api.address(version)), port=80, cases=cases, wait=1.0, delay=delay
    )
    for order, report in zip(orders, reports, strict=False):
        # Envoy closes the connection when it has refused a request and already holds the next one but one.
        found = statuses(report["answer"])
        assert found == [200 if text == _GOOD else 403 for text in order][: len(found)], report
        assert len(found) == len(order) or (len(found) > 1 and found[-1] == 403), report
        assert served(report["answer"]) == ["GET /articles/1"] * found.count(200)
    assert body in reports[-1]["answer"]
    assert statuses(reports[-1]["answer"].replace(body, "")) in ([200, 403], [200]), reports[-1]
    assert served(reports[-1]["answer"]) == []


def test_what_is_denied_has_no_upstream(site: Site) -> None:
    """A denied request opens no connection to the server, and leaves none."""
    before = {(entry["peer"], entry["peerPort"]) for entry in site.control.client.get("socks")}
    attack(site.frontend, "exchanges", address=str(site.api.address(4)), port=80, cases=[[_BAD]] * 8, wait=0.3)
    legs = [e["leg"] for e in site.control.client.get("socks") if (e["peer"], e["peerPort"]) not in before]
    assert "upstream" not in legs


def test_without_the_agent_the_same_requests_are_answered() -> None:
    with attacked_site(agent=False) as site:
        cases = [[REFUSED["matrix"]], [_BAD], [REFUSED["absolute-same"]]]
        reports = attack(site.intruder, "exchanges", address=str(site.api.address(4)), port=80, cases=cases, wait=0.5)
        assert all(statuses(report["answer"]) == [200] for report in reports)
