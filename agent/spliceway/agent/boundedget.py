"""One HTTP GET over loopback to somebody who may mean ill: bounded in time as a whole, and in size. Blocks."""

from __future__ import annotations

import socket
import time

import h11

from spliceway.agent.errors import AgentError

#: Longest answer, in bytes: what Envoy's `/config_dump` has for some thousand clusters.
MOST_BYTES = 32 << 20
#: Most objects (opening braces) of an answer: values take more room than their text.
MOST_OBJECTS = 500_000
#: Seconds for all of it.
WAIT = 10.0
_PIECE = 1 << 16


class GetError(AgentError):
    """No answer, or none that is taken: who was asked, and why."""


def get(host: str, port: int, target: str, *, wait: float = WAIT, most: int = MOST_BYTES) -> bytes:
    """Body of the answer. Raises GetError: nobody answers within `wait` seconds, not with 200, or with too much."""
    where, deadline = f"{f'[{host}]' if ':' in host else host}:{port}{target}", time.monotonic() + wait
    try:
        with socket.create_connection((host, port), timeout=wait) as sock:
            return _ask(sock, target, where, deadline, most)
    except TimeoutError:
        raise GetError(f"{where}: no whole answer within {wait:g} s") from None
    except (OSError, h11.RemoteProtocolError) as error:
        raise GetError(f"{where}: {error}") from error


def checked(body: bytes, where: str) -> bytes:
    """The same, unless decoding it could take far more room than it has itself. Raises GetError."""
    if body.count(b"{") > MOST_OBJECTS:
        raise GetError(f"{where}: the answer has more than {MOST_OBJECTS} objects")
    return body


def _ask(sock: socket.socket, target: str, where: str, deadline: float, most: int) -> bytes:
    client, body = h11.Connection(h11.CLIENT), bytearray()
    head = h11.Request(method="GET", target=target, headers=[("Host", "localhost"), ("Connection", "close")])
    sock.sendall((client.send(head) or b"") + (client.send(h11.EndOfMessage()) or b""))
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            data = sock.recv(_PIECE)
            if time.monotonic() > deadline:
                raise TimeoutError
            client.receive_data(data)
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise GetError(f"{where}: answered {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise GetError(f"{where}: the answer has more than {most} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return bytes(body)
