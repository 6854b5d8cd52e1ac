"""Client of the echo test, run inside a pod: many connections, each of which sends at once and checks what comes back.

`python echo.py ADDRESS CONNECTIONS PARALLEL SEED` prints one JSON line: {"ok": n, "bytes": n, "failed": ["…", …]}.
Each connection sends its request in pieces of random sizes without waiting, from the moment connect() returns, and
reads the answer at the same time; a body of random bytes and random length comes back whole and in order, or it is a
failure.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys

import uvloop

TIMEOUT = 60.0


async def exchange(address: str, random_source: random.Random) -> int:
    """One connection. Returns the number of bytes that came back; raises ValueError or OSError."""
    size = int(2 ** random_source.uniform(0, 18))
    body = random_source.randbytes(size)
    head = b"POST /echo HTTP/1.1\r\nHost: echo\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    # Blocking, so that nothing comes between connect() and the first send(): that is where the race is.
    connection = socket.create_connection((address, 80), TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    first = connection.send(head[: random_source.randrange(1, len(head))])
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        sending = asyncio.create_task(send(writer, (head + body)[first:], random_source))
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"status {status!r}")
        length = chunked = 0
        while line := (await reader.readline()).strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            chunked |= line == b"transfer-encoding: chunked"
        answer = await read_chunks(reader) if chunked else await reader.readexactly(length)
        await sending
    finally:
        writer.close()
    if answer != body:
        where = next((i for i, (a, b) in enumerate(zip(answer, body, strict=False)) if a != b), min(len(answer), size))
        raise ValueError(f"{len(answer)} of {size} bytes came back, the first wrong one at {where}")
    return size


async def send(writer: asyncio.StreamWriter, data: bytes, random_source: random.Random) -> None:
    """In pieces, so that some go before and some after the connection's ends have met in the kernel."""
    position = 0
    while position < len(data):
        piece = int(2 ** random_source.uniform(0, 15))
        writer.write(data[position : position + piece])
        position += piece
        await writer.drain()
        if random_source.random() < 0.2:
            await asyncio.sleep(0)


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body."""
    parts = []
    while size := int((await reader.readline()).strip() or b"0", 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readline()
    return b"".join(parts)


async def main() -> None:
    """Run all connections, `PARALLEL` at a time."""
    address, connections, parallel, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    waiting = iter(range(connections))
    failed: list[str] = []
    done = total = 0

    async def worker() -> None:
        nonlocal done, total
        for number in waiting:
            try:
                total += await asyncio.wait_for(exchange(address, random.Random(seed * 1_000_003 + number)), TIMEOUT)
                done += 1
            except (TimeoutError, ValueError, OSError, EOFError) as error:
                failed.append(f"{number}: {type(error).__name__} {error}")

    await asyncio.gather(*(worker() for _ in range(parallel)))
    print(json.dumps({"ok": done, "bytes": total, "failed": failed[:20]}))


if __name__ == "__main__":
    uvloop.run(main())
