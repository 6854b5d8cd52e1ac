"""Traffic of a churn run: `Checker` notes every answer with its time, wrk is the load, nginx the servers.

The module itself is the checker's program (`python -m support.churnload OPTIONS`); it runs in the client's namespace
until its stdin ends, and prints what it noted.
"""

from __future__ import annotations

import random
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

#: Starts a program, as `Pod.spawn` does: command line, and options of Popen.
Spawn = Callable[..., subprocess.Popen[Any]]
#: Outcomes that are no status.
EOF, RESET, REFUSED, HANG, BROKEN = 0, -1, -2, -3, -4
_TESTS = Path(__file__).resolve().parents[1]
PATIENCE: Final = 5.0


class Target(msgspec.Struct, frozen=True):
    """Where requests go: `name` is for the judge, `requests` are whole heads."""

    name: str
    addresses: tuple[tuple[str, int], ...]
    requests: tuple[bytes, ...]


class Options(msgspec.Struct, frozen=True):
    """What the program does: so many workers, each with a pause in seconds after each answer."""

    targets: tuple[Target, ...]
    workers: int
    pause: float
    patience: float = PATIENCE
    refused_pause: float = 0.02
    most: int = 40
    seed: int = 1


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One request, or a connection that was not made (then `request` is -1). Times are CLOCK_MONOTONIC in seconds.

    `opened`: when the connection was asked for; `connected`: when it was there; `first`: its first request. `status`:
    that of the answer, or one of the outcomes above. `closing`: the answer said `Connection: close`. `port`: the
    client's, to find it in flows.
    """

    target: str
    opened: float
    connected: float
    begin: float
    end: float
    request: int
    status: int
    body: bytes = b""
    closing: bool = False
    port: int = 0


class Checker:
    """The program while the context lasts, started by `spawn`."""

    def __init__(self, spawn: Spawn, options: Options) -> None:
        self._spawn, self._options = spawn, options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Checker:
        argv = [sys.executable, "-m", "support.churnload"]
        pipe = subprocess.PIPE
        self._process = self._spawn(argv, stdin=pipe, stdout=pipe, env={"PYTHONPATH": str(_TESTS)})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(self._options) + b"\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != b"ready\n":
            raise AssertionError("the checker did not start")
        return self

    def stop(self) -> list[Record]:
        """End it and return what it noted."""
        assert self._process is not None
        out, _ = self._process.communicate(b"", timeout=60)
        if self._process.returncode != 0:
            raise AssertionError(f"the checker ended with {self._process.returncode}")
        return msgspec.msgpack.decode(out, type=list[Record])

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def in_netns(path: Path) -> Spawn:
    """Starts programs in that network namespace."""
    enter = (shutil.which("nsenter") or "nsenter", f"--net={path}")
    return lambda argv, **options: subprocess.Popen([*enter, *argv], **options)


# The checker's program.


class _Worker:
    def __init__(self, options: Options, number: int, stop: threading.Event) -> None:
        self._options, self._stop = options, stop
        self._random = random.Random(options.seed * 1000 + number)
        self.records: list[Record] = []

    def run(self) -> None:
        while not self._stop.is_set():
            target = self._random.choice(self._options.targets)
            opened = time.monotonic()
            address = self._random.choice(target.addresses)
            with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as connection:
                connection.settimeout(self._options.patience)
                try:
                    connection.connect(address)
                except OSError as error:
                    status = HANG if isinstance(error, TimeoutError) else REFUSED
                    times = (opened, 0.0, opened, time.monotonic())
                    port = connection.getsockname()[1]
                    self.records.append(Record(target.name, *times, -1, status, port=port))
                    time.sleep(self._options.refused_pause)
                    continue
                self._talk(target, connection, opened, time.monotonic())

    def _talk(self, target: Target, connection: socket.socket, opened: float, connected: float) -> None:
        for _ in range(self._random.randint(1, self._options.most)):
            number = self._random.randrange(len(target.requests))
            begin = time.monotonic()
            status, body, closing = _exchange(connection, target.requests[number])
            times = (opened, connected, begin, time.monotonic())
            port = connection.getsockname()[1]
            self.records.append(Record(target.name, *times, number, status, body, closing, port))
            if status <= 0 or closing or self._stop.is_set():
                return
            time.sleep(self._options.pause)


def _exchange(connection: socket.socket, request: bytes) -> tuple[int, bytes, bool]:
    buffer = b""
    try:
        connection.sendall(request)
        while b"\r\n\r\n" not in buffer:
            if not (data := connection.recv(65536)):
                return (BROKEN if buffer else EOF), buffer, True
            buffer += data
        head, _, body = buffer.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        headers = {name: value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        length = int(headers.get(b"content-length", b"0"))
        while len(body) < length:
            if not (data := connection.recv(65536)):
                return BROKEN, buffer, True
            body += data
        return int(lines[0].split()[1]), body, headers.get(b"connection") == b"close"
    except TimeoutError:
        return HANG, buffer, True
    except OSError:
        return RESET, buffer, True


def main() -> None:
    """Entry of the program."""
    options = msgspec.json.decode(sys.stdin.buffer.readline(), type=Options)
    stop = threading.Event()
    workers = [_Worker(options, number, stop) for number in range(options.workers)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    select.select([sys.stdin], [], [])
    stop.set()
    for thread in threads:
        thread.join()
    sys.stdout.buffer.write(msgspec.msgpack.encode([record for worker in workers for record in worker.records]))


if __name__ == "__main__":
    main()
