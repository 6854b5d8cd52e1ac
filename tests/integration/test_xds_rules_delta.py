"""The rules of docs/xds.md by their numbers, delta: a raw client on the real server.

The text of each test says what the protocol asks («…», Envoy's page «xDS REST and gRPC protocol», «Incremental xDS»)
and what a naive server does instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, ROUTE, URLS
from spliceway.xds.server.events import EventKind
from support.xdsbed import Bed, run
from support.xdsclient import bodies_of, body, names_of

BOTH = pytest.mark.parametrize("service", [None, "EDS"])
SHORTS = pytest.mark.parametrize("short", ["CDS", "EDS", "SDS", "LDS", "RDS", "ECDS"])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@BOTH
def test_rule_01_a_nack_is_error_detail_and_refuses_what_its_response_had(socket: Path, service: str | None) -> None:
    """«ACK or NACK is determined by the absence or presence of error_detail»; naive: every nonce acknowledges."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        stream = bed.delta(service=service)
        await stream.ask(ENDPOINT, "a")
        assert await stream.take(ENDPOINT) == (["a"], [])
        await stream.ask(ENDPOINT, "b")
        response = await stream.read()
        assert names_of(response) == ["b"]
        await stream.answer(response, error="")
        await bed.until(lambda: bed.kinds(EventKind.NACK))
        [refused] = bed.kinds(EventKind.NACK)
        assert (refused.type, refused.resources, refused.nonce) == ("EDS", ("b",), response.nonce)
        states = {item.name: item.state for item in bed.server.current("node-1")["EDS"].resources}
        assert states == {"a": "SYNCED", "b": "NACK"}

    run(socket, work)


def test_rule_01_a_request_without_a_nonce_is_no_answer(socket: Path) -> None:
    """«Spontaneous … response_nonce must be omitted»; naive: whatever comes after a response acknowledges it."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        stream = bed.delta()
        await stream.ask(ENDPOINT, "a")
        first = await stream.read()
        await stream.ask(ENDPOINT, "b")
        await stream.silent()  # one response is outstanding
        assert not bed.kinds(EventKind.ACK)
        await stream.answer(first)
        assert await stream.take(ENDPOINT) == (["b"], [])

    run(socket, work)


@BOTH
@pytest.mark.parametrize("error", [None, "late"])
def test_rule_02_a_stale_nonce_still_subscribes_and_unsubscribes(
    socket: Path, service: str | None, error: str | None
) -> None:
    """«must honor changes to the subscription state even if the nonce is stale»; naive: drops it all, as in SotW."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b c")
        stream = bed.delta(service=service)
        await stream.ask(ENDPOINT, "a")
        first = await stream.read()
        await stream.answer(first)
        await stream.ask(ENDPOINT, "b", answer=first, error=error)
        assert await stream.take(ENDPOINT) == (["b"], [])
        await stream.ask(ENDPOINT, "c", drop=["a"], nonce="never seen", error=error)
        assert await stream.take(ENDPOINT) == (["c"], [])
        assert not bed.kinds(EventKind.NACK)
        bed.serve(EDS="a:2 b c")
        await stream.silent()

    run(socket, work)


def test_rule_02_what_changes_while_a_response_is_outstanding_is_not_lost(socket: Path) -> None:
    """The same, with a response on its way: naive: looks at the subscription before it waits for the answer."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        stream = bed.delta()
        await stream.ask(ENDPOINT, "a")
        first = await stream.read()
        await stream.ask(ENDPOINT, "b", nonce="stale")
        await stream.ask(ENDPOINT, drop=["a"], nonce="stale")
        bed.serve(EDS="a:2 b:2")
        await stream.answer(first)
        assert await stream.take(ENDPOINT) == (["b"], [])
        await stream.silent()

    run(socket, work)


def test_rule_03_the_first_request_is_initial_whatever_nonce_it_brings(socket: Path) -> None:
    """«Because no state is assumed to be preserved from the previous stream»; naive: an answer to nothing."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a", EDS="b")
        stream = bed.delta()
        await stream.ask(CLUSTER, nonce="of another stream", error="left over")
        assert await stream.take(CLUSTER) == (["a"], [])
        await stream.ask(ENDPOINT, "b", nonce="of another stream")
        assert await stream.take(ENDPOINT) == (["b"], [])
        assert not bed.kinds(EventKind.NACK)

    run(socket, work)


@pytest.mark.parametrize("service", [None, "CDS", "EDS", "SDS", "LDS", "RDS", "ECDS"])
def test_rule_04_acks_and_identical_updates_cause_nothing_and_changes_come_alone(
    socket: Path, service: str | None
) -> None:
    """«it does not need to resend the 99 resources that have not changed»; naive: a set at each change or version."""

    async def work(bed: Bed) -> None:
        short = service or "CDS"
        bed.serve(**{short: "a b"})
        stream = bed.delta(service=service)
        await stream.ask(URLS[short], "a", "b")
        assert await stream.take(URLS[short]) == (["a", "b"], [])
        await stream.silent()
        bed.serve(**{short: "b a"})
        await stream.silent()
        bed.serve(**{short: "a b:2"})
        assert await stream.take(URLS[short]) == (["b"], [])
        bed.serve(**{short: "a"})
        assert await stream.take(URLS[short]) == ([], ["b"])
        await stream.silent()

    run(socket, work)


@SHORTS
def test_rule_05_after_a_nack_nothing_is_resent_until_the_content_changes(socket: Path, short: str) -> None:
    """C2991, C8149. Naive: the bad one is due at each change of another, or for ever."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        stream = bed.delta()
        await stream.ask(url, "a", "b")
        await stream.take(url)
        bed.serve(**{short: "a:bad b"})
        response = await stream.read()
        assert names_of(response) == ["a"]
        await stream.answer(response, error="a is bad")
        await stream.silent()
        bed.serve(**{short: "a:bad b:2"})
        assert await stream.take(url) == (["b"], [])
        await stream.silent()
        states = {item.name: item.state for item in bed.server.current("node-1")[short].resources}
        assert states == {"a": "NACK", "b": "SYNCED"}
        bed.serve(**{short: "a:good b:2"})
        assert await stream.take(url) == (["a"], [])
        await bed.until(lambda: bed.server.current("node-1")[short].state == "SYNCED")

    run(socket, work)


@SHORTS
def test_rule_05_a_refused_resource_that_goes_is_removed(socket: Path, short: str) -> None:
    """The client keeps what it had before the NACK; naive: «refused, so it isn't there», and says no removal."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a"})
        stream = bed.delta()
        await stream.ask(url, "a")
        await stream.take(url)
        bed.serve(**{short: "a:bad"})
        await stream.answer(await stream.read(), error="a is bad")
        bed.serve()
        assert await stream.take(url) == ([], ["a"])
        await stream.silent()

    run(socket, work)


def test_rule_05_going_back_to_what_was_acknowledged_is_a_change(socket: Path) -> None:
    """The last-sent is the refused one; naive: compares with the last acknowledged only, or with the refused only."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a")
        stream = bed.delta()
        await stream.ask(ENDPOINT, "a")
        await stream.take(ENDPOINT)
        bed.serve(EDS="a:bad")
        await stream.answer(await stream.read(), error="a is bad")
        bed.serve(EDS="a")
        await stream.drained()  # the client has it: it may be told or not
        await bed.until(lambda: bed.server.current("node-1")["EDS"].state == "SYNCED")

    run(socket, work)


def listeners(bed: Bed) -> dict[str, str]:
    return {item.name: item.state for item in bed.server.current("node-1")["LDS"].resources}


def test_rule_06_of_a_refused_full_set_only_the_bad_one_counts_as_refused(socket: Path) -> None:
    """E6024: the client applies the good listener although it refuses the response. Naive: forgets or believes it."""

    async def work(bed: Bed) -> None:
        bed.serve(LDS="old gone")
        stream = bed.delta()
        await stream.ask(URLS["LDS"])
        await stream.take(URLS["LDS"])
        bed.serve(LDS="old good bad")
        response = await stream.read()
        assert (names_of(response), list(response.removed_resources)) == (["bad", "good"], ["gone"])
        await stream.answer(response, error="Error adding/updating listener(s) bad: cannot bind")
        await bed.until(lambda: bed.kinds(EventKind.NACK))
        assert listeners(bed)["good"] != "SYNCED"
        assert await stream.take(URLS["LDS"]) == (["good"], ["gone"])
        await bed.until(lambda: listeners(bed) == {"old": "SYNCED", "good": "SYNCED", "bad": "NACK"})
        await stream.silent()

    run(socket, work)


def test_rule_17_versions_in_between_coalesce_also_when_something_came_and_went(socket: Path) -> None:
    """A slow client gets the difference to what it has; naive: a queue of deltas, or a removal of what it never had."""

    async def work(bed: Bed) -> None:
        bed.serve(RDS="a b")
        stream = bed.delta()
        await stream.ask(ROUTE, "a", "b", "c")
        first = await stream.read()
        assert (names_of(first), list(first.removed_resources)) == (["a", "b"], ["c"])
        for turn in range(20):
            bed.serve(RDS=f"a:{turn} b c:{turn}")
        bed.serve(RDS="a:last b")
        await stream.silent()
        await stream.answer(first)
        response = await stream.read()
        assert names_of(response) == ["a"]
        assert bodies_of(response) == {"a": body(ROUTE, "a", "last")}
        await stream.answer(response)
        await stream.silent()

    run(socket, work)
