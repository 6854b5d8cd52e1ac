"""A server behind the proxy that keeps every byte that it got, and answers with exactly the bytes it was told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from functools import partial

from spliceway.agent.testbed import netns
from support.steered import SERVER, SteeredNet
from support.stricthttp import MalformedError, Request, parse_request

PATIENCE = 20.0


class Conversation:
    """One connection to the server. `received`: all bytes; `requests`: what they mean; `ended`: how the peer ended."""

    def __init__(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        self.connection, self.peer = connection, peer
        self.received = b""
        self.requests: list[Request] = []
        self.error = ""
        self.ended = ""
        self.done = threading.Event()
        self.tunnel = False  # the rest is no HTTP
        self._parsed = 0

    @property
    def rest(self) -> bytes:
        """What came behind the last whole request."""
        return self.received[self._parsed :]

    def receive(self) -> bool:
        """Wait for more bytes; False when the peer has ended (`ended` says how)."""
        try:
            piece = self.connection.recv(1 << 16)
        except ConnectionResetError:
            self.ended = "reset"
            return False
        self.received += piece
        self.ended = "" if piece else "fin"
        return bool(piece)

    def next_request(self) -> Request | None:
        """Wait for a whole request; None when the peer ended first or sent what is none."""
        while True:
            try:
                request = parse_request(self.rest)
            except MalformedError as error:
                self.error = f"{error}: {self.rest[:200]!r}"
                return None
            if request is not None:
                self._parsed += request.end
                self.requests.append(request)
                return request
            if not self.receive():
                return None


#: A step of an answer: bytes are sent; an event is waited for; a function does with the connection what it likes.
Step = bytes | threading.Event | Callable[[Conversation], None]


def half_close(conversation: Conversation) -> None:
    """Send FIN, go on reading."""
    conversation.connection.shutdown(socket.SHUT_WR)


def reset(conversation: Conversation) -> None:
    """Send RST."""
    conversation.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conversation.connection.close()


def close(conversation: Conversation) -> None:
    """Close: FIN, or RST where something is unread."""
    conversation.connection.close()


def read_on(conversation: Conversation) -> None:
    """Take everything as bytes until the peer ends; no more requests."""
    conversation.tunnel = True
    while conversation.receive():
        pass


class RawUpstream:
    """The server on `port`, IPv4 and IPv6, in the server's namespace; use as a context manager.

    `answers` are scripts by target; other requests get a 200 that repeats method, target and body. `before` is sent
    and done on every connection before anything is read. `conversations` are all connections so far.
    """

    def __init__(self, net: SteeredNet, port: int = 80) -> None:
        self.answers: dict[bytes, Sequence[Step]] = {}
        self.before: Sequence[Step] = ()
        self.conversations: list[Conversation] = []
        self._listeners = [netns.call(net.server, partial(_listen, version, port)) for version in SERVER]
        self._changed = threading.Condition()

    def __enter__(self) -> RawUpstream:
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for conversation in self.conversations:
            with contextlib.suppress(OSError):
                conversation.connection.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Begin a test: no scripts, no conversations."""
        self.answers, self.before, self.conversations = {}, (), []

    def conversation(self, number: int = 0) -> Conversation:
        """Wait for a connection."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self.conversations) > number, PATIENCE)
        assert enough, f"{len(self.conversations)} connections to the server"
        return self.conversations[number]

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                conversation = Conversation(connection, peer[:2])
                with self._changed:
                    self.conversations.append(conversation)
                    self._changed.notify_all()
                threading.Thread(target=self._serve, args=(conversation,), daemon=True).start()

    def _serve(self, conversation: Conversation) -> None:
        try:
            with conversation.connection, contextlib.suppress(OSError):
                self._talk(conversation)
        finally:
            conversation.done.set()

    def _talk(self, conversation: Conversation) -> None:
        _play(self.before, conversation)
        while request := conversation.next_request():
            _play(self.answers.get(request.head.target) or [_default(request)], conversation)
            if conversation.tunnel or conversation.connection.fileno() < 0:
                return
        if conversation.error:
            conversation.connection.sendall(b"HTTP/1.1 400 Not For Me\r\nContent-Length: 0\r\n\r\n")
            half_close(conversation)
            read_on(conversation)


def answer(body: bytes, *, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    """A response with Content-Length. `headers`: whole lines."""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def _default(request: Request) -> bytes:
    body = b"%b %b %b" % (request.head.method, request.head.target, request.body)
    whole = answer(body)
    return whole if request.head.method != b"HEAD" else whole[: -len(body)]


def _play(script: Sequence[Step], conversation: Conversation) -> None:
    for step in script:
        if isinstance(step, bytes):
            conversation.connection.sendall(step)
        elif isinstance(step, threading.Event):
            assert step.wait(PATIENCE)
        else:
            step(conversation)


def _listen(version: int, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((SERVER[version], port))
    made.listen(4096)
    return made
