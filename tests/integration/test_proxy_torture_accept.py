"""What is right must pass, as it is: odd but valid heads, keep-alive, pipelines, expectations, upgrades."""

from __future__ import annotations

import threading

import pytest

from spliceway.policy.table import HttpRule, RuleSet
from support.acceptedcases import ACCEPTED
from support.rawhttp import End, read_answers, read_to_end
from support.stricthttp import outcomes
from support.torture import RULES, Bench, deliveries
from support.torturecases import HOST, post, request
from support.upstreams import answer, close, half_close, read_on

pytestmark = pytest.mark.kernel

UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
EXPECT = b"Expect: 100-continue\r\nContent-Length: 5\r\n"
DENIED = request(line=b"GET /private HTTP/1.1")


def get(path: str) -> bytes:
    return request(line=b"GET %b HTTP/1.1" % path.encode())


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(rack: Bench, name: str) -> None:
    data = ACCEPTED[name]
    [expected] = outcomes(data, RULES)
    assert expected.request is not None
    method = data.partition(b" ")[0].decode()
    count = 0
    for how, pieces in deliveries(data + get("/pub/behind")):
        back = rack.exchange(*pieces, half=True)
        assert [one.status for one in back.answers([method])] == [200, 200], (how, back)
        count += 1
    conversations = rack.conversations()
    assert len(conversations) == count
    for conversation in conversations:
        assert conversation.error == ""
        first, second = conversation.requests
        assert first.meaning == expected.request.meaning
        assert second.line == "GET /pub/behind"


def test_a_head_arrives_byte_for_byte(rack: Bench) -> None:
    data = request(
        b"X-CamelCase: A\r\nx_under: b\r\nX-Forwarded-For: 6.6.6.6\r\nVia: v\r\nX-Request-Id: 5\r\nX: \xff\r\n"
    )
    assert rack.ask(data).statuses == [200]
    [conversation] = rack.conversations()
    assert conversation.received == data


def test_addresses_are_kept(rack: Bench) -> None:
    for version in (4, 6):
        with rack.connect(version=version) as connection:
            own = connection.getsockname()[:2]
            connection.sendall(get("/pub/a"))
            read_answers(connection, 1)
            peer = rack.upstream.conversations[-1].peer
            assert peer[0] == own[0]
            assert peer[1] != own[1]


def test_a_pipeline_in_one_segment(rack: Bench) -> None:
    """Twenty requests, one of them denied in the middle, one with a body: answers in order."""
    paths = [f"/pub/{number}" for number in range(20)]
    parts = [get(path) for path in paths]
    parts[9], parts[14] = DENIED, post(b"Content-Length: 5\r\n", b"hello")
    back = rack.ask(b"".join(parts))
    assert back.statuses == [200] * 9 + [403] + [200] * 10
    bodies = [one.body.decode() for one in back.answers()]
    expected = [f"GET {path} " for path in paths]
    expected[9], expected[14] = "Access denied", "POST /pub/a hello"
    assert bodies == expected
    assert len(rack.requests()) == 19


@pytest.mark.parametrize("count", [2, 3])
def test_pipelines_in_all_pieces(rack: Bench, count: int) -> None:
    data = (get("/pub/a") + DENIED) * count
    rounds = 0
    for how, pieces in deliveries(data):
        assert rack.exchange(*pieces, half=True).statuses == [200, 403] * count, how
        rounds += 1
    assert [one.line for one in rack.requests()] == ["GET /pub/a"] * count * rounds


def test_a_long_pipeline(rack: Bench) -> None:
    """More than any buffer holds, from a client that reads all the while."""
    count = 3000
    data = b"".join(get(f"/pub/{number}") for number in range(count))
    with rack.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        read = b""
        while read.count(b"HTTP/1.1 200") < count or not read.endswith(f"GET /pub/{count - 1} ".encode()):
            read += connection.recv(1 << 16)
        sender.join()
    assert [one.line for one in rack.requests()] == [f"GET /pub/{number}" for number in range(count)]


def test_a_request_waits_for_the_answer_before_it(rack: Bench) -> None:
    """A pipelined denied request is not answered before the allowed one ahead of it."""
    go = threading.Event()
    rack.upstream.answers[b"/pub/slow"] = [go, answer(b"slow")]
    with rack.connect() as connection:
        connection.sendall(get("/pub/slow") + DENIED)
        conversation = rack.upstream.conversation()
        rack.receiver.wait_read(connection)
        assert conversation.error == ""
        go.set()
        assert [one.status for one in read_answers(connection, 2)] == [200, 403]


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"keep-alive", True),
        (b"1.1", b"close", False),
        (b"1.1", b"Close", False),
        (b"1.1", b"x, close", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.0", b"", False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"close", False),
    ],
)
def test_who_closes(rack: Bench, version: bytes, connection: bytes, kept: bool) -> None:
    """RFC 9112, section 9.3. Behind the last answer nothing is read."""
    header = b"Connection: %b\r\n" % connection if connection else b""
    first = request(header, line=b"GET /pub/a HTTP/" + version)
    back = rack.exchange(first + get("/pub/b"), half=kept)
    assert (back.statuses, back.end) == ([200, 200] if kept else [200], End.FIN)
    assert [one.line for one in rack.requests()] == ["GET /pub/a", "GET /pub/b"][: 1 + kept]


@pytest.mark.parametrize("path", ["/pub/a", "/private"])
def test_connection_close_is_answered_in_kind(rack: Bench, path: str) -> None:
    rack.upstream.answers[b"/pub/a"] = [answer(b"x", headers=b"Connection: close\r\n"), close]
    back = rack.exchange(request(b"Connection: close\r\n", line=b"GET %b HTTP/1.1" % path.encode()))
    assert back.end is End.FIN
    assert [value.lower() for value in back.answers()[0].values("connection")] == ["close"]


@pytest.mark.parametrize("headers", [b"Connection: close\r\n", b"Connection: x, CLOSE\r\n"])
def test_the_server_closes(rack: Bench, headers: bytes) -> None:
    rack.upstream.answers[b"/pub/a"] = [answer(b"last", headers=headers), close]
    back = rack.exchange(get("/pub/a") + get("/pub/b"))
    assert ([one.body for one in back.answers()], back.end) == ([b"last"], End.FIN)


def test_expectation_verdict_first(rack: Bench) -> None:
    with rack.connect() as connection:
        connection.sendall(request(EXPECT, line=b"POST /private HTTP/1.1"))
        back = read_to_end(connection)
    assert (back.statuses, back.end) == ([403], End.FIN)
    assert rack.conversations() == []


def test_expectation_of_an_allowed_request(rack: Bench) -> None:
    with rack.connect() as connection:
        connection.sendall(post(EXPECT, b""))
        conversation = rack.upstream.conversation()
        conversation.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 100")
        connection.sendall(b"hello" + get("/pub/b"))
        assert [one.status for one in read_answers(connection, 2) if one.status >= 200] == [200, 200]
    assert [one.body for one in rack.requests()] == [b"hello", b""]


def test_expectation_without_waiting(rack: Bench) -> None:
    """A client need not wait for the 100 (RFC 9110, section 10.1.1)."""
    back = rack.ask(post(EXPECT, b"hello") + get("/pub/b"))
    assert [status for status in back.statuses if status >= 200] == [200, 200]
    assert [one.body for one in rack.requests()] == [b"hello", b""]


def test_upgrade(rack: Bench) -> None:
    """After a 101 bytes are bytes, those too that came with the request; nothing is judged any more."""
    rack.upstream.answers[b"/pub/up"] = [SWITCHED, b"hello client", read_on]
    early = DENIED + b"\x00\xff\r\n\r\n"
    with rack.connect() as connection:
        connection.sendall(request(UPGRADE, line=b"GET /pub/up HTTP/1.1") + early)
        data = b""
        while len(data) < len(SWITCHED) + 12:
            data += connection.recv(65536)
        assert data == SWITCHED + b"hello client"
        connection.sendall(b"\x81\x00")
        rack.receiver.wait_read(connection)
    [conversation] = rack.conversations()
    assert conversation.rest == early + b"\x81\x00"
    assert conversation.requests[0].head.listed(b"connection") == {b"upgrade"}
    assert conversation.requests[0].head.values(b"upgrade") == [b"websocket"]


def test_upgrade_half_closed(rack: Bench) -> None:
    """Each end may finish by itself."""
    rack.upstream.answers[b"/pub/up"] = [SWITCHED, read_on, b"the last word"]
    back = rack.ask(request(UPGRADE, line=b"GET /pub/up HTTP/1.1") + b"bytes")
    assert (back.data, back.end) == (SWITCHED + b"the last word", End.FIN)
    rack.begin()
    rack.upstream.answers[b"/pub/up"] = [SWITCHED, half_close, read_on]
    with rack.connect() as connection:
        connection.sendall(request(UPGRADE, line=b"GET /pub/up HTTP/1.1"))
        assert read_to_end(connection).end is End.FIN
        connection.sendall(b"still here")
    [conversation] = rack.conversations()
    assert (conversation.rest, conversation.ended) == (b"still here", "fin")


@pytest.mark.parametrize("path", ["/private", "/pub/behind"])
def test_upgrade_answered_200(rack: Bench, path: str) -> None:
    """Then what follows is requests, which are judged."""
    rack.upstream.answers[b"/pub/up"] = [answer(b"no")]
    back = rack.ask(request(UPGRADE, line=b"GET /pub/up HTTP/1.1") + get(path))
    assert back.statuses == [200, 403 if path == "/private" else 200]
    assert [one.line for one in rack.requests()] == ["GET /pub/up", f"GET {path}"][: 1 + (path != "/private")]


def test_upgrade_that_is_denied(rack: Bench) -> None:
    back = rack.ask(request(UPGRADE, line=b"GET /private HTTP/1.1") + get("/pub/a"))
    assert back.statuses == [403, 200]
    assert [one.line for one in rack.requests()] == ["GET /pub/a"]


def test_head_and_empty_answers(rack: Bench) -> None:
    rack.upstream.answers[b"/pub/204"] = [b"HTTP/1.1 204 No Content\r\n\r\n"]
    rack.upstream.answers[b"/pub/304"] = [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n"]
    head = b"HEAD /pub/a HTTP/1.1\r\n" + HOST + b"\r\n"
    back = rack.ask(head + get("/pub/204") + head + get("/pub/304") + get("/pub/a"))
    found = [(one.status, one.body) for one in back.answers(["HEAD", "GET", "HEAD", "GET", "GET"])]
    assert found == [(200, b""), (204, b""), (200, b""), (304, b""), (200, b"GET /pub/a ")]


def test_new_rules_meet_the_next_request(rack: Bench) -> None:
    """A live connection sees an edit at its next request."""
    with rack.connect() as connection:
        for path, status in (("/pub/a", 200), ("/new/a", 403)):
            connection.sendall(get(path))
            assert read_answers(connection, 1)[0].status == status
        try:
            rack.relay.set_rules(RuleSet(RULES.id, RULES.name, (HttpRule(12, path="/new/.*"),)))
            for path, status in (("/pub/a", 403), ("/new/a", 200)):
                connection.sendall(get(path))
                assert read_answers(connection, 1)[0].status == status
        finally:
            rack.relay.set_rules(RULES)
