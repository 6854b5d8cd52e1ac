"""What client and server see of a real Envoy between them: both addresses kept, heads as they came, verdicts first."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from spliceway.agent.testbed import netns
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.policy.verdict import Reason, Verdict
from support.envoy import EnvoyThread, port_of
from support.steered import CLIENT, SERVER, VERSIONS, Upstream, dial, read_reply
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

API, OPEN, ORDER = 1, 2, 3
GET = b"GET /articles/1 HTTP/1.1\r\nHost: api\r\n\r\n"


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyThread]:
    with EnvoyThread(tmp_path_factory.mktemp("envoy")) as made:
        made.run(
            made.node.apply(
                RuleSet(API, "api", (HttpRule(11, "GET", "/articles/[0-9]+"),)),
                RuleSet(OPEN, "open", (HttpRule(21),)),
                RuleSet(ORDER, "order", tuple(HttpRule(rule, "GET", "/.*") for rule in (90, 9, 100))),
            )
        )
        yield made


@pytest.fixture
def upstream(envoy: EnvoyThread) -> Upstream:
    envoy.node.upstream.heads.clear()
    envoy.node.upstream.peers.clear()
    envoy.node.flows.clear()
    return envoy.node.upstream


@pytest.mark.parametrize("version", VERSIONS)
def test_both_ends_keep_their_addresses(envoy: EnvoyThread, upstream: Upstream, version: int) -> None:
    with envoy.node.connect(API, version) as connection:
        own = connection.getsockname()
        assert connection.getpeername()[:2] == (SERVER[version], port_of(API))
        connection.sendall(GET)
        assert read_reply(connection).status == 200
    [peer] = upstream.peers
    assert peer[0] == CLIENT[version]  # the client's address,
    assert peer[1] != own[1]  # with a fresh port
    flow = envoy.flow_of(own[1])
    assert (str(flow.source), str(flow.destination)) == (CLIENT[version], SERVER[version])
    assert (flow.destination_port, flow.rule_set, flow.rule) == (port_of(API), API, 11)
    assert flow.upstream_source is not None
    assert (str(flow.upstream_source[0]), flow.upstream_source[1]) == peer


@pytest.mark.parametrize("version", VERSIONS)
def test_a_refused_request_gets_403_and_the_connection_goes_on(
    envoy: EnvoyThread, upstream: Upstream, version: int
) -> None:
    with envoy.node.connect(API, version) as connection:
        connection.sendall(GET.replace(b"articles", b"private"))
        reply = read_reply(connection)
        assert (reply.status, reply.body) == (403, b"Access denied")
        assert b"server:" not in reply.head.lower()
        connection.sendall(GET)
        assert read_reply(connection).status == 200
        port = connection.getsockname()[1]
    flow = envoy.flow_of(port)
    assert (flow.verdict, flow.reason, flow.rule, flow.status) == (Verdict.DENY, Reason.HTTP_DENIED, 0, 403)


@pytest.mark.parametrize(("version", "loopback"), [(4, "127.0.0.1"), (6, "::1")])
def test_a_connection_that_was_not_steered_leads_nowhere(
    envoy: EnvoyThread, upstream: Upstream, version: int, loopback: str
) -> None:
    node = envoy.node
    with dial(node.net.node, (loopback, port_of(OPEN)), version) as connection:
        connection.sendall(GET)
        assert read_reply(connection).status == 0
    stats = envoy.run(node.admin("/stats?filter=own_address"))
    assert "spliceway_own_address.rbac.denied: 0" not in stats
    assert upstream.peers == []


def test_a_403_of_the_server_is_the_servers_own(envoy: EnvoyThread, upstream: Upstream) -> None:
    reply = envoy.node.get(OPEN, "/status/403")
    assert (reply.status, reply.body) == (403, b"mine")


def test_heads_arrive_as_they_were_sent(envoy: EnvoyThread, upstream: Upstream) -> None:
    head = (
        b"GET /Path?Q=1 HTTP/1.1\r\nHost: API.:80\r\nX-CamelCase: A\r\nx_under: b\r\nX-Forwarded-For: 6.6.6.6\r\n"
        b"X-Forwarded-Proto: https\r\nUser-Agent: u\r\nX-Request-Id: 5\r\nServer: s\r\nVia: v\r\n\r\n"
    )
    reply = envoy.node.ask(OPEN, head)
    assert upstream.heads == [head.removesuffix(b"\r\n\r\n")]
    assert reply.head.split(b"\r\n")[1:3] == [b"X-Upstream: Yes", b"Content-Length: %d" % (len(head) - 4)]
    names = {line.partition(b":")[0].lower() for line in reply.head.split(b"\r\n")[1:]}
    assert names == {b"x-upstream", b"content-length", b"date"}  # a date is added where the server sent none


def test_the_one_header_that_envoy_adds(envoy: EnvoyThread, upstream: Upstream) -> None:
    envoy.node.ask(OPEN, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert upstream.heads == [b"GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-proto: http"]


def test_nobody_talks_himself_another_source_into_the_flow(envoy: EnvoyThread, upstream: Upstream) -> None:
    with envoy.node.connect(OPEN) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
        assert read_reply(connection).status == 200
        assert str(envoy.flow_of(connection.getsockname()[1]).source) == CLIENT[4]


def test_the_verdict_comes_before_100_continue(envoy: EnvoyThread, upstream: Upstream) -> None:
    expect = b" HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert envoy.node.ask(API, b"POST /articles/1" + expect).status == 403
    assert upstream.heads == []
    with envoy.node.connect(OPEN) as connection:
        connection.sendall(b"POST /a" + expect)
        assert read_reply(connection).status == 100
        connection.sendall(b"abc")
        assert read_reply(connection).status == 200


def test_the_first_rule_that_matches_is_the_one_reported(envoy: EnvoyThread, upstream: Upstream) -> None:
    with envoy.node.connect(ORDER) as connection:
        connection.sendall(GET)
        assert read_reply(connection).status == 200
        assert envoy.flow_of(connection.getsockname()[1]).rule == 90


def test_every_connection_has_an_upstream_connection_of_its_own_that_ends_with_it(
    envoy: EnvoyThread, upstream: Upstream
) -> None:
    connections = [envoy.node.connect(OPEN) for _ in range(5)]
    for _ in range(3):
        for connection in connections:
            connection.sendall(GET)
            assert read_reply(connection).status == 200
    assert len(set(upstream.peers)) == 5
    for connection in connections:
        connection.close()
    until(lambda: upstream.open == 0)  # after upstream_idle_timeout: Envoy knows no other end for them


def test_a_port_is_taken_for_a_pair_of_ends_not_for_an_address(envoy: EnvoyThread, upstream: Upstream) -> None:
    """IP_BIND_ADDRESS_NO_PORT: more upstream connections than there are ports, as long as the servers differ."""
    node = envoy.node
    netns.call(node.net.node, partial(_port_range, "40000 40009"))
    try:
        connections = [node.connect(rule_set) for rule_set in (OPEN, ORDER) for _ in range(8)]
        for connection in connections:
            connection.sendall(GET)
            assert read_reply(connection).status == 200
        sources = [envoy.flow_of(connection.getsockname()[1]).upstream_source for connection in connections]
        for connection in connections:
            connection.close()
        ports = [source[1] for source in sources if source is not None]
        assert len(ports) == 16
        assert {port for port in ports if not 40000 <= port <= 40009} == set()
    finally:
        netns.call(node.net.node, partial(_port_range, "32768 60999"))


def _port_range(text: str) -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(text)


def test_websockets_pass_when_a_rule_allows_them(envoy: EnvoyThread, upstream: Upstream) -> None:
    head = b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Key: k\r\n\r\n"
    with envoy.node.connect(OPEN) as connection:
        connection.sendall(head % b"websocket")
        assert read_reply(connection).status == 101
        connection.sendall(b"to and fro")
        assert connection.recv(100) == b"to and fro"
    assert envoy.node.ask(API, head % b"websocket").status == 403
    assert envoy.node.ask(OPEN, head % b"other").status == 403


def test_a_client_that_half_closes_gets_no_answer(envoy: EnvoyThread, upstream: Upstream) -> None:
    """A limit of Envoy's HTTP connection manager: it takes FIN for the end of the connection."""
    with envoy.node.connect(OPEN) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        # The first half of the answer may get through before the FIN is seen.
        reply = read_reply(connection)
        assert reply.status == 0 or not reply.body.endswith(b"\r\n\r\n")


def test_a_body_of_some_megabytes_arrives_whole(envoy: EnvoyThread, upstream: Upstream) -> None:
    size = 8 << 20
    with envoy.node.connect(OPEN) as connection:
        head = b"POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
        sender = threading.Thread(target=connection.sendall, args=(head + bytes(size),))
        sender.start()
        assert read_reply(connection).status == 200
        sender.join()
    # A request that its client gave up may come later than the fixture's new list.
    assert [head for head in upstream.heads if head.startswith(b"POST /big")]


def test_a_cut_answer_is_not_made_to_look_whole(envoy: EnvoyThread, upstream: Upstream) -> None:
    reply = envoy.node.get(OPEN, "/cut")
    assert reply.status == 200
    assert len(reply.body) < 1000  # Content-Length said 1000: the client knows


def test_the_head_of_an_answer_may_be_larger_than_that_of_a_request(envoy: EnvoyThread, upstream: Upstream) -> None:
    reply = envoy.node.get(OPEN, "/many")
    assert reply.status == 200
    assert sum(line.startswith(b"X-") for line in reply.head.split(b"\r\n")) == 200
    many = b"".join(b"X-%d: v\r\n" % number for number in range(101))
    assert envoy.node.ask(OPEN, b"GET / HTTP/1.1\r\nHost: a\r\n" + many + b"\r\n").status == 431
    assert envoy.node.ask(OPEN, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"v" * 66_000 + b"\r\n\r\n").status == 431
