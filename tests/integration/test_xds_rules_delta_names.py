"""The rules of docs/xds.md by their numbers, delta: what a client subscribes to and has.

The text of each test says what the protocol asks («…», Envoy's page «xDS REST and gRPC protocol», «Incremental xDS»)
and what a naive server does instead.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from spliceway.xds.protocol.typeurls import CLUSTER, URLS
from support.xdsbed import Bed, run
from support.xdsclient import bodies_of, names_of, versions_of

SHORTS = pytest.mark.parametrize("short", ["CDS", "EDS", "SDS", "LDS", "RDS", "ECDS"])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@pytest.mark.parametrize("begin", [(), ("*",)])
def test_rule_08_wildcard(socket: Path, begin: tuple[str, ...]) -> None:
    """Nothing or `*` is all; A goes with it; `*` ends without A; an empty set is then nothing. Naive: is all again."""

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a b")
        stream = bed.delta()
        await stream.ask(CLUSTER, *begin)
        assert await stream.take(CLUSTER) == (["a", "b"], [])
        await stream.ask(CLUSTER, "a")
        assert await stream.take(CLUSTER) == (["a"], [])
        bed.serve(CDS="a b:2 c")
        assert await stream.take(CLUSTER) == (["b", "c"], [])
        await stream.ask(CLUSTER, drop=["*"])
        await stream.silent()
        bed.serve(CDS="a:2 b:3 c:3 d")
        assert await stream.take(CLUSTER) == (["a"], [])
        await stream.ask(CLUSTER, drop=["a"])
        await stream.silent()
        bed.serve(CDS="a:3 b:4")
        await stream.ask(CLUSTER)  # neither an answer nor a new wildcard
        await stream.silent()
        await stream.ask(CLUSTER, "*")
        assert await stream.take(CLUSTER) == (["a", "b"], [])

    run(socket, work)


@pytest.mark.parametrize("short", ["EDS", "SDS", "RDS", "ECDS"])
def test_rule_08_no_names_are_nothing_where_there_is_no_wildcard(socket: Path, short: str) -> None:
    """«For Listener and Cluster resource types, there is also a "wildcard"»; naive: sends all routes to everyone."""

    async def work(bed: Bed) -> None:
        bed.serve(**{short: "a b"})
        stream = bed.delta()
        await stream.ask(URLS[short])
        await stream.silent()
        await stream.ask(URLS[short], "b")
        assert await stream.take(URLS[short]) == (["b"], [])

    run(socket, work)


@SHORTS
def test_rule_10_what_does_not_exist_is_removed_at_once_and_watched(socket: Path, short: str) -> None:
    """«in the removed_resources field. This allows the client to quickly determine…»; naive (G488): then forgets it."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a"})
        stream = bed.delta()
        await stream.ask(url, "a", "later")
        assert await stream.take(url) == (["a"], ["later"])
        await stream.silent()
        for _ in range(2):
            bed.serve(**{short: "a later"})
            assert await stream.take(url) == (["later"], [])
            bed.serve(**{short: "a"})
            assert await stream.take(url) == ([], ["later"])
        await stream.ask(url, "later")
        assert await stream.take(url) == ([], ["later"])
        await stream.silent()

    run(socket, work)


@SHORTS
def test_rule_11_a_known_name_that_is_asked_for_again_is_answered(socket: Path, short: str) -> None:
    """E22418: «the server must still provide those resources»; naive: «has the newest version already»."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        stream = bed.delta()
        await stream.ask(url, "a", "b")
        response = await stream.read()
        await stream.answer(response)
        await stream.ask(url, "a")
        again = await stream.read()
        assert bodies_of(again) == {"a": bodies_of(response)["a"]}
        assert versions_of(again)["a"] == versions_of(response)["a"]
        await stream.ask(url, "b", answer=again)  # in the very request that acknowledges
        assert await stream.take(url) == (["b"], [])
        await stream.silent()

    run(socket, work)


@SHORTS
def test_rule_11_initial_versions_do_not_spare_a_name_its_answer(socket: Path, short: str) -> None:
    """E22418, on a new stream: naive: does not send what initial_resource_versions has, and the cluster never warms."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        first = bed.delta()
        await first.ask(url, "a", "b")
        have = versions_of(await first.read())
        first.cancel()
        again = bed.delta()
        await again.ask(url, "a", "b", have=have)
        seen = [name for response in await again.drained() for name in names_of(response)]
        assert sorted(seen) == ["a", "b"]

    run(socket, work)


@pytest.mark.parametrize("begin", [(), ("*",)])
@pytest.mark.parametrize("service", [None, "CDS"])
def test_rule_12_a_reconnected_wildcard_client_gets_only_the_difference(
    socket: Path, begin: tuple[str, ...], service: str | None
) -> None:
    """I41494: «update: [a], remove: [b]»; naive: ignores what the client has, and b stays for ever.

    Also with another agent: the versions are of the content.
    """

    async def work(bed: Bed) -> None:
        bed.serve(CDS="a b same")
        first = bed.delta(service=service)
        await first.ask(CLUSTER, *begin)
        have = versions_of(await first.read())
        assert have.keys() == {"a", "b", "same"}
        first.cancel()
        await bed.restart()
        bed.serve(CDS="a:2 same new", version="another agent's")
        again = bed.delta(service=service)
        await again.ask(CLUSTER, *begin, have=have)
        assert await again.take(CLUSTER) == (["a", "new"], ["b"])
        await again.silent()

    run(socket, work)


@SHORTS
def test_rule_12_a_reconnected_client_with_names_hears_what_has_gone(socket: Path, short: str) -> None:
    """I41494 with explicit names, of which one has gone; one that it has but doesn't ask for is its own affair."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a other"})
        stream = bed.delta()
        await stream.ask(url, "a", "b", have={"a": "unknown", "b": "unknown", "left": "unknown"})
        responses = await stream.drained()
        assert [name for response in responses for name in names_of(response)] == ["a"]
        assert [name for response in responses for name in response.removed_resources] == ["b"]

    run(socket, work)


def test_rule_12_nothing_new_is_still_an_answer_to_the_first_wildcard(socket: Path) -> None:
    """A client waits for the first response of a wildcard; naive: has nothing to say and says nothing."""

    async def work(bed: Bed) -> None:
        bed.serve()
        empty = bed.delta()
        await empty.ask(CLUSTER)
        assert await empty.take(CLUSTER) == ([], [])
        bed.serve(CDS="a")
        assert await empty.take(CLUSTER) == (["a"], [])
        have = bed.server.held("node-1", "acked")
        await bed.until(lambda: bed.server.held("node-1", "acked")[CLUSTER], f"acknowledged, {have}")
        again = bed.delta()
        await again.ask(CLUSTER, have={"a": bed.server.held("node-1", "desired")[CLUSTER]["a"].resource.digest})
        assert await again.take(CLUSTER) == ([], [])
        await again.silent()

    run(socket, work)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("short", ["CDS", "LDS"])
def test_rule_13_unsubscribing_a_name_beside_the_wildcard_is_answered(socket: Path, short: str, exists: bool) -> None:
    """«the server must send a response that includes the specific resource in either…»; naive: says nothing."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b" if exists else "b"})
        stream = bed.delta()
        await stream.ask(url, "*", "a")
        assert await stream.take(url) == ((["a", "b"], []) if exists else (["b"], ["a"]))
        await stream.ask(url, drop=["a"])
        assert await stream.take(url) == ((["a"], []) if exists else ([], ["a"]))
        await stream.silent()
        bed.serve(**{short: "a:2 b"})  # the wildcard goes on
        assert await stream.take(url) == (["a"], [])

    run(socket, work)


@SHORTS
def test_rule_13_phantom_unsubscribes_are_ignored(socket: Path, short: str) -> None:
    """«must cleanly process such a request; it can simply ignore these»; naive: an error, or drops the wildcard's b."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        stream = bed.delta()
        names = ("*",) if short in ("CDS", "LDS") else ("a", "b")
        await stream.ask(url, *names)
        await stream.take(url)
        await stream.ask(url, drop=["never", "b"] if names == ("*",) else ["never", "*"])
        await stream.ask(url, drop=["never"], nonce="stale")
        await stream.silent()
        bed.serve(**{short: "a b:2"})
        assert await stream.take(url) == (["b"], [])

    run(socket, work)


@pytest.mark.parametrize("short", ["CDS", "EDS", "RDS"])
def test_rule_14_no_name_twice_in_one_response(socket: Path, short: str) -> None:
    """«It is an error for a server to send a single response that contains the same resource name twice»."""

    async def work(bed: Bed) -> None:
        url = URLS[short]
        bed.serve(**{short: "a b"})
        stream = bed.delta()
        names = ("*", "a", "a", "gone", "gone") if short == "CDS" else ("a", "b", "a", "gone", "gone")
        await stream.ask(url, *names)
        response = await stream.read()
        assert names_of(response) == ["a", "b"]
        assert list(response.removed_resources) == ["gone"]
        await stream.answer(response)
        await stream.ask(url, "a", "a")
        await stream.ask(url, "a")
        for found in await stream.drained():
            assert names_of(found) == ["a"]

    run(socket, work)
