"""The rules of docs/xds.md by their numbers that are about order and pace, in both variants, with a raw client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spliceway.xds.protocol.snapshot import Snapshot
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, TYPES
from spliceway.xds.server.events import EventKind
from support.xdsbed import Bed, run, settled, subscribe
from support.xdsclient import bodies_of, body, names_of

VARIANTS = pytest.mark.parametrize("variant", ["sotw", "delta"])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


def removed(response: Any) -> list[str]:
    return sorted(getattr(response, "removed_resources", ()))


@VARIANTS
def test_rule_15_a_cluster_that_changes_gets_its_endpoints_again(socket: Path, variant: str) -> None:
    """G1035, G1001: a changed cluster warms until its EDS comes. Naive: the endpoints haven't changed, so nothing.

    Those of the other clusters are not sent again.
    """

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, ("eds-1", "eds-2"), ())
        bed.serve(CDS="eds-1 eds-2", EDS="eds-1 eds-2")
        await settled(stream)
        bed.serve(CDS="eds-1:2 eds-2", EDS="eds-1 eds-2")
        assert (await settled(stream))[1:] == ["EDS eds-1"]
        bed.serve(CDS="eds-1:3 eds-2:3", EDS="eds-1 eds-2:3")
        assert sorted((await settled(stream))[1:]) == ["EDS eds-1 eds-2"]

    run(socket, work)


@VARIANTS
def test_rule_15_also_while_endpoints_are_outstanding(socket: Path, variant: str) -> None:
    """The answer that is still to come belongs to the endpoints before; naive: «acknowledged, so it has them»."""

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, ("eds-1",), ())
        bed.serve(CDS="eds-1", EDS="eds-1")
        await settled(stream)
        bed.serve(CDS="eds-1", EDS="eds-1:2")
        endpoints = await stream.read()
        assert endpoints.type_url == ENDPOINT
        bed.serve(CDS="eds-1:2", EDS="eds-1:2")
        await stream.answer(await stream.read())
        await stream.answer(endpoints)
        assert await settled(stream) == ["EDS eds-1"]

    run(socket, work)


@VARIANTS
def test_rule_15_a_new_cluster_may_share_the_endpoints_of_another(socket: Path, variant: str) -> None:
    """The client has subscribed to that name already and asks for nothing new; naive: waits for it to ask."""

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, ("eds-1",), ())
        bed.serve(CDS="eds-1", EDS="eds-1")
        await settled(stream)
        both = {CLUSTER: {name: body(CLUSTER, name, eds="eds-1") for name in ("eds-1", "eds-2")}}
        before = bed.server.snapshot("node-1")
        assert before is not None
        bed.server.set_snapshot("node-1", Snapshot.of("both", before.bodies() | both, before))
        assert "EDS eds-1" in await settled(stream)

    run(socket, work)


@VARIANTS
def test_rule_16_the_order_on_the_wire_is_cds_eds_lds_rds(socket: Path, variant: str) -> None:
    """«CDS … first», «EDS … after CDS», then LDS, then RDS; naive: in the order of the requests, or of a dictionary."""

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, ("eds-1", "eds-2"), ("r1", "r2"))
        bed.serve(CDS="eds-1", EDS="eds-1", LDS="l1", RDS="r1")
        assert [text.split()[0] for text in await settled(stream)] == ["CDS", "EDS", "LDS", "RDS"]
        bed.serve(RDS="r1:2 r2", LDS="l1:2 l2", EDS="eds-1:2 eds-2", CDS="eds-1:2 eds-2")
        order = [text.split()[0] for text in await settled(stream)]
        assert list(dict.fromkeys(order)) == ["CDS", "EDS", "LDS", "RDS"]

    run(socket, work)


@VARIANTS
def test_rule_16_a_route_waits_for_its_new_cluster_and_for_no_other(socket: Path, variant: str) -> None:
    """«clusters referenced by a route are in place, before»; naive: sends both at once, and requests get 503.

    A listener that goes straight to a cluster waits as well; what goes to clusters that are there does not.
    """

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, ("eds-old", "eds-new"), ("r", "q"))
        bed.serve(CDS="eds-old", EDS="eds-old", LDS="l>eds-old", RDS="r>eds-old q>eds-old")
        await settled(stream)
        bed.serve(
            CDS="eds-old:2 eds-new", EDS="eds-old eds-new", LDS="l>eds-old m>eds-new", RDS="r>eds-new q:2>eds-old"
        )
        seen, held_back = [], []
        while True:
            try:
                response = await stream.read(0.3)
            except TimeoutError:
                break
            seen += [f"{TYPES[response.type_url].short} {name}" for name in names_of(response)]
            if response.type_url in (CLUSTER, ENDPOINT):
                held_back.append(response)
            else:
                await stream.answer(response)
        assert "RDS q" in seen
        assert not {"RDS r", "LDS m"} & set(seen)
        for response in held_back:
            await stream.answer(response)
        assert (await settled(stream))[-2:] == ["LDS l m" if variant == "sotw" else "LDS m", "RDS r"]

    run(socket, work)


@VARIANTS
def test_rule_16_a_refused_type_does_not_stop_the_ones_after_it(socket: Path, variant: str) -> None:
    """A NACK is an answer; naive: waits for an ACK, and one bad cluster stops all later listeners and routes."""

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, (), ("r",))
        bed.serve(CDS="bad", LDS="l", RDS="r")
        await stream.answer(await stream.read(), error="bad is bad")
        assert await settled(stream) == ["LDS l", "RDS r"]

    run(socket, work)


@VARIANTS
def test_rule_16_a_cluster_goes_when_listeners_and_routes_have_let_go(socket: Path, variant: str) -> None:
    """«a CDS/EDS update dropping X» comes last; naive: CDS first, always, and requests meet no cluster (503)."""

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        await subscribe(stream, (), ("r",))
        bed.serve(CDS="old", LDS="l", RDS="r>old")
        await settled(stream)
        bed.serve(CDS="new", LDS="l", RDS="r>new")
        first = await stream.read()
        assert (first.type_url, removed(first)) == (CLUSTER, [])
        assert names_of(first) == (["new", "old"] if variant == "sotw" else ["new"])
        await stream.answer(first)
        routes = await stream.read()
        assert (routes.type_url, names_of(routes)) == (ROUTE, ["r"])
        await stream.silent()
        await stream.answer(routes)
        last = await stream.read()
        assert (last.type_url, names_of(last)) == (CLUSTER, ["new"] if variant == "sotw" else [])
        assert removed(last) == ([] if variant == "sotw" else ["old"])
        await stream.answer(last)
        await stream.silent()

    run(socket, work)


def test_rule_16_endpoints_go_with_their_cluster_and_not_before(socket: Path) -> None:
    """«Stale CDS clusters and related EDS endpoints … can then be removed»: delta says so; naive: EDS has its turn."""

    async def work(bed: Bed) -> None:
        stream = bed.delta()
        await subscribe(stream, ("eds-old",), ("r",))
        bed.serve(CDS="eds-old", EDS="eds-old", LDS="l", RDS="r>eds-old")
        await settled(stream)
        bed.serve(CDS="eds-new", EDS="eds-new", LDS="l", RDS="r>eds-new")
        seen = []
        for response in await stream.drained():
            seen += [*names_of(response), *(f"-{name}" for name in removed(response))]
        assert seen[:2] == ["eds-new", "r"]
        assert "-eds-old" in seen[2:]

    run(socket, work)


def test_rule_16_endpoints_of_a_cluster_that_is_still_used_stay(socket: Path) -> None:
    """The same in the state of the world, which can't say «removed»: naive: says «none», and requests get 503."""

    async def work(bed: Bed) -> None:
        stream = bed.sotw()
        await subscribe(stream, ("eds-old",), ("r",))
        bed.serve(CDS="eds-old", EDS="eds-old", LDS="l", RDS="r>eds-old")
        await settled(stream)
        bed.serve(CDS="eds-new", EDS="eds-new", LDS="l", RDS="r>eds-new")
        clusters = await stream.read()
        assert names_of(clusters) == ["eds-new", "eds-old"]
        await stream.ask(ENDPOINT, "eds-new", "eds-old")
        endpoints = await stream.read()
        assert bodies_of(endpoints) == {"eds-new": body(ENDPOINT, "eds-new")}
        await stream.answer(endpoints)
        await stream.answer(clusters)
        assert (await settled(stream))[:2] == ["RDS r", "CDS eds-new"]

    run(socket, work)


@VARIANTS
def test_rule_17_a_slow_reader_has_one_response_outstanding_per_type(socket: Path, variant: str) -> None:
    """Naive: a queue of all versions, which grows with each change and ends with what nobody wants any more."""

    async def work(bed: Bed) -> None:
        bed.serve(RDS="r")
        stream = bed.stream(variant)
        await stream.ask(ROUTE, "r")
        first = await stream.read()
        for turn in range(50):
            bed.serve(RDS=f"r:{turn}")
        await stream.silent()
        await stream.answer(first)
        response = await stream.read()
        assert bodies_of(response) == {"r": body(ROUTE, "r", 49)}
        await stream.answer(response)
        await stream.silent()
        assert len(bed.kinds(EventKind.PUSH)) == 2

    run(socket, work)


@VARIANTS
def test_rule_17_nobody_waits_for_a_slow_one(socket: Path, variant: str) -> None:
    """Naive: one loop over all streams, in which the write to the slow one waits."""

    async def work(bed: Bed) -> None:
        big = " ".join(f"{number:0200d}" for number in range(5000))
        bed.serve(CDS=big)
        slow = bed.stream(variant)
        await slow.ask(CLUSTER)  # and never reads
        await bed.until(lambda: bed.kinds(EventKind.PUSH))  # else it may be the newer one of the two
        quick = bed.stream(variant)
        await quick.ask(CLUSTER)
        await quick.answer(await quick.read())
        bed.serve(CDS="small")
        assert "CDS small" in (await settled(quick))[0]
        await bed.until(lambda: bed.server.current("node-1")["CDS"].state == "SYNCED")

    run(socket, work)


@VARIANTS
def test_rule_22_the_last_listener_goes_and_comes_back_without_a_livelock(socket: Path, variant: str) -> None:
    """C47624: naive: an empty set is «no answer yet», is sent again at each ACK, and the next one waits for ever."""

    async def work(bed: Bed) -> None:
        stream = bed.stream(variant)
        bed.serve(LDS="l", RDS="l")
        await stream.ask(LISTENER)
        await stream.ask(ROUTE, "l")
        assert await settled(stream) == ["LDS l", "RDS l"]
        for turn in range(3):
            before = len(bed.kinds(EventKind.PUSH))
            bed.serve()
            assert (await settled(stream))[0] == "LDS"
            assert len(bed.kinds(EventKind.PUSH)) - before <= (1 if variant == "sotw" else 2)
            await (stream.ask(ROUTE) if variant == "sotw" else stream.ask(ROUTE, drop=["l"]))
            await stream.silent()
            bed.serve(LDS="l", RDS=f"l:{turn}")
            assert await settled(stream) == ["LDS l"]
            await stream.ask(ROUTE, "l")
            assert await settled(stream) == ["RDS l"]

    run(socket, work)
