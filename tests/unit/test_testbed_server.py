"""The pods' HTTP server: what it answers, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from spliceway.agent.testbed.server import Connection

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


def converse(talk: Talk) -> bytes:
    """Let `talk` be the client of one connection to a server named «web»."""

    async def both() -> bytes:
        served = asyncio.Event()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await Connection("web", reader, writer).serve()
            served.set()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            try:
                return await asyncio.wait_for(talk(reader, writer), 10)
            finally:
                writer.close()
                await asyncio.wait_for(served.wait(), 10)

    return asyncio.run(both())


def send(request: bytes) -> bytes:
    """Send bytes, shut down the sending side, and read to the end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(request)
        writer.write_eof()
        return await reader.read()

    return converse(talk)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_is_answered_with_pod_method_and_path(method: str) -> None:
    answer = send(f"{method} /a%2fb?c=d HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(f"\r\n\r\nweb {method} /a%2fb?c=d\n".encode())


def test_requests_follow_each_other_on_one_connection() -> None:
    answer = send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b"web GET /1\n" in answer
    assert answer.endswith(b"web POST /2\n")


def test_head_has_the_length_and_no_body() -> None:
    answer = send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.endswith(b"content-length: 11\r\n\r\n")


def test_close_is_obeyed() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await reader.read()  # ends although our side stays open

    assert b"200" in converse(talk)


def test_a_body_is_echoed_before_it_is_complete() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST /x/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await reader.readuntil(b"\r\n\r\n3\r\nabc\r\n")
        writer.write(b"2\r\nde\r\n0\r\n\r\n")
        return await reader.readuntil(b"0\r\n\r\n")

    assert converse(talk) == b"2\r\nde\r\n0\r\n\r\n"


def test_an_echo_keeps_the_length() -> None:
    answer = send(b"PUT /echo?x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    assert b"content-length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\nhello")


def test_a_client_that_waits_for_permission_gets_it() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        first = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"ok")
        writer.write_eof()
        return first + await reader.read()

    assert converse(talk).startswith(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize(
    "request_bytes", [b"what is this\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n"]
)
def test_what_is_not_http_is_refused(request_bytes: bytes) -> None:
    assert send(request_bytes).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_is_cut_off_never_looks_complete() -> None:
    answer = send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
    assert b"content-length: 10\r\n" in answer
    assert answer.endswith(b"\r\n\r\nhello")
    chunked = send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    assert b"0\r\n\r\n" not in chunked


def test_a_client_that_only_connects_is_let_go() -> None:
    assert send(b"") == b""
