"""What the embedded proxy holds back of one connection, when the other end does not read."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from spliceway.proxy.relay.states import MAX_HELD
from spliceway.proxy.resources.values import MIN_BUFFER
from support.torture import Bench, bench
from support.torturecases import post, request
from support.upstreams import answer

pytestmark = pytest.mark.kernel

MIB = 1 << 20
#: Each holds back the rest of one read: all of them being within the limit by chance is next to impossible.
CONNECTIONS = 8


@pytest.fixture(scope="module")
def site() -> Iterator[Bench]:
    with bench(buffer_limit=MIN_BUFFER) as made:
        yield made


def test_what_waits_for_its_turn_fits() -> None:
    assert MIN_BUFFER >= MAX_HELD


def assert_bounded(site: Bench) -> None:
    state = site.relay.settled(lambda now: len(now.buffered) == CONNECTIONS, "not all are held back")
    assert max(state.buffered) <= MIN_BUFFER


def test_a_client_that_does_not_read(site: Bench) -> None:
    site.begin()
    site.upstream.answers[b"/pub/a"] = [answer(bytes(16 * MIB))]
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(site.connect()).sendall(request())
        assert_bounded(site)
    site.relay.settled(lambda now: not now.connections, "connections are left")


def test_a_server_that_does_not_read(site: Bench) -> None:
    site.begin()
    go_on = threading.Event()
    site.upstream.before = [go_on]
    sent = post(b"Content-Length: %d\r\n" % (16 * MIB), bytes(16 * MIB))

    def pour(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(sent)

    with contextlib.ExitStack() as stack:
        stack.callback(go_on.set)
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(site.connect())
            thread = threading.Thread(target=pour, args=(connection,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(connection.shutdown, socket.SHUT_RDWR)
        assert_bounded(site)
