"""Dials: connections by sockets, all at once, each with a request that rules allow and one that they don't."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from spliceway.agent.testbed import netns
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason
from support.bypass import FAR, FAR_LOCAL, LOCAL, SELF, WEB, Hunt, Token, cluster_ip, external_ip

#: Until a dial that nobody has answered counts as dropped, in seconds: the second SYN comes after one. And how long an
#: answer may take that has to come.
_WAIT, _PATIENCE = 1.6, 15.0


class Ends(NamedTuple):
    """How a dial has to end: what the two requests get, and of one that is dropped, where and why (any of these)."""

    statuses: tuple[int, int]
    hooks: frozenset[Hook] = frozenset()
    reasons: frozenset[Reason] = frozenset()


def denied(hook: Hook, *reasons: Reason) -> Ends:
    """Dropped there, for one of these reasons."""
    return Ends((0, 0), frozenset({hook}), frozenset(reasons))


PROXIED = Ends((200, 403))
#: No policy is about it.
DIRECT = Ends((200, 200))


class Dial(NamedTuple):
    """`backend`: who serves at the far end."""

    name: str
    client: str
    address: str
    port: int
    backend: str
    ends: Ends


class Done(NamedTuple):
    """What came of a dial: a status for each request (0: none), and their tokens."""

    dial: Dial
    statuses: tuple[int, int]
    tokens: tuple[Token, Token]


def dials(hunt: Hunt, version: int) -> Iterator[Dial]:
    """Every way to dial that there is on this profile."""
    for client in ("client", "stranger", "outside"):
        yield Dial(f"{client}: the pod", client, hunt.address("server", version), 80, "server", PROXIED)
    yield Dial("buyer: a pod elsewhere", "buyer", hunt.address("far", version), 80, "far", PROXIED)
    no = denied(Hook.FROM_POD, Reason.DEFAULT_DENY)
    yield Dial("walker: the pod", "walker", hunt.address("server", version), 80, "server", no)
    yield Dial("walker: a pod elsewhere", "walker", hunt.address("far", version), 80, "far", no)
    if hunt.profile.kube_proxy != "none":
        yield from _by_services(hunt, version)


def _by_services(hunt: Hunt, version: int) -> Iterator[Dial]:
    here, there = hunt.node_address(version), hunt.node_address(version, 1)

    def ways(number: int) -> dict[str, tuple[str, int]]:
        return {
            "ClusterIP": (str(cluster_ip(number, version)), 80),
            "external IP": (str(external_ip(number, version)), 80),
            "NodePort": (here, 30000 + number),
        }

    for client in ("client", "outside"):
        for number, kind in ((WEB, "Cluster"), (LOCAL, "Local")):
            for way, at in ways(number).items():
                if client == "client" or way == "NodePort":  # nobody routes the others' addresses from outside
                    yield Dial(f"{client}: {way}, {kind}", client, *at, "server", PROXIED)
        # The other node masquerades what it sends on.
        yield Dial(f"{client}: NodePort of the other node", client, there, 30000 + WEB, "server", PROXIED)
    at_pod, at_uplink = Hook.TO_POD, Hook.TO_NETWORK
    for number, kind in ((WEB, "Cluster"), (LOCAL, "Local"), (FAR, "Cluster"), (FAR_LOCAL, "Local")):
        backend = "server" if number in (WEB, LOCAL) else "far"
        hook = at_pod if backend == "server" else at_uplink
        for way, at in ways(number).items():
            masqueraded = kind == "Cluster" and way != "ClusterIP"
            name = f"{way} to {backend}, {kind}"
            yield Dial(f"walker: {name}", "walker", *at, backend, denied(hook, Reason.DEFAULT_DENY))
            ends = denied(hook, Reason.NOT_STEERED) if masqueraded else PROXIED
            yield Dial(f"buyer: {name}", "buyer", *at, backend, ends)
            if kind == "Cluster":  # the proxy has dialled it, and asked the rules for host or world
                other = PROXIED if hunt.known and way == "ClusterIP" else denied(hook, Reason.NOT_STEERED)
                yield Dial(f"shopper: {name}", "shopper", *at, backend, other)
    for way, at in ways(FAR).items():
        yield Dial(f"client: {way} to far", "client", *at, "far", DIRECT)
    # A pod that is its own backend.
    for way, at in ways(SELF).items():
        yield Dial(f"loner: {way} to itself", "loner", *at, "loner", DIRECT)
    for way, at in ways(WEB).items():
        yield Dial(f"server: {way} to itself", "server", *at, "server", PROXIED)


def run(hunt: Hunt, wanted: Iterable[Dial]) -> list[Done]:
    """Dial all of them, two connections each."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        tokens: list[tuple[Dial, tuple[Token, Token]]] = []
        statuses: dict[str, int] = {}
        for dial in wanted:
            pair = Token(), Token()
            tokens.append((dial, pair))
            for token, path in zip(pair, ("open", "closed"), strict=True):
                sock = netns.call(hunt.pod(dial.client).netns, lambda dial=dial: _begin(dial))  # type: ignore[misc]
                stack.enter_context(sock)
                request = f"GET /{path}/{token.text} HTTP/1.1\r\nHost: hunt\r\nConnection: close\r\n\r\n"
                selector.register(sock, selectors.EVENT_WRITE, (token, request.encode(), dial.ends.statuses != (0, 0)))
        _talk(selector, statuses)
    return [
        Done(dial, (statuses.get(one.text, 0), statuses.get(other.text, 0)), (one, other))
        for dial, (one, other) in tokens
    ]


def _begin(dial: Dial) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in dial.address else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex((dial.address, dial.port))
    return sock


def _talk(selector: selectors.BaseSelector, statuses: dict[str, int]) -> None:
    begin = time.monotonic()
    while open_ := selector.get_map():
        limit = _PATIENCE if any(key.data[2] for key in open_.values()) else _WAIT
        if (left := begin + limit - time.monotonic()) <= 0:
            break
        for key, event in selector.select(left):
            sock, (token, request, _) = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            try:
                if event & selectors.EVENT_WRITE:
                    sock.send(request)
                    selector.modify(sock, selectors.EVENT_READ, key.data)
                    continue
                answer = sock.recv(65536)
                if answer.startswith(b"HTTP/1.1 ") and answer[9:12] != b"503":  # the proxy got nowhere
                    statuses[token.text] = int(answer[9:12])
            except OSError:
                pass
            selector.unregister(sock)


def complaints(hunt: Hunt, done: Done, records: int) -> Iterator[str]:
    """What is wrong about how a dial has ended."""
    dial, ends = done.dial, done.dial.ends
    if done.statuses != ends.statuses:
        yield f"{dial.name}: got {done.statuses}, not {ends.statuses}"
    if ends is not DIRECT and hunt.arrived(done.tokens[1]):
        yield f"{dial.name}: the request that no rule allows has reached a server"
    for token, status in zip(done.tokens, ends.statuses, strict=True):
        if ends is PROXIED and not hunt.logged(token, status):
            yield f"{dial.name}: {status} is not in the access log"
    if not ends.reasons:
        return
    if hunt.arrived(done.tokens[0]):
        yield f"{dial.name}: a request has reached a server"
    version = hunt.pod(dial.backend).address(6 if ":" in dial.address else 4)
    found = {(flow.hook, flow.reason) for flow in hunt.flows(records) if str(flow.destination) == str(version)}
    if not any(hook in ends.hooks and reason in ends.reasons for hook, reason in found):
        yield f"{dial.name}: dropped, but the records for {version} say {sorted(found)}"
