"""The bench on which the embedded proxy is tortured: a relay, a server that keeps every byte, and ways to send."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.proxy.model import Limits
from support.embedded import RelayNode
from support.rawhttp import Exchange, Receiver, by_bytes, cuts, deliver, read_answers, read_to_end
from support.steered import SteeredNet
from support.stricthttp import Request
from support.torturecases import ALLOWED_PATH, request
from support.upstreams import Conversation, RawUpstream

#: The one rule set of most tests: one path is allowed, with every method.
RULES = RuleSet(1, "pub", (HttpRule(11, path=ALLOWED_PATH),))
_FENCE = b"/pub/fence/"


class Bench:
    """A relay and its surroundings. `upstream` serves all rule sets, unless `send_to` was told otherwise."""

    def __init__(self, net: SteeredNet, relay: RelayNode, upstream: RawUpstream, receiver: Receiver) -> None:
        self.net, self.relay, self.upstream, self.receiver = net, relay, upstream, receiver
        self._fences = itertools.count()

    def begin(self) -> None:
        """Forget what earlier tests did."""
        self.upstream.forget()
        self.relay.records.clear()

    def connect(self, rule_set: int = RULES.id, version: int = 4) -> socket.socket:
        """A connection of the client through the relay."""
        return self.relay.connect(rule_set, version)

    def exchange(
        self, *pieces: bytes, rule_set: int = RULES.id, version: int = 4, half: bool = False, patience: float = 3.0
    ) -> Exchange:
        """Send the pieces, each read by itself, with a half-close behind them or not, and read to the end."""
        with self.connect(rule_set, version) as connection:
            deliver(connection, pieces, self.receiver)
            if half:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            return read_to_end(connection, patience)

    def ask(self, data: bytes, *methods: str, rule_set: int = RULES.id) -> Exchange:
        """Send it with a half-close behind it, and read to the end."""
        return self.exchange(data, rule_set=rule_set, half=True)

    def conversations(self) -> list[Conversation]:
        """All of the server's connections that had anything, once everything that was sent so far has arrived."""
        target = b"%b%d" % (_FENCE, next(self._fences))
        with self.connect() as connection:
            connection.sendall(request(line=b"GET " + target + b" HTTP/1.1"))
            assert read_answers(connection, 1)[-1].status == 200
        found = []
        for conversation in self.upstream.conversations:
            assert conversation.done.wait(20), f"the server's connection is still open: {conversation.received!r}"
            if _FENCE not in conversation.received:
                found.append(conversation)
        return found

    def requests_begun(self) -> list[Request]:
        """The whole requests that the server understood, of connections that may have ended in another one."""
        return [request for one in self.conversations() for request in one.requests]

    def requests(self) -> list[Request]:
        """What the server understood, of all connections; it must have understood all."""
        found = self.conversations()
        assert [(one.error, one.rest) for one in found] == [("", b"")] * len(found)
        return [request for one in found for request in one.requests]


def deliveries(data: bytes, cut_from: int = 0) -> Iterator[tuple[str, Sequence[bytes]]]:
    """The ways in which the bytes are sent: whole, one by one, in two at all places that matter."""
    yield "whole", [data]
    yield "byte by byte", [data[:cut_from], *by_bytes(data[cut_from:])] if cut_from else by_bytes(data)
    for first, second in cuts(data[cut_from:]):
        yield f"cut before {second[:20]!r}", [data[:cut_from] + first, second]


@contextlib.contextmanager
def bench(
    *rule_sets: RuleSet,
    limits: Limits | None = None,
    options: Mapping[int, Mapping[str, Any]] | None = None,
    connect_timeout: float = 5.0,
    buffer_limit: int = 65536,
) -> Iterator[Bench]:
    """The namespaces, the server and the relay, taken down afterwards."""
    with SteeredNet() as net, RawUpstream(net) as upstream, contextlib.closing(Receiver(net)) as receiver:
        relay = RelayNode(
            net,
            rule_sets or (RULES,),
            limits=limits,
            options=options,
            connect_timeout=connect_timeout,
            buffer_limit=buffer_limit,
        )
        with relay:
            yield Bench(net, relay, upstream, receiver)
