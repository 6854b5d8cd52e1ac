"""What somebody writes into a status by hand is put right at once, whatever it says, and nobody is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from spliceway.agent.policystatus.asked import is_newest
from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.fenced import FencedWrites
from spliceway.agent.policystatus.figures import Figures
from spliceway.agent.policystatus.ledger import Ledger, Version, Written
from spliceway.agent.policystatus.pacing import Bucket
from spliceway.agent.policystatus.writer import Writer
from spliceway.agent.sources.kubernetes.connection import Connection
from support.agent import until
from support.fleet import FAST, FleetAgent, cnp, events, status_in, told, with_fleet, written
from support.kubeapi import KubeApi
from support.kubesource import QUICK, ask

WEB = "default/ciliumnetworkpolicy.web"
GOOD = ("True", "True", "False", "InForce", "2/2")
KEY = ("CiliumNetworkPolicy", "default/web")
AT = ("PolicyStatus", "default", "ciliumnetworkpolicy.web")
ALL = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies"


def with_refusal(status: dict[str, Any]) -> dict[str, Any]:
    """As if it were refused."""
    made = [
        {**one, "status": "True", "reason": "Document"} if one["type"] == "Refused" else one
        for one in status["conditions"]
    ]
    return {**status, "conditions": made}


def timeless(status: dict[str, Any]) -> dict[str, Any]:
    """When a condition became what it is may be another time."""
    kept = [{**one, "lastTransitionTime": ""} for one in status.get("conditions", ())]
    return {**status, "conditions": kept}


EDITS: dict[str, Any] = {
    "counts": lambda status: {**status, "nodes": {"desired": 7, "applied": 0}},
    "a later generation": lambda status: {**status, "observedGeneration": 99},
    "a later generation, seen later": lambda status: {
        **status,
        "observedGeneration": 99,
        "resourceVersion": "999999999",
    },
    "an older revision": lambda status: {**status, "resourceVersion": "1"},
    "a refusal": with_refusal,
}


def test_what_is_edited_is_put_right(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, WEB, GOOD)
        before = await ask(status_in, api, WEB)
        for name, edit in EDITS.items():
            found = await ask(api.get, "spliceway.io/v1alpha1", "PolicyStatus", WEB)
            count = len(await ask(written, api, "policystatuses"))
            await ask(api.put, {**found, "status": edit(found["status"])})
            await until(lambda: timeless(status_in(api, WEB)) == timeless(before), 10)
            assert len(await ask(written, api, "policystatuses")) == count + 1, name
        assert await ask(events, api) == []

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_one_that_comes_to_write_does_not_believe_a_generation_that_there_is_not(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, WEB, GOOD)
        (leader,) = [one for one in agents if one.leads]
        await leader.stop()
        found = await ask(api.get, "spliceway.io/v1alpha1", "PolicyStatus", WEB)
        await ask(api.put, {**found, "status": {**found["status"], "observedGeneration": 99}})
        await until(lambda: any(one.leads for one in agents if one is not leader), 10)
        await until(lambda: status_in(api, WEB)["observedGeneration"] == 1, 10)

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_a_status_that_is_deleted_while_the_watch_is_away_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has never told of it, so that it can't tell that it has gone."""
    send = FencedWrites.send

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        async def sending(self: FencedWrites, method: str, path: str, content: object) -> bytes:
            if method == "POST" and path.endswith("/policystatuses"):
                monkeypatch.undo()
                await ask(lambda: api.faults(stalled=True))
            return await send(self, method, path, content)

        await until(lambda: any(one.leads and one.side._writer is not None for one in agents), 20)
        monkeypatch.setattr(FencedWrites, "send", sending)
        await ask(api.put, cnp("web", "web"))
        await until(lambda: bool(status_in(api, WEB)), 20)
        await ask(api.drop, "spliceway.io/v1alpha1", "PolicyStatus", WEB)
        await ask(api.compact)
        await ask(api.drop_watches)
        await ask(lambda: api.faults(stalled=False))
        await told(api, WEB, GOOD)

    with_fleet(tmp_path, body)


class _Answering:
    """In place of a connection."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self._items = items
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def get(self, path: str, query: dict[str, str]) -> bytes:
        self.asked.append((path, query))
        return msgspec.json.encode({"items": [{"metadata": one} for one in self._items]})


@pytest.mark.parametrize(
    ("items", "newest"),
    [
        ([{"uid": "u", "generation": 2}], True),
        ([{"uid": "u", "generation": 3}], False),
        ([{"uid": "u", "generation": 1}], True),
        ([{"uid": "other", "generation": 1}], False),
        ([], True),
    ],
    ids=["the same", "later", "earlier: the server was restored", "made anew", "gone"],
)
def test_the_server_is_asked_which_generation_is_the_last(items: list[dict[str, Any]], newest: bool) -> None:
    connection = _Answering(*items)
    policy = Written(Version("u", 2, "d"), "cilium.io/v2", 7)
    assert asyncio.run(is_newest(cast(Connection, connection), KEY, policy)) is newest
    assert connection.asked == [(ALL, {"fieldSelector": "metadata.name=web"})]


def _object(revision: int) -> dict[str, Any]:
    metadata = {"name": AT[2], "namespace": AT[1], "uid": "u", "resourceVersion": str(revision)}
    return {"metadata": metadata, "status": {"observedGeneration": revision}}


def test_an_answer_does_not_hide_an_edit_that_the_watch_has_told_of_already() -> None:
    async def main() -> None:
        writer = Writer(
            cast(Connection, None),
            cast(Ledger, None),
            cast(Election, None),
            "n1",
            kinds=(),
            own=lambda: None,
            whole=lambda: True,
            pacing=FAST,
            timing=QUICK,
            rates=(Bucket(1, 1), Bucket(1, 1)),
            figures=Figures(),
        )
        for revision in (5, 7, 6):
            if revision == 6:
                writer._keep(AT, msgspec.json.encode(_object(6)))
            else:
                writer._took(AT[0], f"{AT[1]}/{AT[2]}", _object(revision))
        assert writer._held[AT].revision == "7"
        assert writer._keep(AT, msgspec.json.encode(_object(8))).revision == writer._held[AT].revision == "8"
        # Nor that it is deleted: the watch does not tell again.
        writer._took(AT[0], f"{AT[1]}/{AT[2]}", None)
        writer._keep(AT, msgspec.json.encode(_object(9)))
        assert AT not in writer._held

    asyncio.run(main())
