"""Messages of the wire as values, and how long to wait before the next attempt."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from random import Random

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.proxy.ads import values
from spliceway.proxy.ads.pauses import Pauses
from spliceway.proxy.ads.values import LISTENER, Request, ResourceValue
from spliceway.proxy.ads.wire import node_of, request_message, response_of
from spliceway.xds.protocol import typeurls
from spliceway.xds.protocol.delta import DeltaRequest
from spliceway.xds.server.wire import delta_request_of
from support.adsbed import settings_for


def given(name: str, revision: str, url: str | None = LISTENER) -> discovery_pb2.Resource:
    made = discovery_pb2.Resource(name=name, version=f"#{revision}")
    if url is not None:
        made.resource.type_url, made.resource.value = url, revision.encode()
    return made


def test_a_response_with_all_that_may_be_wrong_with_its_resources() -> None:
    message = discovery_pb2.DeltaDiscoveryResponse(
        type_url=LISTENER,
        nonce="n",
        resources=[
            given("a", "1"),
            given("a", "2"),  # the last counts
            given("b", "1"),
            given("b", "", None),
            given("c", "", None),
            given("c", "1"),
            given("d", "1", "type.googleapis.com/other"),
            given("", "1"),
            given("e", ""),
        ],
        removed_resources=["f", "f", ""],
    )
    found = response_of(message)
    assert (found.type_url, found.nonce, found.removed) == (LISTENER, "n", ("f", "f", ""))
    assert found.resources == {
        "a": ResourceValue("#2", b"2"),
        "c": ResourceValue("#1", b"1"),
        "e": ResourceValue("#", b""),
    }
    assert found.unusable == {
        "b": "has no content",
        "d": "is of type type.googleapis.com/other",
        "": "a resource without a name",
    }


@pytest.mark.parametrize(
    "request_",
    [
        Request(LISTENER, ("*",), initial={"a": "#1"}),
        Request(LISTENER, ("a", "b"), ("c",)),
        Request(LISTENER, nonce="n"),
        Request(LISTENER, nonce="n", error=""),
        Request(LISTENER, nonce="n", error="a: no\nb: no"),
    ],
)
def test_the_agent_reads_a_request_as_it_is_meant(request_: Request) -> None:
    wire = discovery_pb2.DeltaDiscoveryRequest.FromString(request_message(request_).SerializeToString())
    assert not wire.HasField("node")
    assert delta_request_of(wire) == DeltaRequest(
        request_.type_url, request_.subscribe, request_.unsubscribe, request_.initial, request_.nonce, request_.error
    )


def test_the_node_says_who_and_which_version(tmp_path: Path) -> None:
    node = request_message(Request(LISTENER), node_of(settings_for(tmp_path))).node
    assert (node.id, node.cluster, node.user_agent_name) == ("node-1", "tests", "spliceway-proxy")
    number = node.user_agent_build_version.version
    assert version("spliceway").startswith(f"{number.major_number}.{number.minor_number}.{number.patch}")
    assert not node.client_features


def test_both_sides_mean_the_same_types() -> None:
    for name in ("CLUSTER", "LISTENER", "ROUTE"):
        assert getattr(values, name) == getattr(typeurls, name)


def test_pauses_double_up_to_the_longest_and_begin_again() -> None:
    pauses = Pauses(0.1, 1.0, Random(1))
    taken = [pauses.take() for _ in range(8)]
    for pause, full in zip(taken, (0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1), strict=True):
        assert full / 2 <= pause <= full
    assert len(set(taken[4:])) == 4  # by chance
    pauses.reset()
    assert pauses.take() <= 0.1


def test_the_longest_pause_is_never_shorter_than_the_first() -> None:
    pauses = Pauses(0.1, 0.0, Random(1))
    assert all(0.05 <= pauses.take() <= 0.1 for _ in range(5))
