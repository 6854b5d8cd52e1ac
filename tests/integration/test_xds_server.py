"""The rules of docs/xds.md with a raw gRPC client on the real server, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import socket as unix_socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import discovery_pb2

from spliceway.policy.table import HttpRule, RuleSet
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.errors import AckTimeoutError, InconsistentSnapshotError, NotAcceptedError, XdsError
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.ledger import Kind
from spliceway.xds.protocol.typeurls import CLUSTER, LISTENER, ROUTE
from spliceway.xds.resources.build import build_snapshot
from spliceway.xds.resources.settings import ResourceSettings
from spliceway.xds.server.clients import AckEvent
from spliceway.xds.server.server import XdsServer

NODE = "node-1"
QUIET = 0.15  # seconds in which nothing may come


def snapshot(version: str, *keys: int, path: str = "/a", previous: Snapshot | None = None) -> Snapshot:
    sets = {key: RuleSet(key, f"set {key}", (HttpRule(1, "GET", path),)) for key in keys}
    return build_snapshot(sets, {key: 20000 + key for key in keys}, ResourceSettings(), version, previous)


class Stream:
    """One ADS stream of a raw client."""

    def __init__(self, channel: grpc.aio.Channel, node: str | None = NODE) -> None:
        self._call: Any = channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )()
        self._node: str | None = node

    async def ask(
        self, url: str, *names: str, answer: Any = None, error: str | None = None, nonce: str = "", version: str = ""
    ) -> None:
        """One request; the node goes with the first only."""
        request = discovery_pb2.DiscoveryRequest(
            type_url=url,
            resource_names=names,
            version_info=answer.version_info if answer is not None else version,
            response_nonce=answer.nonce if answer is not None else nonce,
            error_detail={"message": error} if error is not None else None,
        )
        if self._node is not None:
            request.node.CopyFrom(base_pb2.Node(id=self._node))
            self._node = None
        await self._call.write(request)

    async def read(self) -> Any:
        """The next response."""
        return await asyncio.wait_for(self._call.read(), 5)

    async def silent(self) -> None:
        """Nothing comes for a while. Cancelling a read would end the call, so that it is left to be read later."""
        task = asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait({task}, timeout=QUIET)
        assert not done, await task
        self.read = lambda: asyncio.wait_for(self._take(task), 5)  # type: ignore[method-assign]

    async def _take(self, task: asyncio.Future[Any]) -> Any:
        del self.read
        return await task

    async def take(self, url: str, *names: str) -> list[str]:
        """Read a response of that type and acknowledge it; the names in it."""
        response = await self.read()
        assert response.type_url == url
        await self.ask(url, *names, answer=response)
        return names_of(response)

    def cancel(self) -> None:
        """Break the stream off."""
        self._call.cancel()

    async def code(self) -> grpc.StatusCode:
        """How the stream ended."""
        return await self._call.code()  # type: ignore[no-any-return]


_MESSAGES: dict[str, Any] = {
    CLUSTER: cluster_pb2.Cluster,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
}


def names_of(response: Any) -> list[str]:
    return [_MESSAGES[response.type_url].FromString(item.value).name for item in response.resources]


async def gone(bed: Bed) -> None:
    """Until the server has seen that all streams but one have ended."""
    for _ in range(500):
        if len(bed.server.status()) == 1:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(bed.server.status())


class Bed:
    """A server and a channel to it."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.flows: list[HttpFlow] = []
        self.acks: list[AckEvent] = []
        self.server = XdsServer(socket, identifier="test", on_flow=self.flows.append, on_ack=self.acks.append)
        self.channel = self.dial()

    def dial(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self.socket}", options=[("grpc.max_send_message_length", 64 << 20)])


def run(socket: Path, work: Callable[[Bed], Awaitable[None]], loop: str = "asyncio") -> None:
    async def main() -> None:
        bed = Bed(socket)
        await bed.server.start()
        try:
            async with asyncio.timeout(30):
                await work(bed)
        finally:
            await bed.channel.close()
            await bed.server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main())


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_from_nothing_to_acknowledged(socket: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5, 6))
        stream = Stream(bed.channel)
        await stream.ask(CLUSTER)
        assert await stream.take(CLUSTER) == ["original-destination"]
        await stream.ask(LISTENER)
        assert await stream.take(LISTENER) == ["rule-set-5", "rule-set-6"]
        names = ("rule-set-5", "rule-set-6")
        await stream.ask(ROUTE, "rule-set-5")
        assert await stream.take(ROUTE, *names) == ["rule-set-5"]
        await bed.server.wait_acked(NODE, 5, rule_sets=[5])
        with pytest.raises(AckTimeoutError, match="RDS rule-set-6"):
            await bed.server.wait_acked(NODE, 0.05)
        assert await stream.take(ROUTE, *names) == ["rule-set-6"]
        await bed.server.wait_acked(NODE, 5)
        assert [(ack.type, ack.kind) for ack in bed.acks] == [
            (short, Kind.ACK) for short in ("CDS", "LDS", "RDS", "RDS")
        ]
        [status] = bed.server.status()
        assert (status.client.node, status.current, status.snapshot) == (NODE, True, "1")

    run(socket, work, loop)


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
    test_a_client_from_nothing_to_acknowledged(socket, "asyncio")


def test_a_socket_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        with pytest.raises(XdsError, match="can't serve xDS there"):
            await XdsServer(path).start()

    (tmp_path / "file").touch()
    asyncio.run(main(tmp_path / "file" / "x.sock"))
    asyncio.run(main(tmp_path / ("x" * 120)))


def test_rule_2_a_stale_nonce_gets_no_response(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5, 6))
        stream = Stream(bed.channel)
        await stream.ask(ROUTE, "rule-set-5")
        first = await stream.read()
        await stream.ask(ROUTE, "rule-set-5", "rule-set-6", nonce="stale")
        await stream.silent()
        await stream.ask(ROUTE, "rule-set-5", "rule-set-6", answer=first)
        assert names_of(await stream.read()) == ["rule-set-6"]

    run(socket, work)


def test_rule_3_after_a_reconnect_everything_is_sent_again(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        first = Stream(bed.channel)
        await first.ask(CLUSTER)
        old = await first.read()
        first.cancel()
        again = Stream(bed.channel)
        await again.ask(CLUSTER, answer=old)
        assert names_of(await again.read()) == ["original-destination"]

    run(socket, work)


def test_rules_4_and_5_acks_identical_updates_and_nacks_cause_nothing(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        first = snapshot("1", 5)
        bed.server.set_snapshot(NODE, first)
        stream = Stream(bed.channel)
        await stream.ask(ROUTE, "rule-set-5")
        await stream.take(ROUTE, "rule-set-5")
        bed.server.set_snapshot(NODE, snapshot("2", 5, previous=first))
        await stream.silent()
        bad = snapshot("3", 5, path="/bad", previous=first)
        bed.server.set_snapshot(NODE, bad)
        response = await stream.read()
        await stream.ask(ROUTE, "rule-set-5", answer=response, error="no good")
        with pytest.raises(NotAcceptedError, match="refused rule-set-5: no good") as caught:
            await bed.server.wait_acked(NODE, 5)
        assert caught.value.resources == ("rule-set-5",)
        bed.server.set_snapshot(NODE, snapshot("4", 5, path="/bad", previous=bad))
        await stream.silent()
        bed.server.set_snapshot(NODE, snapshot("5", 5, path="/good", previous=bad))
        assert (await stream.read()).version_info == "5"

    run(socket, work)


def test_rule_7_the_node_comes_first_or_not_at_all(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        stream = Stream(bed.channel, node=None)
        await stream.ask(CLUSTER)
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
        good = Stream(bed.channel)
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        await good.ask(CLUSTER)
        await good.take(CLUSTER)
        await good.ask(LISTENER)  # without node
        assert await good.take(LISTENER) == ["rule-set-5"]

    run(socket, work)


def test_rule_17_a_slow_reader_gets_the_newest_version_next(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        served = snapshot("1", 5)
        bed.server.set_snapshot(NODE, served)
        stream = Stream(bed.channel)
        await stream.ask(ROUTE, "rule-set-5")
        first = await stream.read()
        for version in range(2, 30):
            served = snapshot(str(version), 5, path=f"/{version}", previous=served)
            bed.server.set_snapshot(NODE, served)
        await stream.silent()
        await stream.ask(ROUTE, "rule-set-5", answer=first)
        assert (await stream.read()).version_info == "29"

    run(socket, work)


def test_rule_19_ten_thousand_names_beyond_four_mebibytes(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        stream = Stream(bed.channel)
        await stream.ask(ROUTE, "rule-set-5", *(f"{number:0500d}" for number in range(10_000)))
        assert names_of(await stream.read()) == ["rule-set-5"]

    run(socket, work)


def test_rule_20_unknown_types_do_not_end_the_stream(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        stream = Stream(bed.channel)
        for url in ("", "type.googleapis.com/envoy.api.v2.Cluster", "nonsense"):
            await stream.ask(url)
        await stream.ask(CLUSTER)
        await stream.take(CLUSTER)
        [status] = bed.server.status()
        assert set(status.unsupported) == {"", "type.googleapis.com/envoy.api.v2.Cluster", "nonsense"}

    run(socket, work)


def test_rule_21_nodes_never_see_each_other_and_the_server_says_who_it_is(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot("one", snapshot("1", 5))
        bed.server.set_snapshot("two", snapshot("1", 6))
        seen = {}
        nonces = set()
        for node in ("one", "two"):
            stream = Stream(bed.channel, node=node)
            await stream.ask(LISTENER)
            response = await stream.read()
            seen[node] = names_of(response)
            nonces.add(response.nonce)
            assert response.control_plane.identifier == "test"
        assert seen == {"one": ["rule-set-5"], "two": ["rule-set-6"]}
        assert len(nonces) == 2
        stranger = Stream(bed.channel, node="three")
        await stranger.ask(LISTENER)
        await stranger.silent()

    run(socket, work)


def test_rule_23_nothing_is_served_before_the_state_is_complete(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        stream = Stream(bed.channel)
        await stream.ask(CLUSTER)
        await stream.ask(LISTENER)
        await stream.silent()
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        await stream.take(CLUSTER)
        assert await stream.take(LISTENER) == ["rule-set-5"]

    run(socket, work)


def test_rule_23_the_newest_stream_of_a_node_counts(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1"))
        half_open = Stream(bed.channel)
        await half_open.ask(CLUSTER)
        await half_open.read()  # and never answers
        other = bed.dial()
        stream = Stream(other)
        await stream.ask(CLUSTER)
        await stream.take(CLUSTER)
        await stream.ask(LISTENER)
        assert await stream.take(LISTENER) == []
        await bed.server.wait_acked(NODE, 5)
        assert [status.current for status in bed.server.status()] == [False, True]
        stream.cancel()
        await gone(bed)
        with pytest.raises(AckTimeoutError, match="has not acknowledged CDS"):
            await bed.server.wait_acked(NODE, 0.2)
        await other.close()

    run(socket, work)


def test_stopping_says_nothing(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        bed.server.set_snapshot(NODE, snapshot("1", 5))
        stream = Stream(bed.channel)
        await stream.ask(LISTENER)
        await stream.take(LISTENER)
        await bed.server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()

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


def test_access_log_entries_become_flows_also_when_the_receiver_fails(socket: Path) -> None:
    async def work(bed: Bed) -> None:
        def take(flow: HttpFlow) -> None:
            bed.flows.append(flow)
            if flow.path == "/1":
                raise RuntimeError("a mistake in the receiver")

        bed.server.on_flow = take
        call: Any = bed.channel.stream_unary(
            "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
            request_serializer=als_pb2.StreamAccessLogsMessage.SerializeToString,
            response_deserializer=als_pb2.StreamAccessLogsResponse.FromString,
        )()
        entries = [accesslog_pb2.HTTPAccessLogEntry(request={"path": f"/{number}"}) for number in range(3)]
        for part in (entries[:2], entries[2:]):
            await call.write(als_pb2.StreamAccessLogsMessage(http_logs={"log_entry": part}))
        await call.done_writing()
        await call
        assert [flow.path for flow in bed.flows] == ["/0", "/1", "/2"]
        assert bed.server.flows_received == 3

    run(socket, work)
