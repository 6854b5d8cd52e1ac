"""How connections end: everything that was sent arrives first, and nobody is woken for nothing (rows 16, 19 and 23)."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spliceway.bpf import abi
from spliceway.bpf.addresses import unpack_address
from spliceway.bpf.types import Leg, SpliceLimits, SpliceState
from support.splicebed import PATIENCE, Pair, SpliceBed
from support.spliceread import Drained, drain, exactly, numbered, reset
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: Bytes that wait when their sender ends; below the limit of what may wait.
SIZE = 1 << 20
#: Connections of each kind whose blocking readers must never see EAGAIN.
TRIES = int(os.environ.get("SPLICEWAY_HALF_CLOSES", "70"))
#: Longer than any connection that has nothing to say is remembered, in nanoseconds (TTL_ESTABLISHED in conntrack.h).
_LONG_AGO = 7 * 3600 * 10**9


def ends_of(pair: Pair, how: str, writer: socket.socket) -> None:
    """Let the writer end."""
    match how:
        case "closes":
            writer.close()
        case "shuts-down":
            writer.shutdown(socket.SHUT_WR)
        case "resets":
            reset(writer)


# ---- row 16 ----


@pytest.mark.parametrize("how", ["closes", "shuts-down", "resets"])
def test_row_16_what_was_sent_arrives_before_the_end(
    bed: SpliceBed, leg: Leg, version: int, to_pod: bool, how: str
) -> None:
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        writer.sendall(numbered(SIZE))
        assert pair.known.state is SpliceState.SPLICED
        ends_of(pair, how, writer)
        assert drain(reader) == Drained(numbered(SIZE), "ConnectionResetError" if how == "resets" else "")


#: TCP_CLOSE: the kernel keeps no connection any more, only what its owner has not read.
_OVER = 7


def is_over(sock: socket.socket) -> bool:
    """Whether the connection has ended for the kernel."""
    state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
    return state == _OVER


@pytest.mark.parametrize("then", ["shuts-down", "writes"])
@pytest.mark.parametrize("how", ["closes", "shuts-down"])
def test_row_16_a_reader_that_goes_on_before_it_reads(
    bed: SpliceBed, leg: Leg, version: int, to_pod: bool, how: str, then: str
) -> None:
    """Its own end, or the reset that it is told for writing, takes away nothing that was there before."""
    with bed.spliced(leg, version) as pair:
        writer, reader = pair.ends(to_pod=to_pod)
        writer.sendall(numbered(SIZE))
        ends_of(pair, how, writer)
        if then == "shuts-down":
            reader.shutdown(socket.SHUT_WR)
        else:
            reader.sendall(b"too late")
        until(lambda: how == "shuts-down" or is_over(reader))  # then both sides know that it is over
        assert drain(reader).data == numbered(SIZE)


def test_row_16_ends_at_random_points(bed: SpliceBed, leg: Leg, version: int, to_pod: bool) -> None:
    """What arrives is what was sent up to a point; it ends well only if it is all of it. Nothing stays behind."""
    source = random.Random(f"{leg} {version} {to_pod}")
    with ThreadPoolExecutor(1) as thread:
        for _ in range(12):
            pair = bed.spliced(leg, version)
            writer, reader = pair.ends(to_pod=to_pod)
            reading = thread.submit(drain, reader)
            size = source.randrange(1, 400_000)
            position = 0
            while position < size:
                piece = min(source.randrange(1, 60_000), size - position)
                writer.sendall(numbered(piece, position))
                position += piece
            how = source.choice(["closes", "shuts-down", "resets"])
            ends_of(pair, how, writer)
            data, end = reading.result(PATIENCE)
            assert data == numbered(size)[: len(data)]
            assert end == ("ConnectionResetError" if how == "resets" else "")
            assert len(data) == size or how == "resets"
            pair.close()
            until(lambda gone=pair: gone.entry is None)


def test_a_spliced_connection_can_be_dissolved(bed: SpliceBed, leg: Leg, version: int) -> None:
    """connect() to AF_UNSPEC: the peer is told, and the entry goes."""
    with bed.spliced(leg, version) as pair:
        pair.pod.sendall(numbered(100))
        nowhere = ctypes.create_string_buffer(16)  # sa_family 0
        done = ctypes.CDLL(None, use_errno=True).connect(pair.pod.fileno(), nowhere, 16)
        assert done == 0, os.strerror(ctypes.get_errno())
        assert drain(pair.proxy) == Drained(numbered(100), "ConnectionResetError")
        pair.proxy.close()
        until(lambda: pair.entry is None)


# ---- row 19 ----


def forget(bed: SpliceBed, pair: Pair, *, altogether: bool) -> None:
    """Let connection tracking believe that a connection was idle for hours, or lose it."""
    conntrack = bed.node.datapath._maps.conntrack
    found = 0
    for key, raw in list(conntrack.items()):
        end = abi.CtKey.from_buffer_copy(key)
        if socket.ntohs(end.local_port) == pair.port and unpack_address(bytes(end.local.w)) == pair.address:
            found += 1
            value = abi.CtValue.from_buffer_copy(raw)
            value.seen = max(1, time.monotonic_ns() - _LONG_AGO)
            if altogether:
                conntrack.delete(key)
            else:
                conntrack.update(key, bytes(value))
    assert found


@pytest.mark.parametrize("altogether", [False, True], ids=["expired", "evicted"])
@pytest.mark.parametrize("first", ["pod", "proxy"])
def test_row_19_a_long_silence_ends_well(bed: SpliceBed, leg: Leg, version: int, first: str, altogether: bool) -> None:
    """No packet of a spliced connection passes TC but the last ones: they must find their way all the same."""
    with bed.spliced(leg, version) as pair:
        for to_pod in (True, False):
            writer, reader = pair.ends(to_pod=to_pod)
            writer.sendall(numbered(1000))
            assert exactly(reader, 1000) == numbered(1000)
        forget(bed, pair, altogether=altogether)
        writer, reader = pair.ends(to_pod=first == "proxy")
        writer.sendall(numbered(1000, 1000))
        writer.shutdown(socket.SHUT_WR)
        assert drain(reader) == Drained(numbered(1000, 1000), "")
        reader.sendall(numbered(500, 1000))
        reader.close()
        assert drain(writer) == Drained(numbered(500, 1000), "")
        writer.close()
        until(lambda: pair.entry is None)


# ---- row 23 ----


class Reader:
    """A thread that sits in a blocking recv()."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock, self._task = sock, 0
        #: How often it was woken for nothing: EAGAIN, where a blocking socket should wait.
        self.in_vain = 0
        self.got = Drained(b"", "not started")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._task = threading.get_native_id()
        data = b""
        while True:
            more, end = drain(self._sock)
            data += more
            if end != "BlockingIOError":
                break
            self.in_vain += 1
        self.got = Drained(data, end)

    def wait_asleep(self) -> None:
        """Until it waits inside the kernel, for bytes."""
        until(lambda: self._task and _waits_for_bytes(self._task))

    def result(self, in_vain: int = 0) -> Drained:
        """What it read, and how that ended. `in_vain`: how often it may have been woken for nothing."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the reader was not woken"
        assert self.in_vain <= in_vain
        return self.got


def _waits_for_bytes(task: int) -> bool:
    """Whether a thread sleeps in the kernel for a socket: /proc/<pid>/wchan names the function."""
    try:
        return Path(f"/proc/self/task/{task}/syscall").read_text().split()[0] == str(_RECVFROM)
    except OSError:
        return False


_RECVFROM = {"x86_64": 45, "aarch64": 207}[os.uname().machine]


def test_row_23_a_blocking_reader_over_a_half_close(bed: SpliceBed, leg: Leg, version: int) -> None:
    """The acknowledgement of a pod's FIN wakes its reader, with nothing to read: for a member that would be EAGAIN."""
    answer = numbered(200)
    for _ in range(TRIES):
        with bed.spliced(leg, version) as pair:
            pair.pod.sendall(b"question")
            pair.pod.shutdown(socket.SHUT_WR)
            reader = Reader(pair.pod)
            assert drain(pair.proxy) == Drained(b"question", "")
            pair.proxy.sendall(answer)
            pair.proxy.close()
            assert reader.result() == Drained(answer, "")


def test_row_23_a_reader_that_sleeps_while_another_thread_shuts_down(bed: SpliceBed, leg: Leg, version: int) -> None:
    """Too late for the one recv() that waits already: it may say EAGAIN, once, and nothing is lost."""
    answer = numbered(200)
    for _ in range(max(1, TRIES // 7)):
        with bed.spliced(leg, version) as pair:
            reader = Reader(pair.pod)
            reader.wait_asleep()
            pair.pod.shutdown(socket.SHUT_WR)
            assert drain(pair.proxy) == Drained(b"", "")
            pair.proxy.sendall(answer)
            pair.proxy.close()
            assert reader.result(in_vain=1) == Drained(answer, "")


def test_row_23_a_half_close_with_the_answer_on_its_way(bed: SpliceBed, leg: Leg, version: int) -> None:
    """Bytes that were spliced are read first. Who sleeps for more when the FIN is acknowledged may be told so, once."""
    parts = [numbered(40_000, place) for place in (0, 40_000, 80_000)]
    for _ in range(max(1, TRIES // 7)):
        with bed.spliced(leg, version) as pair:
            pair.proxy.sendall(parts[0])
            pair.pod.shutdown(socket.SHUT_WR)
            pair.proxy.sendall(parts[1])
            assert drain(pair.proxy) == Drained(b"", "")
            reader = Reader(pair.pod)
            pair.proxy.sendall(parts[2])
            pair.proxy.close()
            assert reader.result(in_vain=1) == Drained(b"".join(parts), "")


def test_row_23_a_half_close_leaves(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.spliced(leg, version) as pair:
        pair.pod.shutdown(socket.SHUT_WR)
        assert drain(pair.proxy) == Drained(b"", "")
        entry = pair.wait_state(SpliceState.TCP_ONLY)
        assert (entry.why, entry.member) == ("half-closed", False)
        pair.proxy.sendall(numbered(1000))
        assert exactly(pair.pod, 1000) == numbered(1000)
        assert pair.known.from_proxy_bytes == 0


def test_row_23_a_blocking_reader_while_a_writer_makes_it_leave(bed: SpliceBed, leg: Leg, version: int) -> None:
    """A thread of the pod sends what nobody reads until the connection leaves, another waits in recv() all the time."""
    for _ in range(max(1, TRIES // 35)):
        with bed.limited(SpliceLimits(connection=64 << 10)), bed.spliced(leg, version) as pair:
            reader = Reader(pair.pod)
            reader.wait_asleep()
            sent = answered = 0
            while pair.known.state is SpliceState.SPLICED:
                pair.pod.sendall(numbered(20_000, sent))
                sent += 20_000
                pair.proxy.sendall(numbered(200, answered))
                answered += 200
            assert pair.known.why == "unread-limit"
            assert exactly(pair.proxy, sent) == numbered(sent)
            pair.proxy.sendall(numbered(1000, answered))
            pair.proxy.close()
            assert reader.result() == Drained(numbered(answered + 1000), "")


def test_row_23_a_blocking_reader_meets_the_proxys_end(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.spliced(leg, version) as pair:
        reader = Reader(pair.pod)
        reader.wait_asleep()
        pair.proxy.shutdown(socket.SHUT_WR)
        assert reader.result() == Drained(b"", "")
