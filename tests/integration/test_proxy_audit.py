"""Audit denies nothing: what the embedded proxy can't ask its rules about goes on as it came, and is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from support.rawhttp import End, read_to_end
from support.torture import RULES, Bench, bench, deliveries
from support.torturecases import BAD_CHUNKS, chunked, request
from support.upstreams import Conversation, answer, half_close, read_on

pytestmark = pytest.mark.kernel

AUDIT, OTHER_END = 3, 4
#: One whose rules are all in audit, and one in which the other end's are not.
AUDITED = RuleSet(AUDIT, "audit", None, RULES.rules)
HALF = RuleSet(OTHER_END, "half", None, RULES.rules, also=RuleSet(0, "", (HttpRule(12, path="/.*"),)))
BYE = b"as it was\x00\r\n"
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))
#: What is no request that the proxy takes, and the reason that stands in the record.
UNREAD = {
    "TLS": (HELLO, Reason.HTTP_TLS),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", Reason.HTTP_2),
    "zeros": (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Reason.HTTP_MALFORMED),
    "a line": (b"EHLO there\r\n", Reason.HTTP_MALFORMED),
    "a line with LF": (b"PING\n", Reason.HTTP_MALFORMED),
    "two spaces": (b"GET  /pub/a HTTP/1.1\r\nHost: a\r\n\r\n", Reason.HTTP_MALFORMED),
    "no Host": (b"GET /pub/a HTTP/1.1\r\n\r\n", Reason.HTTP_MALFORMED),
    "an encoded slash": (b"GET /pub/%2f HTTP/1.1\r\nHost: a\r\n\r\n", Reason.HTTP_MALFORMED),
    "another upgrade": (
        b"GET /pub/a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
        Reason.HTTP_MALFORMED,
    ),
    "a long head": (b"GET /pub/a HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 17), Reason.HTTP_HEAD_TOO_LARGE),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    with bench(RULES, AUDITED, HALF) as made:
        yield made


@pytest.fixture
def site(shared: Bench) -> Bench:
    shared.begin()
    shared.relay.set_rules(AUDITED)
    return shared


def echo(size: int, conversation: Conversation) -> None:
    """Take so many bytes, and say goodbye."""
    conversation.tunnel = True
    while len(conversation.received) < size and conversation.receive():
        pass
    conversation.connection.sendall(BYE)


def swallow(site: Bench, size: int) -> None:
    site.upstream.before = [lambda conversation: echo(size, conversation), half_close, read_on]


def told(site: Bench, reason: Reason) -> None:
    site.relay.settled(lambda state: state.connections == 0, "connections are left")
    assert [(one.verdict, one.reason) for one in site.relay.records] == [(Verdict.ALLOW, reason)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", UNREAD)
def test_what_is_no_request_goes_on_as_it_came(site: Bench, name: str, version: int) -> None:
    data, reason = UNREAD[name]
    swallow(site, len(data))
    back = site.exchange(data, rule_set=AUDIT, version=version, half=False)
    assert (back.data, back.end) == (BYE, End.FIN)
    assert site.upstream.conversation().received == data
    told(site, reason)


@pytest.mark.parametrize("name", [name for name in UNREAD if name != "a long head"])
def test_in_whatever_pieces(site: Bench, name: str) -> None:
    data, _ = UNREAD[name]
    swallow(site, len(data))
    rounds = list(deliveries(data[:40]))
    for number, (how, pieces) in enumerate(rounds[: 1 + len(rounds) // 2]):
        back = site.exchange(*pieces, data[40:], rule_set=AUDIT)
        assert (back.data, back.end) == (BYE, End.FIN), how
        assert site.upstream.conversation(number).received == data, how


@pytest.mark.parametrize("name", UNREAD)
def test_where_one_end_is_enforced_it_is_refused(site: Bench, name: str) -> None:
    back = site.exchange(UNREAD[name][0], rule_set=OTHER_END, half=True)
    assert back.end is not End.OPEN
    assert BYE not in back.data
    assert site.upstream.conversations == []
    site.relay.settled(lambda state: state.connections == 0, "connections are left")
    assert all(one.verdict == Verdict.DENY for one in site.relay.records)


@pytest.mark.parametrize("version", [4, 6])
def test_the_server_may_speak_first(site: Bench, version: int) -> None:
    """Mail, databases and SSH do."""
    site.upstream.before = [b"220 ready\r\n", lambda conversation: echo(6, conversation), half_close, read_on]
    with site.connect(AUDIT, version) as connection:
        assert connection.recv(100) == b"220 ready\r\n"
        connection.sendall(b"QUIT\r\n")
        back = read_to_end(connection)
    assert (back.data, back.end) == (BYE, End.FIN)
    told(site, Reason.HTTP_MALFORMED)


def test_a_word_without_an_end_of_line_does_not_wait_for_one(site: Bench) -> None:
    swallow(site, 5)
    assert site.exchange(b"hello", rule_set=AUDIT).data == BYE
    told(site, Reason.HTTP_TIMEOUT)


@pytest.mark.parametrize("data", [b"", b"hello", b"GET /pub/a HTT"])
def test_a_client_that_ends_first_is_answered(site: Bench, data: bytes) -> None:
    site.upstream.before = [read_on, answer(b"after the end")]
    assert b"after the end" in site.exchange(data, rule_set=AUDIT, half=True).data
    assert site.upstream.conversation().received == data
    told(site, Reason.HTTP_MALFORMED)


def test_a_connection_without_a_byte_is_nothing_to_tell(site: Bench) -> None:
    site.upstream.before = [read_on]
    site.connect(AUDIT).close()
    site.relay.settled(lambda state: state.connections == 0, "connections are left")
    assert site.upstream.conversation().done.wait(20)
    assert site.relay.records == []


def test_requests_before_are_judged(site: Bench) -> None:
    first, denied = request(), request(line=b"GET /private HTTP/1.1")
    site.upstream.answers[b"/last"] = [answer(b"x"), lambda conversation: echo(1 << 20, conversation)]
    with site.connect(AUDIT) as connection:
        connection.sendall(first + denied + request(line=b"GET /last HTTP/1.1") + b"\x00\x01binary")
        connection.shutdown(socket.SHUT_WR)
        back = read_to_end(connection)
    assert back.data.endswith(BYE)
    received = site.upstream.conversation().received
    assert received.endswith(b"\x00\x01binary")
    site.relay.settled(lambda state: state.connections == 0, "connections are left")
    assert [(one.verdict, one.reason) for one in site.relay.records] == [
        (Verdict.ALLOW, Reason.HTTP_ALLOWED),
        (Verdict.ALLOW, Reason.HTTP_DENIED),
        (Verdict.ALLOW, Reason.HTTP_DENIED),
        (Verdict.ALLOW, Reason.HTTP_MALFORMED),
    ]


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_end_in_no_half_message(site: Bench, name: str) -> None:
    """They go on from where they can't be read, or the connection ends as in any mode: nothing is made up."""
    body = BAD_CHUNKS[name]
    data = chunked(body)
    site.upstream.before = [read_on]
    back = site.exchange(data, rule_set=AUDIT, half=True, patience=1.0)
    site.relay.settled(lambda state: state.connections == 0, "connections are left")
    (record,) = site.relay.records
    assert record.reason == Reason.HTTP_MALFORMED
    received = site.upstream.conversation().received
    if record.verdict == Verdict.ALLOW:
        tail = received.partition(b"\r\n\r\n")[2]
        assert body.endswith(tail.rpartition(b"\r\n")[2])
        assert back.data == b"" or b"Not For Me" in back.data  # the server's word
    else:
        assert back.end is not End.OPEN


@pytest.mark.parametrize(
    "data",
    [
        b"ICY 200 OK\r\n\r\n" + BYE,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + BYE,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n" + BYE,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\n" + BYE,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 17),
    ],
)
def test_answers_that_are_none_go_on(site: Bench, data: bytes) -> None:
    site.upstream.answers[b"/pub/a"] = [data, half_close, read_on]
    back = site.exchange(request(), rule_set=AUDIT)
    assert (back.data, back.end) == (data, End.FIN)
    told(site, Reason.HTTP_MALFORMED)


def test_once_rules_are_enforced_unread_connections_end(site: Bench) -> None:
    """The kill switch goes off, say: nobody knows what such a connection carries."""
    site.upstream.before = [lambda conversation: echo(5, conversation), read_on]
    site.upstream.answers[b"/pub/a"] = [answer(b"x")]
    with site.connect(AUDIT) as unread, site.connect() as other:
        unread.sendall(b"\x00\x01\x02\x03\x04")
        assert unread.recv(100) == BYE
        site.relay.set_rules(AUDITED)
        unread.sendall(b"goes on")
        site.relay.set_rules(RuleSet(AUDIT, "audit", RULES.rules))
        assert read_to_end(unread).end is End.RESET
        site.upstream.before = ()
        other.sendall(request())
        assert b"200" in other.recv(1000)


@pytest.mark.parametrize(("path", "end"), [(b"/private", End.RESET), (b"/pub/a", End.FIN)])
def test_once_rules_are_enforced_only_tunnels_that_they_allow_go_on(site: Bench, path: bytes, end: End) -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    site.upstream.answers[path] = [
        lambda conversation: conversation.connection.sendall(upgrade),
        lambda conversation: echo(1 << 20, conversation),
    ]
    ask = b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with site.connect(AUDIT) as connection:
        connection.sendall(ask)
        assert b"101" in connection.recv(1000)
        connection.sendall(b"bytes")
        site.relay.set_rules(RuleSet(AUDIT, "audit", RULES.rules))
        if end is End.FIN:
            connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection).end is end
