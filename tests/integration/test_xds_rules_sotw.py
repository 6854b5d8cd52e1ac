"""The rules of docs/xds.md by their numbers, state of the world: a raw client on the real server.

The text of each test says what the protocol asks («…», Envoy's page «xDS REST and gRPC protocol») and what a naive
server does instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE, URLS
from spliceway.xds.server.events import EventKind
from support.xdsbed import Bed, run
from support.xdsclient import names_of

BOTH = pytest.mark.parametrize("service", [None, "EDS"])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@BOTH
def test_rule_01_a_nack_at_the_same_version_is_a_nack(socket: Path, service: str | None) -> None:
    """«look for the presence of the error_detail field»; naive: compares versions, which are equal, and sees an ACK."""

    async def work(bed: Bed) -> None:
        bed.serve(version="7", EDS="a b")
        stream = bed.sotw(service=service)
        await stream.ask(ENDPOINT, "a")
        assert await stream.take(ENDPOINT) == ["a"]
        await stream.ask(ENDPOINT, "a", "b", version="7")
        response = await stream.read()
        assert (names_of(response), response.version_info) == (["b"], "7")
        await stream.answer(response, error="b is bad", version="7")
        await bed.until(lambda: bed.kinds(EventKind.NACK))
        [refused] = bed.kinds(EventKind.NACK)
        assert (refused.type, refused.version, refused.resources, refused.error) == ("EDS", "7", ("b",), "b is bad")
        assert len(bed.kinds(EventKind.ACK)) == 1
        status = bed.server.current("node-1")["EDS"]
        assert (status.state, status.nacks) == ("NACK", 1)

    run(socket, work)


def test_rule_01_an_old_version_without_error_detail_is_no_nack(socket: Path) -> None:
    """«NACK … is indicated by the presence of the error_detail field»; naive: another version_info is a NACK."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a")
        stream = bed.sotw()
        await stream.ask(CLUSTER)
        response = await stream.read()
        await stream.ask(CLUSTER, nonce=response.nonce, version="from another time")
        await bed.until(lambda: bed.kinds(EventKind.ACK))
        assert not bed.kinds(EventKind.NACK)

    run(socket, work)


def test_rule_01_an_error_without_a_message_is_a_nack(socket: Path) -> None:
    """«indicated by the presence of the error_detail field»; naive: looks whether the message is empty."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a")
        stream = bed.sotw()
        await stream.ask(CLUSTER)
        await stream.answer(await stream.read(), error="")
        await bed.until(lambda: bed.kinds(EventKind.NACK))

    run(socket, work)


@BOTH
def test_rule_02_a_stale_nonce_gets_no_response(socket: Path, service: str | None) -> None:
    """«should not send a DiscoveryResponse for any DiscoveryRequest that has a stale nonce»; naive: answers it.

    The request that answers the newest response has the names again, and gets what is missing.
    """

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        stream = bed.sotw(service=service)
        await stream.ask(ENDPOINT, "a")
        first = await stream.read()
        await stream.answer(first)
        bed.serve(EDS="a:2 b")
        second = await stream.read()
        await stream.ask(ENDPOINT, "a", "b", answer=first)
        await stream.ask(ENDPOINT, "a", "b", answer=first, error="late")
        await stream.silent()
        assert not bed.kinds(EventKind.NACK)
        await stream.ask(ENDPOINT, "a", answer=second)
        await stream.ask(ENDPOINT, "a", "b", answer=first)  # also when nothing is outstanding
        await stream.silent()
        await stream.ask(ENDPOINT, "a", "b", answer=second)
        assert names_of(await stream.read()) == ["b"]

    run(socket, work)


@pytest.mark.parametrize("version", ["7", "unknown", ""])
def test_rule_03_the_first_request_is_initial_whatever_it_brings(socket: Path, version: str) -> None:
    """«the nonce … does not survive stream restarts»; naive: calls the foreign nonce stale and never answers.

    A version that is known is no reason to send nothing: only where «the client is not subscribing to a new resource».
    """

    async def work(bed: Bed) -> None:
        bed.serve(version="7", CDS="a", EDS="b c")
        stream = bed.sotw()
        await stream.ask(CLUSTER, version=version, nonce="of another stream")
        assert await stream.take(CLUSTER) == ["a"]
        await stream.ask(ENDPOINT, "b", "c", version=version, nonce="of another stream")
        assert await stream.take(ENDPOINT) == ["b", "c"]

    run(socket, work)


def test_rule_03_a_reconnected_client_is_sent_everything_again(socket: Path) -> None:
    """A new stream knows nothing of the old one; naive: remembers by node what was acknowledged, and sends nothing."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        first = bed.sotw()
        await first.ask(ENDPOINT, "a")
        old = await first.read()
        await first.answer(old)
        first.cancel()
        again = bed.sotw()
        await again.ask(ENDPOINT, "a", "b", answer=old, error="left over from the stream before")
        assert await again.take(ENDPOINT) == ["a", "b"]
        assert not bed.kinds(EventKind.NACK)

    run(socket, work)


@pytest.mark.parametrize("service", [None, "CDS", "EDS", "SDS", "LDS", "RDS", "ECDS"])
def test_rule_04_neither_an_ack_nor_an_identical_update_causes_a_response(socket: Path, service: str | None) -> None:
    """«should only send updates … when the resources … have changed»; naive: answers each request, or each version."""

    async def work(bed: Bed) -> None:
        short = service or "RDS"
        bed.serve(**{short: "a b"})
        stream = bed.sotw(service=service)
        await stream.ask(URLS[short], "a", "b")
        assert await stream.take(URLS[short]) == ["a", "b"]
        await stream.silent()
        bed.serve(**{short: "b a"})
        await stream.silent()
        assert len(bed.kinds(EventKind.PUSH)) == 1

    run(socket, work)


def test_rule_04_a_change_of_one_type_says_nothing_of_the_others(socket: Path) -> None:
    """«each resource type has its own version»; naive: one version for all types, and all are sent at each change."""

    async def work(bed: Bed) -> None:
        first = bed.serve(CDS="a", LDS="l", RDS="r")
        stream = bed.sotw()
        for url in (CLUSTER, LISTENER):
            await stream.ask(url)
            await stream.take(url)
        await stream.ask(ROUTE, "r")
        await stream.take(ROUTE)
        bed.serve(CDS="a", LDS="l", RDS="r:2")
        response = await stream.read()
        assert (response.type_url, response.version_info != first.version) == (ROUTE, True)
        await stream.answer(response)
        await stream.silent()

    run(socket, work)


@pytest.mark.parametrize("short", ["CDS", "EDS", "LDS", "RDS"])
def test_rule_05_after_a_nack_nothing_is_resent_until_the_content_changes(socket: Path, short: str) -> None:
    """C2991, C8149. Naive: what isn't acknowledged is due, is sent, is refused, is due: a loop.

    Going back to what was acknowledged needs a new version (E12592).
    """

    async def work(bed: Bed) -> None:
        url = URLS[short]
        good = bed.serve(**{short: "a"}).version
        stream = bed.sotw()
        await stream.ask(url, "a")
        await stream.take(url)
        bad = bed.serve(**{short: "a:bad"}).version
        response = await stream.read()
        await stream.answer(response, error="a is bad", version=good)
        await stream.silent()
        bed.serve(**{short: "a:bad", "SDS": "other"})
        await stream.ask(url, "a", version=good)  # says nothing new
        await stream.silent()
        status = bed.server.current("node-1")[short]
        assert (status.sent_version, status.acked_version) == (bad, good)
        assert status.last_error is not None
        assert (status.last_error.version, status.last_error.message) == (bad, "a is bad")
        bed.serve(**{short: "a"})
        response = await stream.read()
        assert response.version_info not in (good, bad)
        await stream.answer(response)
        await bed.until(lambda: bed.server.current("node-1")[short].state == "SYNCED")

    run(socket, work)


def test_rule_05_a_refused_route_does_not_hold_back_the_others(socket: Path) -> None:
    """Envoy applies nothing of an RDS response with one bad route: naive: sends all again together, for ever refused.

    The new ones come together, then each alone once, and then the bad one not again.
    """

    async def work(bed: Bed) -> None:
        bed.serve(RDS="bad good other")
        stream = bed.sotw()
        await stream.ask(ROUTE, "bad", "good", "other")
        seen = []
        for _ in range(4):
            response = await stream.read()
            seen.append(names_of(response))
            await stream.answer(response, error="no" if "bad" in seen[-1] else None)
        assert seen[0] == ["bad", "good", "other"]
        assert sorted(seen[1:]) == [["bad"], ["good"], ["other"]]
        await stream.silent()
        bed.serve(RDS="bad good:2 other")
        assert await stream.take(ROUTE) == ["good"]
        await stream.silent()

    run(socket, work)


def test_rule_06_of_a_refused_full_set_only_the_bad_one_counts_as_refused(socket: Path) -> None:
    """E6024: the client applies the good listener although it refuses the response. Naive: all or nothing is known."""

    async def work(bed: Bed) -> None:
        bed.serve(LDS="old")
        stream = bed.sotw()
        await stream.ask(LISTENER)
        await stream.take(LISTENER)
        bed.serve(LDS="old good bad")
        await stream.answer(await stream.read(), error="Error adding/updating listener(s) bad: cannot bind")
        await bed.until(lambda: bed.kinds(EventKind.NACK))
        states = {item.name: item.state for item in bed.server.current("node-1")["LDS"].resources}
        assert states == {"old": "SYNCED", "good": "SYNCED", "bad": "NACK"}

    run(socket, work)


@pytest.mark.parametrize("begin", [(), ("*",)])
def test_rule_08_wildcard(socket: Path, begin: tuple[str, ...]) -> None:
    """`[]` is all, `[*, A]` goes on with all, `[A]` ends it, `[]` then unsubscribes. Naive: `[]` is always all."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a b")
        stream = bed.sotw()
        await stream.ask(CLUSTER, *begin)
        assert await stream.take(CLUSTER) == ["a", "b"]
        await stream.ask(CLUSTER, "*", "a")
        await stream.drained()  # whether A is sent again is left open
        bed.serve(CDS="a b:2 c")
        assert await stream.take(CLUSTER) == ["a", "b", "c"]
        await stream.ask(CLUSTER, "a")
        await stream.drained()
        bed.serve(CDS="a:2 b:3 c")
        assert await stream.take(CLUSTER) == ["a"]
        await stream.ask(CLUSTER)
        await stream.drained()
        bed.serve(CDS="a:3 b:4")
        await stream.silent()
        await stream.ask(CLUSTER, "*")
        assert await stream.take(CLUSTER) == ["a", "b"]

    run(socket, work)


def test_rule_08_naming_a_cluster_does_not_end_the_wildcard_of_listeners(socket: Path) -> None:
    """«for that resource type»; naive: one flag for the stream."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a b", LDS="l m")
        stream = bed.sotw()
        await stream.ask(CLUSTER, "a")
        assert await stream.take(CLUSTER) == ["a"]
        await stream.ask(LISTENER)
        assert await stream.take(LISTENER) == ["l", "m"]

    run(socket, work)


@pytest.mark.parametrize("short", ["EDS", "SDS", "RDS", "ECDS"])
def test_rule_08_no_names_are_nothing_where_there_is_no_wildcard(socket: Path, short: str) -> None:
    """«For Listener and Cluster resource types, there is also a "wildcard"»; naive: sends all routes to everyone."""

    async def work(bed: Bed) -> None:
        bed.serve(**{short: "a b"})
        stream = bed.sotw()
        await stream.ask(URLS[short])
        await stream.silent()
        await stream.ask(URLS[short], "b")
        assert await stream.take(URLS[short]) == ["b"]

    run(socket, work)


@pytest.mark.parametrize("service", [None, "CDS", "LDS"])
def test_rule_09_full_sets_are_whole_and_empty_deletes_all(socket: Path, service: str | None) -> None:
    """«it must resend all 100 of them»; naive: sends what changed, and Envoy deletes the rest."""

    async def work(bed: Bed) -> None:
        short = service or "LDS"
        bed.serve(**{short: "a b c"})
        stream = bed.sotw(service=service)
        await stream.ask(URLS[short])
        assert await stream.take(URLS[short]) == ["a", "b", "c"]
        bed.serve(**{short: "a b:2 c"})
        assert await stream.take(URLS[short]) == ["a", "b", "c"]
        bed.serve(**{short: "a"})
        assert await stream.take(URLS[short]) == ["a"]
        bed.serve()
        assert await stream.take(URLS[short]) == []
        bed.serve()
        await stream.silent()

    run(socket, work)


@pytest.mark.parametrize("short", ["EDS", "SDS", "RDS", "ECDS"])
def test_rule_09_the_other_types_are_partial_and_removal_says_nothing(socket: Path, short: str) -> None:
    """«an empty DiscoveryResponse is effectively a no-op»; naive: sends whole or empty sets at each change.

    What went and comes back is sent again, even with the same content: the client may have dropped it.
    """

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        stream = bed.sotw()
        await stream.ask(url, "a", "b")
        assert await stream.take(url) == ["a", "b"]
        bed.serve(**{short: "a:2 b"})
        assert await stream.take(url) == ["a"]
        bed.serve(**{short: "a:2"})
        await stream.silent()
        bed.serve(**{short: "a:2 b"})
        assert await stream.take(url) == ["b"]

    run(socket, work)


@pytest.mark.parametrize("short", ["CDS", "EDS", "SDS", "LDS", "RDS", "ECDS"])
def test_rule_10_a_name_that_does_not_exist_yet_is_pushed_when_it_appears(socket: Path, short: str) -> None:
    """«if one of those resources springs into existence later, the server must send an update»; naive: forgets it."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a"})
        stream = bed.sotw()
        await stream.ask(url, "a", "later")
        assert await stream.take(url) == ["a"]
        await stream.silent()  # the name stays asked for although there was nothing to send
        bed.serve(**{short: "a later"})
        assert "later" in await stream.take(url)
        await stream.silent()

    run(socket, work)


def test_rule_10_a_name_dropped_and_asked_for_again_is_sent_again(socket: Path) -> None:
    """«must resend any newly requested resources, even if it previously sent those»; naive: «was sent already»."""

    async def work(bed: Bed) -> None:
        bed.serve(EDS="a b")
        stream = bed.sotw()
        await stream.ask(ENDPOINT, "a", "b")
        response = await stream.read()
        await stream.answer(response)
        await stream.ask(ENDPOINT, "a", answer=response)
        await stream.ask(ENDPOINT, "a", "b", answer=response)
        assert await stream.take(ENDPOINT) == ["b"]

    run(socket, work)


@pytest.mark.parametrize("short", ["CDS", "EDS", "RDS"])
def test_rule_14_no_name_twice_in_one_response(socket: Path, short: str) -> None:
    """«It is an error for a server to send a single response that contains the same resource name twice»."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        stream = bed.sotw()
        await stream.ask(url, "a", *(["*"] if short == "CDS" else []), "a", "b", "a")
        assert names_of(await stream.read()) == ["a", "b"]

    run(socket, work)
