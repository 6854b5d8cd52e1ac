"""What a reader asks the kernel: is something there, how much, and may I look at it."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import termios
from functools import partial

from spliceway.bpf.selftest.checks.ends import blocking_receive
from spliceway.bpf.selftest.checks.memory import leave
from spliceway.bpf.selftest.report import Side
from spliceway.bpf.selftest.site import Pair, Site
from spliceway.bpf.selftest.talk import (
    STALL,
    BadError,
    KnownError,
    compare,
    expect,
    meanwhile,
    pattern,
    receive,
    send,
    wait,
)

_DATA = pattern(50_000)
_HALF = len(_DATA) // 2


def epoll_level(site: Site, side: Side, version: int) -> str:
    """Readable as long as something is there, and not after that; and readable at the end."""
    with site.connect(side, version) as pair:
        for source, sink in _both_ways(pair):
            with select.epoll() as poll:
                poll.register(sink, select.EPOLLIN)
                _ready(poll, False, "before anything was sent")
                send(source, _DATA)
                _ready(poll, True, "with bytes there")
                expect(sink, _DATA[:_HALF])
                _ready(poll, True, "with half of the bytes there")
                expect(sink, _DATA[_HALF:])
                _ready(poll, False, "when all is read")
        with select.epoll() as poll:
            poll.register(pair.proxy, select.EPOLLIN)
            pair.pod.close()
            _ready(poll, True, "at the end")
    return "readable when, and only when, there is something to read"


def epoll_edge(site: Site, side: Side, version: int) -> str:
    """One event for what is new, and none for what was there already."""
    with site.connect(side, version) as pair:
        for source, sink in _both_ways(pair):
            with select.epoll() as poll:
                poll.register(sink, select.EPOLLIN | select.EPOLLET)
                poll.poll(0)
                for _ in range(3):
                    send(source, _DATA)
                    _ready(poll, True, "for new bytes")
                    _ready(poll, False, "for bytes that were told already")
                    expect(sink, _DATA)
    return "one event for each message"


def fionread(site: Site, side: Side, version: int) -> str:
    """The pod asks how much there is: of spliced bytes, and of those by TCP after the connection has left."""
    with site.connect(side, version) as pair:
        send(pair.proxy, _DATA)
        _unread_is(pair.pod, len(_DATA), "spliced bytes")
        expect(pair.pod, _DATA[:_HALF])
        _unread_is(pair.pod, len(_DATA) - _HALF, "spliced bytes")
        expect(pair.pod, _DATA[_HALF:])
        _unread_is(pair.pod, 0, "spliced bytes")
        leave(site, pair)
        send(pair.proxy, _DATA[:1000])
        wait(pair.pod, select.POLLIN, "bytes by TCP")
        _unread_is(pair.pod, 1000, "bytes by TCP")
        expect(pair.pod, _DATA[:1000])
    return "right for spliced bytes, and for bytes by TCP after these"


def peek(site: Site, side: Side, version: int) -> str:
    """MSG_PEEK shows what recv() gives afterwards."""
    with site.connect(side, version) as pair:
        for source, sink in _both_ways(pair):
            send(source, _DATA)
            seen = [sink.recv(size, socket.MSG_PEEK) for size in (10, 1000, 1000)]
            if any(not piece or not _DATA.startswith(piece) for piece in seen):
                raise BadError("MSG_PEEK showed other bytes than were sent")
            expect(sink, _DATA)
    return "shows the bytes, and leaves them"


def waitall(site: Site, side: Side, version: int) -> str:
    """MSG_WAITALL for more than is there yet."""
    with site.connect(side, version) as pair:
        send(pair.proxy, _DATA[:_HALF])
        with meanwhile(partial(send, pair.proxy, _DATA[_HALF:])):
            got = blocking_receive(pair.pod, len(_DATA), socket.MSG_WAITALL)
        compare(got + receive(pair.pod, len(_DATA) - len(got)), _DATA)
    if len(got) < len(_DATA):
        raise KnownError("MSG_WAITALL returns what is there instead of waiting for all; nothing is lost")
    return "returns all that was asked for"


def splice(site: Site, side: Side, version: int) -> str:
    """From a spliced socket into a pipe, by system call; and after the connection has left."""
    out, into = os.pipe()
    try:
        with site.connect(side, version) as pair:
            send(pair.proxy, _DATA[:1000])
            known = _spliced_out(pair.pod, into, out, _DATA[:1000])
            leave(site, pair)
            send(pair.proxy, _DATA[:1000])
            wait(pair.pod, select.POLLIN, "bytes by TCP")
            if not _spliced_out(pair.pod, into, out, _DATA[:1000]):
                raise BadError("splice(2) returns EAGAIN for bytes by TCP after the connection has left")
    finally:
        os.close(into)
        os.close(out)
    if not known:
        raise KnownError("splice(2) returns EAGAIN for spliced bytes; recv() gets them, and nothing is lost")
    return "works on spliced bytes, and on bytes by TCP after these"


def _spliced_out(pod: socket.socket, into: int, out: int, data: bytes) -> bool:
    """Whether splice(2) took these bytes out of the socket; otherwise recv() must get them."""
    try:
        moved = os.splice(pod.fileno(), into, len(data))
    except BlockingIOError:
        expect(pod, data)
        return False
    compare(os.read(out, moved) + receive(pod, len(data) - moved), data)
    return True


def _both_ways(pair: Pair) -> tuple[tuple[socket.socket, socket.socket], ...]:
    return (pair.pod, pair.proxy), (pair.proxy, pair.pod)


def _ready(poll: select.epoll, wanted: bool, when: str) -> None:
    if bool(poll.poll(STALL if wanted else 0)) != wanted:
        raise BadError(f"epoll reports {'nothing' if wanted else 'an event'} {when}")


def _unread_is(pod: socket.socket, wanted: int, what: str) -> None:
    size = array.array("i", [0])
    fcntl.ioctl(pod, termios.FIONREAD, size)
    if size[0] != wanted:
        raise BadError(f"FIONREAD says {size[0]} where {wanted} {what} wait")
