"""What waits unread is known and bounded, and a connection that leaves the splice loses nothing."""

from __future__ import annotations

import socket
import sys

from spliceway.bpf import abi
from spliceway.bpf.selftest.report import Side
from spliceway.bpf.selftest.site import LIMIT, Pair, Site
from spliceway.bpf.selftest.talk import BadError, NotRunError, compare, expect, pattern, pump, receive, send
from spliceway.bpf.types import SpliceState

_DATA = pattern(60_000)
_MUCH = pattern(3 * LIMIT)
_CHUNK = 1 << 16
_SMALL = 64
_PING_PONGS = 50
#: Small messages to a reader that does not read; the rule lets fewer of them pass.
_STREAM = 64


def measure(site: Site, side: Side, version: int) -> str:
    """The programs see exactly as many unread bytes as there are, whatever is sent and read."""
    if why := site.datapath.measured:
        raise NotRunError(f"the kernel does not tell what a reader has not read: {why}")
    with site.connect(side, version) as pair:
        for source, sink in ((pair.pod, pair.proxy), (pair.proxy, pair.pod)):
            send(source, _DATA)
            left = len(_DATA)
            for step in (0, 1, 19_999, left - 20_000):
                compare(receive(sink, step), _DATA[len(_DATA) - left :][:step])
                left -= step
                seen = site.unread(pair, from_pod=source is pair.pod)
                if seen != left:
                    raise BadError(f"the kernel programs see {seen} unread bytes where there are {left}")
        room = _room(pair.proxy)
        send(pair.proxy, _DATA)
        # A message is charged with what it may cost besides its bytes.
        if not 0 < _room(pair.proxy) <= room - len(_DATA):
            raise BadError(f"the proxy is told of room for {_room(pair.proxy)} bytes after {len(_DATA)} of {room}")
        expect(pair.pod, _DATA)
    return "the bytes that a reader has left are those that the kernel programs see"


def _room(proxy: socket.socket) -> int:
    """How many bytes the proxy is told that it may send."""
    return int.from_bytes(proxy.getsockopt(abi.SOCKOPT_LEVEL, abi.SOCKOPT_ROOM, 4), sys.byteorder)


def slow_reader(site: Site, side: Side, version: int) -> str:
    """A reader that stops: what waits for it is bounded, and when it goes on it gets every byte in order."""
    for from_pod in (True, False):
        with site.connect(side, version) as pair:
            source, sink = (pair.pod, pair.proxy) if from_pod else (pair.proxy, pair.pod)
            sent = _fill(source)
            site.until(pair, SpliceState.TCP_ONLY, "unread-limit")
            entry = site.entry(pair)
            spliced = 0 if entry is None else entry.to_proxy_bytes if from_pod else entry.from_proxy_bytes
            if not 0 < spliced <= LIMIT:
                raise BadError(f"{spliced} bytes were spliced to a reader that had stopped, {LIMIT} may wait")
            pump(source, sink, _MUCH, sent=sent)
    return f"at most {LIMIT >> 10} KiB wait for a stopped reader, and it gets all of them in order"


def _fill(source: socket.socket) -> int:
    """Send until nobody takes any more. Returns how many bytes were taken."""
    sent = 0
    while sent < len(_MUCH):
        try:
            sent += source.send(_MUCH[sent : sent + _CHUNK])
        except BlockingIOError:
            break
    return sent


def leaving(site: Site, side: Side, version: int) -> str:
    """Questions and answers stay spliced; a stream of small messages goes on by TCP, both directions whole."""
    with site.connect(side, version) as pair:
        for turn in range(_PING_PONGS):
            question, answer = pattern(_SMALL, turn), pattern(_SMALL, -turn - 1)
            send(pair.pod, question)
            expect(pair.proxy, question)
            send(pair.proxy, answer)
            expect(pair.pod, answer)
        if site.state(pair) != "spliced":
            raise BadError(f"questions and answers made the connection {site.state(pair)}")
        leave(site, pair)
        pump(pair.proxy, pair.pod, _DATA)
        pump(pair.pod, pair.proxy, _DATA)
    return "leaves with a stream of small messages, in order and whole, and not with questions and answers"


def leave(site: Site, pair: Pair) -> None:
    """Make a connection leave the splice, by small messages of the pod's that nobody reads; then they are read.

    Raises NotRunError where readers can't be measured: nothing but a limit makes a connection leave there.
    """
    if why := site.datapath.measured:
        raise NotRunError(f"no connection leaves for small messages here: {why}")
    messages = [pattern(_SMALL, turn) for turn in range(_STREAM)]
    for message in messages:
        send(pair.pod, message)
    site.until(pair, SpliceState.TCP_ONLY, "small-writes")
    expect(pair.proxy, b"".join(messages))
