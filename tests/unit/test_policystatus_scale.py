"""Many nodes and policies: what it costs the API server, and that one agent after another can write."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from spliceway.agent.configsections import DEFAULT_KINDS
from spliceway.agent.policystatus.figures import Figures
from spliceway.agent.policystatus.ledger import Ledger
from spliceway.agent.policystatus.pacing import Bucket, Pacing
from spliceway.agent.policystatus.writer import Writer
from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.source import KubernetesSource
from support.agent import run, until
from support.fleet import (
    DEFINITIONS,
    FAST,
    FleetAgent,
    address,
    brief,
    cnp,
    events,
    fleet,
    kubeconfig_of,
    node,
    status_in,
    told,
    written,
)
from support.kubeapi import KubeApi
from support.kubesource import CRDS, QUICK, ask, pod

NODES, POLICIES, APPS = 50, 200, 25
GOOD = ("True", "True", "False", "InForce")
#: As in a cluster of 50 nodes, but quicker by ten.
BATCHED = msgspec.structs.replace(FAST, report=0.5, gather=0.2, lease=15.0, deadline=10.0, refresh=600.0)


@contextlib.asynccontextmanager
async def large(
    api: KubeApi, kubeconfig: Path, pacing: Pacing = BATCHED, rate: float = 500.0
) -> AsyncIterator[list[FleetAgent]]:
    """All agents, fed by one source: each sees what the others see, at the same time."""
    agents = [FleetAgent(f"n{number}", kubeconfig, pacing=pacing, rate=rate) for number in range(NODES)]
    with KubernetesSource("none", kubeconfig=kubeconfig, timing=QUICK, wired=True) as source:

        async def feed() -> None:
            async for batch in source.batches():
                for one in agents:
                    one.feed(batch)
                    await asyncio.sleep(0)

        for one in agents:
            one.start(follow=False)
        task = asyncio.create_task(feed())
        try:
            yield agents
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            for one in agents:
                await one.stop()
    await source.ended()
    await asyncio.sleep(0.01)


def in_force(api: KubeApi) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for one in api.all("spliceway.io/v1alpha1", "PolicyStatus"):
        found[brief(api, f"default/{one['metadata']['name']}")] += 1
    return found


def kinds(of: list[tuple[str, str]]) -> Counter[str]:
    """Requests by what they write: `PUT status`, `POST policystatuses`, `PATCH nodepolicyreports`."""
    names = ("status", "events", "policystatuses", "nodepolicyreports")
    return Counter(f"{method} {next(one for one in names if one in path.split('/'))}" for method, path in of)


def test_two_hundred_policies_on_fifty_nodes(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            pods = [
                pod(f"p{n}-{k}", address(2 * n + k), node=f"n{n}", labels={"app": f"a{(2 * n + k) % APPS}"})
                for n in range(NODES)
                for k in range(2)
            ]
            api.put(*CRDS, *DEFINITIONS, *(node(f"n{n}") for n in range(NODES)), *pods)
            api.put(*(cnp(f"p{number}", f"a{number % APPS}") for number in range(POLICIES)))
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
            async with large(api, kubeconfig) as agents:
                # 100 pods of 25 apps, each app on 4 nodes.
                await until(lambda: in_force(api) == {(*GOOD, "4/4"): POLICIES}, 60)
                await asyncio.sleep(1.5)
                begin = kinds(await ask(written, api))
                print("from nothing", dict(begin))
                assert begin["POST policystatuses"] == POLICIES
                assert begin["PUT status"] <= 4 * POLICIES
                assert begin["PATCH nodepolicyreports"] + begin["POST nodepolicyreports"] <= 4 * NODES

                before = len(await ask(written, api))
                await ask(api.put, cnp("p7", "a7", port=81))
                await until(lambda: status_in(api, "default/ciliumnetworkpolicy.p7")["observedGeneration"] == 2)
                await told(api, "default/ciliumnetworkpolicy.p7", (*GOOD, "4/4"))
                await until(lambda: status_in(api, "default/ciliumnetworkpolicy.p7")["nodes"]["unseen"] == 0)
                await asyncio.sleep(1.5)
                edit = kinds((await ask(written, api))[before:])
                print("one edit", dict(edit))
                assert edit["PATCH nodepolicyreports"] <= NODES, "each node says once that it has looked at it"
                assert edit["PUT status"] <= 8
                assert set(edit) == {"PATCH nodepolicyreports", "PUT status"}

                # All policies at once: still a report for each node, or two.
                before = len(await ask(written, api))
                await ask(api.put, *(cnp(f"p{number}", f"a{number % APPS}", port=82) for number in range(POLICIES)))
                await until(lambda: in_force(api) == {(*GOOD, "4/4"): POLICIES} and all_seen(api), 60)
                await asyncio.sleep(1.0)
                edits = kinds((await ask(written, api))[before:])
                print("200 edits", dict(edits))
                assert edits["PATCH nodepolicyreports"] <= 4 * NODES
                assert edits["PUT status"] <= 6 * POLICIES

                # The one that writes goes: nothing is written anew for that.
                before = len(await ask(written, api))
                (leader,) = (one for one in agents if one.leads)
                await leader.stop()
                await until(lambda: any(one.leads for one in agents if one is not leader))
                await asyncio.sleep(2.0)
                print("another leader", dict(kinds((await ask(written, api))[before:])))
                assert (await ask(written, api))[before:] == []
                await ask(api.put, cnp("p9", "a9", port=99))
                await until(lambda: status_in(api, "default/ciliumnetworkpolicy.p9")["observedGeneration"] == 3)

    run(main, 200)


def all_seen(api: KubeApi) -> bool:
    found = [one["status"] for one in api.all("spliceway.io/v1alpha1", "PolicyStatus")]
    return all(one["nodes"]["unseen"] == 0 and one["observedGeneration"] >= 2 for one in found)


def test_writes_are_bounded_by_their_rate(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, *DEFINITIONS, node("n1"), *(cnp(f"p{number}", "web") for number in range(100)))
            agent = FleetAgent("n1", api.kubeconfig(tmp_path / "kubeconfig"), rate=20.0)
            async with fleet([agent]):
                await until(lambda: agent.leads)
                await until(lambda: len(written(api, "policystatuses")) > 10)
                for _ in range(2):
                    before = len(await ask(written, api, "policystatuses"))
                    await asyncio.sleep(1.5)
                    assert len(await ask(written, api, "policystatuses")) - before <= 1.5 * 20 + 42, "rate and burst"
                assert len(await ask(written, api, "policystatuses")) < 140

    run(main)


def test_many_refusals_are_not_as_many_events(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            bad = [cnp(f"p{number}", "web", port="no port") for number in range(120)]
            api.put(*CRDS, *DEFINITIONS, node("n1"), *bad)
            agent = FleetAgent("n1", api.kubeconfig(tmp_path / "kubeconfig"))
            async with fleet([agent]):
                await until(lambda: in_force(api) == {("False", "False", "True", "Refused", "0/0"): 120})
                assert 50 <= len(await ask(events, api)) <= 70
                assert agent.side.status().dropped_events == 120 - agent.side.status().events

    run(main)


class _Elected:
    """Believes to be elected, whatever a Lease says."""

    leads = True
    left = 10.0


def test_two_that_believe_to_be_elected_undo_nothing(tmp_path: Path) -> None:
    """Every write names what it replaces. What both say is the same in the end, and is said once."""

    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, *DEFINITIONS, node("n1"), pod("a", "10.0.0.1", node="n1", labels={"app": "web"}))
            api.put(*(cnp(f"p{number}", "web", port=80 if number % 2 else "no port") for number in range(20)))
            kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
            agent = FleetAgent("n1", kubeconfig)
            figures = [Figures(), Figures()]
            connections = [Connection(kubeconfig, "") for _ in figures]
            async with fleet([agent]):
                await until(lambda: agent.force.reached)
                ledger: Ledger = agent.side._ledger
                writers = [
                    Writer(
                        connection,
                        ledger,
                        _Elected(),  # type: ignore[arg-type]
                        "n1",
                        kinds=DEFAULT_KINDS,
                        own=lambda: agent.side._current,
                        whole=lambda: True,
                        pacing=FAST,
                        timing=QUICK,
                        rates=(Bucket(500, 500), Bucket(500, 500)),
                        figures=each,
                    )
                    for connection, each in zip(connections, figures, strict=True)
                ]
                tasks = [asyncio.create_task(one.run()) for one in writers]
                wanted = {("False", "False", "True", "Refused", "0/0"): 10, (*GOOD, "1/1"): 10}
                await until(lambda: in_force(api) == wanted)
                for turn in range(10):
                    await ask(api.put, *(cnp(f"p{number}", "web", port=90 + turn) for number in range(1, 20, 2)))
                    await asyncio.sleep(0.1)
                await until(
                    lambda: all(
                        status_in(api, f"default/ciliumnetworkpolicy.p{number}")["observedGeneration"] == 11
                        for number in range(1, 20, 2)
                    )
                )
                await until(lambda: in_force(api) == wanted)
                await asyncio.sleep(0.5)
                before = len(await ask(written, api))
                await asyncio.sleep(0.5)
                assert len(await ask(written, api)) == before, "they agree"
                assert Counter(await ask(events, api)) == {
                    ("Warning", "PolicyRefused", f"p{number}"): 1 for number in range(0, 20, 2)
                }
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for connection in connections:
                await connection.close()
            print("conflicts", [one.conflicts for one in figures])

    run(main)


def test_the_one_that_writes_dies_and_the_next_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            names = ("n1", "n2", "n3")
            api.put(*CRDS, *DEFINITIONS, *map(node, names), cnp("web", "web", port="no port"))
            api.put(
                *(
                    pod(f"a{name}", address(number), node=name, labels={"app": "web"})
                    for number, name in enumerate(names)
                )
            )
            kubeconfig = kubeconfig_of(api, tmp_path)
            agents = [FleetAgent(name, kubeconfig) for name in names]
            async with fleet(agents):
                refused = ("False", "False", "True", "Refused", "0/0")
                await told(api, "default/ciliumnetworkpolicy.web", refused)
                await until(lambda: len(api.all("spliceway.io/v1alpha1", "NodePolicyReport")) == 3)
                (leader,) = (one for one in agents if one.leads)
                assert leader.side._election is not None

                async def killed() -> None:
                    """It can't say farewell."""

                leader.side._election._release = killed  # type: ignore[method-assign]
                await leader.stop()
                await ask(api.put, cnp("web", "web", port=80))
                # Its node has not looked at it: nobody claims that it is in force there.
                await told(api, "default/ciliumnetworkpolicy.web", ("True", "Unknown", "False", "NotSeen", "2/2"))
                (second,) = (one for one in agents if one.leads)
                assert second is not leader
                status = await ask(status_in, api, "default/ciliumnetworkpolicy.web")
                assert leader.node in str(status)
                found = sorted(await ask(events, api))
                assert found == [("Normal", "PolicyAccepted", "web"), ("Warning", "PolicyRefused", "web")]
                again = FleetAgent(leader.node, kubeconfig)
                async with fleet([again]):
                    await told(api, "default/ciliumnetworkpolicy.web", (*GOOD, "3/3"))

    run(main)
