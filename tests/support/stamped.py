"""Thousands of connections through a proxy of plain sockets, whose messages carry the time at which they were sent.

`python stamped.py ROLE PLAN` is the client, the proxy or the server, until its standard input ends. Most connections
are idle after their first exchange; on the first `talkers` of the client something is always under way, both ways. Each
program keeps the newest time stamp that ever arrived at it, by leg, so «nothing passes after this moment» is a
comparison of two numbers (CLOCK_MONOTONIC is one for all processes).
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

PORT = 80
_MARK = 0x1002
_STAMP = struct.Struct("=Q")
_IP_TRANSPARENT, _IP_BIND_ADDRESS_NO_PORT, _IPV6_TRANSPARENT = 19, 24, 75
#: Seconds between two rounds of the talkers.
_ROUND = 0.02


class Ends:
    """The connections of one program, and what became of them."""

    def __init__(self) -> None:
        self.poll = selectors.DefaultSelector()
        self.poll.register(sys.stdin, selectors.EVENT_READ, self._stop)
        self.running = True
        self.newest: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.how: Counter[str] = Counter()
        self.last = 0
        self._legs: dict[socket.socket, str] = {}
        self._partners: dict[socket.socket, socket.socket] = {}

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._legs)

    def listen(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        """Accept, all at once what waits."""
        listener.setblocking(False)

        def accept() -> None:
            for _ in range(256):
                try:
                    one, _ = listener.accept()
                except BlockingIOError:
                    return
                accepted(one)

        self.poll.register(listener, selectors.EVENT_READ, accept)

    def add(self, one: socket.socket, leg: str, then: Callable[[bytes], None]) -> None:
        """Watch a connection; `then` gets what arrives on it: whole messages."""
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._legs[one] = leg
        self.poll.register(one, selectors.EVENT_READ, partial(self._read, one, bytearray(), then))

    def join(self, one: socket.socket, other: socket.socket) -> None:
        """Neither outlives the other."""
        self._partners[one], self._partners[other] = other, one

    def send(self, one: socket.socket, data: bytes) -> None:
        """Send a few bytes. What is refused by policy (EACCES) was not sent, and the end of the connection follows."""
        if one not in self._legs:
            return
        try:
            one.send(data)
        except (BlockingIOError, PermissionError):
            return
        except OSError as error:
            self._end(one, errno.errorcode[error.errno or 0])

    def wait(self, seconds: float) -> None:
        """Handle what is there, or comes."""
        for key, _ in self.poll.select(seconds):
            if key.fileobj is sys.stdin or key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                key.data()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Handle what comes until then, or until standard input ends."""
        while self.running and not until():
            self.wait(1)

    def report(self) -> None:
        """How it went."""
        say(how=self.how, last=self.last, newest=self.newest, messages=self.messages, open=self.open)

    def _stop(self) -> None:
        self.running = False

    def _read(self, one: socket.socket, rest: bytearray, then: Callable[[bytes], None]) -> None:
        try:
            data = one.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(one, errno.errorcode[error.errno or 0])
            return
        if not data:
            self._end(one, "EOF")
            return
        rest += data
        whole = bytes(rest[: len(rest) // _STAMP.size * _STAMP.size])
        del rest[: len(whole)]
        leg = self._legs[one]
        for (stamp,) in _STAMP.iter_unpack(whole):
            self.newest[leg] = max(self.newest[leg], stamp)
            self.messages[leg] += 1
        if whole:
            then(whole)

    def _end(self, one: socket.socket, how: str) -> None:
        self.how[f"{self._legs.pop(one)} {how}"] += 1
        self.last = time.monotonic_ns()
        self.poll.unregister(one)
        one.close()
        other = self._partners.pop(one, None)
        if other is not None:
            del self._partners[other]
            self._end(other, "with the other leg")


def say(**what: Any) -> None:
    """One line for the test."""
    print(json.dumps(what), flush=True)


def stamps(count: int = 1) -> bytes:
    """Messages of this moment."""
    return _STAMP.pack(time.monotonic_ns()) * count


def client(ends: Ends, plan: dict[str, Any]) -> None:
    """Connects, exchanges one message on each connection, then talks on some."""
    answered: set[int] = set()
    mine: list[socket.socket] = []
    for number in range(plan["connections"]):
        one = socket.create_connection((plan["addresses"][number % len(plan["addresses"])], PORT), 30)
        ends.add(one, "client", partial(_note, answered, number))
        mine.append(one)
        one.send(stamps())
        if number % 64 == 63:
            ends.run(partial(_has_more, answered, number - 256))
    ends.run(lambda: len(answered) == len(mine))
    say(up=len(answered))
    while ends.running and ends.open:
        for one in mine[: plan["talkers"]]:
            ends.send(one, stamps())
        end_of_round = time.monotonic() + _ROUND
        while ends.running and ends.open and (left := end_of_round - time.monotonic()) > 0:
            ends.wait(left)
    say(ended=len(mine) - ends.open)
    ends.run()


def _note(answered: set[int], number: int, _data: bytes) -> None:
    answered.add(number)


def _has_more(answered: set[int], than: int) -> bool:
    return len(answered) > than


def server(ends: Ends, _plan: dict[str, Any]) -> None:
    """Answers each message with one of its own."""
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    ends.listen(
        listener,
        lambda one: ends.add(one, "server", lambda data: ends.send(one, stamps(len(data) // _STAMP.size))),
    )
    say(listening=PORT)
    ends.run()


def proxy(ends: Ends, plan: dict[str, Any]) -> None:
    """Takes steered connections at each of its ports and opens one to the server in the client's name for each."""
    for host in ("127.0.0.1", "::1"):
        for port in plan["ports"]:
            listener = _transparent(host)
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                listener.setsockopt(socket.SOL_SOCKET, option, 1)
            listener.bind((host, port))
            listener.listen(4096)
            ends.listen(listener, partial(_relay, ends))
    say(listening=plan["ports"])
    ends.run()


def _relay(ends: Ends, down: socket.socket) -> None:
    target, peer = down.getsockname()[:2], down.getpeername()[0]
    up = _transparent(peer)
    up.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
    up.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    up.bind((peer, 0))
    up.connect(target)
    ends.add(down, "downstream", partial(ends.send, up))
    ends.add(up, "upstream", partial(ends.send, down))
    ends.join(down, up)


def _transparent(address: str) -> socket.socket:
    if ":" in address:
        made = socket.socket(socket.AF_INET6)
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        made = socket.socket(socket.AF_INET)
        made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    return made


if __name__ == "__main__":
    all_ends = Ends()
    {"client": client, "server": server, "proxy": proxy}[sys.argv[1]](all_ends, json.loads(sys.argv[2]))
    all_ends.report()
