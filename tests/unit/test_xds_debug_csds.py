"""Client status as values: which nodes a request means, and what is told of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from envoy.admin.v3.config_dump_shared_pb2 import ClientResourceStatus
from envoy.config.route.v3 import route_pb2
from envoy.service.status.v3 import csds_pb2
from envoy.type.matcher.v3 import node_pb2

from spliceway.xds.debug.csds import node_message
from spliceway.xds.debug.nodematch import MatcherError, node_match
from spliceway.xds.debug.status import Client
from spliceway.xds.protocol.delta import DeltaRequest
from spliceway.xds.protocol.typeurls import CLUSTER, ROUTE, URLS
from support.xdsworld import CLIENT, World


def matcher(**fields: Any) -> node_pb2.NodeMatcher:
    return node_pb2.NodeMatcher(node_id=fields)


@pytest.mark.parametrize(
    ("fields", "yes", "no"),
    [
        ({"exact": "node-1"}, "node-1", "node-11"),
        ({"prefix": "node"}, "node-1", "a-node"),
        ({"suffix": "-1"}, "node-1", "node-2"),
        ({"contains": "de-"}, "node-1", "node1"),
        ({"exact": "NODE-1", "ignore_case": True}, "node-1", "node-2"),
        ({"contains": "DE", "ignore_case": True}, "node-1", "n"),
        ({"safe_regex": {"regex": "node-[0-9]"}}, "node-1", "node-12"),
        ({"exact": ""}, "", "x"),
    ],
)
def test_node_ids_are_matched(fields: dict[str, Any], yes: str, no: str) -> None:
    match = node_match([matcher(**fields)])
    assert (match(yes), match(no)) == (True, False)


def test_any_of_several_matchers_will_do_and_none_is_all() -> None:
    match = node_match([matcher(exact="a"), matcher(exact="b")])
    assert [match(node) for node in "abc"] == [True, True, False]
    assert node_match([])("anything")
    assert node_match([node_pb2.NodeMatcher()])("anything")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: matcher(safe_regex={"regex": "("}), r"node_matchers\[0\]\.node_id\.safe_regex: "),
        (lambda: matcher(custom={"name": "x"}), "custom is not one of exact, prefix"),
        (matcher, "nothing to match with is not one of"),
        (lambda: matcher(prefix=""), r"node_id\.prefix: must not be empty"),
        (
            lambda: node_pb2.NodeMatcher(node_metadatas=[{"path": [{"key": "ROLE"}]}]),
            r"node_metadatas: metadata of nodes is not kept",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_with_its_place(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        node_match([made()])


def test_the_node_is_told_as_it_told_of_itself() -> None:
    config = csds_pb2.ClientConfig(node=node_message(CLIENT))
    version = config.node.user_agent_build_version.version
    assert (config.node.id, config.node.cluster, config.node.user_agent_name) == ("node-1", "here", "envoy")
    assert (version.major_number, version.minor_number, version.patch) == (1, 40, 0)
    assert list(config.node.client_features) == ["feature"]
    assert node_message(Client("n", "", "", "strange"))["id"] == "n"


def test_states_of_resources_as_envoys_tools_call_them() -> None:
    world = World()
    world.serve("1", RDS="a b")
    world.ask(ROUTE, "a", "b", "nobody")
    assert world.found()["RDS", "a"].config_status == csds_pb2.NOT_SENT
    assert world.found()["RDS", "a"].client_status == ClientResourceStatus.REQUESTED
    assert world.found()["RDS", "nobody"].client_status == ClientResourceStatus.REQUESTED
    world.push()
    found = world.found()
    assert {item.config_status for (_, name), item in found.items() if name != "nobody"} == {csds_pb2.SYNCED}
    assert found["RDS", "a"].client_status == ClientResourceStatus.ACKED
    assert found["RDS", "a"].version_info == "1"
    assert found["RDS", "a"].last_updated.ToMilliseconds() == 11500
    config = route_pb2.RouteConfiguration()
    assert found["RDS", "a"].xds_config.Unpack(config)
    assert config.name == "a"
    # State of the world has no word for a route that doesn't exist: the client still waits.
    assert found["RDS", "nobody"].client_status == ClientResourceStatus.REQUESTED


def test_a_refused_resource_has_what_was_accepted_before_and_why_the_new_was_not() -> None:
    world = World()
    world.serve("1", RDS="a:old b")
    world.ask(ROUTE, "a", "b")
    world.push()
    world.serve("2", RDS="a:new b")
    world.push(error="no such cluster")
    item = world.found()["RDS", "a"]
    assert (item.config_status, item.client_status) == (csds_pb2.ERROR, ClientResourceStatus.NACKED)
    assert item.version_info == "1"
    assert (item.error_state.details, item.error_state.version_info) == ("no such cluster", "2")
    assert item.error_state.last_update_attempt.ToMilliseconds() == 11500
    accepted, failed = route_pb2.RouteConfiguration(), route_pb2.RouteConfiguration()
    assert item.xds_config.Unpack(accepted)
    assert item.error_state.failed_configuration.Unpack(failed)
    assert (accepted.virtual_hosts[0].name, failed.virtual_hosts[0].name) == ("hostold", "hostnew")
    assert world.found()["RDS", "b"].config_status == csds_pb2.SYNCED
    bare = world.found(contents=False)["RDS", "a"]
    assert not bare.HasField("xds_config")
    assert not bare.error_state.HasField("failed_configuration")
    assert bare.error_state.details == "no such cluster"


@pytest.mark.parametrize("delta", [False, True])
def test_a_client_that_has_been_told_knows_that_a_name_does_not_exist(delta: bool) -> None:
    world = World(delta=delta)
    world.serve("1", CDS="a")
    if delta:
        world.record.stream.receive(DeltaRequest(CLUSTER, subscribe=("a", "nobody")))
        assert world.snapshot is not None
        world.record.stream.responses(world.snapshot)
    else:
        world.ask(CLUSTER, "a", "nobody")
        world.push()
    item = world.found()["CDS", "nobody"]
    assert item.client_status == ClientResourceStatus.DOES_NOT_EXIST
    assert item.config_status == csds_pb2.NOT_SENT


def test_secrets_are_not_shown() -> None:
    world = World()
    world.serve("1", SDS="token:hush-generic", RDS="r:hush-hush")
    world.texts = {"r": frozenset({"hush-hush"})}
    world.ask(URLS["SDS"], "token")
    world.ask(ROUTE, "r")
    world.push()
    text = str([(item.xds_config.value, item) for item in world.found().values()])
    assert "hush" not in text
    assert "[redacted]" in text
    assert "(secret)" in text
