"""The rules of docs/xds.md by their numbers that only a real Envoy can show, in both variants."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from spliceway.xds.errors import NotAcceptedError
from spliceway.xds.protocol.typeurls import CLUSTER, ENDPOINT, LISTENER, ROUTE
from spliceway.xds.server.events import EventKind
from support.plainenvoy import NODE, PlainEnvoy, free_port, plain_envoy, route, world
from support.xdsclient import TTL, WRAPPED

pytestmark = [pytest.mark.envoy]

BOTH = pytest.mark.parametrize("api", ["GRPC", "DELTA_GRPC"])


def run(directory: Path, api: str, work: Callable[[PlainEnvoy], Awaitable[None]], *features: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(90), plain_envoy(directory, api, *features) as envoy:
            await work(envoy)

    asyncio.run(main())


class Load:
    """Requests one after the other on new connections, all the time."""

    def __init__(self, envoy: PlainEnvoy, port: int) -> None:
        self.seen: list[tuple[int, str]] = []
        self._envoy, self._port = envoy, port

    async def __aenter__(self) -> Load:
        self._going = True
        self._tasks = [asyncio.create_task(self._go()) for _ in range(2)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._going = False
        await asyncio.gather(*self._tasks)

    async def goes_on(self, count: int = 3) -> None:
        """Until so many more requests are done."""
        before = len(self.seen)
        await self._envoy.until(lambda: _is(self._more(before + count), True), "requests are answered")

    async def _more(self, count: int) -> bool:
        return len(self.seen) >= count

    async def _go(self) -> None:
        while self._going:
            self.seen.append(await self._envoy.get(self._port))


@BOTH
def test_rule_05_a_refusal_is_not_repeated(tmp_path: Path, api: str) -> None:
    """Naive: what isn't acknowledged is sent again, and Envoy refuses it thousands of times a second (C2991)."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        good = world({"c": (envoy.origins["one"], 0)}, {"l": port}, {"l": "c"})
        await envoy.apply(good)
        envoy.serve(good | {ROUTE: {"l": route("l", "c", regex="(")}})
        with pytest.raises(NotAcceptedError):
            await envoy.server.wait_acked(NODE, 10)
        before = len(envoy.events)
        await asyncio.sleep(1)
        assert envoy.events[before:] == []
        assert (await envoy.get(port))[0] == 200
        await envoy.apply(good)  # rolling back is a change, with a new version (E12592)

    run(tmp_path, api, work)


@BOTH
def test_rule_06_of_a_good_and_a_bad_listener_the_good_one_applies(tmp_path: Path, api: str) -> None:
    """E6024: the response is NACKed, and half of it is in force. Naive: believes that nothing of it is."""

    async def work(envoy: PlainEnvoy) -> None:
        ports = {name: free_port() for name in ("old", "good", "bad")}
        clusters = {"c": (envoy.origins["one"], 0)}
        await envoy.apply(world(clusters, {"old": ports["old"]}, {"old": "c"}))
        with socket.create_server(("127.0.0.1", ports["bad"])):
            envoy.serve(world(clusters, ports, dict.fromkeys(ports, "c")))
            with pytest.raises(NotAcceptedError) as caught:
                await envoy.server.wait_acked(NODE, 10)
            assert caught.value.resources == ("bad",)
            await envoy.until_ok(ports["good"])
            states = {"old": "SYNCED", "good": "SYNCED", "bad": "NACK"}
            await envoy.until(lambda: _is(_listeners(envoy), states), f"the listeners are {states}")
        without = {name: port for name, port in ports.items() if name != "bad"}
        await envoy.apply(world(clusters, without, dict.fromkeys(without, "c")))
        await envoy.apply(world(clusters, ports, dict.fromkeys(ports, "c")))
        for port in ports.values():
            await envoy.until_ok(port)

    run(tmp_path, api, work)


@BOTH
def test_rule_06_of_more_refusals_than_a_message_can_name_none_is_an_acknowledgement(tmp_path: Path, api: str) -> None:
    """Envoy cuts its message after 4096 characters; naive: takes those that it doesn't name for acknowledged."""

    async def work(envoy: PlainEnvoy) -> None:
        clusters = {"c": (envoy.origins["one"], 0)}
        await envoy.apply(world(clusters, {}, {}))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = {f"rule-set-{number}": taken.getsockname()[1] for number in range(1, 101)}
            envoy.serve(world(clusters, ports, dict.fromkeys(ports, "c")))
            states = dict.fromkeys(ports, "NACK")
            await envoy.until(lambda: _is(_listeners(envoy), states), "all are refused")
        messages = [event.error for event in envoy.events if event.kind is EventKind.NACK]
        assert messages[0].endswith("(truncated)")

    run(tmp_path, api, work)


@BOTH
def test_rule_06_a_listener_that_can_not_be_decoded_holds_back_the_others(tmp_path: Path, api: str) -> None:
    """Then Envoy applies nothing of the response. Naive: takes the good one for applied since it isn't named."""

    async def work(envoy: PlainEnvoy) -> None:
        clusters, port = {"c": (envoy.origins["one"], 0)}, free_port()
        await envoy.apply(world(clusters, {}, {}))
        made = world(clusters, {"good": port, "bad": 70000}, {"good": "c", "bad": "c"})
        envoy.serve(made)
        if api == "DELTA_GRPC":
            await envoy.until_ok(port)  # sent once more, without the bad one
            await envoy.until(lambda: _is(_listeners(envoy), {"good": "SYNCED", "bad": "NACK"}), "it is acknowledged")
        else:
            await envoy.until(lambda: _is(_listeners(envoy), {"good": "NACK", "bad": "NACK"}), "both are refused")
            assert (await envoy.get(port))[0] == 0
        await envoy.apply(world(clusters, {"good": port}, {"good": "c"}))
        await envoy.until_ok(port)

    run(tmp_path, api, work)


@BOTH
def test_rule_06_what_was_beside_a_bad_listener_is_not_mistaken_after_a_reconnect(tmp_path: Path, api: str) -> None:
    """Envoy notes nothing of what it refuses in part: it tells of what was before. Naive: believes it for ever."""

    async def work(envoy: PlainEnvoy) -> None:
        clusters = {"c": (envoy.origins["one"], 0)}
        ports = {"moved": free_port(), "gone": free_port()}
        before = world(clusters, ports, dict.fromkeys(ports, "c"))
        await envoy.apply(before)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            other = {"moved": free_port(), "bad": taken.getsockname()[1]}
            envoy.serve(world(clusters, other, dict.fromkeys(other, "c")))
            await envoy.until(lambda: _is(_listeners(envoy), {"moved": "SYNCED", "bad": "NACK"}), "one is refused")
        await envoy.until_ok(other["moved"])
        await envoy.server.stop()
        envoy.server = envoy.new_server()
        await envoy.server.start()
        await envoy.apply(before)
        for port in ports.values():
            await envoy.until_ok(port)

    run(tmp_path, api, work)


@BOTH
def test_rule_06_a_bad_route_holds_back_no_good_one(tmp_path: Path, api: str) -> None:
    """With RDS Envoy applies nothing of a response with one bad resource; naive: sends both in one, for ever."""

    async def work(envoy: PlainEnvoy) -> None:
        ports = {"good": free_port(), "bad": free_port()}
        clusters = {"c": (envoy.origins["one"], 0), "d": (envoy.origins["two"], 0)}
        await envoy.apply(world(clusters, ports, {"good": "c", "bad": "c"}))
        made = world(clusters, ports, {"good": "d", "bad": "d"})
        made[ROUTE]["bad"] = route("bad", "d", regex="(")
        envoy.serve(made)
        await envoy.until_ok(ports["good"], "two")
        await envoy.until_ok(ports["bad"], "one")
        with pytest.raises(NotAcceptedError) as caught:
            await envoy.server.wait_acked(NODE, 10)
        assert caught.value.resources == ("bad",)

    run(tmp_path, api, work)


@BOTH
def test_rule_06_of_new_routes_a_bad_one_holds_back_no_good_one(tmp_path: Path, api: str) -> None:
    """New ones come together, and Envoy applies none of them: naive: believes that all are bad, or repeats it."""

    async def work(envoy: PlainEnvoy) -> None:
        ports = {"good": free_port(), "bad": free_port(), "other": free_port()}
        clusters = {"c": (envoy.origins["one"], 0)}
        made = world(clusters, ports, dict.fromkeys(ports, "c"))
        made[ROUTE]["bad"] = route("bad", "c", regex="(")
        envoy.serve(made)
        await envoy.until_ok(ports["good"])
        await envoy.until_ok(ports["other"])
        with pytest.raises(NotAcceptedError) as caught:
            await envoy.server.wait_acked(NODE, 10)
        assert caught.value.resources == ("bad",)

    run(tmp_path, api, work)


@BOTH
def test_rule_10_a_route_configuration_that_comes_later_opens_its_listener(tmp_path: Path, api: str) -> None:
    """Envoy asks once, for a name that isn't there; naive: answers «no such thing», and forgets that it asked."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        made = world({"c": (envoy.origins["one"], 0)}, {"l": port}, {})
        envoy.serve(made)
        await envoy.until(lambda: _asked(envoy, "RDS"), "RDS is asked for")
        await asyncio.sleep(0.3)
        assert (await envoy.get(port))[0] == 0
        await envoy.apply(made | {ROUTE: {"l": route("l", "c")}})
        await envoy.until_ok(port)

    run(tmp_path, api, work)


async def _asked(envoy: PlainEnvoy, short: str) -> bool:
    return short in envoy.server.current(NODE)


@BOTH
def test_rule_12_what_went_while_envoy_was_alone_goes_after_the_reconnect(tmp_path: Path, api: str) -> None:
    """I41494: naive: sends what there is, and b stays for ever. In delta, what Envoy has isn't sent again."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        one = envoy.origins["one"]
        both = world({"a": (one, 0), "b": (one, 0), "same": (one, 0)}, {"l": port}, {"l": "same"})
        await envoy.apply(both)
        assert await envoy.clusters() == {"a", "b", "same"}
        await envoy.server.stop()
        envoy.events.clear()
        envoy.server = envoy.new_server()
        await envoy.server.start()
        await envoy.until(lambda: _asked(envoy, "LDS"), "Envoy is back")
        async with Load(envoy, port) as load:
            await envoy.apply(world({"a": (one, 1), "same": (one, 0)}, {"l": port}, {"l": "same"}))
            await envoy.until(lambda: _is(envoy.clusters(), {"a", "same"}), "b is gone")
        assert await envoy.warming() == set()
        assert {status for status, _ in load.seen} == {200}
        if api == "DELTA_GRPC":
            assert [(event.resources, event.removed) for event in envoy.pushes("CDS")] in (
                [(("a",), ("b",))],
                [(("a",), ()), ((), ("b",))],  # what is taken away comes last
            )
            assert [event.resources for event in envoy.pushes("LDS")] == [()]

    run(tmp_path, api, work)


@BOTH
def test_rule_15_a_changed_cluster_does_not_warm_for_ever(tmp_path: Path, api: str) -> None:
    """G1035, G1001: the endpoints are the same, and Envoy wants to hear it. Naive: the old cluster stays in use."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        one, two = envoy.origins["one"], envoy.origins["two"]
        for revision in range(5):
            await envoy.apply(world({"c": (one, revision), "d": (two, 0)}, {"l": port}, {"l": "c"}))
            await envoy.until(lambda: _none_warming(envoy), "no cluster warms")
            await envoy.until_ok(port, "one")
        for revision in range(5, 30):  # and without waiting for the one before
            envoy.serve(world({"c": (one, revision), "d": (two, revision)}, {"l": port}, {"l": "c"}))
            await asyncio.sleep(0.003 * (revision % 4))
        await envoy.server.wait_acked(NODE, 10)
        await envoy.until(lambda: _none_warming(envoy), "no cluster warms")
        assert await envoy.clusters() == {"c", "d"}

    run(tmp_path, api, work)


async def _none_warming(envoy: PlainEnvoy) -> bool:
    return not await envoy.warming()


@BOTH
def test_rule_15_a_cluster_that_went_and_comes_back_gets_endpoints(tmp_path: Path, api: str) -> None:
    """The client's subscription may not have changed in between; naive: «was sent already»."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        one, two = envoy.origins["one"], envoy.origins["two"]
        always = {"c": (one, 0)}
        for turn in range(20):
            envoy.serve(world(always | ({"d": (two, 0)} if turn % 2 else {}), {"l": port}, {"l": "c"}))
            await asyncio.sleep(0.01 * (turn % 5))
        await envoy.apply(world(always | {"d": (two, 0)}, {"l": port}, {"l": "d"}))
        await envoy.until_ok(port, "two")
        assert await envoy.warming() == set()

    run(tmp_path, api, work)


@BOTH
def test_rule_15_a_cluster_without_endpoints_holds_back_no_later_change(tmp_path: Path, api: str) -> None:
    """Envoy acknowledges clusters when the last has warmed; naive: waits for that, also to take this one away."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        one = envoy.origins["one"]
        await envoy.apply(world({"c": (one, 0)}, {"l": port}, {"l": "c"}))
        made = world({"c": (one, 0), "lost": (one, 0)}, {"l": port}, {"l": "c"})
        del made[ENDPOINT]["lost"]
        envoy.serve(made)
        await asyncio.sleep(0.5)
        await envoy.apply(world({"d": (envoy.origins["two"], 0)}, {"l": port}, {"l": "d"}))
        await envoy.until_ok(port, "two")
        await envoy.until(lambda: _is(envoy.clusters(), {"d"}), "the others are gone")

    run(tmp_path, api, work)


@BOTH
def test_rule_16_cluster_and_route_in_one_change_under_load(tmp_path: Path, api: str) -> None:
    """Make before break: naive: the route is there before the cluster has warmed, or the old cluster is gone: 503."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        origins = list(envoy.origins)
        await envoy.apply(world({"c0": (envoy.origins["one"], 0)}, {"l": port}, {"l": "c0"}))
        await envoy.until_ok(port)
        async with Load(envoy, port) as load:
            for turn in range(1, 40):
                origin = envoy.origins[origins[turn % 3]]
                await envoy.apply(world({f"c{turn}": (origin, 0)}, {"l": port}, {"l": f"c{turn}"}))
                await load.goes_on()
        assert {status for status, _ in load.seen} == {200}
        assert {text for _, text in load.seen} == set(origins)
        assert await envoy.clusters() == {"c39"}

    run(tmp_path, api, work)


@BOTH
def test_rule_16_a_route_waits_until_its_cluster_has_been_checked(tmp_path: Path, api: str) -> None:
    """A cluster warms until its first health checks are done; naive: it has its endpoints, so it is there: 503."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        origins = list(envoy.origins)
        await envoy.apply(world({"c0": (envoy.origins["one"], 0)}, {"l": port}, {"l": "c0"}, checked=True))
        await envoy.until_ok(port)
        async with Load(envoy, port) as load:
            for turn in range(1, 7):
                origin = envoy.origins[origins[turn % 3]]
                await envoy.apply(world({f"c{turn}": (origin, 0)}, {"l": port}, {"l": f"c{turn}"}, checked=True))
                await asyncio.sleep(0.02)
        assert {status for status, _ in load.seen} == {200}
        assert {text for _, text in load.seen} == set(origins)

    run(tmp_path, api, work)


@BOTH
def test_rule_18_what_has_a_time_to_live_lives_as_long_as_the_server(tmp_path: Path, api: str) -> None:
    """Naive: no heartbeats, and it goes; heartbeats alone in SotW, and all other clusters go."""

    async def work(envoy: PlainEnvoy) -> None:
        one = envoy.origins["one"]
        ports = {"mortal": free_port(), "l": free_port()}
        made = world({"mortal": (one, 0), "c": (one, 0)}, ports, {"mortal": "mortal", "l": "c"})
        ttl = 2
        envoy.serve(made, ttls={(CLUSTER, "mortal"): ttl, (LISTENER, "mortal"): ttl})
        await envoy.server.wait_acked(NODE, 10)
        for port in ports.values():
            await envoy.until_ok(port)
        async with Load(envoy, ports["mortal"]) as mortal, Load(envoy, ports["l"]) as other:
            await asyncio.sleep(2.5 * ttl)
        assert {status for status, _ in (*mortal.seen, *other.seen)} == {200}
        await envoy.server.stop()
        await envoy.until(lambda: _is(envoy.clusters(), {"c"}), "it is forgotten without a server")
        assert (await envoy.get(ports["l"]))[0] == 200

    run(tmp_path, api, work, TTL, WRAPPED)


async def _listeners(envoy: PlainEnvoy) -> dict[str, str]:
    return {item.name: item.state for item in envoy.server.current(NODE)["LDS"].resources}


async def _is(found: Awaitable[object], expected: object) -> bool:
    return await found == expected


@BOTH
def test_rule_22_the_last_listener_goes_and_comes_back(tmp_path: Path, api: str) -> None:
    """C47624: naive: an empty set is taken for no answer, and server and client go round in circles."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        clusters = {"c": (envoy.origins["one"], 0)}
        for _ in range(4):
            await envoy.apply(world(clusters, {"l": port}, {"l": "c"}))
            await envoy.until_ok(port)
            await envoy.apply(world(clusters, {}, {}))
            await envoy.until(lambda: _is(envoy.get(port), (0, "refused")), "nothing listens")
        before = len([event for event in envoy.events if event.kind is EventKind.PUSH])
        assert before < 4 * 8
        await asyncio.sleep(1)
        assert len([event for event in envoy.events if event.kind is EventKind.PUSH]) == before

    run(tmp_path, api, work)


@BOTH
def test_rule_23_an_agent_that_is_not_ready_takes_nothing_away(tmp_path: Path, api: str) -> None:
    """Naive: the new agent's first word is an empty set. A second Envoy stream never has what isn't complete."""

    async def work(envoy: PlainEnvoy) -> None:
        port = free_port()
        made = world({"c": (envoy.origins["one"], 0)}, {"l": port}, {"l": "c"})
        await envoy.apply(made)
        await envoy.until_ok(port)
        async with Load(envoy, port) as load:
            for _ in range(3):
                await envoy.server.stop()
                envoy.server = envoy.new_server()
                await envoy.server.start()
                await envoy.until(lambda: _asked(envoy, "LDS"), "Envoy is back")
                await asyncio.sleep(0.3)
                await envoy.apply(made)
        assert {status for status, _ in load.seen} == {200}
        assert not [event for event in envoy.events if event.kind is EventKind.NACK]
        assert await envoy.warming() == set()
        stats = await envoy.stats("listener_manager.listener_modified|cluster_manager.cluster_modified")
        assert set(stats.values()) == {0}

    run(tmp_path, api, work)
