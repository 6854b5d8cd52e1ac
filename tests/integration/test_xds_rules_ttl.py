"""Rule 18 of docs/xds.md, time to live, with a raw client: who gets it, and what keeps a resource alive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER
from support.xdsbed import Bed, run
from support.xdsclient import TTL, WRAPPED, bodies_of, body, names_of, versions_of

SECONDS = 0.6


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


def wrapped(item: Any) -> Any:
    """The Resource in an item of a SotW response."""
    found = discovery_pb2.Resource()
    assert item.Unpack(found), item.type_url
    return found


@pytest.mark.parametrize("variant", ["sotw", "delta"])
def test_rule_18_a_client_that_does_not_announce_it_gets_no_ttl(socket: Path, variant: str) -> None:
    """«For clients that support the xds.config.supports-resource-ttl client feature»; naive: for everybody."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a", ttls={"EDS a": SECONDS})
        stream = bed.stream(variant)
        await stream.ask(ENDPOINT, "a")
        response = await stream.read()
        assert bodies_of(response) == {"a": body(ENDPOINT, "a")}
        if variant == "sotw":
            assert [item.type_url for item in response.resources] == [ENDPOINT]
        else:
            assert not response.resources[0].HasField("ttl")
        await stream.answer(response)
        await stream.silent(2 * SECONDS)

    run(socket, work)


def test_rule_18_sotw_resources_are_wrapped_only_for_clients_that_can_unwrap(socket: Path) -> None:
    """Wrapping «is gated by» a feature of its own; naive: one for both, and the client can't read the answer."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b", ttls={"EDS a": SECONDS})
        for features in ([TTL], [WRAPPED]):
            stream = bed.sotw(features=features)
            await stream.ask(ENDPOINT, "a", "b")
            response = await stream.read()
            assert {item.type_url for item in response.resources} == {ENDPOINT}
            stream.cancel()

    run(socket, work)


def test_rule_18_delta_heartbeats_have_the_version_and_no_resource(socket: Path) -> None:
    """«with the resource unset and version matching the most recently sent version»; naive: the whole resource."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b", ttls={"EDS a": SECONDS})
        stream = bed.delta(features=[TTL])
        await stream.ask(ENDPOINT, "a", "b")
        first = await stream.read()
        ttls = {item.name: item.ttl.ToMilliseconds() for item in first.resources if item.HasField("ttl")}
        assert ttls == {"a": SECONDS * 1000}
        await stream.answer(first)
        for _ in range(3):
            beat = await stream.read(SECONDS)  # in time
            [item] = beat.resources
            assert (item.name, item.HasField("resource")) == ("a", False)
            assert item.version == versions_of(first)["a"]
            assert item.ttl.ToMilliseconds() == SECONDS * 1000
            assert beat.nonce != first.nonce
            await stream.answer(beat)
        states = {item.name: item.state for item in bed.server.current("node-1")["EDS"].resources}
        assert states == {"a": "SYNCED", "b": "SYNCED"}
        bed.serve(EDS="a b")  # «To remove the TTL, the management server resends the resource with the TTL field unset»
        again = await stream.read()
        while not again.resources[0].HasField("resource"):
            await stream.answer(again)
            again = await stream.read()
        assert (names_of(again), again.resources[0].HasField("ttl")) == (["a"], False)
        await stream.answer(again)
        await stream.silent(2 * SECONDS)

    run(socket, work)


def test_rule_18_sotw_heartbeats_have_the_version_of_the_last_accepted_response(socket: Path) -> None:
    """Envoy compares with the version that it acknowledged; naive: the resource's, which it takes for an update."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a", ttls={"EDS a": SECONDS})
        stream = bed.sotw(features=[TTL, WRAPPED])
        await stream.ask(ENDPOINT, "a", "b")
        first = await stream.read()
        assert wrapped(first.resources[0]).ttl.ToMilliseconds() == SECONDS * 1000
        assert bodies_of(first) == {"a": body(ENDPOINT, "a")}
        await stream.answer(first)
        bed.serve(EDS="a b", ttls={"EDS a": SECONDS})
        refused = await stream.read()
        while names_of(refused) != ["b"]:
            await stream.answer(refused)
            refused = await stream.read()
        await stream.answer(refused, error="b is bad", version=first.version_info)
        for _ in range(2):
            beat = await stream.read(SECONDS)
            item = wrapped(beat.resources[0])
            assert (item.name, item.HasField("resource")) == ("a", False)
            assert item.version == first.version_info
            await stream.answer(beat)

    run(socket, work)


@pytest.mark.parametrize("url", [CLUSTER, LISTENER])
def test_rule_18_sotw_full_sets_are_renewed_whole(socket: Path, url: str) -> None:
    """«must include the complete state of the world»: with a heartbeat alone Envoy 1.40 deletes all other clusters."""

    async def work(bed: Bed) -> None:
        short = "CDS" if url == CLUSTER else "LDS"
        bed.serve(**{short: "a b"}, ttls={f"{short} a": SECONDS})
        stream = bed.sotw(features=[TTL, WRAPPED])
        await stream.ask(url)
        first = await stream.read()
        await stream.answer(first)
        beat = await stream.read(SECONDS)
        assert bodies_of(beat) == {"a": body(url, "a"), "b": body(url, "b")}
        assert beat.version_info == first.version_info

    run(socket, work)


def test_rule_18_sotw_a_renewal_does_not_forget_what_was_refused(socket: Path) -> None:
    """The client acknowledges the renewal, not the bad one; naive: its answer clears the error."""

    async def work(bed: Bed) -> None:
        bed.serve(LDS="good", ttls={"LDS good": SECONDS})
        stream = bed.sotw(features=[TTL, WRAPPED])
        await stream.ask(LISTENER)
        await stream.answer(await stream.read())
        bed.serve(LDS="good bad", ttls={"LDS good": SECONDS})
        response = await stream.read()
        while names_of(response) != ["bad", "good"]:
            await stream.answer(response)
            response = await stream.read()
        await stream.answer(response, error="Error adding/updating listener(s) bad: cannot bind")
        for _ in range(2):
            beat = await stream.read(SECONDS)
            assert names_of(beat) == ["good"]
            await stream.answer(beat)
        states = {item.name: item.state for item in bed.server.current("node-1")["LDS"].resources}
        assert states == {"good": "SYNCED", "bad": "NACK"}

    run(socket, work)


def test_rule_18_after_a_reconnect_what_is_not_sent_again_is_kept_alive(socket: Path) -> None:
    """The client's clock runs on from the old stream; naive: only what was sent on this one has heartbeats."""

    async def work(bed: Bed) -> None:
        made = bed.serve(CDS="a", ttls={"CDS a": SECONDS})
        stream = bed.delta(features=[TTL])
        await stream.ask(CLUSTER, have={"a": made.types[CLUSTER].resources["a"].digest})
        for _ in range(3):
            response = await stream.read(SECONDS)
            if response.resources:
                break
            await stream.answer(response)
        assert names_of(response) == ["a"]

    run(socket, work)


def test_rule_18_a_refused_version_without_ttl_does_not_let_the_old_one_die(socket: Path) -> None:
    """The client goes on with what it had, and with its clock; naive: «the resource has no TTL any more»."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a", ttls={"EDS a": SECONDS})
        stream = bed.delta(features=[TTL])
        await stream.ask(ENDPOINT, "a")
        first = await stream.read()
        await stream.answer(first)
        bed.serve(EDS="a:bad")
        response = await stream.read()
        while versions_of(response) == versions_of(first):
            await stream.answer(response)
            response = await stream.read()
        await stream.answer(response, error="a is bad")
        beat = await stream.read(SECONDS)
        assert versions_of(beat) == versions_of(first)
        assert not beat.resources[0].HasField("resource")

    run(socket, work)
