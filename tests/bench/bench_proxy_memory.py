"""What the embedded proxy keeps in memory: `python tests/bench/bench_proxy_memory.py [-o json]`.

`spliceway proxy` with one worker, in the namespaces of `bench_proxy.py`:

- `idle`: so many clients (`--connections`) connect, ask once for a small reply and keep the connection, each with its
  own connection to the server; resident memory of all processes of the proxy before and with them;
- `down`: a reply of `--mib` MiB from a server that sends as fast as it can to a client that reads slowly;
- `up`: a request of that size from a client that sends as fast as it can to a server that reads slowly. Of both the
  worker's memory before, and at most while it runs, looked at every 50 ms; slow is `--rate` MiB/s.

Exit status 1: 10,000 idle connections and the proxy took 400 MiB or more, or a worker 100 MiB or more with a body.
Needs root, and `ulimit -n` of twice the connections and some (it is raised where that is allowed).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
import structlog

from spliceway.agent.bench.errors import BenchError
from spliceway.agent.bench.progress import progress
from spliceway.agent.testbed import netns
from support.peers import resident_mib
from support.peersbed import ORIGIN, Bed
from support.peersfigures import SMALL
from support.steered import SERVER, SteeredNet, read_reply

_PATH = "embedded-whole"
#: MiB that must not be reached: all processes with 10,000 idle connections; a worker with a body under way.
_IDLE_LIMIT, _BODY_LIMIT = 400.0, 100.0
_CHUNK = 1 << 20
_SMALL = b"GET /small HTTP/1.1\r\nHost: server\r\n\r\n"


def connect(address: tuple[str, int], count: int) -> list[socket.socket]:
    """So many connections, each of which has had one reply."""
    made = []
    for _ in range(count):
        sock = socket.create_connection(address, 10)
        made.append(sock)
        sock.sendall(_SMALL)
        reply = read_reply(sock)
        if reply.status != 200 or len(reply.body) != SMALL:
            raise BenchError(f"connection {len(made)}: {reply.status} with {len(reply.body)} bytes")
    return made


async def idle(bed: Bed, count: int) -> dict[str, float]:
    """See the module."""
    before = sum(resident_mib(bed.sessions[_PATH]).values())
    begin = time.monotonic()
    held = await asyncio.to_thread(netns.call, bed.net.client, partial(connect, bed.address(_PATH), count))
    took = time.monotonic() - begin
    after = sum(resident_mib(bed.sessions[_PATH]).values())
    for sock in (held[0], held[-1]):  # they are there, and work
        sock.sendall(_SMALL)
        if read_reply(sock).status != 200:
            raise BenchError("a connection that was idle does not answer any more")
    for sock in held:
        sock.close()
    return {
        "connections": count,
        "seconds": round(took, 1),
        "before_mib": round(before, 1),
        "mib": round(after, 1),
        "kib_each": round((after - before) * 1024 / count, 1),
    }


class Watch:
    """The worker's memory, every 50 ms: `before`, and the `most` until it is stopped."""

    def __init__(self, session: int) -> None:
        self._session = session
        self.before = self.most = self._now()

    def _now(self) -> float:
        """The largest of the workers."""
        return max(mib for pid, mib in resident_mib(self._session).items() if pid != self._session)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Look, in a thread."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.05):
                self.most = max(self.most, self._now())

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self.most = max(self.most, self._now())


class SlowServer:
    """One thread that serves one connection at a time: sends a long reply, or reads a long body slowly."""

    def __init__(self, listener: socket.socket, mib: int, rate: float) -> None:
        self._listener, self._mib, self._rate = listener, mib, rate
        self.read = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := sock.recv(65536)):
                return
            head += data
        length = self._mib << 20
        if head.startswith(b"GET "):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            piece = bytes(_CHUNK)
            for _ in range(self._mib):
                sock.sendall(piece)
            return
        self.read = len(head.partition(b"\r\n\r\n")[2])
        self.read += slowly(sock, length - self.read, self._rate)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        sock.recv(1)


def slowly(sock: socket.socket, count: int, rate: float) -> int:
    """Read so many bytes, at `rate` MiB/s and for the first second not at all; how many there were."""
    time.sleep(1.0)
    begin, got, buffer = time.monotonic(), 0, bytearray(_CHUNK)
    while got < count:
        size = sock.recv_into(buffer, min(_CHUNK, count - got))
        if not size:
            break
        got += size
        ahead = got / (rate * 2**20) - (time.monotonic() - begin)
        if ahead > 0.01:
            time.sleep(ahead)
    return got


def download(sock: socket.socket, mib: int, rate: float) -> int:
    """Ask for the long reply and read it slowly; bytes of its body."""
    sock.sendall(b"GET /large HTTP/1.1\r\nHost: server\r\n\r\n")
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := sock.recv(1024)):
            return 0
        head += data
    body = len(head.partition(b"\r\n\r\n")[2])
    return body + slowly(sock, (mib << 20) - body, rate)


def upload(sock: socket.socket, mib: int) -> int:
    """Send a long body as fast as it is taken; the status of the answer."""
    sock.sendall(b"POST /post HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n\r\n" % (mib << 20))
    piece = bytes(_CHUNK)
    for _ in range(mib):
        sock.sendall(piece)
    return read_reply(sock).status


async def bodies(bed: Bed, mib: int, rate: float) -> dict[str, dict[str, float]]:
    """See the module: `down` and `up`."""
    listener = await _listening(bed)
    server = SlowServer(listener, mib, rate)
    found: dict[str, dict[str, float]] = {}
    with listener:
        for way in ("down", "up"):
            address = bed.address(_PATH)
            with netns.call(bed.net.client, partial(socket.create_connection, address, 60)) as sock:
                begin = time.monotonic()
                with Watch(bed.sessions[_PATH]).watching() as watch:
                    if way == "down":
                        got = await asyncio.to_thread(download, sock, mib, rate)
                    else:
                        status = await asyncio.to_thread(upload, sock, mib)
                        got = server.read if status == 200 else 0
                if got != mib << 20:
                    raise BenchError(f"{way}: {got} bytes arrived instead of {mib << 20}")
            found[way] = {
                "mib": mib,
                "seconds": round(time.monotonic() - begin, 1),
                "before_mib": round(watch.before, 1),
                "most_mib": round(watch.most, 1),
                "growth_mib": round(watch.most - watch.before, 1),
            }
        listener.shutdown(socket.SHUT_RDWR)
    return found


async def _listening(bed: Bed) -> socket.socket:
    """In nginx's place, once its worker is gone with all its connections."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                return netns.call(bed.net.server, lambda: socket.create_server((SERVER[4], ORIGIN)))
            await asyncio.sleep(0.1)


async def measure(connections: int, mib: int, rate: float) -> dict[str, Any]:
    """All of it. Raises BenchError."""
    say = progress()
    with tempfile.TemporaryDirectory() as name, SteeredNet(ORIGIN) as net:
        bed = Bed(Path(name), net)
        try:
            nginx = bed.start_nginx()
            await bed.start(_PATH)
            say(f"{connections} idle connections")
            found: dict[str, Any] = {"idle": await idle(bed, connections)}
            os.killpg(nginx.pid, signal.SIGKILL)
            nginx.wait()
            say(f"bodies of {mib} MiB")
            return found | await bodies(bed, mib, rate)
        finally:
            await bed.stop()


def main() -> int:
    """Exit status 1: a limit was reached, or something broke."""
    parser = argparse.ArgumentParser(description="What the embedded proxy keeps in memory.")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=1024, help="size of the bodies")
    parser.add_argument("--rate", type=float, default=64.0, help="MiB/s of a slow peer")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout has the result
    files = 2 * given.connections + 200
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < files:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        except (OSError, ValueError):
            parser.error(f"ulimit -n must be {files} for so many connections")
    try:
        found = asyncio.run(measure(given.connections, given.mib, given.rate))
    except (BenchError, OSError, TimeoutError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if given.output == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        for part, figures in found.items():
            sys.stdout.write(f"{part:5} {', '.join(f'{name} {value:,g}' for name, value in figures.items())}\n")
    within = found["idle"]["mib"] * 10_000 / max(10_000, given.connections) < _IDLE_LIMIT
    return 0 if within and all(found[way]["most_mib"] < _BODY_LIMIT for way in ("down", "up")) else 1


if __name__ == "__main__":
    sys.exit(main())
