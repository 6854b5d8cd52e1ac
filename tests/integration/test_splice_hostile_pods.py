"""What one pod does with its own sockets costs nobody else anything: not the proxy's time, not the node's memory."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from spliceway.agent.testbed import netns
from spliceway.bpf import abi
from spliceway.bpf.abi import End
from spliceway.bpf.types import Leg, SpliceLimits, SpliceState
from support.packets import SYN, tcp
from support.splicebed import PATIENCE, POLICY, PORT, Pair, SpliceBed
from support.spliceread import drain, exactly, memory, numbered, pour, reset
from support.userfault import LatePage
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

KIB, MIB = 1 << 10, 1 << 20
LIMITS = SpliceLimits(connection=512 * KIB, endpoint=4 * MIB, node=16 * MIB)
_LIBC = ctypes.CDLL(None, use_errno=True)
_UNSPEC = bytes(16)  # struct sockaddr of AF_UNSPEC
_ROUNDS = 8
_TCP_ULP = 31
_TCPI_BACKOFF = 4  # in struct tcp_info
#: Towards servers the first times come within milliseconds.
_SENT_AGAIN = 3
_SO_TIMESTAMPING, _TX_SOFTWARE, _SOFTWARE = 37, 1 << 1, 1 << 4


def unread(bed: SpliceBed) -> int:
    """What counts as spliced and unread on the node, after a look at every reader that was behind."""
    return bed.node.run(bed.node.datapath.measure())


def test_a_pod_that_keeps_its_socket_does_not_keep_the_proxy(bed: SpliceBed, leg: Leg) -> None:
    """A redirect takes the lock of the reader's socket; its owner's recv() is in the middle of a page fault here."""
    with bed.spliced(leg) as pair:
        pair.proxy.sendall(numbered(8))
        page = LatePage()
        got: list[int] = []
        read = threading.Thread(
            target=lambda: got.append(_LIBC.recv(pair.pod.fileno(), ctypes.c_void_p(page.address), 8, 0))
        )
        read.start()
        page.wait_wanted()
        sent = threading.Event()
        send = threading.Thread(target=lambda: (pair.proxy.sendall(numbered(5000, 8)), sent.set()))
        send.start()
        in_time = sent.wait(PATIENCE)
        page.come()
        read.join()
        send.join()
        assert in_time
        assert got == [8]
        assert (pair.known.state, pair.known.why) == (SpliceState.TCP_ONLY, "reader-stuck")
        assert exactly(pair.pod, 5000) == numbered(5000, 8)


def test_a_proxy_that_asks_is_told_to_wait(bed: SpliceBed, leg: Leg) -> None:
    with bed.spliced(leg) as pair:
        pair.proxy.sendall(numbered(8))
        page = LatePage()
        read = threading.Thread(target=_LIBC.recv, args=(pair.pod.fileno(), ctypes.c_void_p(page.address), 8, 0))
        read.start()
        page.wait_wanted()
        meanwhile = pair.room()
        page.come()
        read.join()
        assert meanwhile == 0
        assert pair.room()
        assert pair.known.state is SpliceState.SPLICED


# ---- what waits counts, whoever has its ports by now ----


def _again_by_raw_syn(bed: SpliceBed, pair: Pair) -> None:
    """The client's own: the connection lives on."""
    client, server = bed.address("client", 4), bed.address("server", 4)
    syn = tcp(client, server, pair.port, PORT, SYN, seq=random.getrandbits(32))
    kind = (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with netns.call(bed.testbed.pod("client").netns, lambda: socket.socket(*kind)) as raw:
        raw.sendto(syn, (server, 0))


def _again_by_the_proxy(bed: SpliceBed, pair: Pair) -> None:
    """It resets, and connects from the same port to a server that does not listen any more."""
    port = pair.port
    reset(pair.proxy)
    bed.servers[4].close()
    try:
        with bed.opener(Leg.UPSTREAM, 4, port) as again, pytest.raises(ConnectionRefusedError):
            again.connect(bed.target(4))
    finally:
        bed.servers[4] = bed.server_listener(4)


@pytest.mark.parametrize("leg", [Leg.DOWNSTREAM, Leg.UPSTREAM], ids=["downstream", "upstream"])
def test_row_05_what_waits_counts_when_its_ports_are_used_again(bed: SpliceBed, leg: Leg) -> None:
    """And no longer than it waits."""
    held: list[Pair] = []
    with bed.limited(LIMITS):
        assert unread(bed) == 0
        for number in range(_ROUNDS):
            pair = bed.spliced(leg)
            held.append(pair)
            sent = pour(pair.proxy, 256 * KIB)
            assert sent == 256 * KIB
            (_again_by_raw_syn if leg is Leg.DOWNSTREAM else _again_by_the_proxy)(bed, pair)
            assert unread(bed) >= (number + 1) * sent
            assert memory(pair.pod) >= sent
        for pair in held[::2]:
            assert exactly(pair.pod, 256 * KIB) == numbered(256 * KIB)
        assert unread(bed) < (_ROUNDS // 2 + 1) * 512 * KIB
        for pair in held:
            pair.close()
        until(lambda: unread(bed) == 0)
    assert not [entry for entry in bed.node.datapath.socks() if entry.endpoint_port in {pair.port for pair in held}]


# ---- the end is told ----


def _behind(pair: Pair) -> int:
    """Send until it has left, and then something that has to wait. Returns bytes."""
    sent = 0
    while pair.state is SpliceState.SPLICED:
        pair.proxy.sendall(numbered(4096, sent))
        sent += 4096
    pair.proxy.sendall(numbered(1000, sent))
    return sent + 1000


def test_a_reset_behind_what_waits_is_told(bed: SpliceBed, leg: Leg, version: int) -> None:
    """The pod has not got what the reset comes after: a challenge would find nobody who answers (RFC 5961)."""
    with bed.limited(LIMITS), bed.spliced(leg, version) as pair:
        sent = _behind(pair)
        reset(pair.proxy)
        pair.pod.settimeout(PATIENCE)
        found = drain(pair.pod)
        assert found.end == "ConnectionResetError"
        assert found.data == numbered(sent)[: len(found.data)]


def test_a_pod_that_paused_for_too_long_is_told(bed: SpliceBed, leg: Leg, version: int) -> None:
    """The proxy has closed, and its kernel has given up what the pod did not read."""
    retries = "/proc/sys/net/ipv4/tcp_orphan_retries"
    before = bed.testbed.node.run_on_node(["cat", retries]).stdout.strip()
    bed.testbed.node.run_on_node(["sh", "-c", f"echo 1 >{retries}"])
    try:
        with bed.limited(LIMITS), bed.spliced(leg, version) as pair:
            sent = _behind(pair)
            _close(pair.proxy)
            until(lambda: _gone(bed, pair), 30)
            unread(bed)
            spliced = pair.known.from_proxy_bytes
            assert exactly(pair.pod, spliced) == numbered(spliced)  # no byte of it is lost
            assert spliced < sent
            unread(bed)
            pair.pod.settimeout(PATIENCE)
            assert drain(pair.pod).end == "ConnectionResetError"
    finally:
        bed.testbed.node.run_on_node(["sh", "-c", f"echo {before} >{retries}"])


def _close(sock: socket.socket) -> None:
    """In good order: the kernel goes on with what was not acknowledged."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
    sock.close()


def _gone(bed: SpliceBed, pair: Pair) -> bool:
    shown = bed.testbed.node.run_on_node(["ss", "-tanH"]).stdout.splitlines()
    there = [line for line in shown if f":{pair.port}" in {f":{end.rpartition(':')[2]}" for end in line.split()[3:5]}]
    return all(line.startswith("TIME-WAIT") for line in there)


def test_a_withdrawn_policy_ends_a_pod_that_is_behind(bed: SpliceBed, leg: Leg, version: int) -> None:
    with bed.limited(LIMITS), bed.spliced(leg, version) as pair:
        sent = _behind(pair)
        try:
            bed.node.apply(POLICY.replace("role: client", "role: nobody"))
            pair.pod.settimeout(PATIENCE)
            found = drain(pair.pod)
        finally:
            bed.node.apply(POLICY)
            bed.set_listeners()
        assert found.end == "ConnectionResetError"
        assert found.data == numbered(sent)[: len(found.data)]


def test_transmit_timestamps_that_nobody_fetches_hold_nothing_back(bed: SpliceBed, leg: Leg, version: int) -> None:
    """They are charged to the same memory of the socket as what is redirected to it."""
    with bed.spliced(leg, version) as pair:
        pair.pod.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _TX_SOFTWARE | _SOFTWARE)
        sent = 0
        while pair.state is SpliceState.SPLICED:
            pair.pod.sendall(numbered(64, sent))
            sent += 64
        assert exactly(pair.proxy, sent) == numbered(sent)
        pair.pod.sendall(numbered(64, sent))
        assert exactly(pair.proxy, 64) == numbered(64, sent)
        until(lambda: memory(pair.pod))
        pair.proxy.sendall(b"answer")
        assert exactly(pair.pod, 6) == b"answer"
        assert pair.known.why == "small-writes"


@pytest.mark.skipif(
    int(Path("/proc/sys/net/core/wmem_max").read_text()) < abi.HELD_BACK, reason="net.core.wmem_max is too small"
)
def test_send_buffers_for_what_is_held_back_have_a_budget(bed: SpliceBed, leg: Leg, version: int) -> None:
    """A pod with a receive buffer of nothing leaves at the second message, with nothing that counts as unread."""
    limits = SpliceLimits(connection=512 * KIB, endpoint=3 * MIB, node=16 * MIB)
    with bed.limited(limits):
        for _ in range(2):  # what the connections of the first time got is given back
            pairs = [bed.spliced(leg, version, asks=False) for _ in range(8)]
            for pair in pairs:
                pair.pod.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                pair.proxy.sendall(b"x")
                pair.proxy.setblocking(False)
            until(lambda pairs=pairs: all(_has_sent_again(pair) for pair in pairs))
            assert sum(_send_buffer(pair) >= 2 * abi.HELD_BACK for pair in pairs) == limits.endpoint // abi.HELD_BACK
            assert unread(bed) == 0
            for pair in pairs:
                reset(pair.proxy)
                pair.pod.close()
            until(lambda: not bed.node.datapath.socks())


def _has_sent_again(pair: Pair) -> bool:
    """Fill what there is, and look whether its kernel has waited in vain for an acknowledgement."""
    with contextlib.suppress(BlockingIOError):
        pair.proxy.send(bytes(64 * KIB))
    backoff = pair.proxy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[_TCPI_BACKOFF]
    return backoff > (_SENT_AGAIN if pair.leg is Leg.UPSTREAM else 0)


def _send_buffer(pair: Pair) -> int:
    return pair.proxy.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_one_socket_for_many_connections_leaves_no_entry(bed: SpliceBed, version: int) -> None:
    """connect() with AF_UNSPEC dissolves a connection with something unread, and the same socket connects again."""
    opened = bed.opener(Leg.DOWNSTREAM, version)
    proxies = []
    before = len(bed.node.datapath.socks())
    for _ in range(_ROUNDS):
        opened.connect(bed.target(version))
        proxies.append(bed.accept(Leg.DOWNSTREAM, version))
        until(lambda: bed.node.datapath.socks())
        proxies[-1].sendall(bytes(100_000))
        assert not _LIBC.connect(opened.fileno(), _UNSPEC, len(_UNSPEC)), os.strerror(ctypes.get_errno())
    for proxy in proxies:
        proxy.close()
    opened.close()
    until(lambda: (unread(bed), len(bed.node.datapath.socks())) == (0, before))


# ---- leaving ----


def test_row_17_no_ulp_before_the_send_is_over_that_left(bed: SpliceBed, leg: Leg) -> None:
    """The pod's socket has left, but its sendmsg() still holds what kernel TLS would free."""
    whole = 24 * MIB
    with bed.limited(LIMITS), bed.spliced(leg) as pair:
        pair.pod.setblocking(True)
        sender = threading.Thread(target=lambda: pair.pod.sendall(bytes(whole)), daemon=True)
        sender.start()
        until(lambda: End.POD not in pair.members)
        assert sender.is_alive()
        assert _ulp(pair.pod) == errno.EPERM
        assert exactly(pair.proxy, whole) == bytes(whole)
        sender.join(PATIENCE)
        until(lambda: _ulp(pair.pod) == errno.ENOENT)  # no member: the kernel looks for such a module


def _ulp(sock: socket.socket) -> int | None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"no-such-ulp")
    except OSError as error:
        return error.errno
    return None


def test_what_is_unread_outlives_a_connection_on_the_same_ports(bed: SpliceBed, version: int) -> None:
    """The proxy reads what was redirected to it though the pod has reset that connection, and talks on another one."""
    with bed.spliced(Leg.DOWNSTREAM, version, port=23456) as old:
        old.pod.sendall(numbered(5000))
        until(lambda: old.known.to_proxy_bytes == 5000)
        reset(old.pod)
        bed.splice(clients=False, servers=False)
        try:
            with bed.connect(Leg.DOWNSTREAM, version, port=23456) as new:
                for _ in range(3):
                    new.pod.sendall(b"q")
                    assert exactly(new.proxy, 1) == b"q"
                    new.proxy.sendall(b"a")
                    assert exactly(new.pod, 1) == b"a"
                assert exactly(old.proxy, 5000) == numbered(5000)
        finally:
            bed.splice(clients=True, servers=True)
