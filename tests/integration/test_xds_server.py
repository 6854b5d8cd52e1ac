"""The server around the protocol, on asyncio's own loop and on uvloop: sockets, waiting, limits, events, access log."""

from __future__ import annotations

import asyncio
import socket as unix_socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.errors import AckTimeoutError, InconsistentSnapshotError, NotAcceptedError, XdsError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.consistency import check_policy
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.events import EventKind
from spliceway.xds.server.server import ServerLimits, XdsServer
from support.xdsbed import Bed, run
from support.xdsclient import NODE, names_of

VARIANTS = pytest.mark.parametrize("variant", ["sotw", "delta"])


def snapshot(version: str, *keys: int, path: str = "/a", previous: Snapshot | None = None) -> Snapshot:
    sets = {key: RuleSet(key, f"set {key}", (HttpRule(1, "GET", path),)) for key in keys}
    return build_snapshot(sets, {key: 20000 + key for key in keys}, ResourceSettings(), version, previous)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@VARIANTS
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_from_nothing_to_acknowledged(socket: Path, loop: str, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5, 6))
        stream = bed.stream(variant)
        for url, expected in ((CLUSTER, ["original-destination"]), (LISTENER, ["rule-set-5", "rule-set-6"])):
            await stream.ask(url)
            response = await stream.read()
            assert names_of(response) == expected
            await stream.answer(response)
        await stream.ask(ROUTE, "rule-set-5")
        response = await stream.read()
        await stream.answer(response)
        await bed.server.wait_acked(NODE, 5, rule_sets=[5])
        with pytest.raises(AckTimeoutError, match="RDS rule-set-6"):
            await bed.server.wait_acked(NODE, 0.05)
        await (stream.ask(ROUTE, "rule-set-5", "rule-set-6") if variant == "sotw" else stream.ask(ROUTE, "rule-set-6"))
        response = await stream.read()
        assert names_of(response) == ["rule-set-6"]
        await stream.answer(response)
        await bed.server.wait_acked(NODE, 5)
        assert [event.type for event in bed.kinds(EventKind.ACK)] == ["CDS", "LDS", "RDS", "RDS"]
        assert all(event.seconds is not None and 0 < event.seconds < 10 for event in bed.kinds(EventKind.ACK))
        [status] = bed.server.status()
        assert (status.client.node, status.current, status.snapshot, status.protocol) == (NODE, True, "1", variant)

    run(socket, work, loop, check=check_policy)


def test_the_socket_is_for_the_owner_only_and_goes_with_the_server(socket: Path) -> None:
    modes = []

    async def work(bed: Bed) -> None:
        modes.append((await asyncio.to_thread(socket.stat)).st_mode)

    run(socket, work)
    assert [stat.S_IMODE(mode) for mode in modes] == [0o600]
    assert not socket.exists()
    run(socket, work)


def test_a_socket_that_a_killed_agent_left_is_taken(socket: Path) -> None:
    left = unix_socket.socket(unix_socket.AF_UNIX)
    left.bind(str(socket))
    left.close()
    test_a_client_from_nothing_to_acknowledged(socket, "asyncio", "delta")


def test_a_socket_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        with pytest.raises(XdsError, match="can't serve xDS there"):
            await XdsServer(path).start()

    (tmp_path / "file").touch()
    asyncio.run(main(tmp_path / "file" / "x.sock"))
    asyncio.run(main(tmp_path / ("x" * 120)))


@VARIANTS
def test_waiting_ends_with_what_the_client_says(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        good = snapshot("1", 5)
        bed.server.set_snapshot(NODE, good)
        stream = bed.stream(variant)
        await stream.ask(ROUTE, "rule-set-5")
        await stream.answer(await stream.read())
        bed.server.set_snapshot(NODE, snapshot("2", 5, path="/bad", previous=good))
        waiting = asyncio.create_task(bed.server.wait_acked(NODE, 5, rule_sets=[5]))
        await stream.answer(await stream.read(), error="no good")
        with pytest.raises(NotAcceptedError, match="refused rule-set-5: no good") as caught:
            await waiting
        assert caught.value.resources == ("rule-set-5",)

    run(socket, work)


def test_waiting_without_a_snapshot_a_proxy_or_the_rule_set(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        with pytest.raises(XdsError, match="has no snapshot yet"):
            await bed.server.wait_acked(NODE, 1)
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        with pytest.raises(XdsError, match="not in snapshot 1: rule-set-6"):
            await bed.server.wait_acked(NODE, 1, rule_sets=[6])
        with pytest.raises(AckTimeoutError, match="no proxy is connected"):
            await bed.server.wait_acked(NODE, 0.05)

    run(socket, work)


@VARIANTS
def test_waiting_is_for_the_newest_stream_and_its_types(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1"))
        half_open = bed.stream(variant)
        await half_open.ask(CLUSTER)
        await half_open.read()  # and never answers
        stream = bed.stream(variant)
        for url in (CLUSTER, LISTENER):
            await stream.ask(url)
            await stream.answer(await stream.read())
        await bed.server.wait_acked(NODE, 5)
        stream.cancel()
        await bed.until(lambda: len(bed.server.status()) == 1)
        with pytest.raises(AckTimeoutError, match="has not acknowledged CDS"):
            await bed.server.wait_acked(NODE, 0.2)

    run(socket, work)


@VARIANTS
def test_streams_of_single_types_are_one_client(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(CDS="c", LDS="l")
        for short, url in (("CDS", CLUSTER), ("LDS", LISTENER)):
            stream = bed.stream(variant, service=short)
            await stream.ask(url)
            await stream.answer(await stream.read())
        await bed.server.wait_acked(NODE, 5)
        assert {short: status.state for short, status in bed.server.current(NODE).items()} == {
            "CDS": "SYNCED",
            "LDS": "SYNCED",
        }
        assert [(status.service, status.current) for status in bed.server.status()] == [("CDS", True), ("LDS", True)]

    run(socket, work)


@VARIANTS
def test_stopping_says_nothing(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(LDS="l")
        stream = bed.stream(variant)
        await stream.ask(LISTENER)
        await stream.answer(await stream.read())
        await bed.server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()

    run(socket, work)


@VARIANTS
def test_its_calls_have_ended_when_it_has_stopped(socket: Path, variant: str) -> None:
    """A loop that ends before they do would cancel them once more, and gRPC logs that as an error."""

    async def work(bed: Bed) -> None:
        bed.serve(LDS="l")
        for _ in range(5):
            stream = bed.stream(variant)
            await stream.ask(LISTENER)
            await stream.answer(await stream.read())
        path = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
        message = als_pb2.StreamAccessLogsMessage
        entries = message.HTTPAccessLogEntries(log_entry=[accesslog_pb2.HTTPAccessLogEntry()])
        logs = bed.channel().stream_unary(path, request_serializer=message.SerializeToString)()
        await logs.write(message(http_logs=entries))
        await bed.until(lambda: bed.server.flows_received == 1)
        calls = set(bed.server._calls.tasks)
        assert len(calls) == 6
        await bed.server.stop()
        assert not [call for call in calls if not call.done()]

    run(socket, work)


def test_an_inconsistent_snapshot_changes_nothing(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        good = snapshot("1", 5)
        bed.server.set_snapshot(NODE, good)
        bodies = snapshot("2", 5).bodies()
        bodies[ROUTE] = {}
        with pytest.raises(InconsistentSnapshotError):
            bed.server.set_snapshot(NODE, Snapshot.of("2", bodies))
        assert bed.server.snapshot(NODE) is good

    run(socket, work, check=check_policy)


@VARIANTS
def test_removing_a_snapshot_takes_nothing_from_the_client(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(LDS="l")
        stream = bed.stream(variant)
        await stream.ask(LISTENER)
        await stream.answer(await stream.read())
        bed.server.remove_snapshot(NODE)
        bed.server.remove_snapshot("nobody")
        assert bed.server.nodes() == ()
        await stream.silent()
        bed.serve(LDS="l m")
        assert "m" in names_of(await stream.read())

    run(socket, work)


@VARIANTS
@pytest.mark.parametrize("url", [CLUSTER, ENDPOINT])
def test_more_names_than_allowed_end_that_stream_only(socket: Path, variant: str, url: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(CDS="c", EDS="c")
        good, greedy = bed.stream(variant), bed.stream(variant)
        for stream in (good, greedy):
            await stream.ask(url, "c")
            await stream.answer(await stream.read())
        await greedy.ask(url, *map(str, range(101)))
        assert await greedy.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        bed.serve(CDS="c:2", EDS="c:2")
        assert names_of(await good.read()) == ["c"]

    run(socket, work, limits=ServerLimits(names=100))


def test_names_of_many_small_requests_count_together(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(EDS="c")
        stream = bed.delta()

        # The last is too much; whatever is written after the end would be an error of the client's own.
        for start in (0, 45, 90):
            await stream.ask(ENDPOINT, *map(str, range(start, start + 45)))

        async def read_all() -> None:
            while True:
                await stream.read(5)

        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await read_all()
        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(socket, work, limits=ServerLimits(names=100))


@VARIANTS
def test_a_message_that_is_too_large_ends_that_stream_only(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        good, large = bed.stream(variant), bed.stream(variant)
        await good.ask(CLUSTER)
        await good.answer(await good.read())
        await large.ask(CLUSTER, "x" * 200_000)
        assert await large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        bed.serve(CDS="c:2")
        assert names_of(await good.read()) == ["c"]

    run(socket, work, limits=ServerLimits(message=100_000))


@VARIANTS
def test_more_streams_than_allowed_are_not_served(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        streams = [bed.stream(variant) for _ in range(2)]
        for stream in streams:
            await stream.ask(CLUSTER)
            await stream.read()
        third = bed.stream(variant)
        await third.ask(CLUSTER)
        assert await third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        streams[0].cancel()
        await bed.until(lambda: len(bed.server.status()) == 1)
        fourth = bed.stream(variant)
        await fourth.ask(CLUSTER)
        assert names_of(await fourth.read()) == ["c"]

    run(socket, work, limits=ServerLimits(streams=2))


@VARIANTS
@pytest.mark.parametrize(("unsafe", "served"), [("refuse", False), ("warn", True)])
def test_an_envoy_whose_rules_can_be_passed_by(socket: Path, variant: str, unsafe: str, served: bool) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(CDS="c")
        node = base_pb2.Node(id=NODE, user_agent_name="envoy")
        node.user_agent_build_version.version.major_number = 1
        node.user_agent_build_version.version.minor_number = 30
        stream = bed.stream(variant, node)
        await stream.ask(CLUSTER)
        if served:
            assert names_of(await stream.read()) == ["c"]
            assert bed.server.status()[0].client.warning
        else:
            assert await stream.code() is grpc.StatusCode.FAILED_PRECONDITION
            [rejected] = bed.server.rejections()
            assert rejected.error == bed.kinds(EventKind.REJECTED)[0].error

    run(socket, work, unsafe=unsafe)


@VARIANTS
def test_events_tell_what_happened(socket: Path, variant: str) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        stream = bed.stream(variant)
        await stream.ask(ENDPOINT, "a", "b")
        response = await stream.read()
        await stream.answer(response, error="b is bad")
        await bed.until(lambda: bed.kinds(EventKind.NACK))
        stream.cancel()
        await bed.until(lambda: bed.kinds(EventKind.DISCONNECTED))
        first = [event.kind for event in bed.events[:4]]
        assert first == [EventKind.CONNECTED, EventKind.SUBSCRIBE, EventKind.PUSH, EventKind.NACK]
        connected, asked, push, nack = bed.events[:4]
        assert (connected.node, connected.cluster, connected.protocol) == (NODE, "tests", variant)
        assert (asked.type, asked.resources, asked.count) == ("EDS", ("a", "b"), 2)
        assert (push.type, push.resources, push.nonce) == ("EDS", ("a", "b"), response.nonce)
        assert push.size == response.ByteSize()
        assert (nack.type, nack.nonce, nack.error) == ("EDS", response.nonce, "b is bad")
        assert len({event.stream for event in bed.events}) == 1

    run(socket, work)


def test_access_log_entries_become_flows_also_when_the_receiver_fails(socket: Path) -> None:
    flows: list[HttpFlow] = []

    def take(flow: HttpFlow) -> None:
        flows.append(flow)
        if flow.path == "/1":
            raise RuntimeError("a mistake in the receiver")

    async def work(bed: Bed) -> None:
        open_stream: Any = bed.channel().stream_unary(
            "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
            request_serializer=als_pb2.StreamAccessLogsMessage.SerializeToString,
            response_deserializer=als_pb2.StreamAccessLogsResponse.FromString,
        )
        call = open_stream()
        entries = [accesslog_pb2.HTTPAccessLogEntry(request={"path": f"/{number}"}) for number in range(3)]
        for part in (entries[:2], entries[2:]):
            await call.write(als_pb2.StreamAccessLogsMessage(http_logs={"log_entry": part}))
        await call.done_writing()
        await call
        assert [flow.path for flow in flows] == ["/0", "/1", "/2"]
        assert bed.server.flows_received == 3

    run(socket, work, on_flow=take)
