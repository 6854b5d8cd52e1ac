"""Updates, refusals and outages with a real Envoy; rules by their numbers in docs/xds.md."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2

from spliceway.agent.testbed import netns
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.accesslog.flow import LossCounter
from spliceway.xds.envoyadmin import admin_stats
from spliceway.xds.errors import NotAcceptedError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.names import FILTER_POLICY, listener_name
from support.envoy import NODE_ID, EnvoyNode, envoy_node, port_of
from support.steered import read_reply
from support.waiting import until_async

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def rule_set(key: int, path: str = "/a") -> RuleSet:
    return RuleSet(key, f"set {key}", (HttpRule(key, "GET", path),))


def run(directory: Path, work: Callable[[EnvoyNode], Awaitable[None]], concurrency: int = 1) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), envoy_node(directory, concurrency=concurrency) as node:
            await work(node)

    asyncio.run(main())


async def statuses(node: EnvoyNode, *keys: int) -> list[int]:
    return [(await asyncio.to_thread(node.get, key, "/a")).status for key in keys]


@contextlib.contextmanager
def live_connection(node: EnvoyNode, key: int) -> Iterator[Callable[[], int]]:
    """A connection that stays open; the call sends one request on it and returns the status."""

    def ask() -> int:
        connection.sendall(GET)
        return read_reply(connection).status

    with node.connect(key) as connection:
        yield ask


def test_an_edit_reaches_live_connections_without_ending_them(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1))
        with live_connection(node, 1) as ask:
            for path, expected in (("/a", 200), ("/b", 403), ("/a|/b", 200), ("/c", 403)):
                await node.apply(rule_set(1, path))
                assert await asyncio.to_thread(ask) == expected
        stats = await admin_stats(node.bootstrap.admin_socket, "listener_manager")
        assert stats["listener_manager.listener_modified"] == 0

    run(tmp_path, work)


def test_several_workers_all_serve(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1))
        serving = 0
        while serving < 2:
            assert await statuses(node, *[1] * 10) == [200] * 10
            stats = await admin_stats(node.bootstrap.admin_socket, "worker_..downstream_cx_total")
            serving = sum(value > 0 for value in stats.values())
        # On one socket, beside which nobody can have another.
        with pytest.raises(OSError, match="in use"):
            netns.call(node.net.node, partial(bind_beside, port_of(1)))

    run(tmp_path, work, concurrency=2)


def bind_beside(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))


def with_large_program(snapshot: Snapshot, key: int, version: str) -> Snapshot:
    """The same with an expression that Envoy refuses, past all checks of ours."""
    bodies = snapshot.bodies()
    body = bodies[ROUTE][listener_name(key)]
    large = "[a-z]{900}" * 2
    config = route_pb2.RouteConfiguration.FromString(body)
    route = config.virtual_hosts[0].routes[0]
    override = route.typed_per_filter_config[FILTER_POLICY]
    rules = rbac_pb2.RBACPerRoute()
    override.Unpack(rules)
    for policy in rules.rbac.rules.policies.values():
        for rule in policy.permissions[0].and_rules.rules:
            rule.header.string_match.safe_regex.regex = large
    override.Pack(rules)
    bodies[ROUTE][listener_name(key)] = config.SerializeToString(deterministic=True)
    return Snapshot.of(version, bodies, snapshot)


def test_a_bad_route_changes_nothing_and_holds_back_no_good_one(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1), rule_set(2))
        served = node.server.snapshot(NODE_ID)
        assert served is not None
        edited = {1: rule_set(1), 2: rule_set(2, "/b")}
        good = build_snapshot(edited, {1: port_of(1), 2: port_of(2)}, node.settings, "edit", served)
        node.server.set_snapshot(NODE_ID, with_large_program(good, 1, "bad"))
        with pytest.raises(NotAcceptedError, match="rule-set-1") as caught:
            await node.server.wait_acked(NODE_ID, 5)
        assert caught.value.resources == ("rule-set-1",)
        await node.server.wait_acked(NODE_ID, 5, rule_sets=[2])
        assert await statuses(node, 1, 2) == [200, 403]
        # Rule 6: rolling back needs a new version, and gets one.
        await node.apply(rule_set(1), rule_set(2))
        assert await statuses(node, 1, 2) == [200, 200]

    run(tmp_path, work)


def test_expressions_up_to_the_limit_are_accepted(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1, "/[a-z]{900}"))
        reply = await asyncio.to_thread(node.get, 1, "/" + "x" * 900)
        assert reply.status == 200

    run(tmp_path, work)


def test_rule_6_a_listener_that_cannot_bind_leaves_the_others_alone(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1))

        def occupy() -> socket.socket:
            taken = socket.socket()
            taken.bind(("127.0.0.1", port_of(2)))
            taken.listen()
            return taken

        with netns.call(node.net.node, occupy):
            with pytest.raises(NotAcceptedError, match=r"cannot bind|Address already in use"):
                await node.apply(rule_set(1), rule_set(2), rule_set(3))
            assert await statuses(node, 1) == [200]
        await node.apply(rule_set(1), rule_set(3))
        assert await statuses(node, 1, 3) == [200, 200]
        await node.apply(rule_set(1), rule_set(2), rule_set(3))
        assert await statuses(node, 1, 2, 3) == [200, 200, 200]

    run(tmp_path, work)


def test_rule_16_nothing_fails_while_others_come_and_go(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1))
        stop = threading.Event()
        seen: list[int] = []

        def load() -> None:
            while not stop.is_set():
                seen.append(node.get(1, "/a").status)

        worker = threading.Thread(target=load)
        worker.start()
        try:
            with live_connection(node, 1) as ask:
                for turn in range(10):
                    await node.apply(rule_set(1), *(rule_set(key) for key in range(2, 2 + turn)))
                    assert await asyncio.to_thread(ask) == 200
                    assert await statuses(node, *range(2, 2 + turn)) == [200] * turn
                    await node.apply(rule_set(1))
        finally:
            stop.set()
            await asyncio.to_thread(worker.join)
        assert len(seen) > 20
        assert set(seen) == {200}

    run(tmp_path, work)


def test_rule_22_the_last_listener_goes_and_comes_back(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        for _ in range(5):
            await node.apply(rule_set(1))
            assert await statuses(node, 1) == [200]
            await node.apply()
            # The workers close their sockets a moment after the acknowledgement: until then connections are reset.
            with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
                await statuses(node, 1)
        before = len(node.server.status()[0].types)
        await asyncio.sleep(0.3)
        assert len(node.server.status()[0].types) == before

    run(tmp_path, work)


@contextlib.asynccontextmanager
async def agent_away(node: EnvoyNode) -> AsyncIterator[None]:
    """The server stops; afterwards there is a new one, without a snapshot."""
    await node.server.stop()
    yield
    node.server = node.new_server()
    await node.server.start()


def test_rule_23_an_agent_that_is_away_is_not_missed_and_soon_found_again(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1))
        with live_connection(node, 1) as ask:
            async with agent_away(node):
                for _ in range(10):
                    assert await asyncio.to_thread(ask) == 200
                    assert await statuses(node, 1) == [200]
                    await asyncio.sleep(0.3)  # long enough for Envoy's back-off to reach its end
            await until_async(node.server.status, told=lambda: "Envoy does not come back")
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(ask) == 200  # nothing was served, so nothing was taken away
            assert await statuses(node, 1) == [200]
            await node.apply(rule_set(1, "/b"))
            assert await asyncio.to_thread(ask) == 403

    run(tmp_path, work)


def test_envoy_without_an_agent_listens_on_nothing_and_waits(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        ports = await asyncio.to_thread(partial(netns.call, node.net.node, netns.listening_ports))
        assert ports == set()
        await node.apply(rule_set(1))
        assert await statuses(node, 1) == [200]

    run(tmp_path, work)


def test_every_request_is_in_the_log_and_losses_are_counted(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1))
        counter = LossCounter()

        async def lost() -> int:
            name = "access_logs.grpc_access_log.logs_written"
            written = (await admin_stats(node.bootstrap.admin_socket, name)).get(name, 0)
            return counter.observe("one process", written, node.server.flows_received)

        assert await lost() == 0
        await statuses(node, *[1] * 50)
        assert len(await node.flow(50)) == 50
        assert await lost() == 0
        async with agent_away(node):
            await statuses(node, *[1] * 20)
            await asyncio.sleep(0.3)
        await until_async(node.server.status)
        node.server.flows_received = 50  # one count goes on across servers
        assert 0 <= await lost() <= 20

    run(tmp_path, work)
