"""Listeners and clusters of one's own in a real Envoy, beside policy's; and what happens where Envoy refuses one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from spliceway.agent.config import Config, parse_config
from spliceway.agent.errors import ConfigError
from spliceway.agent.testbed import netns
from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.envoyadmin import admin_stats
from spliceway.xds.errors import NotAcceptedError
from spliceway.xds.resources.build import build_snapshot
from support.envoy import NODE_ID, EnvoyNode, port_of
from support.extralistener import EXTENSIONS, extra_listener
from support.steered import SERVER, Reply, SteeredNet, dial, read_reply
from support.waiting import LIMIT, until_async

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

#: The node's address towards the client.
GATE = "10.241.1.1"
BASE = {"proxy": {"kind": "envoy"}, "cgroups": {"pods": "/a", "proxy": "/b"}, "source": {"directory": "/c"}}


def listener(name: str, port: int, **changes: object) -> dict[str, Any]:
    return extra_listener(name, port, "server", **changes)


def cluster(name: str, address: str = SERVER[4]) -> dict[str, Any]:
    """A cluster of one endpoint: the server behind the node."""
    endpoint = {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}


def config(listeners: list[Any], clusters: list[Any]) -> Config:
    """The agent's configuration with these, by way of its text."""
    document = {**BASE, "envoy": {"extraListeners": listeners, "extraClusters": clusters}}
    return parse_config(yaml.safe_dump(document, sort_keys=False), "agent.yaml")


def rule_set(key: int, path: str = "/a") -> RuleSet:
    return RuleSet(key, f"set {key}", (HttpRule(key, "GET", path),))


class ExtraNode:
    """An EnvoyNode that is given extra resources, too."""

    def __init__(self, node: EnvoyNode) -> None:
        self.node = node
        self._revision = 0

    def publish(self, sets: dict[int, str], listeners: list[Any], clusters: list[Any]) -> None:
        """Serve rule sets (id -> allowed path) and these."""
        self._revision += 1
        extra = config(listeners, clusters).envoy_extra()
        by_id = {key: rule_set(key, path) for key, path in sets.items()}
        ports = {key: port_of(key) for key in by_id}
        server = self.node.server
        version, before = f"{id(self):x}.{self._revision}", server.snapshot(NODE_ID)
        server.set_snapshot(NODE_ID, build_snapshot(by_id, ports, self.node.settings, version, before, extra))

    async def acked(self, *rule_sets: int) -> None:
        """Wait until everything is acknowledged, or what belongs to these rule sets. Raises NotAcceptedError."""
        await self.node.server.wait_acked(NODE_ID, LIMIT, rule_sets=list(rule_sets) or None)

    async def policy(self, key: int, path: str = "/a") -> int:
        """Status of a request through a rule set's listener; waits for the socket."""

        async def answered() -> int:
            with contextlib.suppress(ConnectionRefusedError):
                return (await asyncio.to_thread(self.node.get, key, path)).status
            return 0

        return int(await until_async(answered, told=lambda: f"nobody listens for rule set {key}:\n{self.node.log()}"))

    def extra(self, port: int) -> Reply:
        """Answer to a request to an extra listener."""
        with self.connection(port) as ask:
            return ask()

    @contextlib.contextmanager
    def connection(self, port: int) -> Iterator[Callable[[], Reply]]:
        """A connection to an extra listener; the call sends one request."""
        with dial(self.node.net.client, (GATE, port)) as connection:

            def ask() -> Reply:
                connection.sendall(b"GET /anything HTTP/1.1\r\nHost: a\r\n\r\n")
                return read_reply(connection)

            yield ask


def run(
    directory: Path,
    delta: bool,
    work: Callable[[ExtraNode], Awaitable[None]],
    before: Callable[[ExtraNode], None] = lambda node: None,
) -> None:
    """Run `work` on a node; `before` is called when its Envoy has not been started yet."""

    async def main() -> None:
        with SteeredNet() as net:
            node = EnvoyNode(directory, net)
            node.bootstrap = msgspec.structs.replace(node.bootstrap, delta=delta)
            async with asyncio.timeout(60):
                with node.upstream:
                    extra = ExtraNode(node)
                    before(extra)
                    try:
                        await node.start()
                        await work(extra)
                    finally:
                        await node.stop()

    asyncio.run(main())


both_variants = pytest.mark.parametrize("delta", [True, False], ids=["delta", "sotw"])


@both_variants
def test_an_extra_listener_serves_beside_policy(tmp_path: Path, delta: bool) -> None:
    async def work(node: ExtraNode) -> None:
        listeners, clusters = [listener("metrics", 9100)], [cluster("server")]
        node.publish({1: "/a"}, listeners, clusters)
        await node.acked()
        reply = await asyncio.to_thread(node.extra, 9100)
        assert (reply.status, b"GET /anything" in reply.body) == (200, True)
        # The node speaks, not the client: nothing is forged.
        assert node.node.upstream.peers[-1][0] == "10.241.2.1"
        assert [await node.policy(1, path) for path in ("/a", "/b")] == [200, 403]
        with node.connection(9100) as ask:
            for path in ("/b", "/a", "/b"):
                node.publish({1: path, 2: path}, listeners, clusters)
                await node.acked()
                assert await node.policy(1) == (200 if path == "/a" else 403)
                assert (await asyncio.to_thread(ask)).status == 200
        stats = await admin_stats(node.node.bootstrap.admin_socket, "listener_manager")
        assert stats["listener_manager.listener_modified"] == 0
        node.publish({1: "/a"}, [], [])
        await node.acked()
        assert await node.policy(1) == 200
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(node.extra, 9100)

    run(tmp_path, delta, work)


def occupied(port: int) -> socket.socket:
    """A socket that listens on a port in this thread's network namespace."""
    taken = socket.socket()
    taken.bind(("0.0.0.0", port))
    taken.listen()
    return taken


#: Right by all rules of the protos; Envoy wants a terminal filter at the end of the chain.
NO_ROUTER = {"http_filters": [{"name": "cors", "typed_config": {"@type": f"{EXTENSIONS}.http.cors.v3.Cors"}}]}
#: The same: an address that is none.
NOT_AN_ADDRESS = "server.example"


@both_variants
def test_a_listener_that_envoy_refuses_is_named_and_policy_goes_on(tmp_path: Path, delta: bool) -> None:
    async def work(node: ExtraNode) -> None:
        clusters = [cluster("server")]
        bad, good = listener("bad", 9101, **NO_ROUTER), listener("good", 9100)
        # From the start, and in an edit that tightens policy.
        for sets, status in (({1: "/a", 2: "/a"}, 200), ({1: "/b", 2: "/a", 3: "/a"}, 403)):
            node.publish(sets, [bad, good], clusters)
            with pytest.raises(NotAcceptedError, match="bad") as caught:
                await node.acked()
            assert caught.value.resources == ("bad",)
            await node.acked(*sets)
            assert [await node.policy(key) for key in sets] == [status, *[200] * (len(sets) - 1)]
            assert (await asyncio.to_thread(node.extra, 9100)).status == 200
        # The fix of it heals, and needs nothing else.
        node.publish({1: "/a"}, [listener("bad", 9101), good], clusters)
        await node.acked()
        assert (await asyncio.to_thread(node.extra, 9101)).status == 200
        assert await node.policy(1) == 200

    run(tmp_path, delta, work)


@both_variants
def test_a_port_that_somebody_has_is_no_harm_to_policy(tmp_path: Path, delta: bool) -> None:
    async def work(node: ExtraNode) -> None:
        with netns.call(node.node.net.node, lambda: occupied(9100)):
            node.publish({1: "/a"}, [listener("metrics", 9100)], [cluster("server")])
            with pytest.raises(NotAcceptedError, match="metrics") as caught:
                await node.acked()
            assert caught.value.resources == ("metrics",)
            await node.acked(1)
            assert await node.policy(1) == 200

    run(tmp_path, delta, work)


@both_variants
def test_a_cluster_that_envoy_refuses_is_named_and_policy_goes_on(tmp_path: Path, delta: bool) -> None:
    async def work(node: ExtraNode) -> None:
        bad = [cluster("server", NOT_AN_ADDRESS), cluster("other")]
        node.publish({1: "/a"}, [listener("metrics", 9100)], bad)
        with pytest.raises(NotAcceptedError, match="server") as caught:
            await node.acked()
        assert "server" in caught.value.resources
        await node.acked(1)
        assert [await node.policy(1, path) for path in ("/a", "/b")] == [200, 403]
        node.publish({1: "/b"}, [listener("metrics", 9100)], bad)
        await node.acked(1)
        assert [await node.policy(1, path) for path in ("/a", "/b")] == [403, 200]
        node.publish({1: "/b"}, [listener("metrics", 9100, stat_prefix="again")], [cluster("server")])
        await node.acked()
        assert (await asyncio.to_thread(node.extra, 9100)).status == 200

    run(tmp_path, delta, work)


#: Nobody has this address: what is sent there is lost.
NOBODY = {"socket_address": {"address": "10.241.2.77", "port_value": 53}}
CARES = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
RESOLVER = {"name": "envoy.network.dns_resolver.cares", "typed_config": {"@type": CARES, "resolvers": [NOBODY]}}


@both_variants
def test_policy_does_not_wait_for_extra_clusters_when_envoy_starts(tmp_path: Path, delta: bool) -> None:
    """With `wait_for_warm_on_init`, Envoy's default, which is refused, it would while the resolver is away."""
    unresolved = {
        **cluster("server", "server.example"),
        **{"type": "STRICT_DNS", "typed_dns_resolver_config": RESOLVER, "wait_for_warm_on_init": False},
    }

    def before(node: ExtraNode) -> None:
        node.publish({1: "/a"}, [listener("metrics", 9100)], [unresolved])

    async def work(node: ExtraNode) -> None:
        async with asyncio.timeout(5):
            await node.acked()
            assert await node.policy(1) == 200
        assert (await asyncio.to_thread(node.extra, 9100)).status == 503

    run(tmp_path, delta, work, before)


def test_what_can_be_known_beforehand_is_refused_with_the_configuration() -> None:
    for listeners, field in (
        ([listener("bad", 9100, stat_prefix="")], r"filter_chains\[0\]\.filters\[0\]\.typed_config\.stat_prefix"),
        ([listener("bad", port_of(1))], "port 23001 is one of proxy.listenerPorts"),
        ([{**listener("bad", 9100), "transparent": True}], "transparent: is not allowed"),
    ):
        with pytest.raises(ConfigError, match=rf"^agent\.yaml: envoy\.extraListeners\[0\](\.|: ){field}"):
            config(listeners, [cluster("server")])
