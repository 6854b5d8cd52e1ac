"""Writes that fail, bugs, and marks that anybody may write: none of it holds up what it is not about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spliceway.agent.authorization import translating
from spliceway.agent.policystatus.fenced import FencedWrites
from spliceway.agent.policystatus.resources import EMISSION_RIGHTS
from spliceway.agent.sources.kubernetes.connection import ApiFailure
from support.agent import run, until
from support.fleet import DEFINITIONS, NAMES, FleetAgent, fleet, kubeconfig_of, node
from support.kubeapi import KubeApi
from support.kubesource import CRDS, ask
from support.meshfleet import (
    AUTHENTICATIONS,
    MESHED,
    STRICT,
    applied,
    heard,
    http,
    paths,
    with_mesh,
    writes,
)

Json = dict[str, Any]
WEB, DB = "default/web", "default/db"
#: Method and path of a write → whether it is refused.
Refuse = Callable[[Callable[[str, str], bool] | None], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Writes for which this says so are forbidden, as by a webhook or a quota; None: none is."""
    send, which = FencedWrites.send, [lambda _method, _path: False]

    async def sending(self: FencedWrites, method: str, path: str, content: object) -> bytes:
        if which[0](method, path):
            raise ApiFailure(403, "Forbidden", "not by us")
        return await send(self, method, path, content)

    def change(told: Callable[[str, str], bool] | None) -> None:
        which[0] = told or (lambda _method, _path: False)

    monkeypatch.setattr(FencedWrites, "send", sending)
    return change


def of(found: list[Json], policy: str, action: str = "ALLOW") -> Json:
    """The one that was made of a policy."""
    (one,) = (
        each
        for each in found
        if each["metadata"]["annotations"]["spliceway.io/translated-from"].endswith(f" {policy}")
        and each["spec"]["action"] == action
    )
    return one


def named(one: Json) -> str:
    return f"{one['metadata']['namespace']}/{one['metadata']['name']}"


def test_a_bug_is_told_until_all_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, broken = translating.translate, [False]

    def translate(*arguments: Any) -> Any:
        if broken[0]:
            raise RuntimeError("a bug")
        return real(*arguments)

    monkeypatch.setattr(translating, "translate", translate)

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        broken[0] = True
        await ask(api.put, http("web", "web", "/b"))
        await until(lambda: any("a bug" in str(one.side.warnings()) for one in agents), 20)
        await asyncio.sleep(0.8)  # another round makes it no better
        await until(lambda: any("a bug" in str(one.side.warnings()) for one in agents), 20)
        broken[0] = False
        await until(lambda: paths(api) == ["/b"], 20)
        await heard(api, WEB, "True", "Emitted")

    with_mesh(tmp_path, body, http("web", "web"))


def test_an_agent_in_audit_takes_nothing_away_that_other_nodes_enforce(tmp_path: Path) -> None:
    """Two releases in a cluster, of which one is in audit: any agent of both may be elected."""
    istio = {"authorizationPolicies": "emit"}

    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, *DEFINITIONS, AUTHENTICATIONS, STRICT, *map(node, NAMES), *MESHED, http("web", "web"))
            kubeconfig = kubeconfig_of(api, tmp_path, *EMISSION_RIGHTS)
            first, *others = (
                FleetAgent(name, kubeconfig, istio=istio, enforcement=mode)
                for name, mode in zip(NAMES, ("enforce", "audit", "audit"), strict=True)
            )
            async with fleet([first]):
                await heard(api, WEB, "True", "Emitted")
                async with fleet(others):
                    done = len(await ask(writes, api))
                    await first.stop()
                    await until(lambda: any(one.side.status().authorization.settled for one in others), 20)
                    await asyncio.sleep(0.5)
                    assert (await ask(writes, api))[done:] == []
                    await ask(api.put, http("web", "web", "/b"))
                    await until(lambda: paths(api) == ["/b"], 20)
                    # With the last node that enforces anything they go.
                    await ask(api.drop, "v1", "Node", "n1")
                    await until(lambda: applied(api) == [], 20)

    run(main, 90)
