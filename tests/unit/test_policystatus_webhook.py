"""Somebody's webhook fails for one namespace: what is written elsewhere does not wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from spliceway.agent.policystatus import fenced
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from support.agent import until
from support.fleet import FAST, FleetAgent, brief, cnp, told, with_fleet
from support.kubeapi import KubeApi
from support.kubesource import ask, pod
from support.meshfleet import INJECTED, applied, heard, http, with_mesh

#: More than may fail in a row before it counts as the server's trouble.
MANY = [f"p{number}" for number in range(7)]
REFUSED = ("False", "False", "True", "Refused", "0/0")


@pytest.fixture(params=["500 InternalError", "0 Idle", "401 Unauthorized", "429 TooManyRequests", "503 Unavailable"])
def mend(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Objects in `hooked` can't be written, or hang; to be called when they can."""
    send, broken = Connection.send, [True]
    code, reason = request.param.split()

    async def sending(self: Connection, method: str, path: str, content: object, **options: object) -> bytes:
        if broken[0] and "/namespaces/hooked/" in path:
            raise ApiFailure(int(code), reason, 'webhook "check.example"')
        return await send(self, method, path, content, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "send", sending)
    monkeypatch.setattr(fenced, "_SLOWLY", 0.02)  # as short for the pauses of a fleet as it is for those of a cluster
    monkeypatch.setattr(fenced, "_HUNG", (0.05, 0.5))
    return lambda: broken.__setitem__(0, False)


def test_statuses_elsewhere_are_written(tmp_path: Path, mend: Callable[[], None]) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"))
        assert {await ask(brief, api, f"hooked/ciliumnetworkpolicy.{name}") for name in MANY} == {()}
        writer = next(one for one in agents if one.leads).side._writer
        assert writer is not None
        failed, well = (("CiliumNetworkPolicy", name) for name in ("hooked/p0", "default/web"))
        assert writer._turn_of(failed) > writer._turn_of(well), "what has failed comes last, refused or not"
        mend()
        for name in MANY:
            await told(api, f"hooked/ciliumnetworkpolicy.{name}", REFUSED)

    first = [cnp(name, "web", namespace="hooked", port="no port") for name in MANY]  # what is refused comes first
    with_fleet(tmp_path, body, *first, cnp("web", "web"))


def test_what_can_not_be_deleted_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, refused = Connection.send, [0]

    async def sending(self: Connection, method: str, path: str, content: object, **options: object) -> bytes:
        if method == "DELETE" and "/namespaces/hooked/" in path:
            refused[0] += 1
            raise ApiFailure(500, "InternalError", 'failed calling webhook "check.example": connection refused')
        return await send(self, method, path, content, **options)  # type: ignore[arg-type]

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, "hooked/ciliumnetworkpolicy.web", REFUSED)
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "hooked/web")
        await until(lambda: refused[0])
        await ask(api.put, cnp("web", "web"))
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"))
        await until(lambda: refused[0] > 1)

    monkeypatch.setattr(Connection, "send", sending)
    patient = msgspec.structs.replace(FAST, pause=(600.0, 600.0))  # as after many failures
    with_fleet(tmp_path, body, cnp("web", "web", namespace="hooked", port="no port"), pacing=patient)


def test_translations_elsewhere_are_applied(tmp_path: Path, mend: Callable[[], None]) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, "default/web", "True", "Emitted")
        assert {one["metadata"]["namespace"] for one in await ask(applied, api)} == {"default"}
        mend()
        for name in MANY:
            await heard(api, f"hooked/{name}", "True", "Emitted", 30)
        await until(lambda: len(applied(api)) == 1 + len(MANY))

    pods = [
        pod(name, f"10.0.1.{number + 1}", node="n1", namespace="hooked", labels={"app": name, **INJECTED})
        for number, name in enumerate(MANY)
    ]
    first = [http(name, name, namespace="hooked") for name in MANY]
    with_mesh(tmp_path, body, *pods, *first, http("web", "web"))


def test_a_status_that_cant_be_deleted_ends_no_round(tmp_path: Path, mend: Callable[[], None]) -> None:
    """A status without a policy goes after a while, and not if somebody's webhook says so."""
    left = {"apiVersion": "spliceway.io/v1alpha1", "kind": "PolicyStatus"}
    metadata = {"name": "ciliumnetworkpolicy.gone", "namespace": "hooked"}

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"))
        writer = next(one for one in agents if one.leads).side._writer
        assert writer is not None
        await until(lambda: bool(writer._writes._failed or writer._writes._broken), 20)
        await ask(api.put, cnp("web", "web", port="no port"))
        await told(api, "default/ciliumnetworkpolicy.web", (*REFUSED[:4], "0/2"), seconds=20)
        assert not any(one.side.warnings() for one in agents)
        assert writer._figures.error == ""

    with_fleet(tmp_path, body, {**left, "metadata": metadata}, cnp("web", "web"))
