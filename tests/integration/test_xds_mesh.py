"""Beside istiod: who asks as one of its proxies gets nothing of ours, and what its side has is read without trust."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from envoy.config.core.v3 import base_pb2
from typer.testing import CliRunner

from spliceway.agent import boundedget
from spliceway.agent.boundedget import GetError
from spliceway.agent.cli.meshdump import loopback
from spliceway.agent.cli.root import app as cli
from spliceway.agent.errors import ClientError
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.server.clients import NodeKey
from support.xdsbed import Bed, run, state

#: As pilot-agent names a sidecar's Envoy.
SIDECAR = "sidecar~10.1.0.7~web-7d9.default~default.svc.cluster.local"


@pytest.mark.parametrize("variant", ["sotw", "delta"])
@pytest.mark.parametrize(
    ("node", "cluster"),
    [(SIDECAR, "web.default"), (SIDECAR, "spliceway"), ("node1", "istio-proxy"), ("", "web.default")],
)
def test_a_proxy_of_istiods_gets_nothing(tmp_path: Path, variant: str, node: str, cluster: str) -> None:
    """Our proxy has the node's name and our cluster; nobody else is served, and who says no name is refused."""

    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NodeKey("node1", "spliceway"), state("1", CDS="c", LDS="l", RDS="r>c"))
        own = bed.stream(variant, base_pb2.Node(id="node1", cluster="spliceway"))
        await own.ask(CLUSTER)
        assert (await own.read()).type_url == CLUSTER
        other = bed.stream(variant, base_pb2.Node(id=node, cluster=cluster))
        await other.ask(CLUSTER)
        if not node:
            assert "must have a node id" in await other.details()
            return
        for url, names in ((LISTENER, ()), (ROUTE, ("r",))):
            await other.ask(url, *names)
        await other.silent()
        (told,) = [one for one in bed.server.status() if (one.client.node, one.client.cluster) == (node, cluster)]
        assert not told.snapshot
        assert all(not item.resources or item.state == "NOT SENT" for item in told.types)

    run(tmp_path / "xds.sock", work)


@contextlib.contextmanager
def answering(work: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of this machine's loopback at which one connection is answered so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                work(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                socket.create_connection(listener.getsockname(), 1).close()
            thread.join(30)
            assert not thread.is_alive()


def said(*pieces: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    def work(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)

    return work


def test_a_whole_answer_in_any_shape() -> None:
    for head, body in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"[]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n1\r\n]\r\n0\r\n\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"[]"),
    ):
        with answering(said(head, body)) as port:
            assert boundedget.get("127.0.0.1", port, "/debug/syncz") == b"[]"


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (said(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), "answered 401"),
        (said(b"SSH-2.0-x\r\n"), "illegal|peer|protocol|malformed"),
        (said(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12"), "peer closed|incomplete"),
        (said(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 1000, pause=0.01), "no whole answer within 1 s"),
        (said(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 1000, pause=0.01), "no whole answer within 1 s"),
        (said(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20)), "too long|illegal|exceed"),
        (said(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 65536] * 64), "more than 1048576 bytes"),
        (said(pause=0.0), "closed|unexpect|Event|state|peer|without"),
    ],
)
def test_what_is_no_answer_is_told_in_time(work: Callable[[socket.socket], None], why: str) -> None:
    begun = time.monotonic()
    with answering(work) as port, pytest.raises(GetError, match=why):
        boundedget.get("127.0.0.1", port, "/config_dump", wait=1.0, most=1 << 20)
    assert time.monotonic() - begun < 15.0


def test_who_says_nothing_is_not_waited_for_longer() -> None:
    done = threading.Event()
    with answering(lambda _: (bool(done.wait(20)) and None) or None) as port:
        begun = time.monotonic()
        with pytest.raises(GetError, match=r"no whole answer within 0.3 s"):
            boundedget.get("127.0.0.1", port, "/", wait=0.3)
        assert time.monotonic() - begun < 5.0
        done.set()


def test_more_objects_than_text_has_room_for_are_refused() -> None:
    assert boundedget.checked(b"{}" * 10, "x") == b"{}" * 10
    with pytest.raises(GetError, match="more than 500000 objects"):
        boundedget.checked(b"[" + b"{}," * 500_001 + b"{}]", "x")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("127.0.0.1", ("127.0.0.1", 15014)),
        ("http://localhost/debug/syncz", ("127.0.0.1", 15014)),
        ("http://[::1]:15014/", ("::1", 15014)),
    ],
)
def test_addresses_of_this_machine(text: str, wanted: tuple[str, int]) -> None:
    assert loopback(text, 15014) == wanted


@pytest.mark.parametrize(
    "text",
    ["http://10.0.0.1:15014", "istiod.istio-system:15014", "https://127.0.0.1", "http://127.0.0.1:x", "", "[", "http://",
     "http://127.0.0.1@10.0.0.1", "http://127.0.0.1/quitquitquit", "file:///etc/passwd", "http://127.0.0.1:99999"],
)  # fmt: skip
def test_nobody_else_is_asked(text: str) -> None:
    with pytest.raises(ClientError, match="port-forward"):
        loopback(text, 15014)


def answer_of(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def dump(tmp_path: Path, *arguments: str, status: int = 0) -> str:
    """`spliceway xds dump` on a machine without an agent, as beside a forwarded port."""
    result = CliRunner().invoke(cli, ["xds", "dump", *arguments, "--socket", str(tmp_path / "none.sock")])
    assert result.exit_code == status, result.output
    return result.output


def test_istiods_view_by_the_command(tmp_path: Path) -> None:
    body = json.dumps(
        [
            {"proxy": SIDECAR, "cluster_sent": "aa", "cluster_acked": "aa", "listener_sent": "bb"},
            {"proxy": "evil\x1b[2J", "resources": {CLUSTER: {"sent": "x", "lastError": "no\nway"}}},
        ]
    ).encode()
    with answering(said(answer_of(body))) as port:
        output = dump(tmp_path, "--istiod", f"http://127.0.0.1:{port}")
    assert "nothing of ours" in output
    rows = [line.split() for line in output.splitlines() if line.startswith("istiod")]
    assert [[row[1], row[2], row[4]] for row in rows][:2] == [[SIDECAR, "CDS", "SYNCED"], [SIDECAR, "LDS", "STALE"]]
    assert "\x1b" not in output
    assert [rows[-1][2], rows[-1][4]] == ["CDS", "NACK"]
    with answering(said(answer_of(body))) as port:
        output = dump(tmp_path, "--istiod", f"127.0.0.1:{port}", "--type", "LDS", "-o", "json")
    found = json.loads(output[output.index("[") :])
    assert [(one["source"], one["type"], one["state"]) for one in found] == [("istiod", "LDS", "STALE")]


def test_a_forwarded_sidecars_view_by_the_command(tmp_path: Path) -> None:
    body = b'{"configs": [{"static_listeners": [{"listener": {"name": "virtualInbound"}}]}]}'
    with answering(said(answer_of(body))) as port:
        assert "virtualInbound" in dump(tmp_path, "--address", f"http://127.0.0.1:{port}")
    with answering(said(answer_of(b"<html>"))) as port:
        assert "not the JSON" in dump(tmp_path, "--address", f"http://127.0.0.1:{port}", status=1)
    assert "port-forward" in dump(tmp_path, "--istiod", "http://istiod.istio-system:15014", status=1)
    assert "choose one" in dump(tmp_path, "--address", "127.0.0.1:1", "--sidecar", "a/b", status=2)
