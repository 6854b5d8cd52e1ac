"""Bytes that went by TCP are never overtaken, whatever delays the accepting end (rows 1 and 14 of docs/splicing.md)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from spliceway.bpf.types import Leg, SpliceState
from support.splicebed import Pair, SpliceBed, Veths
from support.spliceread import exactly, numbered, readable, reset
from support.sysctl import set_sysctls
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

#: How often the race with the handshake's last packet is run, at most.
RACES = int(os.environ.get("SPLICEWAY_SPLICE_RACES", "400"))
#: Clients and servers, with and without a cookie, every listener: Documentation/networking/ip-sysctl.rst.
_FAST_OPEN = 0x607
_MSG_FASTOPEN = 0x2000_0000


@contextmanager
def deferred(listener: socket.socket) -> Iterator[None]:
    """The handshake's last packet is ignored: a connection comes to be with its first byte."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    try:
        yield
    finally:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)


def check_both_ways(pair: Pair, sent: bytes) -> None:
    """`sent` is on its way from the opening end. More follows, which would overtake it if it were redirected."""
    opened, accepted = (pair.pod, pair.proxy) if pair.leg is Leg.DOWNSTREAM else (pair.proxy, pair.pod)
    more = numbered(40_000, len(sent))
    opened.sendall(more)
    until(lambda: readable(accepted) == len(sent) + len(more))
    assert exactly(accepted, len(sent) + len(more)) == sent + more
    accepted.sendall(more)
    until(lambda: readable(opened) == len(more))
    assert exactly(opened, len(more)) == more
    entry = pair.known
    assert entry.state is SpliceState.TCP_ONLY
    assert (entry.to_proxy_bytes, entry.from_proxy_bytes) == (0, 0)


def test_row_01_a_listener_that_waits_for_the_first_byte(bed: SpliceBed, leg: Leg, version: int) -> None:
    sent = numbered(3000)
    with deferred(bed.listener(leg, version)):
        opened = bed.opener(leg, version)
        opened.connect(bed.target(version))
        opened.sendall(sent)
        accepted = bed.accept(leg, version)
    with bed.pair_of(leg, opened, accepted) as pair:
        check_both_ways(pair, sent)
        assert pair.known.why == "sent-first"


def test_row_01_a_full_accept_queue(bed: SpliceBed, leg: Leg, version: int) -> None:
    """Its first bytes find no room, and come again when there is."""
    sent = numbered(3000)
    listener = bed.listener(leg, version)
    listener.listen(0)
    try:
        with deferred(listener):
            opened, filler = bed.opener(leg, version), bed.opener(leg, version)
            for one in (opened, filler):
                one.connect(bed.target(version))
            filler.sendall(b"x")
            opened.sendall(sent)
            assert exactly(bed.accept(leg, version), 1) == b"x"
            accepted = bed.accept(leg, version)
    finally:
        listener.listen(4096)
    with filler, bed.pair_of(leg, opened, accepted) as pair:
        check_both_ways(pair, sent)
        assert pair.known.why == "sent-first"


def test_row_01_data_with_the_syn(bed: SpliceBed, leg: Leg, version: int) -> None:
    sent = numbered(500)
    places = (bed.testbed.node.info.netns, *(pod.netns for pod in bed.testbed.node.pods.values()))
    for place in places:
        set_sysctls(place, ipv4__tcp_fastopen=_FAST_OPEN)
    try:
        opened = bed.opener(leg, version)
        assert opened.sendto(sent, _MSG_FASTOPEN, bed.target(version)) == len(sent)
        accepted = bed.accept(leg, version)
    finally:
        for place in places:
            set_sysctls(place, ipv4__tcp_fastopen=1)
    with bed.pair_of(leg, opened, accepted) as pair:
        check_both_ways(pair, sent)
        assert pair.known.why == "data-in-syn"


def test_row_01_bytes_that_race_the_handshake(bed: SpliceBed, veths: Veths, leg: Leg, version: int) -> None:
    """With RPS the accepting end may come too late for the first bytes: then by TCP for good."""
    pieces = [numbered(size) for size in (1, 700, 5000)]
    before, states = os.sched_getaffinity(0), set()
    if len(before) > 1:  # the first CPU has what pods receive, the second what the node receives: see `set_veths`
        os.sched_setaffinity(0, {0 if leg is Leg.DOWNSTREAM else 1})
    try:
        for _ in range(RACES if veths == "rps" else 20):
            opened = bed.opener(leg, version)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.connect(bed.target(version))
            for piece in pieces:
                opened.sendall(piece)
            with bed.pair_of(leg, opened, bed.accept(leg, version)) as pair:
                accepted = pair.proxy if leg is Leg.DOWNSTREAM else pair.pod
                whole = b"".join(pieces)
                assert exactly(accepted, len(whole)) == whole
                entry = pair.known
                states.add(entry.state)
                assert entry.to_proxy_bytes + entry.from_proxy_bytes == (
                    len(whole) if entry.state is SpliceState.SPLICED else 0
                )
            if states == {SpliceState.SPLICED, SpliceState.TCP_ONLY}:
                break
    finally:
        os.sched_setaffinity(0, before)
    if veths == "plain":
        assert states == {SpliceState.SPLICED}
    else:
        assert states == {SpliceState.SPLICED, SpliceState.TCP_ONLY}


@pytest.mark.parametrize("end", ["opener-resets", "acceptor-resets", "acceptor-closes"])
def test_row_14_a_port_that_is_used_again_and_again(bed: SpliceBed, leg: Leg, version: int, end: str) -> None:
    """Each connection has an entry of its own, whatever the one before left behind."""
    old: list[socket.socket] = []
    for number in range(60):
        pair = bed.spliced(leg, version, port=41000)
        opened, accepted = (pair.pod, pair.proxy) if leg is Leg.DOWNSTREAM else (pair.proxy, pair.pod)
        message = numbered(1000, number * 1000)
        for writer, reader in ((opened, accepted), (accepted, opened)):
            writer.sendall(message)
            assert exactly(reader, len(message)) == message
        entry = pair.known
        assert (entry.to_proxy_bytes, entry.from_proxy_bytes) == (len(message), len(message))
        first, second = (opened, accepted) if end == "opener-resets" else (accepted, opened)
        if end == "acceptor-closes":
            first.close()
            assert second.recv(1) == b""
            second.close()
        else:
            first.sendall(b"unread")
            reset(first)
            old.append(second)  # stays: its socket and its queue outlive the connection
    for one in old:
        one.close()
