"""Requests without end by every way that is allowed or denied, each on a new connection, and what became of them.

What must not pass is looked for at its goal, too: whoever begins a connection there has his address on the list.
"""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from spliceway.agent.testbed import netns, processes

#: How long an allowed request may take, and how long it is waited for one that must not come, in seconds.
PATIENCE, IN_VAIN = 6.0, 0.25
#: What a request has come to, besides a status: no connection, and a connection without an answer.
NONE, CONNECTED = 0, 1
_ETH_P_ALL, _SO_TIMESTAMPNS, _OUTGOING = 3, 35, 4


class Way(NamedTuple):
    """From a pod's namespace to an address: what is right there. `right` NONE: nothing may get through."""

    name: str
    place: Path
    address: str
    path: str
    right: int
    port: int = 80


class Wrong(NamedTuple):
    """A verdict that was not right: what may not got through, or what may did not. Times are of time.time()."""

    way: str
    began: float
    ended: float
    found: int
    right: int


def ask(way: Way) -> int:
    """One GET on a new connection from the calling thread's namespace."""
    seconds = IN_VAIN if way.right == NONE else PATIENCE
    connection = http.client.HTTPConnection(way.address, way.port, timeout=seconds)
    try:
        try:
            connection.connect()
        except OSError:
            return NONE
        try:
            connection.request("GET", way.path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return CONNECTED
    finally:
        connection.close()


class Prober:
    """Threads, one for each list of ways, that ask one way after another. Everything may be read at any time."""

    def __init__(self, *, pace: float = 0.03) -> None:
        """`pace`: seconds from an answer to the next question."""
        self.counts: Counter[str] = Counter()
        self.wrong: list[Wrong] = []
        self.slowest: dict[str, float] = {}
        self.phase = ""
        self._pace = pace
        self._running: list[tuple[threading.Event, threading.Thread]] = []

    def add(self, ways: Sequence[Way]) -> Callable[[], None]:
        """Begin with these, all of one place. Call what is given to end them."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(list(ways), stop), daemon=True)
        thread.start()
        self._running.append((stop, thread))

        def end() -> None:
            stop.set()
            thread.join(2 * PATIENCE)

        return end

    def end(self) -> None:
        """End all."""
        running, self._running = self._running, []
        for stop, _ in running:
            stop.set()
        for _, thread in running:
            thread.join(2 * PATIENCE)

    def note(self, way: Way, began: float, found: int) -> None:
        """What became of one request."""
        ended = time.time()
        self.counts[f"{self.phase}: {'allowed' if way.right == 200 else 'denied'}"] += 1
        if found != way.right:
            self.wrong.append(Wrong(f"{self.phase}: {way.name}", began, ended, found, way.right))
        elif way.right != NONE:
            self.slowest[self.phase] = max(self.slowest.get(self.phase, 0.0), ended - began)

    def _run(self, ways: list[Way], stop: threading.Event) -> None:
        netns.enter(ways[0].place)
        while not stop.is_set():
            for way in ways:
                began = time.time()
                found = ask(way)
                if stop.is_set():
                    return  # its place may be gone
                self.note(way, began, found)
                stop.wait(self._pace)


class Arrivals:
    """Who begins TCP connections at a pod, as its own interface sees it, but for some; kernel's times.

    Each is (time, address); `fine`: addresses whose connections may come all the time.
    """

    def __init__(self, place: Path, fine: Collection[str] = ()) -> None:
        self.found: list[tuple[float, str]] = []
        self.count = 0
        self._fine = {ip_address(one).packed for one in fine}
        self._place = place
        self._stop = threading.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def end(self) -> None:
        """No longer."""
        self._stop.set()
        self._thread.join(5)

    def _run(self, ready: threading.Event) -> None:
        netns.enter(self._place)
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)) as wire:
            wire.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            wire.settimeout(0.2)
            ready.set()
            while not self._stop.is_set():
                try:
                    packet, control, _flags, link = wire.recvmsg(128, 64)
                except TimeoutError:
                    continue
                source = None if link[2] == _OUTGOING else _begins(packet)
                if source is not None:
                    self.count += 1
                    if source not in self._fine:
                        seconds, nanoseconds = struct.unpack("=qq", control[0][2][:16])
                        self.found.append((seconds + nanoseconds / 1e9, str(ip_address(source))))


def _begins(packet: bytes) -> bytes | None:
    """The source of a SYN."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and packet[9] == 6:
        source, at = packet[12:16], (packet[0] & 15) * 4
    elif version == 6 and packet[6] == 6:
        source, at = packet[8:24], 40
    else:
        return None
    return source if len(packet) > at + 13 and packet[at + 13] & 0x12 == 0x02 else None


class Holders:
    """Who had an address when, by name of its app: for arrivals from addresses that go from hand to hand."""

    def __init__(self) -> None:
        self._had: dict[str, list[tuple[float, float, str]]] = {}

    def put(self, address: str, began: float, ended: float, app: str) -> None:
        """It had it then, and nobody else."""
        self._had.setdefault(address, []).append((began, ended, app))

    def holes(self, arrivals: Sequence[tuple[float, str]], welcome: Collection[str]) -> list[tuple[float, str, str]]:
        """Arrivals from an address that no app of `welcome` had then."""
        found = []
        for when, address in arrivals:
            apps = [app for began, ended, app in self._had.get(address, ()) if began <= when <= ended]
            if not any(app in welcome for app in apps):
                found.append((when, address, ", ".join(apps) or "nobody"))
        return found


class Talk:
    """A connection that asks again and again, as long as it lives. `answers`: how many it has had; `end`: why it ended.

    `announced`: the last answer said that the connection closes, as HTTP has it for a server that goes.
    """

    def __init__(self, way: Way, cgroup: Path) -> None:
        """`cgroup`: the asking pod's, without which nothing of it is spliced."""
        self.way = way
        self.answers = 0
        self.end = ""
        self.wrong: list[int] = []
        self.announced = False
        argv = [sys.executable, "-c", _TALK, way.address, str(way.port), way.path]
        environment = processes.environment()
        self._process = processes.spawn(way.place, cgroup, argv, environment, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def lives(self) -> bool:
        """Whether it is still there."""
        return not self.end

    def stop(self) -> None:
        """It is not needed any more."""
        self._process.kill()
        self._thread.join(PATIENCE)
        self._process.wait(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.strip().isdigit():
                self.announced = line.startswith("closed")
                self.end = line.strip()
                return
            if int(line) != self.way.right:
                self.wrong.append(int(line))
            self.answers += 1
        self.end = self.end or "stopped"


_TALK = """
import http.client, sys, time
address, port, path = sys.argv[1:]
connection = http.client.HTTPConnection(address, int(port), timeout=6)
try:
    connection.connect()
    while connection.sock is not None:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        print(answer.status, flush=True)
        time.sleep(0.05)
    print("closed, as the last answer said", flush=True)
except (OSError, http.client.HTTPException) as error:
    print(repr(error), flush=True)
"""


def memory(pid: int) -> tuple[int, int]:
    """Bytes of a process's own memory, and its descriptors."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))
