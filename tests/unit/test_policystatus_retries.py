"""What could not be written is tried again without holding up what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus import fenced
from spliceway.agent.policystatus.retries import Retries
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from support.agent import until
from support.fleet import FAST, FleetAgent, brief, cnp, told, with_fleet
from support.kubeapi import KubeApi
from support.kubesource import ask


def key(name: str) -> Key:
    return ("CiliumNetworkPolicy", name)


def test_who_comes_first() -> None:
    retries = Retries((2.0, 120.0))
    retries.put(key("bad/a"), 10.0, "why", took=0.0)
    retries.put(key("bad/b"), 5.0, "why", took=0.0)
    names = ["bad/a", "bad/b", "bad/new", "good/quiet", "good/refused"]
    found = retries.ordered(map(key, names), lambda one: one[1] != "good/refused")
    assert [one[1] for one in found] == ["good/refused", "good/quiet", "bad/new", "bad/b", "bad/a"]
    assert [retries.waits(key("bad/a"), when) for when in (11.9, 12.0)] == [True, False]
    retries.put(key("bad/a"), 12.0, "why", took=0.0, least=30.0)
    assert retries.waits(key("bad/a"), 41.9)
    assert retries.error == "the status of CiliumNetworkPolicy bad/a can't be written: why (and 1 more)"
    retries.forget(key("bad/b"))
    retries.keep([key("good/quiet")])
    assert retries.error == ""
    retries.end(50.0)
    assert not retries.is_behind(key("bad/new"))


def test_what_fails_again_has_a_share_of_the_time() -> None:
    retries = Retries((2.0, 120.0))
    retries.begin()
    for number in range(3):
        assert not retries.is_over(10.0)
        retries.put(key(f"bad/{number}"), 10.0, "why", took=0.5)
    assert retries.is_over(10.0)
    retries.end(10.0)
    retries.begin()
    assert [retries.is_over(when) for when in (23.4, 23.5)] == [True, False]
    retries.put(key("bad/0"), 24.0, "why", took=20.0)
    assert retries.is_over(24.0)
    retries.end(24.0)
    retries.begin()
    assert [retries.is_over(when) for when in (143.9, 144.0)] == [True, False], "not for ever"
    retries.end(150.0)
    retries.begin()
    assert not retries.is_over(150.0), "what goes well costs nothing"


def test_many_that_fail_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tries alone take longer than their longest pause."""
    send = Connection.send

    async def sending(self: Connection, method: str, path: str, content: object, **options: object) -> bytes:
        if "/namespaces/hooked/" in path:
            raise ApiFailure(500, "InternalError", "failed calling webhook: connection refused")
        return await send(self, method, path, content, **options)  # type: ignore[arg-type]

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"), seconds=5)
        for name in ("one", "two"):
            await asyncio.sleep(0.5)
            await ask(api.put, cnp(name, "web"))
            await until(lambda name=name: brief(api, f"default/ciliumnetworkpolicy.{name}"), seconds=2)  # type: ignore[misc]
        writer = next(one for one in agents if one.leads).side._writer
        assert writer is not None
        assert "webhook" in writer._figures.error

    monkeypatch.setattr(Connection, "send", sending)
    monkeypatch.setattr(fenced, "_SLOWLY", 0.1)
    many = [cnp(f"p{number}", "web", namespace="hooked", port="no port") for number in range(100)]
    pacing = msgspec.structs.replace(FAST, pause=(0.1, 3.0))
    with_fleet(tmp_path, body, *many, cnp("web", "web"), pacing=pacing)
