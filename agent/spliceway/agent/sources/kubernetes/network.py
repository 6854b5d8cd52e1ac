"""Connections of the client's that are closed also when they are given up in the middle of their TLS handshake.

httpcore closes a connection whose handshake fails, but not one whose handshake is cancelled (`AnyIOBackend.start_tls`
of httpcore2 2.16): it stays open until the garbage collector finds it. What the agent waits for in vain is cancelled.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore2
import httpx2

#: Level, option and value of setsockopt(2).
SocketOption = tuple[int, int, int]
#: Connections without a request, and for how long they are kept, in seconds.
_KEPT, _KEPT_SECONDS = 4, 5.0


class Transport(httpx2.AsyncHTTPTransport):
    """With these certificates; one connection for each watch, and a few for lists."""

    def __init__(self, context: ssl.SSLContext, options: Iterable[SocketOption]) -> None:
        super().__init__(verify=context)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=_KEPT,
            keepalive_expiry=_KEPT_SECONDS,
            socket_options=list(options),
            network_backend=_Network(),
        )


class _Network(httpcore2.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _Stream(await super().connect_tcp(*args, **options))


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection without TLS, or before it."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, *args: Any, **options: Any) -> bytes:
        return await self._stream.read(*args, **options)

    async def write(self, *args: Any, **options: Any) -> None:
        await self._stream.write(*args, **options)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(*args, **options)
        except BaseException:
            await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
