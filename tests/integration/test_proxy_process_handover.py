"""A new proxy takes over from a running one: nobody loses a request, and nothing is left behind."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.proxy.errors import HANDOVER_REFUSED
from spliceway.proxy.process.channel import Channel
from spliceway.proxy.process.handover import Hello, Offer, Refused
from support.proxynode import ProxyNode, ask, port_of, proxy_node, rules
from support.steered import SERVER

pytestmark = pytest.mark.kernel


def run(directory: Path, work: Callable[[ProxyNode], Awaitable[None]], **settings: Any) -> None:
    """Run `work` with a node that has a live proxy and one rule set."""

    async def main() -> None:
        async with asyncio.timeout(200), proxy_node(directory, **settings) as node:
            await node.start()
            await node.apply(rules(1))
            await work(node)

    asyncio.run(main())


def test_no_request_is_lost(tmp_path: Path) -> None:
    """Under load, several times in a row; connections that close after each answer, and ones that stay."""

    async def work(node: ProxyNode) -> None:
        load = [_wrk(node, "-H", "Connection: close"), _wrk(node)]
        await node.until(lambda: _at_least(node.stat("http.spliceway.downstream_rq_2xx"), 100), lambda: "load")
        for _ in range(3):
            old, new = node.started[-1], node.launch()
            await node.live(new)
            assert await old.ended() == 0, old.log
            assert not [line for line in old.logged + new.logged if line["level"] not in ("info", "debug")]
        for wrk in load:
            wrk.send_signal(signal.SIGINT)
            said = (await asyncio.to_thread(wrk.communicate))[0].decode()
            assert "Non-2xx" not in said
            errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
            assert errors is None, said
            assert int((re.search(r"(\d+) requests in", said) or ["", "0"])[1]) > 100, said

    run(tmp_path, work, workers=2, limits={"drain": 10})


def test_connections_that_drain_see_edits(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        old = node.started[-1]
        with await asyncio.to_thread(node.connect) as connection:
            assert (await asyncio.to_thread(ask, connection, "/old")).status == 200
            # It stays with the old one, which closes it after its next answer.
            await node.live(node.launch())
            node.serve(rules(1, "/new"), rules(2))
            await node.until(lambda: _equals(node.status("/old"), 403), lambda: node.started[-1].log)
            await node.until(lambda: _acked(node, streams=2), lambda: old.log)
            assert await node.status(rule_set=2) == 200
            denied = await asyncio.to_thread(ask, connection, "/old")
            assert denied.status == 403
            assert b"connection: close" in denied.head.lower()
        assert await old.ended() == 0
        assert "already in use" not in old.log

    run(tmp_path, work, workers=2)


def test_new_one_that_dies_changes_nothing(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        old = node.started[-1]
        with await asyncio.to_thread(node.connect) as connection:
            assert (await asyncio.to_thread(ask, connection)).status == 200
            new = node.launch()
            await node.until(lambda: "a new proxy takes over" in old.log, lambda: old.log + new.log)
            new.process.kill()
            await new.ended()
            await node.until(lambda: "was not completed" in old.log, lambda: old.log)
            assert (await asyncio.to_thread(ask, connection)).status == 200
        await node.apply(rules(1, "/new"))
        assert [await node.status(path) for path in ("/new", "/")] == [200, 403]
        assert (await node.info())["pid"] == old.pid
        await node.live(node.launch())
        assert await old.ended() == 0
        assert await node.status("/new") == 200

    run(tmp_path, work, workers=2)


def test_old_one_that_dies_leaves_it_to_the_new_one(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        old, new = node.started[-1], node.launch()
        await node.until(lambda: "a new proxy takes over" in old.log, lambda: old.log + new.log)
        old.process.kill()
        await node.live(new)
        assert await node.status() == 200
        await node.apply(rules(1, "/new"))
        assert await node.status("/") == 403

    run(tmp_path, work, workers=2)


def test_after_a_crash_the_lock_is_free(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        node.started[-1].process.kill()
        await node.live(node.launch())
        await node.apply()
        assert await node.status() == 200

    run(tmp_path, work, workers=1)


def test_foreign_version_is_refused(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        answer = await _say(node, Hello(99, "from the future"))
        assert isinstance(answer, Refused)
        assert "version 99" in answer.reason
        assert await node.status() == 200
        # And the other way round: a running one of another version.
        old = node.started[-1]
        handover = node.directory / "handover.sock"
        handover.unlink()
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(handover))
            listener.listen()
            listener.setblocking(False)
            new = node.launch()
            theirs, _ = await loop.sock_accept(listener)
            channel: Channel[Any] = Channel(loop, theirs, Hello, lambda *_: None, lambda _: None)
            channel.send(Refused("handover of version 1 is not known to this proxy (version 0)"))
            assert await new.ended() == HANDOVER_REFUSED
            channel.close()
        assert "does not hand over" in new.log
        assert "end it first" in new.log
        assert old.process.poll() is None
        assert await node.status() == 200

    run(tmp_path, work, workers=1)


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        await node.apply(*(rules(number) for number in range(1, 301)))
        sizes = []
        for _ in range(3):
            old, new = node.started[-1], node.launch()
            await node.live(new)
            await old.ended()
            sizes.append(new.files())
        assert sizes[0] == sizes[-1]
        assert [await node.status(rule_set=number) for number in (1, 300)] == [200, 200]

    run(tmp_path, work, workers=2)


def _wrk(node: ProxyNode, *arguments: str) -> subprocess.Popen[bytes]:
    enter, wrk = (shutil.which(name) or name for name in ("nsenter", "wrk"))
    url = f"http://{SERVER[4]}:{port_of(1)}/"
    return subprocess.Popen(
        [enter, f"--net={node.net.client}", wrk, "-t1", "-c8", "-d60", *arguments, url], stdout=subprocess.PIPE
    )


async def _say(node: ProxyNode, message: msgspec.Struct) -> Any:
    """Send this to the handover socket; the first answer."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    await loop.sock_connect(sock, str(node.directory / "handover.sock"))
    answer: asyncio.Future[Any] = loop.create_future()
    channel: Channel[Any] = Channel(
        loop, sock, Offer | Refused, lambda found, _: answer.done() or answer.set_result(found), lambda _: None
    )
    channel.send(message)
    try:
        return await asyncio.wait_for(answer, 10)
    finally:
        channel.close()


async def _equals(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted


async def _at_least(found: Awaitable[int], wanted: int) -> bool:
    return await found >= wanted


def _acked(node: ProxyNode, streams: int) -> bool:
    """Whether so many streams have acknowledged all that is published."""
    statuses = node.server.status(resources=False)
    return len(statuses) == streams and all(item.state == "SYNCED" for status in statuses for item in status.types)
