"""An endless stream of UDP packets from one pod or host to another, IPv4 and IPv6, and how many of them arrive."""

from __future__ import annotations

import subprocess
import time

from spliceway.agent.testbed.testbed import Testbed

#: Packets of a family in a second, at most: a gap of a millisecond shows.
RATE = 2000
#: So long nothing arrives when nothing gets through, in seconds.
_QUIET = 0.4
_PORT = 9099
_SEND = """
import socket, sys, time
families = {one: socket.AF_INET6 if ":" in one else socket.AF_INET for one in sys.argv[3:]}
ends = [(socket.socket(family, socket.SOCK_DGRAM), one) for one, family in families.items()]
while True:
    for end, address in ends:
        try:
            end.sendto(b"x", (address, int(sys.argv[2])))
        except OSError:
            pass  # an ICMP error about an earlier one
    time.sleep(1 / int(sys.argv[1]))
"""
_RECEIVE = """
import selectors, socket, sys
end = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
end.bind(("::", int(sys.argv[1])))
end.setblocking(False)
counts = {"4": 0, "6": 0}
chosen = selectors.DefaultSelector()
chosen.register(end, selectors.EVENT_READ)
chosen.register(sys.stdin, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    asked = sys.stdin in [key.fileobj for key, _ in chosen.select()]
    try:
        while True:
            source = end.recvfrom(64)[1][0]
            counts["4" if source.startswith("::ffff:") else "6"] += 1
    except BlockingIOError:
        pass
    if asked:
        if not sys.stdin.readline():
            break
        print(counts["4"], counts["6"], flush=True)
"""


class PacketStream:
    """It flows until `close`."""

    def __init__(self, testbed: Testbed, source: str, target: str, *, port: int = _PORT) -> None:
        pipe = subprocess.PIPE
        self._receiver: subprocess.Popen[str] = testbed.spawn(
            target, ["python", "-c", _RECEIVE, str(port)], stdin=pipe, stdout=pipe, text=True
        )
        assert self._line() == "ready"
        addresses = [str(testbed.pod(target).address(version)) for version in (4, 6)]
        self._sender = testbed.spawn(source, ["python", "-c", _SEND, str(RATE), str(port), *addresses])

    def arrived(self) -> tuple[int, int]:
        """How many so far, by family."""
        assert self._receiver.stdin is not None
        self._receiver.stdin.write("\n")
        self._receiver.stdin.flush()
        four, six = self._line().split()
        return int(four), int(six)

    def flows(self, seconds: float = 10.0) -> None:
        """Wait until packets of both families arrive."""
        before, deadline = self.arrived(), time.monotonic() + seconds
        while any(now <= was for now, was in zip(self.arrived(), before, strict=True)):
            assert time.monotonic() < deadline, f"nothing more arrives after {before}"
            time.sleep(0.01)

    def stops(self, seconds: float = 10.0) -> tuple[int, int]:
        """Wait until nothing arrives any more (for hundreds of packets); returns what has."""
        deadline = time.monotonic() + seconds
        before, since = self.arrived(), time.monotonic()
        while time.monotonic() - since < _QUIET:
            assert time.monotonic() < deadline, f"packets still arrive: {before}"
            time.sleep(0.02)
            if (now := self.arrived()) != before:
                before, since = now, time.monotonic()
        return before

    def _line(self) -> str:
        assert self._receiver.stdout is not None
        return self._receiver.stdout.readline().strip()

    def close(self) -> None:
        for process in (self._sender, self._receiver):
            process.kill()
            process.wait(10)
        for end in (self._receiver.stdin, self._receiver.stdout):
            if end is not None:
                end.close()

    def __enter__(self) -> PacketStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
