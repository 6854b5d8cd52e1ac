"""What is spliced and unread is bounded, at nobody else's cost (rows 5 and 6 of docs/splicing.md)."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from spliceway.bpf import abi
from spliceway.bpf.abi import End
from spliceway.bpf.types import Leg, SpliceLimits, SpliceState
from support.splicebed import Pair, SpliceBed
from support.spliceread import exactly, memory, numbered, pour
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LIMITS = SpliceLimits(connection=512 * KIB, endpoint=MIB, node=3 * MIB // 2)
#: What TCP keeps besides for one stopped reader: the buffers of both sockets.
BUFFERS = 16 * MIB
#: Seconds for which a pod reads nothing; without mending, the kernel gave up after 8.
PAUSE = float(os.environ.get("SPLICEWAY_PAUSE_SECONDS", "0.5"))
#: `TCP_RTO_MIN` in microseconds.
KERNEL_LEAST = 200_000
#: In a direction of a connection so much never counts.
FLOOR = abi.UNREAD_FLOOR


def redirected(pair: Pair, *, to_pod: bool) -> int:
    """Bytes that were spliced in one direction."""
    return pair.known.from_proxy_bytes if to_pod else pair.known.to_proxy_bytes


def waiting(pair: Pair, *, to_pod: bool) -> int:
    """Bytes that were spliced in one direction and not read when that was looked at last."""
    return pair.known.from_proxy_unread if to_pod else pair.known.to_proxy_unread


def unread(bed: SpliceBed) -> int:
    """Bytes of the node that are spliced and unread, after a look at every reader that was behind."""
    return bed.node.run(bed.node.datapath.measure())


# ---- row 5: one connection ----


def test_row_05_a_stopped_reader_stops_its_sender(bed: SpliceBed, leg: Leg, to_pod: bool) -> None:
    """Of a GiB: the rest waits with the sender. When the reader goes on, everything comes in order."""
    with bed.limited(LIMITS), bed.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        sent = pour(writer, GIB)
        assert sent < LIMITS.connection + BUFFERS
        assert (pair.known.state, pair.known.why) == (SpliceState.TCP_ONLY, "unread-limit")
        assert redirected(pair, to_pod=to_pod) <= LIMITS.connection
        assert memory(reader) <= LIMITS.connection + BUFFERS
        assert exactly(reader, sent) == numbered(sent)
        writer.sendall(numbered(100_000, sent))
        assert exactly(reader, 100_000) == numbered(100_000, sent)


def test_row_05_a_reader_of_one_byte_at_a_time(bed: SpliceBed, leg: Leg, to_pod: bool) -> None:
    with bed.limited(LIMITS), bed.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        sent = pour(writer, GIB)
        for place in range(50):
            assert reader.recv(1) == numbered(1, place)
            time.sleep(0.002)  # what the attacker does
        sent += pour(writer, GIB, sent)
        assert sent < LIMITS.connection + BUFFERS
        assert exactly(reader, sent - 50) == numbered(sent - 50, 50)


def test_row_05_what_a_reader_sends_is_no_credit(bed: SpliceBed, leg: Leg, to_pod: bool) -> None:
    """It sends a byte every 2 ms, so that there is always a message the other way, and reads nothing."""
    with bed.limited(LIMITS), bed.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        sent, full = 0, False
        for place in range(100):
            reader.sendall(numbered(1, place))
            if not full:
                more = pour(writer, 128 * KIB, sent)
                sent, full = sent + more, more < 128 * KIB
            time.sleep(0.002)  # what the attacker does
        assert full
        assert sent < LIMITS.connection + BUFFERS
        assert redirected(pair, to_pod=to_pod) <= LIMITS.connection
        assert exactly(reader, sent) == numbered(sent)
        assert exactly(writer, 100) == numbered(100)


def test_row_05_a_pod_that_pauses_goes_on(bed: SpliceBed, leg: Leg) -> None:
    """Behind a proxy that does not ask for room: what TCP holds back meanwhile does not end the connection."""
    with bed.limited(LIMITS), bed.spliced(leg, asks=False) as pair:
        sent = pour(pair.proxy, 2 * MIB)
        held = bed.node.datapath.splice_counters().leave_waits
        assert held
        until(lambda: bed.node.datapath.splice_counters().leave_waits > held, 30)
        time.sleep(PAUSE)  # what the pod does
        pair.pod.settimeout(PAUSE + 10)
        assert exactly(pair.pod, sent) == numbered(sent)
        pair.proxy.sendall(numbered(1000, sent))
        assert exactly(pair.pod, 1000) == numbered(1000, sent)
        assert not pair.known.member


def test_row_05_what_is_held_back_is_sent_again_soon(bed: SpliceBed, leg: Leg, version: int) -> None:
    """The kernel's own least retransmission time, 0.2 s, is what a stream would stand still when it leaves."""
    with bed.limited(LIMITS), bed.spliced(leg, version, asks=False) as pair:
        # A listener's clients are not all of this node, so on that leg the handshake counts as one from anywhere.
        assert (_retransmission_time(pair.proxy) < KERNEL_LEAST) is (leg is Leg.UPSTREAM)
        sent = pour(pair.proxy, 2 * MIB)
        assert exactly(pair.pod, sent) == numbered(sent)
        assert pair.known.state is SpliceState.TCP_ONLY

        def comes_sooner() -> bool:
            nonlocal sent
            pair.proxy.sendall(numbered(1000, sent))
            assert exactly(pair.pod, 1000) == numbered(1000, sent)
            sent += 1000
            return _retransmission_time(pair.proxy) < KERNEL_LEAST

        until(comes_sooner)


def test_row_05_both_ends_leave(bed: SpliceBed, leg: Leg, to_pod: bool, version: int) -> None:
    """The proxy's only when it has read what was redirected to it, or that would be lost."""
    with bed.limited(LIMITS), bed.spliced(leg, version, asks=False) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        sent = pour(writer, 2 * MIB)
        assert pair.known.state is SpliceState.TCP_ONLY
        assert (End.POD if to_pod else End.PROXY) in pair.members
        assert exactly(reader, sent) == numbered(sent)
        back = 0

        def have_left() -> bool:
            nonlocal sent, back
            writer.sendall(numbered(1000, sent))
            assert exactly(reader, 1000) == numbered(1000, sent)
            reader.sendall(numbered(1000, back))
            assert exactly(writer, 1000) == numbered(1000, back)
            sent, back = sent + 1000, back + 1000
            return not pair.members

        until(have_left)
        have_left()


def _retransmission_time(sock: socket.socket) -> int:
    """In microseconds, `tcpi_rto`."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 12)[8:12], sys.byteorder)


def test_row_05_a_proxy_that_does_not_ask_runs_less_far_ahead(bed: SpliceBed, leg: Leg, version: int) -> None:
    """What comes after it has left waits until all that is unread has been read, and Envoy does not wait long."""
    buffer = 2 * int(Path("/proc/sys/net/core/rmem_max").read_text())  # what a pod's socket gets at most
    further = min(2 * MIB, buffer * 3 // 4)
    assert further > 256 * KIB
    with bed.spliced(leg, version, asks=False) as pair:
        for number in range(20):
            pair.proxy.sendall(numbered(256 * KIB, number * 256 * KIB))
            assert exactly(pair.pod, 256 * KIB) == numbered(256 * KIB, number * 256 * KIB)
        assert pair.known.state is SpliceState.SPLICED
        sent = pour(pair.proxy, 2 * MIB)
        assert (pair.known.state, pair.known.why) == (SpliceState.TCP_ONLY, "unread-limit")
        assert memory(pair.pod) <= 256 * KIB
        assert exactly(pair.pod, sent) == numbered(sent)
    with bed.spliced(leg, version) as pair:
        assert pour(pair.proxy, further) == further
        assert pair.known.state is SpliceState.SPLICED
        assert exactly(pair.pod, further) == numbered(further)


def test_row_05_a_pod_that_does_not_read_may_send(bed: SpliceBed, leg: Leg) -> None:
    """What is held back from it takes no acknowledgement along."""
    with bed.limited(LIMITS), bed.spliced(leg, asks=False) as pair:
        sent = pour(pair.proxy, 2 * MIB)
        assert pair.known.state is SpliceState.TCP_ONLY
        for place in range(0, 2 * MIB, 64 * KIB):
            pair.pod.sendall(numbered(64 * KIB, place))
            assert exactly(pair.proxy, 64 * KIB) == numbered(64 * KIB, place)
        assert memory(pair.pod) > FLOOR
        assert exactly(pair.pod, sent) == numbered(sent)


def test_row_05_what_comes_by_tcp_after_leaving_does_not_count(bed: SpliceBed, leg: Leg, to_pod: bool) -> None:
    """They are charged to the same memory of the reader, and come after all that was spliced."""
    with bed.limited(LIMITS), bed.spliced(leg) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        sent = pour(writer, GIB)
        spliced = redirected(pair, to_pod=to_pod)
        assert spliced < sent
        assert exactly(reader, spliced - 1) == numbered(spliced - 1)
        unread(bed)
        assert waiting(pair, to_pod=to_pod) > 0
        assert exactly(reader, 1) == numbered(1, spliced - 1)
        until(lambda: memory(reader))
        assert unread(bed) == 0
        assert waiting(pair, to_pod=to_pod) == 0
        assert exactly(reader, sent - spliced) == numbered(sent - spliced, spliced)


def test_row_05_a_proxy_that_asks_for_room_stays_spliced(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.limited(LIMITS), bed.spliced(leg, version) as pair:
        sent = read = 0
        for _ in range(5):
            while size := pair.room():
                pair.proxy.sendall(numbered(min(size, 65536), sent))
                sent += min(size, 65536)
            assert size == 0
            assert FLOOR < sent - read <= LIMITS.connection
            assert memory(pair.pod) == sent - read
            assert exactly(pair.pod, sent - read) == numbered(sent - read, read)
            read = sent
        assert pair.known.state is SpliceState.SPLICED
        assert pair.known.from_proxy_bytes == sent


# ---- row 5: many connections ----


def test_row_05_a_pod_has_a_budget_and_another_pod_does_not_notice(bed: SpliceBed, version: int) -> None:
    assert unread(bed) == 0
    with bed.limited(LIMITS):
        greedy = [bed.spliced(Leg.DOWNSTREAM, version) for _ in range(16)]
        sent = [pour(pair.pod, 192 * KIB) for pair in greedy]
        assert max(sent) == 192 * KIB
        spliced = [pair.known.to_proxy_bytes for pair in greedy]
        # A message is charged with what it may cost besides its bytes.
        assert 3 * 192 * KIB <= sum(spliced) <= LIMITS.endpoint + len(greedy) * FLOOR
        assert sum(memory(pair.proxy) for pair in greedy) >= sum(spliced)
        for pair, size in zip(greedy, list(sent), strict=True):  # by TCP: another matter than what is spliced
            if pair.known.state is SpliceState.TCP_ONLY:
                sent[greedy.index(pair)] += pour(pair.pod, MIB, size)
        assert unread(bed) <= LIMITS.endpoint + len(greedy) * FLOOR
        left = [pair.known for pair in greedy if pair.known.state is SpliceState.TCP_ONLY]
        assert {one.why for one in left} == {"unread-budget"}
        assert len(left) >= 10
        with bed.spliced(Leg.UPSTREAM, version) as other, bed.spliced(Leg.DOWNSTREAM, version) as small:
            for pair, size in ((other, 64 * KIB), (small, 1000)):
                for number in range(30):
                    for to_pod in (True, False):
                        writer, reader = pair.ends(to_pod=to_pod)
                        writer.sendall(numbered(size, number * size))
                        assert exactly(reader, size) == numbered(size, number * size)
                assert pair.known.state is SpliceState.SPLICED
                assert (pair.known.to_proxy_bytes, pair.known.from_proxy_bytes) == (30 * size, 30 * size)
        for pair, size in zip(greedy, sent, strict=True):
            assert exactly(pair.proxy, size) == numbered(size)
            pair.close()
        until(lambda: unread(bed) == 0)


def test_row_05_the_node_has_a_budget(bed: SpliceBed) -> None:
    with bed.limited(LIMITS):
        ends = [(Leg.DOWNSTREAM, True), (Leg.DOWNSTREAM, False), (Leg.UPSTREAM, True), (Leg.UPSTREAM, False)] * 4
        pairs = [(bed.spliced(leg), to_pod) for leg, to_pod in ends]
        sent = [pour(pair.ends(to_pod=to_pod)[0], 192 * KIB) for pair, to_pod in pairs]
        assert max(sent) == 192 * KIB
        spliced = sum(redirected(pair, to_pod=to_pod) for pair, to_pod in pairs)
        assert LIMITS.node // 2 < spliced <= LIMITS.node + len(pairs) * FLOOR
        assert {pair.known.why for pair, _ in pairs} == {"", "unread-budget"}
        for (pair, to_pod), size in zip(pairs, sent, strict=True):
            assert exactly(pair.ends(to_pod=to_pod)[1], size) == numbered(size)


def test_row_05_who_closes_without_reading_gives_back(bed: SpliceBed, leg: Leg, to_pod: bool) -> None:
    """Also who is reset: no sum stays behind."""
    with bed.limited(LIMITS):
        for _ in range(12):
            with bed.spliced(leg) as pair:
                writer, reader = pair.ends(to_pod=to_pod)
                writer.sendall(numbered(200 * KIB))
                assert pair.known.state is SpliceState.SPLICED
                reader.close()
            until(lambda gone=pair: gone.entry is None)
        until(lambda: unread(bed) == 0)


# ---- row 6 ----


def test_row_06_a_stream_of_small_messages_leaves(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.spliced(leg, version) as pair:
        sent = 0
        while pair.known.state is SpliceState.SPLICED:
            assert sent < 100 * 64
            pair.pod.sendall(numbered(64, sent))
            sent += 64
        assert pair.known.why == "small-writes"
        pair.pod.sendall(numbered(10_000, sent))
        assert exactly(pair.proxy, sent + 10_000) == numbered(sent + 10_000)


@pytest.mark.parametrize("size", [1, 64, 4096])
def test_row_06_ping_pong_does_not(bed: SpliceBed, leg: Leg, version: int, size: int) -> None:
    with bed.spliced(leg, version) as pair:
        for number in range(100):
            for to_pod in (False, True):
                writer, reader = pair.ends(to_pod=to_pod)
                writer.sendall(numbered(size, number * size))
                assert exactly(reader, size) == numbered(size, number * size)
        assert pair.known.state is SpliceState.SPLICED
        assert pair.known.to_proxy_bytes == 100 * size


def test_row_06_nor_do_large_messages_or_a_few_small_ones(bed: SpliceBed, leg: Leg) -> None:
    with bed.spliced(leg) as pair:
        sent = 0
        for size in [20_000] * 5 + [64, 64, 64] + [20_000] * 5:
            pair.pod.sendall(numbered(size, sent))
            sent += size
        assert exactly(pair.proxy, sent) == numbered(sent)
        assert pair.known.state is SpliceState.SPLICED
