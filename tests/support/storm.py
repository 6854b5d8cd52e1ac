"""A storm of connections from one pod to one server: `python -m support.storm OPTIONS`, one request on each.

Prints one JSON line (`StormResult`).
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import Counter

import msgspec

#: A connection that takes longer has failed.
DEADLINE = 20.0
_REQUEST = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
#: A connection that takes longer has waited for something: its SYN came again after 1 s, and after 2 s more.
STALL = 2.5


class StormOptions(msgspec.Struct, frozen=True):
    """`parallel` at a time, and `rate` in a second at most."""

    address: str
    connections: int
    parallel: int
    rate: float


class StormResult(msgspec.Struct, frozen=True):
    """`failed`: by what happened; `stalled`: how many took longer than STALL; times in seconds."""

    ok: int
    failed: dict[str, int]
    stalled: int
    median: float
    slowest: float
    seconds: float


async def run(options: StormOptions) -> StormResult:
    """All of them."""
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    failed: Counter[str] = Counter()
    times: list[float] = []
    numbers = iter(range(options.connections))
    loop = asyncio.get_running_loop()

    async def one() -> str:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            await loop.sock_connect(sock, (options.address, 80))
            await loop.sock_sendall(sock, _REQUEST)
            data = b""
            while piece := await loop.sock_recv(sock, 65536):
                data += piece
        whole = data.startswith(b"HTTP/1.1 200 ") and data.endswith(b" /x\n")
        return "" if whole else data[:12].decode("latin-1")

    async def work() -> None:
        for number in numbers:
            await asyncio.sleep(first + number / options.rate - time.monotonic())
            began = time.monotonic()
            try:
                async with asyncio.timeout(DEADLINE):
                    what = await one()
            except TimeoutError:
                what = "hang"
            except OSError as error:
                what = str(error.strerror)
            if what:
                failed[what] += 1
            else:
                times.append(time.monotonic() - began)

    first = time.monotonic()
    await asyncio.gather(*(work() for _ in range(options.parallel)))
    times.sort()
    return StormResult(
        len(times),
        dict(failed),
        sum(each > STALL for each in times),
        times[len(times) // 2] if times else 0.0,
        times[-1] if times else 0.0,
        time.monotonic() - first,
    )


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(run(msgspec.json.decode(sys.argv[1], type=StormOptions)))).decode())
