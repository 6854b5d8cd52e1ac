"""A pod that answers at its sidecar's admin port by itself harms nobody: it is bounded in time and size, and told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from spliceway.agent.boundedget import GetError
from spliceway.agent.sidecardump import HOST, PORT, SidecarDump
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.types import LocalEndpoint
from spliceway.xds.errors import AdminError
from support.kernel import node_cluster
from support.node import pod_manifest

pytestmark = pytest.mark.kernel

WAIT = 1.0
OK = b"HTTP/1.1 200 OK\r\n\r\n"
GOOD = b'{"configs": [{"static_listeners": [{"listener": {"name": "\\u001b[2Jx"}}]}]}'


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    with Testbed.up([pod_manifest("web"), pod_manifest("plain")]) as made:
        yield made


@pytest.fixture
def endpoints(testbed: Testbed) -> list[LocalEndpoint]:
    _, found = node_cluster(testbed.node)
    return [msgspec.structs.replace(one, mesh="sidecar" if one.name == "default/web" else "") for one in found]


@contextlib.contextmanager
def standing_in(pod: Pod, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """While somebody in the pod answers each connection so."""
    listener = netns.call(pod.netns, lambda: socket.create_server((HOST, PORT)))
    ended = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            if ended.is_set():
                connection.close()
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        netns.call(pod.netns, lambda: socket.create_connection((HOST, PORT), 5).close())
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def endless(connection: socket.socket) -> None:
    connection.sendall(OK)
    while True:
        connection.sendall(b" " * 65536)


def slow(connection: socket.socket) -> None:
    connection.sendall(OK)
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def silent(connection: socket.socket) -> None:
    connection.settimeout(10)
    connection.recv(1)  # until the other side has had enough


def test_a_good_answer_is_read_there_and_nowhere_else(testbed: Testbed, endpoints: list[LocalEndpoint]) -> None:
    view = SidecarDump(lambda: endpoints)
    with standing_in(testbed.pod("web"), lambda connection: connection.sendall(OK + GOOD)):
        (found,) = asyncio.run(view({"pod": "default/web"}))
    assert (found.node, found.type, found.name, found.state) == ("default/web", "LDS", "\x1b[2Jx", "STATIC")


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (endless, GetError, "more than 33554432 bytes|no whole answer"),
        (slow, GetError, "no whole answer within 1 s"),
        (silent, GetError, "no whole answer within 1 s"),
        (
            lambda one: one.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n"),
            GetError,
            "answered 302",
        ),
        (lambda one: one.sendall(OK + b"<html>"), AdminError, "not the JSON of Envoy's"),
        (lambda one: one.sendall(OK + b"[" * 100_000), AdminError, "not the JSON of Envoy's"),
        (lambda one: one.sendall(OK + b'{"configs": [' + b"{}," * 600_000 + b"{}]}"), GetError, "500000 objects"),
    ],
)
def test_a_bad_one_is_told_in_time(
    testbed: Testbed,
    endpoints: list[LocalEndpoint],
    answer: Callable[[socket.socket], None],
    error: type[Exception],
    why: str,
) -> None:
    view, begun = SidecarDump(lambda: endpoints, wait=WAIT), time.monotonic()
    with standing_in(testbed.pod("web"), answer), pytest.raises(error, match=why):
        asyncio.run(view({"pod": "default/web"}))
    assert time.monotonic() - begun < 20.0


def test_whose_sidecar_is_not_there(endpoints: list[LocalEndpoint]) -> None:
    view = SidecarDump(lambda: endpoints)
    with pytest.raises(GetError, match="refused"):  # nobody listens there
        asyncio.run(view({"pod": "default/web"}))
    for name, why in (("default/plain", "has no sidecar"), ("default/other", "no pod 'default/other' on this node")):
        with pytest.raises(LookupError, match=why):
            asyncio.run(view({"pod": name}))
    for query in ({}, {"pod": "default/web", "port": "22"}):
        with pytest.raises(ValueError, match="NAMESPACE/POD"):
            asyncio.run(view(query))
    gone = [msgspec.structs.replace(one, netns=one.netns.with_name("gone")) for one in endpoints]
    with pytest.raises(DatapathError, match="No such file"):
        asyncio.run(SidecarDump(lambda: gone)({"pod": "default/web"}))
