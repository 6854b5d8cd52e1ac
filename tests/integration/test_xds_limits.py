"""How much a client may make the server keep: the length of names, and what comes again after a reconnect."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT
from spliceway.xds.server.server import ServerLimits
from support.xdsbed import Bed, run
from support.xdsclient import names_of

LONG = "x" * 1025


@pytest.mark.parametrize(
    "request_", [{"names": (LONG,)}, {"drop": (LONG,)}, {"have": {LONG: "1"}}, {"have": {"c": LONG}}]
)
def test_long_names_end_that_stream_only(tmp_path: Path, request_: dict[str, object]) -> None:
    async def work(bed: Bed) -> None:
        bed.serve(EDS="c")
        good, bad = bed.delta(), bed.delta()
        for stream in (good, bad):
            await stream.ask(ENDPOINT, "c", "x" * 1024)
            await stream.answer(await stream.read())
        await bad.ask(ENDPOINT, *request_.pop("names", ()), **request_)  # type: ignore[misc, arg-type]
        assert await bad.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        bed.serve(EDS="c:2")
        assert names_of(await good.read()) == ["c"]

    run(tmp_path / "xds.sock", work)


def test_long_names_of_the_state_of_the_world(tmp_path: Path) -> None:
    async def work(bed: Bed) -> None:
        stream = bed.stream("sotw")
        await stream.ask(CLUSTER, LONG)
        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(tmp_path / "xds.sock", work)


def test_what_a_client_has_does_not_count_twice_when_it_comes_again(tmp_path: Path) -> None:
    names = [str(number) for number in range(80)]

    async def work(bed: Bed) -> None:
        bed.serve(EDS="1")
        stream = bed.delta()
        await stream.ask(ENDPOINT, *names, have=dict.fromkeys(names, "old"))
        assert names_of(await stream.read()) == ["1"]
        more = bed.delta()
        await more.ask(ENDPOINT, have={str(number): "old" for number in range(101)})
        assert await more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(tmp_path / "xds.sock", work, limits=ServerLimits(names=100))
