"""The answers of /debug in istiod's shapes, over HTTP: what istioctl and Envoy's tools read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from envoy.admin.v3 import config_dump_pb2, config_dump_shared_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf.json_format import ParseDict
from starlette.applications import Starlette

from spliceway.agent.debugapi import debug_routes
from spliceway.xds.debug.istiod import syncz
from spliceway.xds.debug.status import Client, ClientStatus
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET
from support.xdsworld import CLIENT, World

_SECTIONS = [
    "BootstrapConfigDump",
    "ClustersConfigDump",
    "EndpointsConfigDump",
    "ListenersConfigDump",
    "ScopedRoutesConfigDump",
    "RoutesConfigDump",
    "SecretsConfigDump",
    "EcdsConfigDump",
]


def get(world: World, path: str, status: int = 200) -> Any:
    async def ask() -> httpx.Response:
        app = Starlette(routes=debug_routes(world))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://debug") as client:
            return await client.get(path)

    response = asyncio.run(ask())
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.text


@pytest.fixture
def world() -> World:
    """A client that has everything but the last edit of route a, which it has refused."""
    world = World()
    first = {"CDS": "c", "EDS": "c", "SDS": "s:hush", "LDS": "l", "RDS": "a:old b", "ECDS": "e"}
    world.serve("1", **first)
    for url, names in {CLUSTER: (), ENDPOINT: ("c",), SECRET: ("s",), LISTENER: (), EXTENSION: ("e",)}.items():
        world.ask(url, *names)
    world.ask(ROUTE, "a", "b")
    world.push()
    world.serve("2", **(first | {"RDS": "a:new b"}))
    world.push(error="cluster nowhere is unknown")
    return world


def test_syncz_has_the_nonces_of_each_type(world: World) -> None:
    [entry] = get(world, "/debug/syncz")
    assert {key: entry[key] for key in ("proxy", "cluster_id", "proxy_type", "istio_version", "proxy_version")} == {
        "proxy": "node-1",
        "cluster_id": "here",
        "proxy_type": "node",
        "istio_version": "1.40.0",
        "proxy_version": "1.40.0",
    }
    for word in ("cluster", "listener", "endpoint", "extensionconfig"):
        assert entry[f"{word}_sent"] == entry[f"{word}_acked"] != ""
    assert entry["route_sent"] != entry["route_acked"] != ""
    route, cluster = entry["resources"][ROUTE], entry["resources"][CLUSTER]
    assert route["lastError"] == "cluster nowhere is unknown"
    assert (route["sent"], route["sentTime"]) == (entry["route_sent"], "1970-01-01T00:00:10.000000Z")
    assert "lastError" not in cluster
    assert entry["resources"].keys() == {CLUSTER, ENDPOINT, SECRET, LISTENER, ROUTE, EXTENSION}


def test_the_type_of_an_istio_proxy_stands_in_its_node_id() -> None:
    def entry(node: str) -> Any:
        client = Client(node, "", "envoy", "")
        [found] = syncz([ClientStatus(client, "s", 0.0, True, "", (), {})])
        return found

    assert entry("router~10.0.0.1~gateway.ns~ns.svc.cluster.local")["proxy_type"] == "router"
    assert entry("strange~a~b~c")["proxy_type"] == "node"
    assert entry("sidecar")["proxy_type"] == "node"
    assert "cluster_id" not in entry("x")


def test_connections_and_what_they_watch(world: World) -> None:
    found = get(world, "/debug/connections")
    assert found["totalClients"] == 1
    [client] = found["clients"]
    assert client["connectionId"] == "node-1-s"
    assert client["connectedAt"] == "1970-01-01T00:00:01.000000Z"
    assert client["metadata"]["CLUSTER_ID"] == "here"
    assert client["watches"][ROUTE] == ["a", "b"]
    assert client["watches"][CLUSTER] == ["*"]


def test_push_status_has_what_is_refused_now(world: World) -> None:
    assert get(world, "/debug/push_status") == {
        "pilot_xds_rds_reject": {"node-1/a": {"proxy": "node-1", "message": "cluster nowhere is unknown"}}
    }
    world.serve("3", RDS="b")
    world.push()
    assert get(world, "/debug/push_status") == {}


def sections(dump: Any) -> Iterator[tuple[str, Any]]:
    """As Envoy's tools read it: JSON to envoy.admin.v3.ConfigDump, each Any to its section."""
    message = config_dump_pb2.ConfigDump()
    ParseDict(dump, message)
    for item in message.configs:
        name = item.type_url.rpartition(".")[2]
        kind = getattr(config_dump_pb2, name, None) or getattr(config_dump_shared_pb2, name)
        yield name, kind.FromString(item.value)


def test_config_dump_is_read_as_an_envoys(world: World) -> None:
    dump = get(world, "/debug/config_dump?proxyID=node-1&include_eds")
    # The test's filter is of a type that nobody knows.
    assert dump["configs"][-1]["ecds_filters"][0]["ecds_filter"].pop("typed_config")["@type"] == "test/"
    found = dict(sections(dump))
    assert list(found) == _SECTIONS
    [listener] = found["ListenersConfigDump"].dynamic_listeners
    assert (listener.name, listener.active_state.version_info) == ("l", "1")
    assert listener.client_status == config_dump_shared_pb2.ACKED
    assert listener_pb2.Listener.FromString(listener.active_state.listener.value).name == "l"
    routes = found["RoutesConfigDump"].dynamic_route_configs
    assert [(item.version_info, item.client_status) for item in routes] == [
        ("2", config_dump_shared_pb2.NACKED),
        ("1", config_dump_shared_pb2.ACKED),
    ]
    assert routes[0].error_state.details == "cluster nowhere is unknown"
    [secret] = found["SecretsConfigDump"].dynamic_active_secrets
    assert (secret.name, b"hush" in secret.secret.value, b"[redacted]" in secret.secret.value) == ("s", False, True)
    assert len(found["ClustersConfigDump"].dynamic_active_clusters) == 1
    assert len(found["EndpointsConfigDump"].dynamic_endpoint_configs) == 1
    assert len(found["EcdsConfigDump"].ecds_filters) == 1


def test_config_dump_leaves_out_endpoints_as_envoy_does(world: World) -> None:
    names = [item["@type"].rpartition(".")[2] for item in get(world, "/debug/config_dump?proxyID=node-1")["configs"]]
    assert names == [name for name in _SECTIONS if name != "EndpointsConfigDump"]


def test_config_dump_of_other_stages_and_types(world: World) -> None:
    acked = get(world, "/debug/config_dump?proxyID=node-1&stage=acked&types=rds")["configs"]
    assert [(item["name"], item["virtual_hosts"][0]["name"]) for item in acked] == [("a", "hostold"), ("b", "host")]
    desired = get(world, "/debug/config_dump?proxyID=node-1&types=RDS,LDS")["configs"]
    assert [item["name"] for item in desired] == ["l", "a", "b"]
    assert desired[1]["virtual_hosts"][0]["name"] == "hostnew"
    assert desired[0]["@type"] == LISTENER


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("", 400, "proxyID is missing"),
        ("?proxyID=other", 404, "other is not connected; connected: node-1"),
        ("?proxyID=node-1&stage=now", 400, "stage 'now' is none of desired, sent, acked"),
        ("?proxyID=node-1&types=XDS", 400, "type XDS is none of CDS"),
    ],
)
def test_bad_queries_are_answered_with_what_would_be_good(world: World, query: str, status: int, message: str) -> None:
    assert message in get(world, f"/debug/config_dump{query}", status)


def test_the_index_lists_all_of_them(world: World) -> None:
    assert get(world, "/debug/list") == ["config_dump", "connections", "push_status", "syncz"]
    for index in ("/debug", "/debug/"):
        for path in get(world, index):
            query = f"?proxyID={CLIENT.node}" if path.endswith("config_dump") else ""
            get(world, path + query)


def test_pretty_is_for_people(world: World) -> None:
    async def ask() -> str:
        app = Starlette(routes=debug_routes(world))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://debug") as client:
            return (await client.get("/debug/connections?pretty")).text

    assert '{\n  "totalClients": 1' in asyncio.run(ask())
