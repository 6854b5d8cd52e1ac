"""The debug tools on a running server: client status by a raw client, and what differs from a real Envoy."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.admin.v3.config_dump_shared_pb2 import ClientResourceStatus
from envoy.config.route.v3 import route_pb2
from envoy.service.status.v3 import csds_pb2

from spliceway.agent.testbed import netns
from spliceway.policy.table import HeaderMatch, HttpRule, Mismatch, RuleSet
from spliceway.xds.debug import csds
from spliceway.xds.debug.diff import Difference, compare
from spliceway.xds.debug.view import ServerView
from spliceway.xds.errors import NotAcceptedError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, ROUTE, SECRET, TYPES
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.protofiles import load_resources
from spliceway.xds.server.listen import TcpSettings
from spliceway.xds.server.server import XdsServer
from support.envoy import NODE_ID, EnvoyNode, envoy_node, port_of
from support.waiting import until_async
from support.xdsbed import Bed, settled
from support.xdsclient import dial

_SERVICE = "/envoy.service.status.v3.ClientStatusDiscoveryService"
_CODEC: dict[str, Any] = {
    "request_serializer": csds_pb2.ClientStatusRequest.SerializeToString,
    "response_deserializer": csds_pb2.ClientStatusResponse.FromString,
}


@asynccontextmanager
async def bed(socket_path: Path, **arguments: Any) -> AsyncIterator[Bed]:
    """A server with client status, without a check of snapshots."""
    made = Bed(socket_path, **arguments)
    made.server.add_services(csds.handlers(ServerView(made.server), made.server.tcp))
    await made.server.start()
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.close()


async def fetch(channel: grpc.aio.Channel, **fields: Any) -> Any:
    call: Any = channel.unary_unary(f"{_SERVICE}/FetchClientStatus", **_CODEC)
    return await call(csds_pb2.ClientStatusRequest(**fields))


def exactly(node: str) -> dict[str, Any]:
    return {"node_id": {"exact": node}}


def test_client_status_of_several_clients(tmp_path: Path) -> None:
    async def main() -> None:
        async with bed(tmp_path / "xds.sock") as made:
            channel = made.channel()
            assert list((await fetch(channel)).config) == []
            for node in ("node-1", "node-2"):
                made.serve(node, CDS="c", RDS="a b")
            one, two = made.sotw("node-1"), made.delta("node-2")
            await one.ask(CLUSTER)
            await one.ask(ROUTE, "a", "b")
            assert await settled(one) == ["CDS c", "RDS a b"]
            await two.ask(ROUTE, "a", "nobody")
            assert await settled(two) == ["RDS a"]

            everything = await fetch(channel)
            assert [config.node.id for config in everything.config] == ["node-1", "node-2"]
            first, second = everything.config
            assert [(TYPES[item.type_url].short, item.name) for item in first.generic_xds_configs] == [
                ("CDS", "c"),
                ("RDS", "a"),
                ("RDS", "b"),
            ]
            assert {item.config_status for item in first.generic_xds_configs} == {csds_pb2.SYNCED}
            config = route_pb2.RouteConfiguration()
            assert first.generic_xds_configs[1].xds_config.Unpack(config)
            assert config.name == "a"
            assert [(item.name, item.client_status) for item in second.generic_xds_configs] == [
                ("a", ClientResourceStatus.ACKED),
                ("nobody", ClientResourceStatus.DOES_NOT_EXIST),
            ]

            made.serve("node-1", CDS="c", RDS="a:2 b")
            await one.answer(await one.read(), error="a is bad")
            await made.until(lambda: made.server.current("node-1")["RDS"].nacks, "a NACK")
            [refused] = (await fetch(channel, node_matchers=[exactly("node-1")])).config
            item = next(item for item in refused.generic_xds_configs if item.name == "a")
            assert (item.config_status, item.client_status) == (csds_pb2.ERROR, ClientResourceStatus.NACKED)
            assert item.error_state.details == "a is bad"
            assert item.error_state.HasField("failed_configuration")
            [bare] = (await fetch(channel, node_matchers=[exactly("node-1")], exclude_resource_contents=True)).config
            assert not any(item.HasField("xds_config") for item in bare.generic_xds_configs)

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fetch(channel, node_matchers=[{"node_metadatas": [{"path": [{"key": "a"}]}]}])
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "metadata of nodes is not kept" in str(caught.value.details())

    asyncio.run(main())


def test_a_stream_of_client_status_answers_each_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with bed(tmp_path / "xds.sock") as made:
            made.serve(CDS="c")
            client = made.sotw()
            await client.ask(CLUSTER)
            opened: Any = made.channel().stream_stream(f"{_SERVICE}/StreamClientStatus", **_CODEC)
            call = opened()
            while not any(each.waiting for client_now in made.server.status() for each in client_now.types):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            seen = []
            for answered in (False, True):
                if answered:
                    await settled(client)
                await call.write(csds_pb2.ClientStatusRequest())
                [config] = (await call.read()).config
                seen.append(config.generic_xds_configs[0].config_status)
            assert seen == [csds_pb2.STALE, csds_pb2.SYNCED]
            await call.write(csds_pb2.ClientStatusRequest(node_matchers=[exactly("other")]))
            assert list((await call.read()).config) == []
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

    asyncio.run(main())


@pytest.mark.parametrize("all_services", [False, True])
def test_over_tcp_client_status_is_only_there_by_choice(tmp_path: Path, all_services: bool) -> None:
    """Whoever may ask sees every node's resources, and a node on TCP may only have its own."""

    async def main() -> None:
        tcp = TcpSettings(host="127.0.0.1", port=0, plaintext=True, all_services=all_services)
        async with bed(tmp_path / "xds.sock", tcp=tcp) as made:
            channel = dial(f"127.0.0.1:{made.server.tcp_port}")
            try:
                if all_services:
                    assert list((await fetch(channel)).config) == []
                    return
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await fetch(channel)
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            finally:
                await channel.close(None)

    asyncio.run(main())


def run(directory: Path, work: Callable[[EnvoyNode], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), envoy_node(directory) as node:
            await work(node)

    asyncio.run(main())


async def diff(node: EnvoyNode) -> dict[tuple[str, str], Difference]:
    """What the agent would tell of this Envoy."""
    view, dump = ServerView(node.server), json.loads(await node.admin("/config_dump?include_eds"))
    found = compare(view.held(NODE_ID, "desired"), dump, view.secrets(NODE_ID), view.current(NODE_ID))
    return {(item.type, item.name): item for item in found}


def states(found: dict[tuple[str, str], Difference]) -> dict[tuple[str, str], str]:
    """All that isn't `same`."""
    return {key: item.state for key, item in found.items() if item.state != "same"}


def rule_set(key: int, path: str = "/a") -> RuleSet:
    return RuleSet(key, f"set {key}", (HttpRule(key, "GET", path),))


def with_headers(key: int) -> RuleSet:
    """One with everything that a rule set can have."""
    asked = (HeaderMatch("x-token", f"hush-{key}", secret=True), HeaderMatch("x-there"))
    given = (HeaderMatch("x-given", f"hush-given-{key}", secret=True, mismatch=Mismatch.REPLACE),)
    rules = (HttpRule(1, "POST", "/b/[0-9]+", headers=asked), HttpRule(2, "GET", headers=given))
    return RuleSet(key, f"set {key}", rules, also=RuleSet(key + 1000, "other end", None, audit=(HttpRule(3, "GET"),)))


@pytest.mark.kernel
@pytest.mark.envoy
def test_after_a_sync_nothing_differs(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(*map(with_headers, range(1, 301)), wait=60)
        found = await diff(node)
        assert len(found) == 601
        assert states(found) == {}
        # Routes that only listeners name which drain are neither wanted nor a difference.
        await node.apply(with_headers(1), rule_set(2))
        assert states(await diff(node)) == {}

    run(tmp_path, work)


def with_large_program(snapshot: Snapshot, version: str) -> Snapshot:
    """The same with an expression in rule set 1 that Envoy refuses."""
    bodies = snapshot.bodies()
    config = route_pb2.RouteConfiguration.FromString(bodies[ROUTE]["rule-set-1"])
    config.virtual_hosts[0].routes[0].match.safe_regex.regex = "[a-z]{900}" * 2
    bodies[ROUTE]["rule-set-1"] = config.SerializeToString(deterministic=True)
    return Snapshot.of(version, bodies, snapshot)


@pytest.mark.kernel
@pytest.mark.envoy
def test_what_envoy_refused_is_an_error_in_its_own_words(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1), rule_set(2))
        served = node.server.snapshot(NODE_ID)
        assert served is not None
        node.server = await another(node)
        node.server.set_snapshot(NODE_ID, with_large_program(served, "bad"))
        with pytest.raises(NotAcceptedError):
            await node.server.wait_acked(NODE_ID, 10)
        found = await diff(node)
        assert states(found) == {("RDS", "rule-set-1"): "error"}
        route = found["RDS", "rule-set-1"]
        assert "max program size of 1000" in route.message
        assert [field.path for field in route.fields][-1] == "virtual_hosts[0].routes[0].match.safe_regex"
        await node.apply(rule_set(1), rule_set(2))

        def occupy() -> socket.socket:
            taken = socket.socket()
            taken.bind(("127.0.0.1", port_of(3)))
            taken.listen()
            return taken

        with netns.call(node.net.node, occupy):
            with pytest.raises(NotAcceptedError):
                await node.apply(rule_set(1), rule_set(2), rule_set(3))
            found = await diff(node)
            assert found["LDS", "rule-set-3"].state == "error"
            assert states(found).keys() <= {("LDS", "rule-set-3"), ("RDS", "rule-set-3")}
            assert "Address already in use" in found["LDS", "rule-set-3"].message
        await node.apply(rule_set(1), rule_set(2))
        assert states(await diff(node)) == {}

    run(tmp_path, work)


@pytest.mark.kernel
@pytest.mark.envoy
def test_an_edit_that_envoy_has_not_had_differs_at_its_path(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        await node.apply(rule_set(1), rule_set(2))
        await node.server.stop()
        served = node.server.snapshot(NODE_ID)
        ports = {key: port_of(key) for key in (1, 3)}
        edited = build_snapshot({1: rule_set(1, "/b"), 3: rule_set(3)}, ports, node.settings, "edit", served)
        node.server.set_snapshot(NODE_ID, edited)
        found = await diff(node)
        assert states(found) == {
            ("LDS", "rule-set-2"): "extra",
            ("LDS", "rule-set-3"): "missing",
            ("RDS", "rule-set-1"): "differs",
            ("RDS", "rule-set-2"): "extra",
            ("RDS", "rule-set-3"): "missing",
        }
        [field] = found["RDS", "rule-set-1"].fields
        assert field.path == (
            "virtual_hosts[0].routes[0].typed_per_filter_config[spliceway.policy].rbac.rules.policies[00000/1]"
            ".permissions[0].and_rules.rules[1].header.string_match.safe_regex.regex"
        )
        assert (field.desired, field.envoy) == ("/b", "/a")

    run(tmp_path, work)


_OTHERS = """
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: eds
  type: EDS
  eds_cluster_config: {service_name: service, eds_config: {ads: {}, resource_api_version: V3}}
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: service
  endpoints:
  - locality: {zone: z}
    priority: 1
    lb_endpoints:
    - endpoint: {address: {socket_address: {address: 127.0.0.2, port_value: 81}}}
      metadata: {filter_metadata: {envoy.lb: {a: b}}}
    - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}, hostname: h}
      load_balancing_weight: 3
  - locality: {zone: y, region: r}
    load_balancing_weight: 5
    lb_endpoints:
    - endpoint: {address: {socket_address: {address: 127.0.0.9, port_value: 80}}}
      health_status: DRAINING
  policy: {overprovisioning_factor: 200, drop_overloads: [{category: c, drop_percentage: {numerator: 3}}]}
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: token
  generic_secret: {secret: {inline_string: hush-generic}}
- "@type": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig
  name: script
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
    default_source_code: {inline_string: "function envoy_on_request(handle) end"}
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: listener
  address: {socket_address: {address: 127.0.0.1, port_value: 24999}}
  filter_chains:
  - filters:
    - name: manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: x
        rds: {route_config_name: routes, config_source: {ads: {}, resource_api_version: V3}}
        http_filters:
        - name: script
          config_discovery:
            config_source: {ads: {}, resource_api_version: V3}
            type_urls: [type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua]
        - name: inject
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector
            credential:
              name: generic
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic
                credential: {name: token, sds_config: {ads: {}, resource_api_version: V3}}
        - name: envoy.filters.http.router
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  virtual_hosts:
  - {name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: eds}}]}
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: nobody
"""


async def another(node: EnvoyNode) -> XdsServer:
    """Another agent, which checks nothing; Envoy has found it."""
    await node.server.stop()
    server = XdsServer(node.bootstrap.xds_socket, check=lambda _: None)
    await server.start()
    await until_async(server.status, told=lambda: "Envoy is not back")
    return server


@pytest.mark.kernel
@pytest.mark.envoy
def test_every_type_is_compared_as_envoy_shows_it(tmp_path: Path) -> None:
    async def work(node: EnvoyNode) -> None:
        node.server = await another(node)
        bodies: dict[str, dict[str, bytes]] = {url: {} for url in TYPES}
        for item in load_resources(_OTHERS, "others"):
            bodies[item.url][item.name] = item.body
        node.server.set_snapshot(NODE_ID, Snapshot.of("1", bodies))
        found: dict[tuple[str, str], Difference] = {}

        async def all_but_one() -> bool:
            found.clear()
            found.update(await diff(node))
            return len(states(found)) == 1

        await until_async(all_but_one, told=lambda: states(found))
        assert states(found) == {("RDS", "nobody"): "missing"}
        assert found["RDS", "nobody"].message == "Envoy has not asked for it"
        assert {short for short, _ in found} == {info.short for info in TYPES.values()}

        served = node.server.snapshot(NODE_ID)
        await node.server.stop()
        bodies[ENDPOINT]["service"] = bodies[ENDPOINT]["service"].replace(b"127.0.0.9", b"127.0.0.8")
        bodies[SECRET]["token"] = bodies[SECRET]["token"].replace(b"hush-generic", b"hush-another")
        bodies[EXTENSION]["script"] = bodies[EXTENSION]["script"].replace(b"handle", b"stream")
        node.server.set_snapshot(NODE_ID, Snapshot.of("2", bodies, served))
        found = await diff(node)
        assert {
            key: [field.path for field in item.fields] for key, item in found.items() if item.state == "differs"
        } == {
            ("EDS", "service"): ["endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address"],
            ("ECDS", "script"): ["typed_config.default_source_code.inline_string"],
        }
        # Envoy does not show what is secret, so that nobody can tell whether it is the same.
        assert found["SDS", "token"].state == "same"
        assert "hush" not in str(found)

    run(tmp_path, work)
