"""HTTP load from a pod that checks every byte of every answer: what it counts as `ok` is exactly what was asked for.

`Load` is the test's side; the module itself is the program that runs in the pod (`python -m support.load OPTIONS`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.testbed.node import Pod
from support.waiting import LIMIT, until_async

#: Rules of `api` that the load is made for: two that pass, everything else is 403.
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: frontend}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules:
        http:
        - {method: GET, path: "/articles/[0-9]+"}
        - {method: POST, path: "/articles/[0-9]+/echo"}
"""

DENIED = b"Access denied"
#: An answer that takes longer is a hang.
ANSWER_SECONDS = 10.0
_TESTS = Path(__file__).resolve().parents[1]


class Options(msgspec.Struct, frozen=True):
    """What the program does. `server`: name in its answers; `fresh`: one request on each connection."""

    addresses: tuple[str, ...]
    server: str
    connections: int
    fresh: bool = False
    port: int = 80
    largest: int = 65536
    pause: float = 0.0
    requests: int = 30


class Result(msgspec.Struct, frozen=True):
    """What came of it.

    `outcomes` counts ok, reset, eof (before any byte of an answer), truncated, refused and unanswered (connect), hang,
    unavailable (the proxy's 503 to what is allowed) and wrong (a byte that nobody asked for); `samples` describe the
    first that were not ok, with their time.
    `longest_gap`: the longest time in seconds in which nothing was ok on any one of the `connections` asked for, up to
    the end.
    """

    outcomes: dict[str, int]
    connections: int
    samples: list[str]
    longest_gap: float

    @property
    def ok(self) -> int:
        """Requests that were answered as they must be."""
        return self.outcomes.get("ok", 0)

    def assert_flawless(self, at_least: int = 20) -> None:
        """Nothing else than right answers, and enough of them."""
        assert set(self.outcomes) == {"ok"}, (self.outcomes, self.samples)
        assert self.ok >= at_least, f"only {self.ok} requests"


class Load:
    """Load from `client` to `server` (its pods' addresses of both families) while the context lasts."""

    def __init__(
        self, client: Pod, server: Pod, *, connections: int = 6, versions: Sequence[int] = (4, 6), **more: Any
    ):
        """`more`: further fields of `Options`."""
        addresses = tuple(str(server.address(version)) for version in versions)
        self._options = Options(addresses, server.name, connections, **more)
        self._client = client
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Load:
        argv = [sys.executable, "-m", "support.load", msgspec.json.encode(self._options).decode()]
        pipe = subprocess.PIPE
        self._process = self._client.spawn(
            argv, env={"PYTHONPATH": str(_TESTS)}, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.strip() != "ready":
            raise AssertionError(f"no load: {line}{self._process.communicate()[1]}")
        return self

    def flawless(self, at_least: int = 20) -> Result:
        """Let it go on until there are so many right answers, end it, and see that there are no others."""
        result = self.stop(at_least)
        result.assert_flawless(at_least)
        return result

    def stop(self, at_least: int = 0) -> Result:
        """End it and return what came of it. `at_least`: once so many answers were right, or the first was not."""
        assert self._process is not None
        out, err = self._process.communicate(f"{at_least}\n", timeout=ANSWER_SECONDS + 2 * LIMIT)
        if self._process.returncode != 0:
            raise AssertionError(f"load: {err}")
        return msgspec.json.decode(out, type=Result)

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class _Wrong(Exception):  # noqa: N818
    """A byte that nobody asked for."""


class _Unavailable(Exception):  # noqa: N818
    """The proxy says that it could not ask the server."""


class _Ended(Exception):  # noqa: N818
    """A clean end of the stream; the argument tells whether part of an answer had come."""


class _Client:
    """One worker: connection after connection, request after request."""

    def __init__(self, options: Options, seed: int) -> None:
        self.options = options
        self.outcomes: Counter[str] = Counter()
        self.samples: list[str] = []
        self.connections = 0
        self.gap = 0.0
        self._last = time.monotonic()
        self._random = random.Random(seed)
        self._number = seed << 32
        self._buffer = bytearray()
        self._closing = False

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            address = self._random.choice(self.options.addresses)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
                self._buffer.clear()
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await asyncio.get_running_loop().sock_connect(sock, (address, self.options.port))
                except TimeoutError:
                    self._note("unanswered", f"connect to {address}")
                    continue
                except OSError as error:
                    self._note("refused", f"connect to {address}: {error}")
                    await asyncio.sleep(0.02)
                    continue
                self.connections += 1
                await self._requests(sock, stop)
        self.gap = max(self.gap, time.monotonic() - self._last)

    async def _requests(self, sock: socket.socket, stop: asyncio.Event) -> None:
        for _ in range(1 if self.options.fresh else self._random.randint(1, self.options.requests)):
            self._number += 1
            begin = time.monotonic()
            outcome, what = "ok", ""
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._exchange(sock)
            except _Wrong as error:
                outcome, what = "wrong", str(error)
            except _Unavailable as error:
                outcome, what = "unavailable", str(error)
            except _Ended as error:
                outcome, what = ("truncated" if error.args[0] else "eof"), f"after {time.monotonic() - begin:.3f} s"
            except TimeoutError:
                outcome = "hang"
            except OSError as error:
                outcome, what = "reset", str(error)
            self._note(outcome, f"request {self._number} on {sock.getsockname()[:2]}: {what}")
            if outcome != "ok" or stop.is_set() or self._closing:
                return
            await asyncio.sleep(self.options.pause)

    async def _exchange(self, sock: socket.socket) -> None:
        number, host = self._number, self.options.addresses[0].replace(":", "-")
        kind = self._random.random()
        body = b""
        if kind < 0.5:
            target = f"GET /articles/{number}"
            wanted = (200, f"{self.options.server} {target}\n".encode())
        elif kind < 0.65:
            target, wanted = f"GET /private/{number}", (403, DENIED)
        else:
            body = number.to_bytes(8, "big") + self._random.randbytes(self._random.randrange(self.options.largest))
            target, wanted = f"POST /articles/{number}/echo", (200, body)
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n".encode()
        if self._buffer:
            raise _Wrong(f"before the request: {bytes(self._buffer[:80])!r}")
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, head + body))
        try:
            found = await self._answer(sock)
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if found[0] == 503 and wanted[0] == 200 and not self._buffer:
            raise _Unavailable(f"{target}: {found[1][:80]!r}")
        if found != wanted or self._buffer:
            raise _Wrong(f"{target}: {found[0]} {found[1][:80]!r} rest {bytes(self._buffer[:80])!r}")

    async def _answer(self, sock: socket.socket) -> tuple[int, bytes]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more(sock)
            if not b"HTTP/1.1 ".startswith(bytes(self._buffer[:9])):
                raise _Wrong(f"no status line: {bytes(self._buffer[:80])!r}")
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self._closing = headers.get("connection", "").lower() == "close"
        length = int(headers["content-length"])
        while len(self._buffer) < end + 4 + length:
            await self._more(sock)
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        return int(lines[0].split()[1]), body

    async def _more(self, sock: socket.socket) -> None:
        data = await asyncio.get_running_loop().sock_recv(sock, 1 << 18)
        if not data:
            raise _Ended(bool(self._buffer))
        self._buffer += data

    def _note(self, outcome: str, what: str) -> None:
        now = time.monotonic()
        self.outcomes[outcome] += 1
        if outcome == "ok":
            self.gap = max(self.gap, now - self._last)
            self._last = now
        elif len(self.samples) < 10:
            self.samples.append(f"{now:.3f} {outcome}: {what}")


async def _run(options: Options) -> Result:
    asked, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, asked.set)
    seed = os.getpid()
    clients = [_Client(options, seed * 100 + index) for index in range(options.connections)]
    print("ready", flush=True)

    async def end() -> None:
        await asked.wait()
        loop.remove_reader(0)
        at_least = int(sys.stdin.readline() or 0)

        def is_enough() -> bool:
            found = _outcomes(clients)
            return found["ok"] >= at_least or not set(found) <= {"ok"}

        with contextlib.suppress(AssertionError):  # the test will say so
            await until_async(is_enough)
        stop.set()

    await asyncio.gather(end(), *(client.run(stop) for client in clients))
    return Result(
        dict(_outcomes(clients)),
        sum(client.connections for client in clients),
        sorted(sample for client in clients for sample in client.samples)[:30],
        max(client.gap for client in clients),
    )


def _outcomes(clients: Sequence[_Client]) -> Counter[str]:
    return sum((client.outcomes for client in clients), Counter())


def main() -> None:
    """Entry of the program in the pod."""
    result = asyncio.run(_run(msgspec.convert(json.loads(sys.argv[1]), Options)))
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    main()
