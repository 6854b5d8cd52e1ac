"""One agent writes: a Lease, as others who stand for election by it have it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spliceway.agent.policystatus import election
from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.sources.kubernetes.connection import Connection
from support.agent import run, until
from support.fleet import FAST, LEASE
from support.kubeapi import KubeApi
from support.kubesource import ask

NAME = "/".join(LEASE)


class Candidate:
    """Stands for election; `times`: when it began and ended to lead."""

    def __init__(self, name: str, connection: Connection, pacing: Pacing = FAST, nodes: int = 3) -> None:
        self.name = name
        self.election = Election(connection, LEASE, name, pacing, lambda: nodes)
        self.times: list[list[float]] = []
        self.fails = 0
        self.ends = asyncio.Event()
        self.lasts = 0.0  # seconds that its end takes
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self.election.run(self._lead))

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def _lead(self) -> None:
        loop = asyncio.get_running_loop()
        self.times.append([loop.time(), float("inf")])
        try:
            if self.fails:
                self.fails -= 1
                raise LookupError("a bug")
            await asyncio.sleep(3600)
        finally:
            self.ends.set()
            await asyncio.sleep(self.lasts)
            self.times[-1][1] = loop.time()


@contextlib.asynccontextmanager
async def candidates(api: KubeApi, tmp_path: Path, count: int, **options: Any) -> AsyncIterator[list[Candidate]]:
    api.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASE[0]}})
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    connections = [Connection(kubeconfig, "") for _ in range(count)]
    made = [Candidate(f"c{number}_x", one, **options) for number, one in enumerate(connections)]
    for one in made:
        one.start()
    try:
        yield made
    finally:
        for one in made:
            await one.stop()
        for connection in connections:
            await connection.close()
        await asyncio.sleep(0.01)


def lease(api: KubeApi) -> dict[str, Any]:
    found = api.get("coordination.k8s.io/v1", "Lease", NAME)
    assert found is not None
    spec: dict[str, Any] = found["spec"]
    return spec


def leaders(of: list[Candidate]) -> list[Candidate]:
    return [one for one in of if one.election.leads]


def never_two(of: list[Candidate]) -> None:
    """No two led at the same time."""
    terms = sorted(term for one in of for term in one.times)
    for (_begin, end), (begin, _end) in itertools.pairwise(terms):
        assert end <= begin, terms


def test_one_is_elected_and_stays(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 5) as of:
                await until(lambda: leaders(of))
                first = lease(api)
                assert first["leaseTransitions"] == 0
                assert first["leaseDurationSeconds"] == 2
                await asyncio.sleep(3.5)
                (leader,) = leaders(of)
                now = lease(api)
                assert (now["holderIdentity"], now["leaseTransitions"]) == (leader.name, 0)
                assert now["acquireTime"] == first["acquireTime"]
                assert now["renewTime"] > first["renewTime"]
                assert len(leader.times) == 1
                assert {one.election.holder for one in of} == {leader.name}
            never_two(of)

    run(main)


def test_who_leaves_in_good_order_is_followed_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 3) as of:
                await until(lambda: leaders(of))
                (leader,) = leaders(of)
                await leader.stop()
                gone = asyncio.get_running_loop().time()
                assert lease(api)["holderIdentity"] == ""
                await until(lambda: leaders(of))
                assert asyncio.get_running_loop().time() - gone < 1.5
                assert lease(api)["leaseTransitions"] == 1
                leader.start()
            never_two(of)

    run(main)


def test_who_dies_is_followed_when_the_lease_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 3) as of:
                await until(lambda: leaders(of))
                (leader,) = leaders(of)
                # It hears nothing any more, and nobody hears of it.
                real = leader.election._connection
                leader.election._connection = Connection(dead(api, tmp_path), "")
                died = asyncio.get_running_loop().time()
                await until(lambda: leaders(of) and leaders(of) != [leader])
                assert 1.0 < asyncio.get_running_loop().time() - died < 3 * FAST.lease
                await leader.election._connection.close()
                leader.election._connection = real
            never_two(of)

    run(main)


def dead(api: KubeApi, tmp_path: Path) -> Path:
    """A kubeconfig of a server where nobody listens."""
    file = api.kubeconfig(tmp_path / "dead")
    file.write_text(file.read_text().replace(api.url, "https://127.0.0.1:1"))
    return file


def test_who_was_asleep_for_long_leads_no_more(tmp_path: Path) -> None:
    """A process that was stopped finds its time over before it writes anything."""

    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 2) as of:
                await until(lambda: leaders(of))
                (leader,) = leaders(of)
                leader.election._until = asyncio.get_running_loop().time() - 1.0  # so long nothing of it ran
                assert leader.election.left == 0
                await until(lambda: leaders(of))

    run(main)


def test_a_lease_that_somebody_else_takes_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 1) as (one,):
                await until(lambda: one.election.leads)
                other = {**lease(api), "holderIdentity": "somebody", "leaseDurationSeconds": 1}
                found = await ask(api.get, "coordination.k8s.io/v1", "Lease", NAME)
                await ask(api.put, {**found, "spec": other})
                await until(lambda: not one.election.leads)
                assert one.election.holder == "somebody"
                # Its time is over by our own clock, whatever its renewTime says.
                await until(lambda: one.election.leads)
                assert lease(api)["leaseTransitions"] == other["leaseTransitions"] + 1
                # And one that is deleted is made anew.
                await ask(api.drop, "coordination.k8s.io/v1", "Lease", NAME)
                await until(lambda: api.get("coordination.k8s.io/v1", "Lease", NAME) is not None)
                await until(lambda: one.election.leads)

    run(main)


@pytest.mark.parametrize("gone", ["the lease", "its namespace"])
def test_a_lease_that_is_gone_is_whose_it_is_made_by(tmp_path: Path, gone: str) -> None:
    """Between two turns of who has led, that is."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "elsewhere"}}
    lease = ("elsewhere", LEASE[1])

    async def main() -> None:
        with KubeApi() as api:
            api.put(namespace)
            connection = Connection(api.kubeconfig(tmp_path / "kubeconfig"), "")
            async with contextlib.AsyncExitStack() as closing:
                closing.push_async_callback(connection.close)
                first, second = (Election(connection, lease, name, FAST, lambda: 2) for name in ("first", "second"))
                await first._turn()
                assert first.leads
                await ask(api.drop, "coordination.k8s.io/v1", "Lease", "/".join(lease))
                if gone == "its namespace":
                    await ask(api.drop, "v1", "Namespace", "elsewhere")
                    await first._turn()  # where it can't be made anew
                    await ask(api.put, namespace)
                await second._turn()
                assert second.leads
                await first._turn()
                assert not first.leads

    run(main)


def test_with_the_server_gone_nobody_leads(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 3) as of:
                await until(lambda: leaders(of))
                await ask(api.stop, abrupt=True)
                await until(lambda: not leaders(of))
                await until(lambda: all(one.election.error for one in of))
                await ask(api.start)
                await until(lambda: leaders(of))
                await until(lambda: not any(one.election.error for one in of))
            never_two(of)

    run(main)


def test_a_stop_while_a_term_ends_is_heard(tmp_path: Path) -> None:
    with KubeApi() as api:

        async def main() -> None:
            async with candidates(api, tmp_path, 1) as (one,):
                one.lasts = 0.3
                await until(lambda: one.election.leads)
                await asyncio.to_thread(api.stop)
                await one.ends.wait()
                assert one.times[0][1] == float("inf")
                async with asyncio.timeout(5):
                    await one.stop()
                # What it led had time to end.
                assert one.times[0][1] < float("inf")

        run(main)


def test_a_bug_in_what_it_leads_ends_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 1) as (one,):
                one.fails = 2
                await until(lambda: len(one.times) == 3 and one.election.leads)

    run(main)


def test_who_fails_leaves_it_to_another(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 2, pacing=msgspec.structs.replace(FAST, again=60.0)) as both:
                for one in both:
                    one.fails = 1000 if one is both[0] else 0
                await until(lambda: both[1].election.leads)
                await asyncio.sleep(FAST.lease)
                assert len(both[0].times) <= 1, "it begins again and again"
                assert both[1].election.leads

    run(main)


def test_many_candidates_ask_rarely_and_follow_in_time(tmp_path: Path) -> None:
    """As many requests as fifty of a thousand: the rest follows from how often one asks."""
    pacing = msgspec.structs.replace(FAST, looks=100.0)

    async def main() -> None:
        with KubeApi() as api:
            # They believe to be 400, so that each looks every four seconds: together 5 times a second.
            async with candidates(api, tmp_path, 20, pacing=pacing, nodes=400) as of:
                await until(lambda: leaders(of))
                await asyncio.sleep(1.0)
                before = len(api.requests)
                await asyncio.sleep(4.0)
                asked = [one for one in api.requests[before:] if one[0] == "GET"]
                assert len(asked) < 40
                (leader,) = leaders(of)
                assert leader.task is not None
                leader.election._connection = Connection(dead(api, tmp_path), "")
                died = asyncio.get_running_loop().time()
                await until(lambda: [one for one in leaders(of) if one is not leader], 12)
                print(f"followed after {asyncio.get_running_loop().time() - died:.1f} s")
            never_two(of)

    run(main)


def test_a_leader_whose_clock_is_behind_is_looked_at_no_more_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But once, to see that it is there."""
    slow = msgspec.structs.replace(FAST, lease=1.0, deadline=0.8, looks=1.0)  # another one looks every three seconds
    micro, looks, get = election._micro, [0], Connection.get

    async def counted(self: Connection, path: str, *rest: Any, **more: Any) -> bytes:
        looks[0] += 1
        return await get(self, path, *rest, **more)

    async def main() -> None:
        with KubeApi() as api:
            async with candidates(api, tmp_path, 1, pacing=slow) as (leader,):
                monkeypatch.setattr(election, "_micro", lambda now: micro(now - timedelta(minutes=1)))
                await until(lambda: leader.election.leads)
                await asyncio.sleep(0.3)  # it has renewed it
                connection = Connection(api.kubeconfig(tmp_path / "other"), "")
                other = Candidate("other_x", connection, slow)
                monkeypatch.setattr(Connection, "get", counted)
                other.start()
                await asyncio.sleep(6.5)
                assert 2 <= looks[0] <= 4, "one more than every three seconds"
                assert leader.election.leads
                await other.stop()
                await connection.close()

    run(main)
