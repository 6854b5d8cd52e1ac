"""The taint that keeps pods off a node goes when policy is in force there, and nobody else's goes with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from support.agent import run, until
from support.fleet import FleetAgent, all_rights, fleet, kubeconfig_of, node
from support.kubeapi import KubeApi
from support.kubesource import CRDS, ask

TAINT = {"key": "spliceway.io/agent-not-ready", "effect": "NoExecute"}
NAME = "spliceway.io/agent-not-ready:NoExecute"
OTHERS = [
    {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
    {"key": "spliceway.io/agent-not-ready", "effect": "NoSchedule", "value": "another-effect"},
]


def taints(api: KubeApi, name: str = "n1") -> list[dict[str, Any]]:
    found = api.get("v1", "Node", name)
    assert found is not None
    return found["spec"].get("taints") or []


def test_it_goes_when_policy_is_in_force_and_others_stay(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, node("n1", taints=[OTHERS[0], TAINT, OTHERS[1]]), node("n2", taints=[TAINT]))
            kubeconfig = kubeconfig_of(api, tmp_path)
            other = api.all("v1", "Node")[1]["spec"]["taints"]  # a real server adds one of its own
            agent = FleetAgent("n1", kubeconfig, taint=NAME, write=False)
            agent.force.held = True
            async with fleet([agent]):
                await until(lambda: agent.force.submitted)
                await asyncio.sleep(0.7)
                assert TAINT in await ask(taints, api), "nothing is in force yet"
                agent.force.held = False
                agent.look()
                await until(lambda: TAINT not in taints(api))
                assert await ask(taints, api) == OTHERS
                assert TAINT in other
                assert await ask(taints, api, "n2") == other, "only one's own"
                # A node that is made anew comes with it again.
                await ask(api.drop, "v1", "Node", "n1")
                await ask(api.put, node("n1", taints=[TAINT]))
                await until(lambda: TAINT not in taints(api))
                await until(lambda: agent.side.status().taint_removed == 2)
            assert [one[:2] for one in api.requests if one[0] != "GET"] == [("PATCH", "/api/v1/nodes/n1")] * 2

    run(main)


def test_others_write_into_the_node_all_the_time(tmp_path: Path) -> None:
    """Of a list that was read, and is another one by now, nothing is put back."""

    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, node("n1", taints=[TAINT]))
            api.faults(delay=0.02)  # so that something happens between reading and writing
            agent = FleetAgent("n1", api.kubeconfig(tmp_path / "kubeconfig"), taint=NAME, write=False)
            added: list[dict[str, Any]] = []
            async with fleet([agent]):
                await until(lambda: agent.force.reached)
                for number in range(40):
                    found = await ask(api.get, "v1", "Node", "n1")
                    added.append({"key": f"k{number}", "effect": "NoSchedule"})
                    kept = [one for one in found["spec"].get("taints") or [] if one == TAINT]
                    await ask(api.put, {**found, "spec": {"taints": [*kept, *added]}})
                    await asyncio.sleep(0.01)
                await until(lambda: TAINT not in taints(api))
                assert await ask(taints, api) == added

    run(main)


def test_without_the_right_it_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, node("n1", taints=[TAINT]))
            api.rights(lambda one: one.token("secret", "agent"))
            api.rights(
                lambda one: one.allow(
                    "agent",
                    [each for each in all_rights() if "nodes" not in each.resources or "patch" not in each.verbs],
                )
            )
            agent = FleetAgent("n1", api.kubeconfig(tmp_path / "kubeconfig", token="secret"), taint=NAME, write=False)
            async with fleet([agent]):
                await until(lambda: 'cannot get resource "nodes"' in str(agent.side.warnings()))
                assert agent.force.reached

    run(main)
