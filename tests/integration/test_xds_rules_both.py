"""The rules of docs/xds.md by their numbers that are the same in both variants: a raw client on the real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2

from spliceway.xds.errors import AckTimeoutError
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, URLS
from spliceway.xds.server.clients import NodeKey
from spliceway.xds.server.events import EventKind
from spliceway.xds.server.listen import TcpSettings
from support.xdsbed import Bed, run, settled, subscribe
from support.xdsclient import NODE, DeltaStream, SotwStream, bodies_of, body, dial, names_of

VARIANTS = pytest.mark.parametrize("variant", ["sotw", "delta"])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@VARIANTS
def test_rule_07_the_node_comes_with_the_first_request_only(socket: Path, variant: str) -> None:
    """«Only the first request on a stream is guaranteed to carry the node identifier»; naive: wants it each time."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="c", LDS="l")
        stream = bed.stream(variant)
        for url, name in ((CLUSTER, "c"), (LISTENER, "l")):
            await stream.ask(url)
            response = await stream.read()
            assert names_of(response) == [name]
            await stream.answer(response)

    run(socket, work)


@VARIANTS
@pytest.mark.parametrize("node", [None, base_pb2.Node(cluster="only")])
def test_rule_07_a_stream_without_a_node_id_is_ended(socket: Path, variant: str, node: Any) -> None:
    """Whose resources would it be? Naive: those of the node `""`, or a crash."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        stream = bed.stream(variant, node)
        await stream.ask(CLUSTER)
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "node" in await stream.details()
        assert [event.kind for event in bed.events] == [EventKind.REJECTED]

    run(socket, work)


@VARIANTS
def test_rule_19_ten_thousand_names_and_more_than_four_mebibytes_each_way(socket: Path, variant: str) -> None:
    """GRPC's default limit is 4 MiB a message; naive: RESOURCE_EXHAUSTED, and the client comes again for ever."""

    async def work(bed: Bed) -> None:
        names = [f"{number:0500d}" for number in range(10_000)]
        bed.serve(EDS=" ".join(names))
        stream = bed.stream(variant)
        await stream.ask(ENDPOINT, *names)
        response = await stream.read(30)
        assert response.ByteSize() > 4 << 20
        assert names_of(response) == names
        await stream.answer(response)
        await stream.silent()

    run(socket, work)


@VARIANTS
@pytest.mark.parametrize("url", ["", "type.googleapis.com/envoy.api.v2.Cluster", "nonsense", "x" * 70_000])
def test_rule_20_what_is_not_served_is_counted_and_ends_nothing(socket: Path, variant: str, url: str) -> None:
    """Naive: an exception, or INVALID_ARGUMENT: the client comes back at once with the same request, for ever."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        stream = bed.stream(variant)
        for _ in range(3):
            await stream.ask(url, "a")
        await stream.ask(CLUSTER)
        await stream.answer(await stream.read())
        await stream.silent()
        [status] = bed.server.status()
        assert [(kept[:50], times) for kept, times in status.unsupported.items()] == [(url[:50], 3)]
        assert sum(map(len, status.unsupported)) < 5000

    run(socket, work)


@VARIANTS
def test_rule_20_a_thousand_unknown_types_take_no_memory(socket: Path, variant: str) -> None:
    """Naive: remembers each."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        stream = bed.stream(variant)
        for number in range(1000):
            await stream.ask(f"type.googleapis.com/{number}")
        await stream.ask(CLUSTER)
        await stream.answer(await stream.read())
        [status] = bed.server.status()
        assert len(status.unsupported) <= 32

    run(socket, work)


@VARIANTS
@pytest.mark.parametrize("short", ["CDS", "EDS", "SDS", "LDS", "RDS", "ECDS"])
def test_rule_20_a_service_of_one_type_needs_no_type_url_and_takes_no_other(
    socket: Path, variant: str, short: str
) -> None:
    """«type_url is implicit in requests made via singleton xDS APIs»; naive: answers with any type, or with none."""

    async def work(bed: Bed) -> None:
        bed.serve(**{short: "a"})
        stream = bed.stream(variant, service=short)
        await stream.ask("", "a")
        response = await stream.read()
        assert (response.type_url, names_of(response)) == (URLS[short], ["a"])
        await stream.ask(CLUSTER if short != "CDS" else LISTENER)
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT

    run(socket, work)


@VARIANTS
def test_rule_21_nonces_are_of_one_stream_and_versions_of_one_type(socket: Path, variant: str) -> None:
    """«the nonce is valid only in the context of an individual xDS stream»; naive: the version is the nonce."""

    async def work(bed: Bed) -> None:
        bed.serve(version="1", CDS="c", LDS="l")
        bed.serve(version="2", CDS="c", LDS="l:2")
        nonces = []
        for _ in range(2):
            stream = bed.stream(variant)
            await stream.ask(CLUSTER)
            await stream.ask(LISTENER)
            for version in ("1", "2"):
                response = await stream.read()
                nonces.append(response.nonce)
                assert getattr(response, "version_info", "") or response.system_version_info == version
                assert response.control_plane.identifier == "test"
                await stream.answer(response)
        assert len(set(nonces)) == 4
        assert all(nonces)

    run(socket, work)


@VARIANTS
def test_rule_21_two_nodes_never_see_each_others_resources(socket: Path, variant: str) -> None:
    """Naive: asks by name in one store. Names of another node's resources are as if they didn't exist."""

    async def work(bed: Bed) -> None:
        bed.serve("one", EDS="a one", LDS="of-one")
        bed.serve("two", EDS="a:2 two", LDS="of-two")
        for node, revision, other in (("one", "", "two"), ("two", "2", "one")):
            stream = bed.stream(variant, node)
            await stream.ask(LISTENER, "*", f"of-{other}")
            response = await stream.read()
            assert names_of(response) == [f"of-{node}"]
            await stream.answer(response)
            await stream.ask(ENDPOINT, "a", "one", "two")
            response = await stream.read()
            assert bodies_of(response) == {
                "a": body(ENDPOINT, "a", revision),
                node: body(ENDPOINT, node),
            }
        stranger = bed.stream(variant, "three")
        await stranger.ask(LISTENER)
        await stranger.silent()

    run(socket, work)


@VARIANTS
def test_rule_21_a_snapshot_may_be_for_a_node_of_one_cluster_only(socket: Path, variant: str) -> None:
    """The key is node id and cluster; naive: by id alone, and a node of another cluster gets what is not its own."""

    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NodeKey("node-1", "mine"), bed.serve("elsewhere", LDS="l"))
        for cluster, expected in (("mine", ["l"]), ("other", None)):
            stream = bed.stream(variant, base_pb2.Node(id="node-1", cluster=cluster))
            await stream.ask(LISTENER)
            if expected is None:
                await stream.silent()
            else:
                assert names_of(await stream.read()) == expected

    run(socket, work)


@VARIANTS
def test_rule_23_nothing_is_served_before_the_state_is_complete(socket: Path, variant: str) -> None:
    """Naive: an agent that has just started answers with an empty set, and Envoy deletes all listeners."""

    async def work(bed: Bed) -> None:
        first = bed.stream(variant)
        await subscribe(first, (), ())
        bed.serve(CDS="c", LDS="l")
        await settled(first)
        await bed.restart()
        stream = bed.stream(variant)
        await subscribe(stream, (), ())
        bed.serve(CDS="c", LDS="l")
        assert await settled(stream) == ["CDS c", "LDS l"]

    run(socket, work)


@VARIANTS
def test_rule_23_of_two_streams_of_a_node_both_are_served_and_the_newer_counts(socket: Path, variant: str) -> None:
    """A half-open stream still looks alive. Naive: waits for its answer, or throws out the new one."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        half_open = bed.stream(variant)
        await half_open.ask(CLUSTER)
        await half_open.read()  # and never answers
        stream = bed.stream(variant)
        await stream.ask(CLUSTER)
        await stream.answer(await stream.read())
        await bed.until(lambda: bed.server.current("node-1")["CDS"].state == "SYNCED")
        bed.serve(CDS="c:2")
        await stream.answer(await stream.read())
        assert sorted(status.current for status in bed.server.status()) == [False, True]
        half_open.cancel()
        await bed.until(lambda: len(bed.server.status()) == 1)
        bed.serve(CDS="c:3")
        assert bodies_of(await stream.read()) == {"c": body(CLUSTER, "c", 3)}

    run(socket, work)


@VARIANTS
def test_rule_23_what_an_older_stream_was_told_is_nothing_to_the_newer_one(socket: Path, variant: str) -> None:
    """Naive: puts the listeners of the new stream and the routes of the old one together, and both are acknowledged."""

    async def work(bed: Bed) -> None:
        bed.serve(LDS="rule-set-1", RDS="rule-set-1")
        old, new = bed.stream(variant), bed.stream(variant)
        for stream, names in ((old, ("rule-set-1",)), (new, ())):
            await stream.ask(LISTENER)
            await stream.answer(await stream.read())
            if names:
                await stream.ask(ROUTE, *names)
                await stream.answer(await stream.read())
        with pytest.raises(AckTimeoutError, match="has not acknowledged RDS rule-set-1"):
            await bed.server.wait_acked(NODE, 0.2, [1])
        await new.ask(ROUTE, "rule-set-1")
        await new.answer(await new.read())
        await bed.server.wait_acked(NODE, 10, [1])

    run(socket, work)


@VARIANTS
def test_rule_23_a_client_on_tcp_does_not_answer_for_the_one_on_the_unix_socket(socket: Path, variant: str) -> None:
    """Anybody may call itself by the node's name. Naive: it is the newest, and what Envoy refused is applied."""

    async def work(bed: Bed) -> None:
        bed.serve(LDS="rule-set-1")
        async with dial(socket) as channel:
            envoy = (SotwStream if variant == "sotw" else DeltaStream)(channel)
            await envoy.ask(LISTENER)
            await envoy.answer(await envoy.read(), error="rule-set-1: no")
            other = bed.stream(variant)
            await other.ask(LISTENER)
            await other.answer(await other.read())
            await bed.until(lambda: bed.kinds(EventKind.ACK) and bed.kinds(EventKind.NACK))
            assert bed.server.current(NODE)["LDS"].state == "NACK"
            envoy.cancel()

    run(socket, work, tcp=TcpSettings(host="127.0.0.1", port=0, plaintext=True))


@VARIANTS
def test_rule_23_a_storm_of_reconnects_leaves_nothing_behind(socket: Path, variant: str) -> None:
    """The same node again and again, streams broken off at every point; naive: their records stay."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="c", LDS="l")

        async def come_and_go(number: int) -> None:
            stream = bed.stream(variant)
            await stream.ask(CLUSTER)
            if number % 3:
                await stream.read()
            if number % 3 == 2:
                await stream.done_writing()
            stream.cancel()

        for start in range(0, 60, 20):
            await asyncio.gather(*(come_and_go(start + number) for number in range(20)))
        await bed.until(lambda: not bed.server.status(), "all streams gone")

    run(socket, work)


@VARIANTS
def test_all_of_it_over_tcp(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, ("e",), ("r",))
        bed.serve(CDS="c", EDS="e", LDS="l", RDS="r")
        assert await settled(stream) == ["CDS c", "EDS e", "LDS l", "RDS r"]

    run(socket, work, tcp=TcpSettings(host="127.0.0.1", port=0, plaintext=True))
