"""How connections through the embedded proxy end: each end as documented, none hangs, nothing is left behind.

`SPLICEWAY_ENDS_ROUNDS` says how many rounds of all ends the last test makes (100).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from spliceway.policy.table import RuleSet
from spliceway.policy.verdict import Reason
from spliceway.proxy.model import Limits
from support.embedded import RelayNode, port_of, send_to
from support.rawhttp import End, read_answers, read_to_end
from support.torture import RULES, Bench, bench
from support.torturecases import post, request
from support.upstreams import answer, close, half_close, read_on, reset

pytestmark = pytest.mark.kernel

ROUNDS = int(os.environ.get("SPLICEWAY_ENDS_ROUNDS", "100"))
GET = request()
MIB = 1 << 20
#: Rule sets of relays with limits of their own, of servers that refuse, and of servers that swallow.
OTHER, REFUSING, SILENT = 5, 6, 7
CLOSED_PORT, DROPPED_PORT = 9001, 9002
UPGRADE = request(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", line=b"GET /pub/up HTTP/1.1")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
_DROP = f"table inet hole {{ chain input {{ type filter hook input priority 0\ntcp dport {DROPPED_PORT} drop\n}}\n}}\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    with bench(RULES, same_rules(REFUSING), same_rules(SILENT), connect_timeout=0.3) as made:
        send_to(made.net, {REFUSING: CLOSED_PORT, SILENT: DROPPED_PORT})
        netns.call(made.net.server, lambda: subprocess.run(["nft", "-f", "-"], input=_DROP, text=True, check=True))
        yield made


@pytest.fixture
def site(shared: Bench) -> Bench:
    shared.begin()
    return shared


def same_rules(key: int) -> RuleSet:
    return RuleSet(key, f"rules-{key}", RULES.rules)


def limited(site: Bench, limits: Limits | None = None, **options: Any) -> RelayNode:
    """Another relay on the same node, with limits, or a listener with options."""
    return RelayNode(site.net, (same_rules(OTHER),), limits=limits, options={OTHER: options})


def reset_now(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def all_gone(relay: RelayNode) -> None:
    relay.settled(lambda state: state.connections == 0 and state.listed == 0, "connections are left")


def test_the_clients_half_close_is_passed_on(site: Bench) -> None:
    site.upstream.answers[b"/pub/a"] = [read_on, answer(b"after the end")]
    back = site.ask(GET)
    assert ([one.body for one in back.answers()], back.end) == ([b"after the end"], End.FIN)
    assert site.upstream.conversation().ended == "fin"
    all_gone(site.relay)


@pytest.mark.parametrize("how", [close, half_close])
def test_the_server_closes_while_idle(site: Bench, how: Callable[..., None]) -> None:
    """As without a proxy: the client sees it, and no request dies on a connection that is not there any more."""
    site.upstream.answers[b"/pub/a"] = [answer(b"x"), how]
    with site.connect() as connection:
        connection.sendall(GET)
        back = read_to_end(connection)
    assert (back.statuses, back.end) == ([200], End.FIN)
    all_gone(site.relay)


@pytest.mark.parametrize(("how", "end"), [(close, End.FIN), (reset, End.RESET)])
def test_the_server_ends_without_an_answer(site: Bench, how: Callable[..., None], end: End) -> None:
    site.upstream.answers[b"/pub/a"] = [how]
    with site.connect() as connection:
        connection.sendall(GET)
        back = read_to_end(connection)
    assert (back.data, back.end) == (b"", end)
    all_gone(site.relay)


@pytest.mark.parametrize("how", [close, reset])
def test_the_server_ends_in_a_body(site: Bench, how: Callable[..., None]) -> None:
    site.upstream.answers[b"/pub/a"] = [answer(b"x" * MIB)[:-1], how]
    for _ in range(10):
        with site.connect() as connection:
            connection.sendall(GET)
            assert read_to_end(connection).end is End.RESET
    all_gone(site.relay)


@pytest.mark.parametrize("sent", [b"", b"GET /pub", GET[:-1], post(b"Content-Length: 100\r\n", b"part")])
@pytest.mark.parametrize("how", [socket.socket.close, reset_now])
def test_the_client_ends_in_a_request(site: Bench, sent: bytes, how: Callable[[socket.socket], None]) -> None:
    connection = site.connect()
    connection.sendall(sent)
    site.receiver.wait_read(connection)
    if b"POST" in sent:
        site.upstream.conversation()
    how(connection)
    all_gone(site.relay)
    assert site.requests_begun() == []


@pytest.mark.parametrize("how", [socket.socket.close, reset_now])
def test_the_client_ends_in_an_answer(site: Bench, how: Callable[[socket.socket], None]) -> None:
    site.upstream.answers[b"/pub/a"] = [answer(b"x" * 32 * MIB), read_on]
    connection = site.connect()
    connection.sendall(GET)
    assert connection.recv(1000)
    how(connection)
    assert site.upstream.conversation().done.wait(20)
    all_gone(site.relay)


@pytest.mark.parametrize("key", [REFUSING, SILENT])
def test_no_server(site: Bench, key: int) -> None:
    with site.connect(key) as connection:
        own = connection.getsockname()
        connection.sendall(GET)
        assert read_answers(connection, 1)[0].status == 503
    [record] = site.relay.records_of(own)
    assert record.status == 503
    assert record.flags == ("upstream_connection_failure",)
    assert (record.reason, record.rule) == (Reason.HTTP_ALLOWED, 11)
    all_gone(site.relay)


def test_a_client_that_leaves_while_the_server_is_dialled(site: Bench) -> None:
    for how in (socket.socket.close, reset_now):
        connection = site.connect(SILENT)
        connection.sendall(GET)
        site.receiver.wait_read(connection)
        how(connection)
    all_gone(site.relay)


def test_a_server_that_does_not_read(site: Bench) -> None:
    """What a client sends waits in the kernel's buffers, not in the proxy."""
    site.upstream.before = [lambda conversation: conversation.done.wait(0.5) and None]
    body = b"x" * (64 * MIB)
    before = site.relay.memory()
    with site.connect() as connection:
        connection.settimeout(0.3)
        connection.sendall(post(b"Content-Length: %d\r\n" % len(body), b""))
        with contextlib.suppress(TimeoutError):
            connection.sendall(body)
        assert site.relay.memory() - before < 8 * MIB
    all_gone(site.relay)


def test_a_client_that_does_not_read(site: Bench) -> None:
    size = 64 * MIB
    site.upstream.answers[b"/pub/a"] = [answer(b"x" * size)]
    before = site.relay.memory()
    with site.connect() as connection:
        connection.sendall(GET)
        conversation = site.upstream.conversation()
        site.receiver.wait_read(connection)
        assert connection.recv(1) == b"H"
        assert site.relay.memory() - before < 8 * MIB
        assert not conversation.done.is_set()
        connection.sendall(request(b"Connection: close\r\n", line=b"GET /pub/b HTTP/1.1"))
        total, last = 1, b""
        while piece := connection.recv(MIB):
            total, last = total + len(piece), (last + piece)[-100:]
    assert total > size
    assert last.endswith(b"GET /pub/b ")
    assert site.relay.memory() - before < 8 * MIB


@pytest.mark.parametrize("sent", [b"GET /pub", GET[:-2], GET + b"GET /pub/b HTTP/1.1\r\nHost:"])
def test_a_head_that_does_not_come(site: Bench, sent: bytes) -> None:
    with limited(site, headers_timeout=0.3) as relay, relay.connect(OTHER) as connection:
        connection.sendall(sent)
        back = read_to_end(connection)
        assert back.statuses == [200] * sent.startswith(GET) + [408]
        assert back.end is End.FIN
        record = relay.records_of(connection.getsockname(), len(back.statuses))[-1]
        assert (record.reason, record.status) == (Reason.HTTP_TIMEOUT, 408)


@pytest.mark.parametrize("body", [b"", b"part"])
def test_a_body_that_does_not_come(site: Bench, body: bytes) -> None:
    with limited(site, Limits(body_idle=0.3)) as relay, relay.connect(OTHER) as connection:
        connection.sendall(post(b"Content-Length: 100\r\n", body))
        back = read_to_end(connection)
        assert back.statuses in ([408], [])
        assert back.end is not End.OPEN
        [record] = relay.records_of(connection.getsockname())
        assert record.reason == Reason.HTTP_TIMEOUT
        all_gone(relay)
    assert site.requests_begun() == []


@pytest.mark.parametrize("sent", [b"", GET])
def test_an_idle_connection_ends(site: Bench, sent: bytes) -> None:
    with limited(site, idle_timeout=0.3, headers_timeout=0.3) as relay, relay.connect(OTHER) as connection:
        connection.sendall(sent)
        back = read_to_end(connection)
        assert ([status for status in back.statuses if status != 408], back.end) == ([200] * bool(sent), End.FIN)
        all_gone(relay)


def test_an_old_connection_ends_behind_an_answer(site: Bench) -> None:
    """It grows old while it waits for the answer, which says so, as a denial does; one that is idle just ends."""

    def late(_conversation: Any) -> None:
        threading.Event().wait(0.6)

    begun, rest = answer(b"xy")[:-1], b"y"
    site.upstream.answers[b"/pub/a"] = [late, answer(b"x")]
    site.upstream.answers[b"/pub/b"] = [begun, late, rest]
    denied = request(line=b"GET /pub/b HTTP/1.1") + request(line=b"GET /private HTTP/1.1")
    with limited(site, Limits(connection_age=0.3)) as relay:
        for count, (sent, statuses) in enumerate(((GET, [200]), (denied, [200, 403]), (b"", [])), 1):
            with relay.connect(OTHER) as connection:
                connection.sendall(sent)
                back = read_to_end(connection)
            assert (back.statuses, back.end) == (statuses, End.FIN)
            assert [one.values("connection") for one in back.answers()[-1:]] == [["close"]] * bool(sent)
            all_gone(relay)
            assert relay.state().counters["http.spliceway.downstream_cx_max_duration_reached"] == count


def test_a_silent_tunnel_ends(site: Bench) -> None:
    site.upstream.answers[b"/pub/up"] = [SWITCHED, read_on]
    with limited(site, Limits(tunnel_idle=0.3)) as relay, relay.connect(OTHER) as connection:
        connection.sendall(UPGRADE)
        back = read_to_end(connection)
        assert back.data == SWITCHED
        assert back.end is not End.OPEN
        all_gone(relay)
    assert site.upstream.conversation().done.wait(20)


@pytest.mark.parametrize("limits", [Limits(connections_per_client=3), Limits(connections=3)])
def test_connections_are_limited(site: Bench, limits: Limits) -> None:
    with limited(site, limits) as relay, contextlib.ExitStack() as stack:
        held = [stack.enter_context(relay.connect(OTHER)) for _ in range(3)]
        for connection in held:
            connection.sendall(GET)
            assert read_answers(connection, 1)[0].status == 200
        # The reset may be quicker than the client's connect().
        with contextlib.suppress(ConnectionError), relay.connect(OTHER) as more:
            more.sendall(GET)
            assert read_to_end(more).data == b""
        refused = [Reason.CONNECTION_LIMIT]
        relay.until(lambda: [one.reason for one in relay.records if one.status == 0] == refused, lambda: "no record")
        if limits.connections != 3:
            with relay.connect(OTHER, 6) as other_client:
                other_client.sendall(GET)
                assert read_answers(other_client, 1)[0].status == 200
            relay.settled(lambda state: state.connections == 3, "more than three connections")
        held.pop().close()
        relay.settled(lambda state: state.connections == 2, "more than two connections")
        with relay.connect(OTHER) as again:
            again.sendall(GET)
            assert read_answers(again, 1)[0].status == 200


def test_slow_clients_starve_nobody(site: Bench) -> None:
    """Heads that come byte by byte for ever; a client beside them is served, and they are ended."""
    with limited(site, headers_timeout=1.0) as relay, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(relay.connect(OTHER)) for _ in range(300)]
        for byte in GET[:20]:
            for connection in slow:
                connection.send(bytes((byte,)))
            with relay.connect(OTHER) as good:
                good.sendall(GET)
                assert read_answers(good, 1)[0].status == 200
        for connection in slow:
            back = read_to_end(connection)
            assert (back.statuses, back.end is End.OPEN) == ([408], False)
        all_gone(relay)


def test_draining(site: Bench) -> None:
    """No new connections; those that are there get their answer, and the end of the connection with it."""
    with limited(site) as relay, relay.connect(OTHER) as busy, relay.connect(OTHER) as used:
        used.sendall(GET)
        assert read_answers(used, 1)[0].values("connection") == []
        relay.settled(lambda state: state.connections == 2, "two connections")
        relay.drain()
        for connection in (busy, used):
            connection.sendall(GET)
            back = read_to_end(connection)
            assert (back.statuses, back.end) in (([200], End.FIN), ([], End.FIN))
            for one in back.answers():
                assert one.values("connection") == ["close"]
        all_gone(relay)


def test_closing_ends_what_is_idle_and_resets_what_is_not(site: Bench) -> None:
    site.upstream.answers[b"/pub/a"] = [read_on]
    with limited(site) as relay, relay.connect(OTHER) as idle, relay.connect(OTHER) as busy:
        busy.sendall(GET)
        site.upstream.conversation()
        relay.settled(lambda state: state.connections == 2, "two connections")
        relay.close()
        assert (read_to_end(idle).end, read_to_end(busy).end) == (End.FIN, End.RESET)
        all_gone(relay)


def test_a_listener_that_goes_resets(site: Bench) -> None:
    with limited(site) as relay, relay.connect(OTHER) as connection:
        connection.sendall(GET)
        assert read_answers(connection, 1)[0].status == 200
        relay.apply(gone=(f"listener-{OTHER}",))
        assert read_to_end(connection).end is End.RESET
        with pytest.raises(OSError, match=r"refused|reset"):
            relay.connect(OTHER)
        all_gone(relay)
    assert port_of(OTHER) not in netns.call(site.net.node, netns.listening_ports)


def test_no_end_leaves_anything(site: Bench) -> None:
    """Rounds of all ends at random: no connection, no file, no memory stays."""
    random = Random(1)
    answers = site.upstream.answers
    answers[b"/pub/close"] = [close]
    answers[b"/pub/reset"] = [reset]
    answers[b"/pub/cut"] = [answer(b"x" * 100_000)[:-1], close]
    answers[b"/pub/torn"] = [answer(b"x" * 100_000)[:-1], reset]
    answers[b"/pub/large"] = [answer(b"x" * 1_000_000)]
    answers[b"/pub/bad"] = [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
    answers[b"/pub/up"] = [SWITCHED, b"hello", read_on]
    paths = [b"/pub/a", b"/private", *answers]
    sent = [request(line=b"GET %b HTTP/1.1" % path) for path in paths]
    unanswered = [b"", GET[:9], post(b"Content-Length: 9\r\n", b"part")]
    sent += [GET + GET[:9], b"\x16\x03\x01", b"x\r\n\r\n", UPGRADE, *unanswered]
    sent += [one + other for one in sent[:3] for other in sent]
    ends = (socket.socket.close, reset_now, lambda connection: connection.shutdown(socket.SHUT_WR))

    def one_round() -> None:
        for data in sent:
            with site.connect(random.choice((1, 1, 1, REFUSING))) as connection:
                try:
                    connection.sendall(data)
                    if data not in unanswered and random.random() < 0.5:
                        connection.recv(random.choice((1, 65536)))
                    random.choice(ends)(connection)
                except TimeoutError as error:
                    raise AssertionError(f"no answer to {data!r}") from error
                except OSError:
                    pass  # the other end was quicker
                if connection.fileno() >= 0:
                    assert read_to_end(connection).end is not End.OPEN, data
        site.upstream.conversations.clear()
        site.relay.records.clear()

    one_round()
    before = site.relay.settled(lambda state: state.connections == 0, "connections are left")
    for _ in range(max(1, ROUNDS // 10)):
        one_round()
    warm = site.relay.memory()
    for _ in range(ROUNDS):
        one_round()
    # Upstream connections end a moment after those of the clients.
    after = site.relay.settled(
        lambda state: state.connections == 0 and state.files <= before.files, "something is left"
    )
    assert after.listed == 0
    assert site.relay.memory() - warm < 4 * MIB
