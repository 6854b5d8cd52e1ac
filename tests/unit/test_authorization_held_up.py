"""What can't be deleted, is held up, hangs or is forged: bridges go all the same, and nobody else waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_authorization_troubles import DB, WEB, Refuse, named, refuse, writer_of

from support.agent import until
from support.fleet import FleetAgent
from support.kubeapi import KubeApi
from support.kubesource import ask
from support.meshfleet import API, KIND, applied, heard, http, paths, with_mesh

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
