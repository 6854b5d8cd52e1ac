"""What can't be deleted, is held up, hangs or is forged: bridges go all the same, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_authorization_troubles import DB, WEB, Refuse, named, refuse, writer_of

from spliceway.agent.policystatus.fenced import FencedWrites
from support.agent import until
from support.fleet import FleetAgent
from support.kubeapi import KubeApi
from support.kubesource import ask, pod
from support.meshfleet import API, INJECTED, KIND, applied, denying, heard, http, paths, with_mesh, writes

Json = dict[str, Any]
__all__ = ["refuse"]


def bridges(api: KubeApi) -> list[str]:
    """Namespaces and names."""
    return [named(one) for one in applied(api) if one["metadata"]["name"].endswith("-bridge")]


@pytest.mark.parametrize("by_admin", [False, True])
def test_a_bridge_that_was_left_goes_when_its_policy_is_refused(tmp_path: Path, refuse: Refuse, by_admin: bool) -> None:
    """And who deletes it before does not find it back."""

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        refuse(lambda method, path: method == "DELETE" and path.endswith("-bridge"))
        await ask(api.put, http("one", "web", "/a"), http("two", "web", "/b"))
        await until(lambda: paths(api) == ["/a", "/b"] and len(bridges(api)) == 2, 20)
        await ask(api.put, http("one", "web", "/[0-9]+"))
        await heard(api, "default/one", "False", "Refused")
        if by_admin:
            for one in await ask(bridges, api):
                await ask(api.drop, API, KIND, one)
        else:
            refuse(None)
        await until(lambda: bridges(api) == [], 20)
        await asyncio.sleep(0.5)
        assert await ask(bridges, api) == []
        assert await ask(paths, api) == ["/a", "/b"]

    with_mesh(tmp_path, body)


def test_what_has_failed_before_comes_last(tmp_path: Path, refuse: Refuse) -> None:
    turns: list[bool] = []

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await heard(api, DB, "True", "Emitted")
        writer = writer_of(next(one for one in agents if one.leads))

        def which(method: str, path: str) -> bool:
            if "-db-" in path and method == "DELETE":
                turns.append(writer._is_late)
                return True
            return False

        refuse(which)
        await ask(api.put, http("db", "db", "/e"))
        await until(lambda: len(turns) > 2, 20)
        await ask(api.put, http("web", "web", "/b"))
        await heard(api, WEB, "True", "Emitted")
        assert turns[0] is False
        assert set(turns[1:]) == {True}
        refuse(None)
        await until(lambda: paths(api) == ["/b", "/e"], 20)

    with_mesh(tmp_path, body, http("web", "web"), http("db", "db", "/d"))


def forged(one: Json, name: str, origin: str, **metadata: Any) -> Json:
    """What looks like ours in `tenant`, about workloads that nobody has, and somebody holds it up."""
    told = {"spliceway.io/translated-from": origin, "spliceway.io/emitted": "/1/aa 0123456789abcdef"}
    marks = {"labels": one["metadata"]["labels"], "annotations": told, "finalizers": ["a/b"], **metadata}
    spec = {"action": "ALLOW", "rules": [{}], "selector": {"matchLabels": {"of": "nobody"}}}
    return {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": name, "namespace": "tenant", **marks},
        "spec": spec,
    }


def going(api: KubeApi) -> int:
    """How many are being deleted, and held up."""
    return sum("deletionTimestamp" in one["metadata"] for one in applied(api))


def test_what_is_held_up_in_one_namespace_keeps_no_denial_of_the_whole_mesh(tmp_path: Path) -> None:
    def wide(port: str) -> Json:
        made = denying(http("wide", "x"), port)
        spec = {**made["spec"], "endpointSelector": {"matchLabels": {"team": "t"}}}
        return {**made, "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "wide"}, "spec": spec}

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: len(applied(api)) == 2, 20)
        for number, origin in enumerate(("CiliumNetworkPolicy tenant/none", "CiliumClusterwideNetworkPolicy wide")):
            await ask(api.put, forged((await ask(applied, api))[0], f"forged-{number}", origin))
        await until(lambda: going(api) == 2, 20)
        before = {named(one) for one in await ask(applied, api) if one["spec"]["action"] == "DENY"}
        await ask(api.put, wide("82"))
        # The new denial, what it allows, and what is held up.
        await until(lambda: len(applied(api)) == 4 and not before & set(map(named, applied(api))), 20)

    pods = [
        pod(name, f"10.0.1.{number}", node="n1", namespace=name, labels={"team": "t", **INJECTED})
        for number, name in enumerate(("one", "two"), 1)
    ]
    with_mesh(tmp_path, body, *pods, wide("81"))


def test_several_that_are_held_up_have_no_bridge_again_and_again(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: paths(api) == ["/a", "/b"] and len(applied(api)) == 2, 20)
        for one in await ask(applied, api):
            await ask(api.put, {**one, "metadata": {**one["metadata"], "finalizers": ["a/b"]}})
        for name in ("one", "two"):
            await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", f"default/{name}")
        await until(lambda: going(api) == 2 and bridges(api) == [], 20)
        await asyncio.sleep(0.5)
        done = len(await ask(writes, api))
        await asyncio.sleep(0.5)
        assert (await ask(writes, api))[done:] == []

    with_mesh(tmp_path, body, http("one", "web", "/a"), http("two", "web", "/b"))


def test_what_looks_like_ours_is_asked_for_by_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can make thousands, of policies that were never there: others' policies wait for few of them."""
    get, gets = FencedWrites.get, []

    async def getting(self: FencedWrites, path: str, query: Any) -> bytes:
        gets.append(path)
        return await get(self, path, query)

    monkeypatch.setattr(FencedWrites, "get", getting)

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        (one,) = await ask(applied, api)
        many = [forged(one, f"forged-{number}", f"CiliumNetworkPolicy tenant/none{number}") for number in range(70)]
        await ask(api.put, *many, http("web", "web", "/b"))
        await heard(api, WEB, "True", "Emitted")
        await until(lambda: "/b" in json.dumps(applied(api)), 20)
        assert len(gets) <= 60
        # All are asked for once, and those that are held up never again.
        await until(lambda: going(api) == len(many), 40)
        assert len(gets) == len(many)
        await ask(api.put, http("web", "web", "/c"))
        await until(lambda: "/c" in json.dumps(applied(api)), 20)
        assert len(gets) == len(many)

    with_mesh(tmp_path, body, http("web", "web"))
