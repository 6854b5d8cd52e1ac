"""The proxy's client against the agent's server, over a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from spliceway.proxy.ads.store import StateStore
from spliceway.proxy.ads.values import CLUSTER, LISTENER, ROUTE, Batch
from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.server.events import EventKind
from spliceway.xds.server.streams import ServerLimits
from support.adsbed import Applied, Proxy, bodies, nobody, running, settings_for, snapshot
from support.xdsbed import Bed, run
from support.xdsclient import NODE


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serve(bed: Bed, **types: str) -> Snapshot:
    """From now on the node shall have exactly this (see `snapshot`); versions count up."""
    before = bed.server.snapshot(NODE)
    made = snapshot(f"v{int(before.version[1:]) + 1 if before else 1}", before, **types)
    bed.server.set_snapshot(NODE, made)
    return made


async def synced(bed: Bed, proxy: Proxy, now: Snapshot) -> None:
    """Wait until everything is acknowledged, and compare."""
    await bed.server.wait_acked(NODE, 10)
    assert bodies(proxy.state.accepted) == {url: now.bodies()[url] for url in (CLUSTER, LISTENER, ROUTE)}
    assert proxy.agrees()


def test_start_edit_and_remove(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b"))
            assert proxy.applied.texts() == ["CDS c", "LDS a b", "RDS a b"]
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b:2"))
            assert proxy.applied.texts()[3:] == ["RDS b"]
            await synced(bed, proxy, serve(bed, CDS="c", LDS="b d", RDS="b:2 d"))
            assert proxy.applied.texts()[4:] == ["LDS d -a", "RDS -a", "RDS d"]
            await synced(bed, proxy, serve(bed))
            # What names the cluster goes first.
            assert proxy.applied.texts()[7:] == ["LDS -b -d", "RDS -b -d", "CDS -c"]
            assert proxy.client.counters()["listener_manager.lds.update_success"] == 3
        [status] = bed.kinds(EventKind.CONNECTED)
        assert (status.node, status.cluster) == (NODE, "tests")

    run(tmp_path / "xds.sock", work, loop)


def test_the_agent_knows_who_asks(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            await synced(bed, proxy, serve(bed))
            [status] = bed.server.status()
            assert (status.client.agent, status.client.features, status.protocol) == ("spliceway-proxy", (), "delta")

    run(tmp_path / "xds.sock", work)


def test_one_refused_listener_holds_back_nothing(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        reason = "cannot bind '127.0.0.1:1025': Address already in use"
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b"))
            proxy.applied.refuse = lambda url, name, _: reason if (url, name) == (LISTENER, "b") else None
            now = serve(bed, CDS="c", LDS="a:2 b:2 d", RDS="a b d")
            # The good one gets its routes, although the response is refused.
            await bed.until(lambda: "d" in proxy.state.accepted[ROUTE], "routes of d")
            await bed.until(lambda: bed.server.current(NODE)["LDS"].state == "NACK", "NACK")
            await bed.until(lambda: not bed.server.current(NODE)["LDS"].waiting, "settled")
            held = bed.server.held(NODE, "acked")[LISTENER]
            want = {name: now.types[LISTENER].resources[name].version for name in ("a", "d")}
            assert {name: held[name].version for name in want} == want
            assert held["b"].version == "v1"
            [nack] = bed.kinds(EventKind.NACK)
            assert nack.error == f"Error adding/updating listener(s) b: {reason}"
            assert proxy.agrees()
            # Another port, and all is well.
            proxy.applied.refuse = lambda *_: None
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a:2 b:3 d", RDS="a b d"))

    run(tmp_path / "xds.sock", work, loop)


def test_refused_routes_hold_back_nothing(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        proxy.applied.refuse = lambda url, name, _: "routes[0]: no" if (url, name) == (ROUTE, "b") else None
        async with running(proxy):
            now = serve(bed, CDS="c", LDS="a b d", RDS="a b d")
            await bed.until(lambda: proxy.state.accepted[ROUTE].keys() == {"a", "d"}, "the good ones")
            # They came together; each comes alone then, and of these only one is refused.
            await bed.until(lambda: len(bed.kinds(EventKind.NACK)) == 2, "NACKs")
            await bed.until(
                lambda: (
                    bed.server.held(NODE, "acked")[ROUTE].keys() == {"a", "d"}
                    and not bed.server.current(NODE)["RDS"].waiting
                ),
                "acknowledged",
            )
            assert [event.error for event in bed.kinds(EventKind.NACK)] == ["b: routes[0]: no", "routes[0]: no"]
            assert proxy.applied.texts().count("RDS a b d") == 1
            assert bodies(proxy.state.accepted)[ROUTE] == {n: now.bodies()[ROUTE][n] for n in ("a", "d")}
            proxy.applied.refuse = lambda *_: None
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b d", RDS="a b:2 d"))

    run(tmp_path / "xds.sock", work)


def test_an_answer_goes_out_only_when_all_is_in_force(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b"))
            proxy.applied.gate.clear()
            acknowledged = len(bed.kinds(EventKind.ACK))
            now = serve(bed, CDS="c:2", LDS="a b:2", RDS="a:2 b")
            await bed.until(lambda: proxy.applied.texts()[3:] == ["CDS c"], "the first change")
            await bed.until(lambda: len(bed.kinds(EventKind.PUSH)) == 6, "all pushed")
            # The others have come, and wait for their turn.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await bed.until(lambda: len(proxy.applied.batches) > 4)
            assert len(bed.kinds(EventKind.ACK)) == acknowledged
            proxy.applied.gate.set()
            await synced(bed, proxy, now)
            assert proxy.applied.texts()[3:] == ["CDS c", "LDS b", "RDS a"]

    run(tmp_path / "xds.sock", work)


def test_another_agent_is_told_what_there_is(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b"))
            applied = len(proxy.applied.batches)
            await bed.restart()
            bed.events.clear()
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b"))
            # Nothing that is unchanged is sent, but for routes: who asks for a name gets it. It isn't applied again.
            # What the proxy says that it has counts as acknowledged, so that may still be on its way.
            await bed.until(lambda: bed.kinds(EventKind.PUSH, type_="RDS"), "routes are sent")
            sent = {event.type: event.resources for event in bed.kinds(EventKind.PUSH)}
            assert sent == {"CDS": (), "LDS": (), "RDS": ("a", "b")}
            assert len(proxy.applied.batches) == applied
            await bed.restart()
            await synced(bed, proxy, serve(bed, CDS="c", LDS="b:2 d", RDS="b:2 d"))
            assert proxy.applied.texts()[applied:] == ["LDS b d -a", "RDS -a", "RDS b", "RDS d"]

    run(tmp_path / "xds.sock", work, loop)


def test_an_agent_that_is_away_for_long_changes_nothing(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        settings = settings_for(tmp_path)
        proxy = Proxy(settings)
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a", RDS="a"))
            before = bodies(proxy.state.accepted)
            await bed.server.stop()
            await bed.until(lambda: not proxy.client.connected, "the agent is away")
            async with nobody(settings.xds_socket) as attempts:
                await attempts(5)
            assert bodies(proxy.state.accepted) == before
            assert len(proxy.applied.batches) == 3
            bed.server = bed.new_server()
            serve(bed, CDS="c", LDS="a:2", RDS="a")
            await bed.server.start()
            await synced(bed, proxy, bed.server.snapshot(NODE) or serve(bed))
            assert proxy.applied.texts()[3:] == ["LDS a"]

    run(tmp_path / "xds.sock", work, loop)


def test_the_proxy_may_be_there_first(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        await bed.server.stop()
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            async with nobody(tmp_path / "xds.sock") as attempts:
                await attempts(2)
            bed.server = bed.new_server()
            await bed.server.start()
            # An agent that doesn't know yet what to say is no reason to forget anything.
            await bed.until(lambda: bed.kinds(EventKind.SUBSCRIBE), "asked")
            assert not proxy.client.connected
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a", RDS="a"))

    run(tmp_path / "xds.sock", work)


def test_a_refused_resource_is_not_told_after_a_reconnect(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a", RDS="a"))
            proxy.applied.refuse = lambda url, name, _: "no" if (url, name) == (LISTENER, "a") else None
            serve(bed, CDS="c", LDS="a:2", RDS="a")
            await bed.until(lambda: bed.kinds(EventKind.NACK), "NACK")
            await bed.restart()
            proxy.applied.refuse = lambda *_: None
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a:2", RDS="a"))
            assert proxy.applied.texts()[3:] == ["LDS a", "LDS a"]

    run(tmp_path / "xds.sock", work)


def test_a_change_that_can_not_be_applied_is_refused_and_what_stays_is_told_again(tmp_path: Path) -> None:
    class Broken(Applied):
        async def __call__(self, batch: Batch) -> dict[str, str]:
            if batch.removed and not self.batches[-1].removed:
                self.batches.append(batch)
                raise RuntimeError("a mistake")
            return await super().__call__(batch)

    async def work(bed: Bed) -> None:
        proxy = Proxy(settings_for(tmp_path), Broken())
        async with running(proxy):
            await synced(bed, proxy, serve(bed, CDS="c", LDS="a b", RDS="a b"))
            now = serve(bed, CDS="c", LDS="b:2", RDS="b")
            await bed.until(lambda: len(bed.kinds(EventKind.CONNECTED)) == 2, "another stream")
            await synced(bed, proxy, now)
            [nack] = bed.kinds(EventKind.NACK)
            assert nack.error == "Error adding/updating listener(s) b: internal error: RuntimeError"
            assert proxy.applied.texts()[3:] == ["LDS b -a", "LDS b -a", "RDS -a"]

    run(tmp_path / "xds.sock", work)


def test_a_stream_that_is_not_served_is_tried_again(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        async with running(Proxy(settings_for(tmp_path))):
            await bed.until(lambda: len(bed.server.rejections()) >= 3, "refused")

    run(tmp_path / "xds.sock", work, limits=ServerLimits(streams_of_node=0))


def test_ten_thousand_listeners(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        names = " ".join(f"rule-set-{number}" for number in range(10_000))
        proxy = Proxy(settings_for(tmp_path))
        async with running(proxy):
            now = serve(bed, CDS="c", LDS=names, RDS=names)
            await bed.server.wait_acked(NODE, 60)
            assert bodies(proxy.state.accepted) == {url: now.bodies()[url] for url in (CLUSTER, LISTENER, ROUTE)}
            await bed.restart()
            bed.server.set_snapshot(NODE, now)
            await bed.server.wait_acked(NODE, 60)
            assert len(proxy.applied.batches) == 3

    run(tmp_path / "xds.sock", work, wait=120)


def test_a_server_that_speaks_garbage_costs_its_stream_only(tmp_path: Path) -> None:
    async def main() -> None:
        seen = asyncio.Semaphore(0)

        async def garbage(_requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await context.write(b"\xff\xff")
            seen.release()
            await asyncio.Event().wait()

        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(garbage)
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler}),)
        )
        server.add_insecure_port(f"unix:{tmp_path / 'xds.sock'}")
        await server.start()
        proxy = Proxy(settings_for(tmp_path))
        async with asyncio.timeout(20), running(proxy):
            for _ in range(3):
                await seen.acquire()
        await server.stop(None)

    asyncio.run(main())


def test_a_proxy_that_starts_again_has_what_was_in_force(tmp_path: Path, loop: str) -> None:
    async def work(bed: Bed) -> None:
        settings = settings_for(tmp_path)
        first = Proxy(settings)
        store = StateStore(settings, first.state, lambda url, name: (url, name) == (ROUTE, "b"))
        async with running(first):
            await synced(bed, first, serve(bed, CDS="c", LDS="a b d", RDS="a b d"))
            first.applied.refuse = lambda url, name, _: "no" if (url, name) == (LISTENER, "d") else None
            serve(bed, CDS="c", LDS="a b d:2", RDS="a b d")
            await bed.until(lambda: bed.kinds(EventKind.NACK), "NACK")
            assert first.touches
        await bed.server.stop()
        store.touch()
        await store.flush()
        # The agent is away, and the port of d belongs to somebody else.
        second = Proxy(settings)
        second.applied.refuse = first.applied.refuse
        async with running(second, store.load()):
            assert second.applied.texts() == ["CDS c", "LDS a b d", "RDS a"]
            assert second.agrees()
            assert not second.touches  # the file still has d
            assert bodies(second.state.accepted)[LISTENER].keys() == {"a", "b"}
            bed.server = bed.new_server()
            bed.events.clear()
            second.applied.refuse = lambda *_: None
            now = serve(bed, CDS="c", LDS="a b:2 d", RDS="a b d")
            await bed.server.start()
            await synced(bed, second, now)
            # `a` is there, and not sent again; what was volatile is.
            pushed = [(event.type, event.resources) for event in bed.kinds(EventKind.PUSH)]
            assert ("LDS", ("b", "d")) in pushed
            assert ("CDS", ()) in pushed
            assert sorted(second.applied.texts()[3:]) == ["LDS b d", "RDS b", "RDS d"]

    run(tmp_path / "xds.sock", work, loop)


def test_a_configuration_from_a_disk_that_is_all_out_of_date(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        settings = settings_for(tmp_path)
        first = Proxy(settings)
        async with running(first):
            await synced(bed, first, serve(bed, CDS="c old", LDS="a b", RDS="a b"))
        second = Proxy(settings)
        now = serve(bed, CDS="c", LDS="d", RDS="d")
        async with running(second, first.state.accepted):
            await synced(bed, second, now)
            assert sorted(second.applied.texts()[3:]) == ["CDS -old", "LDS d -a -b", "RDS -a -b", "RDS d"]

    run(tmp_path / "xds.sock", work)
