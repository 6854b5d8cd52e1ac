"""The proxy's own answers. Pure."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus


@lru_cache(maxsize=256)
def answer(status: int, body: bytes, *, close: bool, head: bool) -> bytes:
    """A whole answer of this status; `head`: to a HEAD, without the body that it would have."""
    phrase = HTTPStatus(status).phrase.encode()
    connection = b"connection: close\r\n" if close else b""
    lines = b"HTTP/1.1 %d %b\r\ncontent-length: %d\r\ncontent-type: text/plain\r\n%b\r\n" % (
        status,
        phrase,
        len(body),
        connection,
    )
    return lines if head else lines + body
