"""Bytes come in the order in which they were sent, whoever wins the race between the first byte and the splice."""

from __future__ import annotations

import select
import socket

from spliceway.bpf.selftest import ground
from spliceway.bpf.selftest.report import Side
from spliceway.bpf.selftest.site import PORT, Pair, Site, accept, connect
from spliceway.bpf.selftest.talk import BadError, expect, expect_end, pattern, pump, send, wait
from spliceway.bpf.types import SpliceState

_DATA = pattern(60_000)
_PIECE = 17_011
_REUSES = 8


def order(site: Site, side: Side, version: int) -> str:
    """The first byte is faster than the splice, and keeps it away for good; or the splice is there first."""
    with _overtaken(site, side, version) as pair:
        opener, other = (pair.pod, pair.proxy) if side is Side.CLIENTS else (pair.proxy, pair.pod)
        send(opener, _DATA[1000:])
        expect(other, _DATA)
        pump(other, opener, _DATA)
        site.until(pair, SpliceState.TCP_ONLY, "sent-first")
    with site.connect(side, version) as pair:
        for source, sink in ((pair.pod, pair.proxy), (pair.proxy, pair.pod)):
            for start in range(0, len(_DATA), _PIECE):
                send(source, _DATA[start : start + _PIECE])
                if not start:
                    wait(sink, select.POLLIN, "the first message")
            expect(sink, _DATA)
        if site.state(pair) != "spliced":
            raise BadError(f"a few messages made the connection {site.state(pair)}")
    return "every byte came in order, whether the splice or the first byte was faster"


def _overtaken(site: Site, side: Side, version: int) -> Pair:
    """A connection whose first bytes are sent before its accepting end is there: that is made by them only."""
    listener = site.listener(side, version)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    try:
        opener = site.open_end(side, version)
        send(opener, _DATA[:1000])
        return site.accept(side, opener, listener)
    finally:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)


def dual_stack(site: Site, side: Side, _: int) -> str:
    """IPv4 on an IPv6 socket of the pod's: one that connects, or one that listens on [::]."""
    if side is Side.CLIENTS:
        opener = site.pod_socket(socket.AF_INET6)
        connect(opener, (f"::ffff:{ground.REMOTE[4]}", PORT))
        pair = Pair(opener, accept(site.listener(side, 4)))
    else:
        with site.server(6, "::", PORT + 1) as listener:
            opener = site.open_end(side, 4, target_port=PORT + 1)
            pair = site.accept(side, opener, listener)
    with site.spliced(pair):
        pump(pair.pod, pair.proxy, _DATA)
        pump(pair.proxy, pair.pod, _DATA)
    return "IPv4 on the pod's dual-stack socket is spliced"


def port_reuse(site: Site, side: Side, version: int) -> str:
    """The same ports again and again, after a reset and after an orderly end."""
    for turn in range(_REUSES):
        with site.connect(side, version, port=40_000) as pair:
            data = pattern(5000, turn)
            pump(pair.pod, pair.proxy, data)
            pump(pair.proxy, pair.pod, data)
            # The end that accepted closes first: the other one has its port back at once.
            opener, other = (pair.pod, pair.proxy) if side is Side.CLIENTS else (pair.proxy, pair.pod)
            if turn % 2:
                abort(opener)
            else:
                other.shutdown(socket.SHUT_WR)
                expect_end(opener)
    return f"{_REUSES} connections in a row on the same ports, each with its own bytes"


def abort(one: socket.socket) -> None:
    """Close with a reset."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    one.close()
