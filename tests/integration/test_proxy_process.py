"""`spliceway proxy` as a whole, with a real agent's xDS server, real workers and steered connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.testbed import netns
from spliceway.xds.debug.envoydump import reported
from spliceway.xds.envoyadmin import admin_get
from spliceway.xds.protocol.typeurls import LISTENER, ROUTE
from support.proxynode import ProxyNode, ask, port_of, proxy_node, rules

pytestmark = pytest.mark.kernel


def run(directory: Path, work: Callable[[ProxyNode], Awaitable[None]], **settings: Any) -> None:
    """Run `work` with a node."""

    async def main() -> None:
        async with asyncio.timeout(200), proxy_node(directory, **settings) as node:
            await work(node)

    asyncio.run(main())


def test_start_edit_and_remove(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        assert await node.listening() == set()
        await node.apply(rules(1, "/one"))
        assert [await node.status("/one", version=version) for version in (4, 6)] == [200, 200]
        assert await node.status("/two") == 403
        await node.apply(rules(1, "/two"), rules(2))
        assert (await node.status("/one"), await node.status("/two"), await node.status("/x", 2)) == (403, 200, 200)
        await node.apply(gone=(1,))
        with pytest.raises(ConnectionRefusedError):
            await node.status("/two")
        assert await node.status("/x", 2) == 200
        running.process.terminate()
        assert await running.ended() == 0
        assert [line for line in running.logged if line["level"] not in ("info", "debug")] == []

    run(tmp_path, work, workers=2)


def test_port_taken_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        with await asyncio.to_thread(netns.call, node.net.node, lambda: _listen(port_of(2))):
            node.serve(rules(1), rules(2))
            await node.until(
                lambda: any("address already in use" in event.error for event in node.events), lambda: running.log
            )
            await node.until(lambda: _listens(node, 1), lambda: running.log)
            assert await node.status() == 200
            known = reported(json.loads(await admin_get(node.admin_socket, "/config_dump?include_eds")))
            assert "address already in use" in known[LISTENER]["rule-set-2"].error
            assert known[LISTENER]["rule-set-1"].active is not None
            assert known[ROUTE]["rule-set-1"].active is not None
        await node.apply(move=50)
        assert [await node.status(rule_set=number, move=50) for number in (1, 2)] == [200, 200]

    run(tmp_path, work, workers=1)


def test_worker_killed_under_load(tmp_path: Path) -> None:
    """Its connections end, those of the others go on, and a new one accepts with the rules of now."""

    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        connections = await _connected(node, 24)
        idle = await _by_worker(node)
        answering = [await asyncio.to_thread(node.connect) for _ in range(12)]
        for connection in answering:
            connection.sendall(b"GET /a/slow HTTP/1.1\r\nHost: api\r\n\r\n")
        for connection in answering:
            await asyncio.to_thread(connection.recv, 1)
        busy = await _by_worker(node)
        taken = {number: busy[number] - idle.get(number, 0) for number in busy}
        number = max(taken, key=lambda one: taken[one])
        pids = (await node.info())["workers"]
        os.kill(pids[number], signal.SIGKILL)
        await node.until(lambda: _equals(node.stat("spliceway.worker_restarts_total"), 1), lambda: running.log)
        lived = [await asyncio.to_thread(_lives, connection) for connection in connections]
        assert lived.count(False) == idle.get(number, 0)
        whole = [await asyncio.to_thread(_is_whole, connection) for connection in answering]
        assert whole.count(False) == taken[number] > 0
        other = pids[1 - number]
        await node.apply(rules(1, "/new"))
        await node.until(lambda: len(running.children()) == 2, lambda: running.log)
        assert other in running.children()
        await node.until(lambda: _both_accept(node), lambda: "both workers accept")
        assert await node.status("/new") == 200
        assert await node.status("/") == 403
        await node.until(
            lambda: _at_least(node.stat("http.spliceway.downstream_rq_2xx"), lived.count(True)), lambda: running.log
        )

    run(tmp_path, work, workers=2)


def test_worker_that_hangs_keeps_nobody_waiting_for_long(tmp_path: Path) -> None:
    """New connections go to the others, and without any change it is ended after a while: its connections are reset."""

    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        held = [await asyncio.to_thread(node.connect, 1) for _ in range(40)]
        for connection in held:
            assert (await asyncio.to_thread(ask, connection, "/")).status == 200
        listed = json.loads(await admin_get(node.admin_socket, "/connections"))
        owners = [item["worker"] for item in listed["connections"]]
        pids = json.loads(await admin_get(node.admin_socket, "/server_info"))["workers"]
        victim = max(set(owners), key=owners.count)
        os.kill(pids[victim], signal.SIGSTOP)
        assert [await node.status() for _ in range(60)] == [200] * 60
        await node.until(lambda: "silent for" in running.log, lambda: running.log)
        await node.until(lambda: not Path(f"/proc/{pids[victim]}").exists(), lambda: running.log)
        for connection in held:
            connection.close()

    run(tmp_path, work, workers=2)


def test_worker_that_hangs_is_replaced_and_the_edit_is_in_force(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1, "/old"))
        victim, _ = running.children()
        os.kill(victim, signal.SIGSTOP)
        await node.apply(rules(1, "/new"))
        assert {await node.status("/old") for _ in range(8)} == {403}
        assert victim not in running.children()

    run(tmp_path, work, workers=2)


def test_supervisor_killed_takes_its_workers_with_it(tmp_path: Path) -> None:
    """Their connections are reset, nothing listens any more, and the next one serves from the state file."""

    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        state = node.directory / "proxy-state.bin"
        await node.until(lambda: state.exists() and b"rule-set-1" in state.read_bytes(), lambda: running.log)
        connection = await asyncio.to_thread(node.connect)
        connection.sendall(b"GET /a/slow HTTP/1.1\r\nHost: api\r\n\r\n")
        assert await asyncio.to_thread(connection.recv, 1)
        workers = [os.pidfd_open(pid) for pid in running.children()]
        running.process.kill()
        await running.ended()
        for worker in workers:
            assert (await asyncio.to_thread(select.select, [worker], [], [], 10))[0]
            os.close(worker)
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(_until_end, connection)
        assert await node.listening() == set()
        # The agent is away.
        await node.server.stop()
        await node.start()
        assert await node.status() == 200

    run(tmp_path, work, workers=2)


def test_drain_finishes_what_is_in_flight(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        busy, idle = await _connected(node, 2)
        busy.sendall(b"GET /a/slow HTTP/1.1\r\nHost: api\r\n\r\n")
        first = await asyncio.to_thread(busy.recv, 1)
        running.process.terminate()
        rest = await asyncio.to_thread(_until_end, busy)
        assert (first + rest).startswith(b"HTTP/1.1 200")
        assert (first + rest).endswith(b"Host: api")
        with pytest.raises(ConnectionRefusedError):
            await node.status()
        assert await asyncio.to_thread(_until_end, idle) == b""
        assert await running.ended() == 0

    run(tmp_path, work, workers=1, limits={"drain": 1.0})


def test_second_signal_does_not_wait(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        (idle,) = await _connected(node, 1)
        running.process.send_signal(signal.SIGINT)
        await node.until(lambda: '"draining"' in running.log, lambda: running.log)
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
        idle.close()

    run(tmp_path, work, workers=1, limits={"drain": 0})


def test_agent_away_and_back(tmp_path: Path) -> None:
    """What is in force stays; a new agent's edits arrive."""

    async def work(node: ProxyNode) -> None:
        await node.start()
        await node.apply(rules(1, "/old"))
        (connection,) = await _connected(node, 1, "/old")
        await node.server.stop()
        assert (await asyncio.to_thread(ask, connection, "/old")).status == 200
        assert await node.status("/old") == 200
        node.server = node.new_server()
        await node.server.start()
        await node.apply(rules(1, "/new"))
        assert (await asyncio.to_thread(ask, connection, "/new")).status == 200
        connection.close()
        assert await node.status("/old") == 403

    run(tmp_path, work, workers=2)


def test_nothing_leaks_when_listeners_change(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        assert await node.status() == 200
        before = running.files()
        for count in range(50):
            await node.apply(rules(2), move=count % 2 * 10)
            await node.apply(gone=(2,), move=count % 2 * 10)
        await node.apply()
        assert await node.status() == 200
        await node.until(lambda: running.files() <= before, lambda: f"{running.files()} files, {before} before")

    run(tmp_path, work, workers=2)


def test_five_hundred_listeners(tmp_path: Path) -> None:
    """More descriptors than one message takes, at once to a new worker too."""

    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(*(rules(number) for number in range(1, 501)))
        assert [await node.status(rule_set=number) for number in (1, 250, 500)] == [200, 200, 200]
        for victim in running.children():
            os.kill(victim, signal.SIGKILL)
        await node.until(lambda: _equals(node.stat("spliceway.worker_restarts_total"), 2), lambda: running.log)
        assert [await node.status(rule_set=number) for number in (1, 250, 500)] == [200, 200, 200]
        assert await node.stat("listener_manager.total_listeners_active") == 500

    run(tmp_path, work, workers=2)


def test_admin_interface(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        await node.apply(rules(1))
        assert node.admin_socket.stat().st_mode & 0o777 == 0o600
        info = await node.info()
        assert (info["pid"], sorted(info["workers"])) == (running.pid, sorted(running.children()))
        (connection,) = await _connected(node, 1)
        (shown,) = json.loads(await admin_get(node.admin_socket, "/connections"))["connections"]
        assert shown["worker"] in (0, 1)
        await node.until(lambda: _equals(node.stat("http.spliceway.downstream_rq_2xx"), 1), lambda: running.log)
        text = (await admin_get(node.admin_socket, "/stats/prometheus")).decode()
        assert (
            'envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="spliceway",envoy_response_code_class="2"} 1.0'
            in text
        )
        assert "spliceway_proxy_workers 2.0" in text
        snapshot = node.server.snapshot("node-under-test")
        assert snapshot is not None
        dump = json.loads(await admin_get(node.admin_socket, "/config_dump?include_eds"))
        known = reported(dump)
        for url, of in snapshot.types.items():
            assert known[url].keys() == of.resources.keys()
            assert all(item.active is not None and not item.unread for item in known[url].values())
        # No allowed request is recorded from here on; denied ones always are.
        await node.until(lambda: len(node.flows) == 1, lambda: str(node.flows))
        await admin_get(node.admin_socket, "/runtime_modify?spliceway.access_log.allowed=0", method="POST")
        assert (await asyncio.to_thread(ask, connection)).status == 200
        assert (await asyncio.to_thread(ask, connection, "/%2f")).status in (400, 403)
        await node.until(lambda: len(node.flows) == 2, lambda: str(node.flows))
        assert [flow.status == 200 for flow in node.flows] == [True, False]
        connection.close()

    run(tmp_path, work, workers=2)


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


async def _listens(node: ProxyNode, rule_set: int) -> bool:
    return port_of(rule_set) in await node.listening()


async def _equals(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted


async def _at_least(found: Awaitable[int], wanted: int) -> bool:
    return await found >= wanted


async def _connected(node: ProxyNode, count: int, path: str = "/") -> list[socket.socket]:
    """Connections that had an answer each."""
    made = [await asyncio.to_thread(node.connect) for _ in range(count)]
    for connection in made:
        assert (await asyncio.to_thread(ask, connection, path)).status == 200
    return made


async def _by_worker(node: ProxyNode) -> dict[int, int]:
    """Connections of each worker that has any."""
    found: dict[int, int] = {}
    for item in json.loads(await admin_get(node.admin_socket, "/connections"))["connections"]:
        found[item["worker"]] = found.get(item["worker"], 0) + 1
    return found


async def _both_accept(node: ProxyNode) -> bool:
    with contextlib.ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(await asyncio.to_thread(node.connect))
        return sorted(await _by_worker(node)) == [0, 1]


def _lives(connection: socket.socket) -> bool:
    """Whether it still answers; otherwise it must have been reset. It is closed."""
    with connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
            return connection.recv(65536).startswith(b"HTTP/1.1 200")
        except (ConnectionResetError, BrokenPipeError):
            return False


def _is_whole(connection: socket.socket) -> bool:
    """Whether the answer comes to its end; otherwise it must be a reset that cuts it. It is closed."""
    found = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while not found.endswith(b"Host: api"):
            data = connection.recv(65536)
            assert data, "a cut answer looks complete"
            found += data
        return True
    return False


def _until_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes; a reset is an error."""
    with connection:
        found = b""
        while data := connection.recv(65536):
            found += data
        return found
