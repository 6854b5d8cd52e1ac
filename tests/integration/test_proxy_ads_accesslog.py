"""The proxy's access log reaches the agent: every record, or it is counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from envoy.service.accesslog.v3 import als_pb2

from spliceway.policy.verdict import Reason, Verdict
from spliceway.proxy.ads import accesslog
from spliceway.proxy.ads.accesslog import ENTRIES, QUEUE, AccessLogClient
from spliceway.proxy.ads.channel import open_channel
from spliceway.proxy.model import AccessRecord
from spliceway.xds.accesslog.flow import HttpFlow
from spliceway.xds.server.server import XdsServer
from support.adsbed import Proxy, nobody, running, settings_for, snapshot
from support.xdsbed import Bed, run
from support.xdsclient import NODE

RECORD = AccessRecord(
    time=1,
    duration_ns=2,
    source="10.0.0.1",
    source_port=4,
    destination="10.0.0.2",
    destination_port=80,
    protocol="HTTP/1.1",
    method="GET",
    authority="api",
    path="/",
    status=200,
    verdict=Verdict.ALLOW,
    reason=Reason.HTTP_ALLOWED,
    rule_set=7,
    rule=17,
)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def records(count: int, begin: int = 0) -> Iterator[AccessRecord]:
    return (msgspec.structs.replace(RECORD, connection=number) for number in range(begin, begin + count))


def counted(logs: AccessLogClient) -> tuple[int, int]:
    """(written, dropped)."""
    counters = logs.counters()
    return counters["access_logs.grpc_access_log.logs_written"], counters["access_logs.grpc_access_log.logs_dropped"]


@contextlib.asynccontextmanager
async def logging(directory: Path) -> AsyncIterator[tuple[AccessLogClient, asyncio.Task[None]]]:
    """A client that runs."""
    settings = settings_for(directory)
    channel = open_channel(settings)
    logs = AccessLogClient(settings, channel)
    task = asyncio.create_task(logs.run())
    try:
        yield logs, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await channel.close(None)


def received(flows: list[HttpFlow], bed: Bed) -> XdsServer:
    bed.server.on_flow = flows.append
    return bed.server


def test_all_records_arrive_in_order(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        flows: list[HttpFlow] = []
        received(flows, bed)
        async with logging(tmp_path) as (logs, _):
            logs.add(records(1))
            await bed.until(lambda: len(flows) == 1, "a single one")
            logs.add(records(2 * ENTRIES + 5, 1))
            await bed.until(lambda: len(flows) == 2 * ENTRIES + 6, "many")
            assert [flow.connection for flow in flows] == list(range(2 * ENTRIES + 6))
            assert (flows[1].verdict, flows[1].reason, flows[1].rule_set, flows[1].rule) == (
                Verdict.ALLOW,
                Reason.HTTP_ALLOWED,
                7,
                17,
            )
            # The last ones may have been read before their writer goes on and counts them.
            await bed.until(lambda: counted(logs) == (2 * ENTRIES + 6, 0), f"the count of {2 * ENTRIES + 6}")

    run(tmp_path / "xds.sock", work, loop)


def test_configuration_and_access_log_share_a_channel(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        flows: list[HttpFlow] = []
        received(flows, bed)
        settings = settings_for(tmp_path)
        proxy = Proxy(settings)
        logs = AccessLogClient(settings, proxy.channel)
        async with running(proxy):
            task = asyncio.create_task(logs.run())
            for number in range(20):
                bed.server.set_snapshot(NODE, snapshot(str(number), bed.server.snapshot(NODE), LDS=f"a:{number}"))
                logs.add(records(ENTRIES, number * ENTRIES))
                if number == 10:
                    await bed.until(lambda: len(flows) == 11 * ENTRIES, "half of them")
                    # What it does not know to be written it would write again.
                    await bed.until(lambda: counted(logs) == (11 * ENTRIES, 0), "the count of half of them")
                    now = bed.server.snapshot(NODE)
                    await bed.restart()
                    received(flows, bed)
                    assert now is not None
                    bed.server.set_snapshot(NODE, now)
            await bed.until(lambda: len(flows) == 20 * ENTRIES, "all of them")
            await bed.until(lambda: proxy.applied.texts()[-1] == "LDS a", "the last edit")
            logs.stop()
            await task
        assert [flow.connection for flow in flows] == list(range(20 * ENTRIES))

    run(tmp_path / "xds.sock", work, loop, flows_per_second=100_000)


def test_what_there_is_no_room_for_is_counted(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        flows: list[HttpFlow] = []
        await bed.server.stop()
        async with logging(tmp_path) as (logs, _):
            logs.add(records(QUEUE + 7))
            assert counted(logs) == (0, 7)
            async with nobody(tmp_path / "xds.sock") as attempts:
                await attempts(2)
            assert counted(logs) == (0, 7)
            bed.server = bed.new_server()
            received(flows, bed)
            await bed.server.start()
            await bed.until(lambda: len(flows) == QUEUE, "what was queued")
            assert [flow.connection for flow in flows] == list(range(QUEUE))
            await bed.until(lambda: counted(logs) == (QUEUE, 7), "the count of all")

    run(tmp_path / "xds.sock", work, flows_per_second=100_000)


def test_what_is_queued_at_the_end_still_goes_out(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        flows: list[HttpFlow] = []
        received(flows, bed)
        async with logging(tmp_path) as (logs, task):
            logs.add(records(3 * ENTRIES + 1))
            logs.stop()
            await task
            # The agent has read all of it, and said so.
            assert len(flows) == 3 * ENTRIES + 1

    run(tmp_path / "xds.sock", work)


def test_nothing_is_queued_at_the_end(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        async with logging(tmp_path) as (logs, task):
            await asyncio.sleep(0)
            logs.stop()
            await task
            assert counted(logs) == (0, 0)

    run(tmp_path / "xds.sock", work)


def test_an_agent_that_is_away_at_the_end_costs_the_records_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accesslog, "_LAST", 0.05)

    async def work(bed: Bed) -> None:
        await bed.server.stop()
        async with logging(tmp_path) as (logs, task):
            logs.add(records(5))
            logs.stop()
            await task
            assert counted(logs) == (0, 5)

    run(tmp_path / "xds.sock", work)


def test_a_record_that_can_not_be_sent_costs_itself_only(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        flows: list[HttpFlow] = []
        received(flows, bed)
        async with logging(tmp_path) as (logs, _):
            logs.add([RECORD, msgspec.structs.replace(RECORD, path="\ud800"), RECORD])
            await bed.until(lambda: len(flows) == 2, "the others")
            assert counted(logs) == (2, 1)

    run(tmp_path / "xds.sock", work)


def test_the_first_message_says_who_it_is_and_the_others_do_not(tmp_path: Path) -> None:
    messages: asyncio.Queue[als_pb2.StreamAccessLogsMessage] = asyncio.Queue()

    async def take(requests: AsyncIterator[bytes], _context: Any) -> bytes:
        """Two messages of each stream, which then ends."""
        seen = 0
        async for raw in requests:
            messages.put_nowait(als_pb2.StreamAccessLogsMessage.FromString(raw))
            seen += 1
            if seen == 2:
                break
        return b""

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_unary_rpc_method_handler(take)
        service = "envoy.service.accesslog.v3.AccessLogService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"StreamAccessLogs": handler}),))
        server.add_insecure_port(f"unix:{tmp_path / 'xds.sock'}")
        await server.start()
        async with asyncio.timeout(20), logging(tmp_path) as (logs, _):
            for number in range(2):
                logs.add(records(1, number))
                first, second = await messages.get(), await messages.get()
                assert (first.identifier.node.id, first.identifier.node.cluster) == (NODE, "tests")
                assert first.identifier.log_name == "spliceway"
                assert not second.HasField("identifier")
                [entry] = second.http_logs.log_entry
                assert entry.common_properties.custom_tags.get("connection", "0") == str(number)
        await server.stop(None)

    asyncio.run(main())
