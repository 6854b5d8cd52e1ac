"""How a connection ends: nothing that was sent before is lost, and nobody waits for ever."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time

from spliceway.bpf.selftest.checks.order import abort
from spliceway.bpf.selftest.report import Side
from spliceway.bpf.selftest.site import Pair, Site
from spliceway.bpf.selftest.talk import (
    LATER,
    STALL,
    BadError,
    KnownError,
    compare,
    expect,
    expect_end,
    meanwhile,
    pattern,
    receive,
    send,
    wait,
)

_DATA = pattern(100_000)
_REQUEST, _ANSWER = b"request", b"answer"
#: Half-closed connections of each side and IP version.
_TRIES = 50


class WokenError(BadError):
    """A blocking recv() returned with nothing."""


def fin(site: Site, side: Side, version: int) -> str:
    """Bytes that nobody has read yet when their sender closes."""
    for from_pod in (True, False):
        with site.connect(side, version) as pair:
            source, sink = (pair.pod, pair.proxy) if from_pod else (pair.proxy, pair.pod)
            send(source, _DATA)
            source.close()
            expect(sink, _DATA)
            expect_end(sink)
    return "what is unread at the end of a stream is read before the end"


def reset(site: Site, side: Side, version: int) -> str:
    """Bytes that nobody has read yet when their sender resets: they may be lost, as over TCP, but never wrong."""
    for from_pod in (True, False):
        with site.connect(side, version) as pair:
            source, sink = (pair.pod, pair.proxy) if from_pod else (pair.proxy, pair.pod)
            send(source, _DATA)
            abort(source)
            wait(sink, select.POLLHUP | select.POLLERR, "the reset")
            _read_to_reset(sink)
    return "a reset is seen, and no byte before it is wrong"


def _read_to_reset(sink: socket.socket) -> None:
    got = bytearray()
    try:
        while piece := receive(sink, 65536):
            got += piece
    except ConnectionResetError:
        pass
    else:
        raise BadError("a reset looks like an orderly end")
    if not _DATA.startswith(got):
        compare(bytes(got), _DATA)


def half_close(site: Site, side: Side, version: int) -> str:
    """The pod sends, shuts down its sending side and waits in a blocking recv() while only an acknowledgement comes."""
    for _ in range(_TRIES):
        with site.connect(side, version) as pair:
            _ask_and_wait(pair)
    return f"in {_TRIES} tries no blocking recv() returned without data after a shutdown"


def _ask_and_wait(pair: Pair) -> None:
    send(pair.pod, _REQUEST)
    expect(pair.proxy, _REQUEST)
    pair.pod.shutdown(socket.SHUT_WR)
    with meanwhile(lambda: _answer(pair.proxy)):
        got = blocking_receive(pair.pod, len(_ANSWER))
    compare(got, _ANSWER)
    pair.proxy.close()
    expect_end(pair.pod)


def blocked_reader(site: Site, side: Side, version: int) -> str:
    """One thread of the pod's waits in a blocking recv() when another one shuts down the sending side."""
    with site.connect(side, version) as pair:

        def finish() -> None:
            pair.pod.shutdown(socket.SHUT_WR)
            _answer(pair.proxy)

        send(pair.pod, _REQUEST)
        expect(pair.proxy, _REQUEST)
        woken = False
        with meanwhile(finish):
            try:
                got = blocking_receive(pair.pod, len(_ANSWER))
            except WokenError:
                woken = True
        compare(receive(pair.pod, len(_ANSWER)) if woken else got, _ANSWER)
    if woken:
        raise KnownError("a recv() that blocks while another thread shuts down returns EAGAIN once; nothing is lost")
    return "a recv() that blocks while another thread shuts down gets the answer"


def _answer(proxy: socket.socket) -> None:
    """The end of the stream is acknowledged later, when the proxy asks for that: the reader sleeps by then."""
    expect_end(proxy)
    proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    time.sleep(LATER)
    send(proxy, _ANSWER)


def blocking_receive(pod: socket.socket, size: int, flags: int = 0) -> bytes:
    """One recv() that blocks in the kernel. Raises WokenError when it returns without data before its time."""
    pod.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(STALL), 0))
    pod.setblocking(True)
    began = time.monotonic()
    try:
        return pod.recv(size, flags)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        if time.monotonic() - began < STALL / 2:
            raise WokenError("a blocking recv() returned EAGAIN") from None
        raise BadError("a blocking recv() was never woken") from None
    finally:
        pod.setblocking(False)
