"""Responses are put together from bytes: they must be what protobuf itself would have made."""

from __future__ import annotations

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from spliceway.xds.protocol.ledger import Response
from spliceway.xds.protocol.snapshot import Resource
from spliceway.xds.protocol.typeurls import CLUSTER, ROUTE, SECRET
from spliceway.xds.server.wire import delta_message_of, message_of

WRAPPER = "type.googleapis.com/envoy.service.discovery.v3.Resource"
Sizes = st.sampled_from([0, 1, 60, 127, 128, 300, 16383, 16384, 70000])


def resource(number: int, size: int, ttl: float | None = None) -> Resource:
    return Resource(f"name-{number}-{'é' * number}", f"v{number}", b"\x07" * size, f"{number:016x}", ttl)


@given(sizes=st.lists(Sizes, max_size=4), url=st.sampled_from([CLUSTER, ROUTE, SECRET]))
def test_both_variants_read_as_what_was_meant(sizes: list[int], url: str) -> None:
    resources = tuple(resource(number, size) for number, size in enumerate(sizes))
    response = Response(url, "version", "nonce", resources, removed=("gone", "too"))
    sotw = discovery_pb2.DiscoveryResponse.FromString(message_of(response, "me"))
    assert sotw == discovery_pb2.DiscoveryResponse(
        version_info="version",
        type_url=url,
        nonce="nonce",
        control_plane={"identifier": "me"},
        resources=[Any(type_url=url, value=item.body) for item in resources],
    )
    delta = discovery_pb2.DeltaDiscoveryResponse.FromString(delta_message_of(response, "me"))
    assert delta == discovery_pb2.DeltaDiscoveryResponse(
        system_version_info="version",
        type_url=url,
        nonce="nonce",
        control_plane={"identifier": "me"},
        removed_resources=["gone", "too"],
        resources=[
            discovery_pb2.Resource(name=r.name, version=r.digest, resource=Any(type_url=url, value=r.body))
            for r in resources
        ],
    )


@pytest.mark.parametrize("heartbeat", [False, True])
@pytest.mark.parametrize("able", [False, True])
def test_a_time_to_live_only_for_those_who_can(able: bool, heartbeat: bool) -> None:
    kept, fleeting = resource(1, 5), resource(2, 5, ttl=1.5)
    response = Response(ROUTE, "v", "n", (kept, fleeting), heartbeat=heartbeat, bare=heartbeat)
    delta = discovery_pb2.DeltaDiscoveryResponse.FromString(delta_message_of(response, "", ttl=able))
    assert [item.HasField("resource") for item in delta.resources] == [not heartbeat] * 2
    assert [item.version for item in delta.resources] == [kept.digest, fleeting.digest]
    if not heartbeat:
        assert [item.HasField("ttl") for item in delta.resources] == [False, able]
        sotw = discovery_pb2.DiscoveryResponse.FromString(message_of(response, "", ttl=able))
        assert [item.type_url for item in sotw.resources] == [ROUTE, WRAPPER if able else ROUTE]
        if able:
            wrapped = discovery_pb2.Resource.FromString(sotw.resources[1].value)
            assert (wrapped.ttl.ToMilliseconds(), wrapped.resource.value, wrapped.version) == (1500, b"\x07" * 5, "v")
