"""What a node shall have against an Envoy's config_dump: states, paths, and what is not shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from spliceway.xds.debug.diff import Difference, Field, compare
from spliceway.xds.debug.messagediff import ABSENT, changes
from spliceway.xds.debug.status import Held, ResourceStatus, TypeStatus
from spliceway.xds.errors import AdminError
from spliceway.xds.protocol.snapshot import Resource
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, EXTENSION, LISTENER, ROUTE, SECRET, TYPES

_ADMIN = "type.googleapis.com/envoy.admin.v3."


def shown(url: str, message: Message) -> dict[str, Any]:
    """A resource in Envoy's dump."""
    return {"@type": url, **MessageToDict(message, preserving_proto_field_name=True)}


def dump(section: str, **lists: Any) -> dict[str, Any]:
    return {"configs": [{"@type": _ADMIN + section, **lists}]}


def held(url: str, *messages: Any, version: str = "2", secrets: frozenset[str] = frozenset()) -> Any:
    found = {}
    for message in messages:
        name = message.cluster_name if url == ENDPOINT else message.name
        resource = Resource.of(url, name, version, message.SerializeToString(deterministic=True), secrets=secrets)
        found[name] = Held(name, version, resource)
    return {url: found}


def route(name: str = "r", prefix: str = "/", cluster: str = "c", **fields: Any) -> route_pb2.RouteConfiguration:
    routes = [{"match": {"prefix": prefix}, "route": {"cluster": cluster}}]
    return route_pb2.RouteConfiguration(
        name=name, virtual_hosts=[{"name": "v", "domains": ["*"], "routes": routes}], **fields
    )


def routes(*messages: Message, **more: Any) -> dict[str, Any]:
    entries = [{"version_info": "1", "route_config": shown(ROUTE, item), **more} for item in messages]
    return dump("RoutesConfigDump", dynamic_route_configs=entries)


def one(found: list[Difference]) -> Difference:
    [item] = found
    return item


def status(url: str, *names: str, error: str = "") -> dict[str, TypeStatus]:
    resources = tuple(ResourceStatus(name, "NACK" if error else "SYNCED", "2", "2", "1", 1, error) for name in names)
    info = TYPES[url]
    return {info.short: TypeStatus(info.short, url, "SYNCED", False, names, "", "", "", "", False, None, resources)}


def test_equal_is_same() -> None:
    found = one(compare(held(ROUTE, route()), routes(route()), {}, {}))
    assert found == Difference("RDS", "r", "same", version="2", envoy_version="1")


def test_what_differs_has_its_exact_path_and_both_values() -> None:
    found = one(compare(held(ROUTE, route(prefix="/a", cluster="new")), routes(route(cluster="old")), {}, {}))
    assert found.state == "differs"
    assert found.fields == (
        Field("virtual_hosts[0].routes[0].match.prefix", "/a", "/"),
        Field("virtual_hosts[0].routes[0].route.cluster", "new", "old"),
    )


def test_missing_and_extra() -> None:
    found = compare(held(ROUTE, route("mine")), routes(route("yours")), {}, status(ROUTE, "mine"))
    assert [(item.name, item.state, item.message) for item in found] == [
        ("mine", "missing", ""),
        ("yours", "extra", ""),
    ]
    found = compare(held(ROUTE, route("mine")), {"configs": []}, {}, status(ROUTE, "other"))
    assert one(found).message == "Envoy has not asked for it"


def test_a_refusal_is_told_with_the_words_of_the_client() -> None:
    found = one(compare(held(ROUTE, route(prefix="/a")), routes(route()), {}, status(ROUTE, "r", error="bad regex")))
    assert (found.state, found.message) == ("error", "bad regex")
    assert [field.path for field in found.fields] == ["virtual_hosts[0].routes[0].match.prefix"]
    never = one(compare(held(ROUTE, route()), {"configs": []}, {}, status(ROUTE, "r", error="bad regex")))
    assert (never.state, never.fields) == ("error", ())


def listener(port: int, name: str = "l") -> listener_pb2.Listener:
    return listener_pb2.Listener(name=name, address={"socket_address": {"address": "127.0.0.1", "port_value": port}})


def state(port: int) -> dict[str, Any]:
    return {"version_info": "1", "listener": shown(LISTENER, listener(port))}


def listeners(**entry: Any) -> dict[str, Any]:
    return dump("ListenersConfigDump", dynamic_listeners=[entry], static_listeners=[{"listener": {}}])


REFUSED = {"failed_configuration": shown(LISTENER, listener(2)), "details": "cannot bind\n"}
STALE = {"failed_configuration": shown(LISTENER, listener(3)), "details": "cannot bind\n"}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"name": "l", "active_state": state(2)}, ("same", "")),
        ({"name": "l", "active_state": state(1)}, ("differs", "")),
        ({"name": "l", "active_state": state(1), "warming_state": state(2)}, ("warming", "")),
        ({"name": "l", "warming_state": state(2)}, ("warming", "")),
        ({"name": "l", "warming_state": state(1)}, ("differs", "")),
        ({"name": "l", "draining_state": state(2)}, ("missing", "")),
        ({"name": "l", "active_state": state(1), "error_state": REFUSED}, ("error", "cannot bind")),
        ({"name": "l", "active_state": state(2), "error_state": STALE}, ("same", "")),
        ({"name": "l", "active_state": state(1), "error_state": STALE}, ("differs", "")),
        ({"error_state": REFUSED}, ("error", "cannot bind")),  # Envoy gives no name to one that it never had
        ({"name": "l", "active_state": {"listener": {"@type": LISTENER, "tomorrow": 1}}}, ("differs", "can't be read")),
        ({"name": "l", "active_state": {"listener": {"@type": "v2"}}}, ("differs", "v2 is not type.googleapis")),
    ],
)
def test_states_of_a_listener(entry: dict[str, Any], expected: tuple[str, str]) -> None:
    found = one(compare(held(LISTENER, listener(2)), listeners(**entry), {}, {}))
    assert found.state == expected[0]
    assert expected[1] in found.message
    if expected == ("differs", "") and entry.get("error_state") != STALE:
        assert found.fields == (Field("address.socket_address.port_value", 2, 1),)


def test_what_a_draining_listener_still_names_is_not_extra() -> None:
    configs = [*listeners(name="l", draining_state={"listener": {"rds": "r"}})["configs"], *routes(route())["configs"]]
    assert compare({}, {"configs": configs}, {}, {}) == []


def test_clusters_that_warm() -> None:
    cluster = cluster_pb2.Cluster(name="c", alt_stat_name="x")
    entry = {"version_info": "2", "cluster": shown(CLUSTER, cluster)}
    found = compare(held(CLUSTER, cluster), dump("ClustersConfigDump", dynamic_warming_clusters=[entry]), {}, {})
    assert one(found).state == "warming"
    old = {"version_info": "1", "cluster": shown(CLUSTER, cluster_pb2.Cluster(name="c"))}
    both = dump("ClustersConfigDump", dynamic_active_clusters=[old], dynamic_warming_clusters=[entry])
    assert one(compare(held(CLUSTER, cluster), both, {}, {})).state == "warming"


def endpoints(**fields: Any) -> endpoint_pb2.ClusterLoadAssignment:
    host = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}}}, **fields}
    return endpoint_pb2.ClusterLoadAssignment(cluster_name="e", endpoints=[{"lb_endpoints": [host]}])


def eds(*assignments: Message) -> dict[str, Any]:
    cluster = cluster_pb2.Cluster(name="c", type="EDS", eds_cluster_config={"service_name": "e"})
    entries = [{"endpoint_config": shown(ENDPOINT, item)} for item in assignments]
    return {
        "configs": [
            dump("ClustersConfigDump", dynamic_active_clusters=[{"cluster": shown(CLUSTER, cluster)}])["configs"][0],
            dump("EndpointsConfigDump", dynamic_endpoint_configs=entries)["configs"][0],
        ]
    }


def envoys(assignment: endpoint_pb2.ClusterLoadAssignment) -> endpoint_pb2.ClusterLoadAssignment:
    """What Envoy 1.40 makes of it."""
    made = endpoint_pb2.ClusterLoadAssignment()
    made.CopyFrom(assignment)
    made.policy.overprovisioning_factor.value = made.policy.overprovisioning_factor.value or 140
    for locality in made.endpoints:
        locality.locality.SetInParent()
        locality.load_balancing_weight.SetInParent()
        for host in locality.lb_endpoints:
            host.load_balancing_weight.value = host.load_balancing_weight.value or 1
            host.health_status = {0: 1, 3: 2}.get(host.health_status, host.health_status)
            host.endpoint.health_check_config.SetInParent()
    return made


def test_what_envoy_fills_in_for_endpoints_is_no_difference() -> None:
    for assignment in (endpoints(), endpoints(health_status="DRAINING"), endpoints(load_balancing_weight={"value": 7})):
        found = compare(held(ENDPOINT, assignment), eds(envoys(assignment)), {}, {})
        assert [item.state for item in found if item.type == "EDS"] == ["same"]
    found = compare(held(ENDPOINT, endpoints(health_status="DRAINING")), eds(envoys(endpoints())), {}, {})
    [difference] = [item for item in found if item.type == "EDS"]
    assert difference.fields == (Field("endpoints[0].lb_endpoints[0].health_status", "UNHEALTHY", "UNKNOWN"),)


def test_endpoints_of_other_clusters_were_never_sent() -> None:
    """Envoy lists an assignment for every dynamic cluster, whatever its type."""
    found = compare({}, eds(endpoints(), endpoint_pb2.ClusterLoadAssignment(cluster_name="static")), {}, {})
    assert [(item.type, item.name, item.state) for item in found] == [("CDS", "c", "extra"), ("EDS", "e", "extra")]


def test_secrets_are_compared_as_envoy_shows_them() -> None:
    secret = secret_pb2.Secret(name="s", generic_secret={"secret": {"inline_string": "hush"}})
    redacted = secret_pb2.Secret(name="s", generic_secret={"secret": {"inline_string": "[redacted]"}})
    entry = {"name": "s", "version_info": "1", "secret": shown(SECRET, redacted)}
    for entries in ("dynamic_active_secrets", "dynamic_warming_secrets"):
        found = one(compare(held(SECRET, secret), dump("SecretsConfigDump", **{entries: [entry]}), {}, {}))
        assert found.state == ("same" if "active" in entries else "warming")


def test_extensions() -> None:
    lua = AnyMessage()
    lua.Pack(lua_pb2.Lua(default_source_code={"inline_string": "x"}))
    extension = extension_pb2.TypedExtensionConfig(name="e", typed_config=lua)
    entry = {"version_info": "1", "ecds_filter": shown(EXTENSION, extension)}
    assert (
        one(compare(held(EXTENSION, extension), dump("EcdsConfigDump", ecds_filters=[entry]), {}, {})).state == "same"
    )


def test_what_a_client_has_from_an_earlier_agent_may_have_secrets_that_nobody_knows() -> None:
    wanted, said = held(ROUTE, route(prefix="/new")), routes(route(prefix="/hush"))
    found = one(compare(wanted, said, {}, {}, unknown=("r",)))
    assert found.fields == (Field("virtual_hosts[0].routes[0].match.prefix", "/new", "(secret)"),)
    assert one(compare(wanted, said, {}, {}, unknown=("s",))).fields[0].envoy == "/hush"


def test_values_of_secrets_are_hidden_on_both_sides() -> None:
    texts = frozenset({"hush-new"})
    wanted = held(ROUTE, route(prefix="/hush-new"), secrets=texts)
    found = one(compare(wanted, routes(route(prefix="/hush-older-than-anyone-knows")), {"r": texts}, {}))
    assert found.fields == (Field("virtual_hosts[0].routes[0].match.prefix", "/(secret)", "(secret)"),)
    refusal = status(ROUTE, "r", error="prefix /hush-new is bad")
    assert one(compare(wanted, routes(route()), {"r": texts}, refusal)).message == "prefix /(secret) is bad"
    added = held(ROUTE, route(prefix="/hush-new"), secrets=texts)
    empty = routes(route_pb2.RouteConfiguration(name="r"))
    assert "hush" not in json.dumps([field.desired for field in one(compare(added, empty, {"r": texts}, {})).fields])


def test_a_long_list_of_fields_is_cut_and_counted() -> None:
    wanted = route_pb2.RouteConfiguration(name="r", virtual_hosts=[{"name": f"a{n}"} for n in range(60)])
    there = route_pb2.RouteConfiguration(name="r", virtual_hosts=[{"name": f"b{n}"} for n in range(60)])
    found = one(compare(held(ROUTE, wanted), routes(there), {}, {}))
    assert (len(found.fields), found.more) == (50, 10)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"configs": 5},
        {"configs": [{}]},
        {"configs": [{"@type": _ADMIN + "RoutesConfigDump", "dynamic_route_configs": 5}]},
    ],
)
def test_something_else_than_a_dump_is_said(bad: dict[str, Any]) -> None:
    with pytest.raises(AdminError, match="not the JSON of Envoy's /config_dump"):
        compare({}, bad, {}, {})


def hosts(*names: str) -> route_pb2.RouteConfiguration:
    return route_pb2.RouteConfiguration(virtual_hosts=[{"name": name} for name in names])


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (hosts("a", "b", "c"), hosts("b", "c"), ["virtual_hosts[0]"]),
        (hosts("a", "c"), hosts("a", "b", "c"), ["virtual_hosts[1]"]),
        (hosts("a", "b", "c"), hosts("a", "x", "c"), ["virtual_hosts[1].name"]),
        (
            hosts("a", "b", "c", "d", "e"),
            hosts("a", "x", "e"),
            ["virtual_hosts[1].name", "virtual_hosts[2]", "virtual_hosts[3]"],
        ),
        (route(validate_clusters={"value": True}), route(), ["validate_clusters"]),
        (route(validate_clusters={"value": True}), route(validate_clusters={}), ["validate_clusters.value"]),
        (hosts(), hosts(), []),
    ],
)
def test_lists_are_aligned(left: Message, right: Message, expected: list[str]) -> None:
    assert [change.path for change in changes(left, right)] == expected


def test_maps_enumerations_and_any() -> None:
    def made(kind: str, key: str, source: str) -> cluster_pb2.Cluster:
        lua = AnyMessage()
        lua.Pack(lua_pb2.Lua(default_source_code={"inline_string": source}))
        return cluster_pb2.Cluster(type=kind, typed_extension_protocol_options={"same": lua, key: lua})

    found = {
        change.path: (change.left, change.right) for change in changes(made("EDS", "a", "x"), made("STATIC", "b", "y"))
    }
    assert found["type"] == ("EDS", "STATIC")
    assert found["typed_extension_protocol_options[same].default_source_code.inline_string"] == ("x", "y")
    assert found["typed_extension_protocol_options[a]"][1] is ABSENT
    assert found["typed_extension_protocol_options[b]"][0] is ABSENT
    other = AnyMessage(type_url="type.googleapis.com/of.Tomorrow", value=b"1")
    assert [change.path for change in changes(AnyMessage(type_url="x"), other)] == ["@type"]
    assert [change.right for change in changes(AnyMessage(type_url=other.type_url, value=b"2"), other)] == [b"1"]
