"""Frames with descriptors over a socket pair."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from spliceway.proxy.process.channel import MOST_DESCRIPTORS, Channel

LOOPS = pytest.mark.parametrize("uv", [False, True])


class Text(msgspec.Struct, tag="text"):
    text: str


class Number(msgspec.Struct, tag="number"):
    number: int


class Pair:
    """Two channels; what b hears is in `heard`, and why b has ended in `closed`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.left, self.right = socket.socketpair()
        self.heard: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self.closed: asyncio.Future[str] = loop.create_future()
        self.a: Channel[Any] = Channel(loop, self.left, Text | Number, lambda *_: None, lambda _: None)
        self.b: Channel[Any] = Channel(
            loop,
            self.right,
            Text | Number,
            lambda message, descriptors: self.heard.put_nowait((message, descriptors)),
            self.closed.set_result,
        )

    def close(self) -> None:
        self.a.close()
        self.b.close()


def run(work: Callable[[Pair], Awaitable[None]], uv: bool) -> None:
    async def main() -> None:
        pair = Pair()
        try:
            async with asyncio.timeout(20):
                await work(pair)
        finally:
            pair.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uv else None) as runner:
        runner.run(main())


@LOOPS
@pytest.mark.parametrize("count", [0, 1, MOST_DESCRIPTORS, MOST_DESCRIPTORS + 1, 3 * MOST_DESCRIPTORS])
def test_descriptors_arrive_in_order_with_their_message(count: int, uv: bool) -> None:
    async def work(pair: Pair) -> None:
        before = _open()
        files = [os.memfd_create(f"file-{number}") for number in range(count)]
        pair.a.send(Text("first"))
        pair.a.send(Text("these"), files)
        pair.a.send(Number(1), files[:1])
        for file in files:
            os.close(file)
        assert await pair.heard.get() == (Text("first"), [])
        message, received = await pair.heard.get()
        assert message == Text("these")
        assert [_name(file) for file in received] == [f"/memfd:file-{number} (deleted)" for number in range(count)]
        message, more = await pair.heard.get()
        assert (message, len(more)) == (Number(1), min(count, 1))
        for file in received + more:
            os.close(file)
        assert _open() == before

    run(work, uv)


@LOOPS
def test_what_the_socket_does_not_take_waits(uv: bool) -> None:
    async def work(pair: Pair) -> None:
        long = "x" * (3 << 20)
        pair.a.send(Text(long))
        assert pair.a.backlog > 1 << 20
        pair.a.send(Number(2))
        assert (await pair.heard.get())[0] == Text(long)
        assert (await pair.heard.get())[0] == Number(2)
        await pair.a.flushed()
        assert pair.a.backlog == 0

    run(work, uv)


@LOOPS
def test_end_of_the_other_side_is_told_after_what_it_said(uv: bool) -> None:
    async def work(pair: Pair) -> None:
        pair.a.send(Text("last"))
        pair.a.close()
        assert (await pair.heard.get())[0] == Text("last")
        assert await pair.closed == "closed by the other side"
        pair.b.send(Text("to nobody"))

    run(work, uv)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (struct.pack("<II", 3, 0) + b"abc", "not a message"),
        (struct.pack("<II", 0xFFFFFFFF, 0), "a frame of 4294967295 bytes"),
        (struct.pack("<II", 1, 1) + b"\xc0", "1 descriptors were announced, 0 came"),
    ],
)
def test_what_is_no_message_ends_it(raw: bytes, why: str) -> None:
    async def work(pair: Pair) -> None:
        pair.left.send(raw)
        assert why in await pair.closed
        assert pair.b.closed

    run(work, False)


def test_descriptors_on_their_way_are_closed_with_the_channel() -> None:
    async def work(pair: Pair) -> None:
        before = _open()
        file = os.memfd_create("waiting")
        pair.a.send(Text("x" * (3 << 20)))
        pair.a.send(Text("never"), [file])
        os.close(file)
        assert _open() == before + 1
        pair.a.close()
        assert _open() == before - 1

    run(work, False)


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _name(file: int) -> str:
    return str(Path(f"/proc/self/fd/{file}").readlink())
