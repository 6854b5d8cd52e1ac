"""What a program sees of its spliced socket (rows 2, 3, 13, 17, 18 and 20 of docs/splicing.md)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable

import pytest

from spliceway.bpf.types import Leg, SpliceLimits, SpliceState
from support.splicebed import PLAIN_PORT, SECOND_PORT, Pair, SpliceBed
from support.spliceread import exactly, numbered, pour, readable
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

LIMITS = SpliceLimits(connection=256 << 10)
_SO_ZEROCOPY, _MSG_ZEROCOPY, _MSG_ERRQUEUE, _TCP_ULP = 60, 0x400_0000, 0x2000, 31
_TCP_ZEROCOPY_RECEIVE = 35
_TCP_INFO_BYTES_RECEIVED = 128  # offset of tcpi_bytes_received in struct tcp_info, include/uapi/linux/tcp.h


def leave(pair: Pair) -> None:
    """Make the pod send small messages that nobody reads, until the connection goes on by TCP. They are read then."""
    sent = 0
    while pair.known.state is SpliceState.SPLICED:
        assert sent < 1000, "it does not leave"
        pair.pod.sendall(numbered(4, sent))
        sent += 4
    assert exactly(pair.proxy, sent) == numbered(sent)
    assert pair.known.why == "small-writes"


def nothing_to_read(sock: socket.socket) -> bool:
    """Whether recv() would wait. The socket does not wait any more after that."""
    sock.setblocking(False)  # with a timeout, Python waits before it calls recv()
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    return False


# ---- row 2 ----


def test_row_02_fionread_counts_spliced_bytes(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        assert readable(reader) == 0
        writer.sendall(numbered(1000))
        assert readable(reader) == 1000
        writer.sendall(numbered(300, 1000))
        assert readable(reader) == 1300
        assert exactly(reader, 500) == numbered(500)
        assert readable(reader) == 800
        assert exactly(reader, 800) == numbered(800, 500)
        assert readable(reader) == 0


def test_row_02_fionread_counts_what_comes_by_tcp_after_leaving(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.spliced(leg, version) as pair:
        leave(pair)
        for place in range(0, 5000, 1000):
            pair.proxy.sendall(numbered(1000, place))
            until(lambda: readable(pair.pod) == 1000)
            assert exactly(pair.pod, 1000) == numbered(1000, place)
        assert not pair.known.member
        assert pair.known.from_proxy_bytes == 0


def test_row_02_tcp_waits_until_what_was_spliced_is_read(bed: SpliceBed, leg: Leg, version: int) -> None:
    """No byte by TCP meets a socket that is a member: FIONREAD would be 0 and a reader in recv() would get EAGAIN."""
    with bed.limited(LIMITS), bed.spliced(leg, version) as pair:
        pair.proxy.sendall(numbered(500))
        sent = pour(pair.pod, 4 * LIMITS.connection)
        assert exactly(pair.proxy, sent) == numbered(sent)
        assert pair.known.why == "unread-limit"
        waits = bed.node.datapath.splice_counters().leave_waits
        pair.proxy.sendall(numbered(1000, 500))
        until(lambda: bed.node.datapath.splice_counters().leave_waits > waits)
        assert readable(pair.pod) == 500
        assert exactly(pair.pod, 500) == numbered(500)
        until(lambda: readable(pair.pod) == 1000)
        assert exactly(pair.pod, 1000) == numbered(1000, 500)
        assert not pair.known.member


# ---- row 3 ----


def spliced_out(sock: socket.socket, size: int) -> bytes:
    """splice(2) from a socket to a pipe, without waiting. Raises BlockingIOError."""
    here, there = os.pipe()
    try:
        sock.setblocking(False)
        os.splice(sock.fileno(), there, size)
        return os.read(here, size)
    finally:
        os.close(here)
        os.close(there)


def test_row_03_splice_2_after_leaving(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.spliced(leg, version) as pair:
        leave(pair)
        pair.proxy.sendall(numbered(2000))
        until(lambda: readable(pair.pod) == 2000)
        assert spliced_out(pair.pod, 2000) == numbered(2000)


def test_row_03_splice_2_on_a_port_without_http_rules(bed: SpliceBed, version: int) -> None:
    """No such connection is spliced, whatever relays it."""
    with bed.make("server", version) as listener, bed.make("client", version) as client:
        listener.bind(bed.target(version, PLAIN_PORT))
        listener.listen()
        client.connect(bed.target(version, PLAIN_PORT))
        with listener.accept()[0] as server:
            server.sendall(numbered(2000))
            until(lambda: readable(client) == 2000)
            assert spliced_out(client, 2000) == numbered(2000)
        assert not [one for one in bed.node.datapath.socks() if one.endpoint_port == client.getsockname()[1]]


def test_row_03_splice_2_sees_nothing_of_spliced_bytes(bed: SpliceBed, leg: Leg) -> None:
    """As it is on every kernel so far, and said in docs/splicing.md: when this fails, say there that it is mended."""
    with bed.spliced(leg) as pair:
        pair.proxy.sendall(numbered(2000))
        with pytest.raises(BlockingIOError):
            spliced_out(pair.pod, 2000)
        pair.pod.settimeout(5)
        assert exactly(pair.pod, 2000) == numbered(2000)


# ---- row 13 ----


def test_row_13_a_dual_stack_listener_and_an_ipv4_client(bed: SpliceBed) -> None:
    with bed.make("server", 6) as listener, bed.opener(Leg.UPSTREAM, 4) as opened:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", SECOND_PORT))
        listener.listen()
        opened.connect(bed.target(4, SECOND_PORT))
        accepted = listener.accept()[0]
        assert accepted.getpeername()[0].startswith("::ffff:")
        check_spliced(bed.pair_of(Leg.UPSTREAM, opened, accepted))


def test_row_13_an_ipv6_socket_that_connects_to_an_ipv4_address(bed: SpliceBed) -> None:
    opened = bed.make("client", 6)
    opened.connect((f"::ffff:{bed.address('server', 4)}", 80))
    check_spliced(bed.pair_of(Leg.DOWNSTREAM, opened, bed.accept(Leg.DOWNSTREAM, 4)))


def check_spliced(pair: Pair) -> None:
    """It is, and its bytes are counted in both directions."""
    with pair:
        pair.wait_state(SpliceState.SPLICED)
        for to_pod in (True, False):
            writer, reader = pair.ends(to_pod=to_pod)
            writer.sendall(numbered(1000))
            assert exactly(reader, 1000) == numbered(1000)
        assert (pair.known.to_proxy_bytes, pair.known.from_proxy_bytes) == (1000, 1000)


# ---- row 17 ----


def test_row_17_tls_of_the_kernel_has_no_place_on_a_member(bed: SpliceBed, leg: Leg) -> None:
    """It is refused, or the connection is as good as before: bytes never take two ways."""
    with bed.spliced(leg) as pair:
        with contextlib.suppress(OSError):
            pair.pod.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        check_spliced(pair)


# ---- row 18 ----


def test_row_18_zero_copy_sends_arrive(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    """But nobody says so on the error queue, as long as the connection is spliced."""
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        writer.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        data = numbered(100_000)
        sent = 0
        while sent < len(data):
            sent += writer.send(data[sent:], _MSG_ZEROCOPY)
        assert exactly(reader, len(data)) == data
        writer.setblocking(False)
        with pytest.raises(BlockingIOError):
            writer.recvmsg(1, 1000, _MSG_ERRQUEUE)


def test_row_18_waitall_may_return_less(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        reader.setblocking(True)
        writer.sendall(numbered(600))
        first = reader.recv(1000, socket.MSG_WAITALL)  # by TCP it would wait for ever
        assert first == numbered(600)
        writer.sendall(numbered(400, 600))
        assert reader.recv(400, socket.MSG_WAITALL) == numbered(400, 600)


def test_row_18_rcvlowat_does_not_keep_data_back(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
        writer.sendall(numbered(600))
        assert exactly(reader, 600) == numbered(600)
        writer.sendall(numbered(1400, 600))
        assert exactly(reader, 1400) == numbered(1400, 600)


# ---- row 20 ----


def test_row_20_a_short_last_message_is_not_held_back(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        for size in (65536, 1, 17, 1):
            writer.sendall(numbered(size))
            assert exactly(reader, size) == numbered(size)


# ---- what the kernel's own selftests of sockmap try ----


def test_peek_shows_and_leaves_spliced_bytes(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        writer.sendall(numbered(1000))
        writer.sendall(numbered(1000, 1000))
        for _ in range(2):
            assert reader.recv(200, socket.MSG_PEEK) == numbered(200)
        assert reader.recv(4000, socket.MSG_PEEK)[:1000] == numbered(1000)
        assert exactly(reader, 2000) == numbered(2000)
        assert nothing_to_read(reader)


@pytest.mark.parametrize("edge", [False, True], ids=["level", "edge"])
def test_epoll_tells_of_every_message(bed: SpliceBed, leg: Leg, version: int, to_pod: bool, edge: bool) -> None:
    with bed.spliced(leg, version) as pair, select.epoll() as poll:
        writer, reader = pair.ends(to_pod=to_pod)
        poll.register(reader, select.EPOLLIN | (select.EPOLLET if edge else 0))
        assert poll.poll(0) == []
        for number in range(5):
            writer.sendall(numbered(100, number * 100))
            assert poll.poll(5) == [(reader.fileno(), select.EPOLLIN)]
            assert bool(poll.poll(0)) is not edge
            assert exactly(reader, 100) == numbered(100, number * 100)
            assert poll.poll(0) == []


def test_epoll_tells_of_the_end(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    with bed.spliced(leg, version) as pair, select.epoll() as poll:
        writer, reader = pair.ends(to_pod=to_pod)
        poll.register(reader, select.EPOLLIN | select.EPOLLRDHUP)
        writer.shutdown(socket.SHUT_WR)
        assert poll.poll(5) == [(reader.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]
        assert reader.recv(1) == b""


def test_zero_copy_receive_loses_nothing(bed: SpliceBed, leg: Leg, to_pod: bool) -> None:
    """It finds no bytes that it could map, and leaves them to recv()."""
    with bed.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        writer.sendall(numbered(8192))
        mapped = 0
        with contextlib.suppress(OSError):  # there is nothing mapped where it could map
            mapped = struct.unpack_from("QI", reader.getsockopt(socket.IPPROTO_TCP, _TCP_ZEROCOPY_RECEIVE, 64))[1]
        assert mapped == 0
        assert exactly(reader, 8192) == numbered(8192)


def test_both_stacks_count_as_one_when_it_leaves(bed: SpliceBed, leg: Leg, version: int) -> None:
    """`copied_seq` moves with TCP's bytes alone: what was spliced before takes nothing from what TCP brings after."""
    with bed.spliced(leg, version) as pair:
        pair.proxy.sendall(numbered(3000))
        assert exactly(pair.pod, 3000) == numbered(3000)
        leave(pair)
        before = _received(pair.pod)
        pair.proxy.sendall(numbered(5000, 3000))
        assert exactly(pair.pod, 5000) == numbered(5000, 3000)
        assert _received(pair.pod) - before == 5000
        assert nothing_to_read(pair.pod)


def _received(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, _TCP_INFO_BYTES_RECEIVED)[0])


#: Ways to read that must all give the same bytes, in whatever pieces.
READERS: dict[str, Callable[[socket.socket, int], bytes]] = {
    "recv": lambda sock, size: sock.recv(size),
    "read": lambda sock, size: os.read(sock.fileno(), size),
    "readv": lambda sock, size: _readv(sock, size),
    "recvmsg": lambda sock, size: sock.recvmsg(size)[0],
}


def _readv(sock: socket.socket, size: int) -> bytes:
    pieces = [bytearray(1), bytearray(size // 2), bytearray(size)]
    count = os.readv(sock.fileno(), pieces)
    return b"".join(pieces)[:count]


@pytest.mark.parametrize("how", READERS)
def test_every_way_to_read_gives_the_bytes_in_order(bed: SpliceBed, leg: Leg, how: str, to_pod: bool) -> None:
    with bed.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        reader.setblocking(True)
        place = 0
        for size in (1, 3000, 70, 40_000):
            writer.sendall(numbered(size, place))
            place += size
        got = b""
        while len(got) < place:
            got += READERS[how](reader, 777)
        assert got == numbered(place)
