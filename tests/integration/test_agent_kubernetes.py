"""The whole agent with the API server's double as its source: what it shows, and what survives what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from spliceway.agent.errors import ConfigError
from spliceway.policy.lookup import identify
from support.agent import pod as wired_pod
from support.agent import run, until
from support.agentsite import Site
from support.kubeapi import KubeApi
from support.kubesource import CILIUM, ask, pod, policy

OLD, YOUNG = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
SERVER = yaml.safe_load(wired_pod("server", "10.240.1.11"))
Body = Callable[[Site, KubeApi], Awaitable[None]]


def site_of(tmp_path: Path, api: KubeApi) -> Site:
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    return Site(tmp_path, source=f"{{kubernetes: {{kubeconfig: {kubeconfig}, podAnnotations: true}}}}")


def with_agent(tmp_path: Path, body: Body, *objects: Any) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*objects)
            site = site_of(tmp_path, api)
            task = asyncio.create_task(site.agent().run(site.stop))
            await until(lambda: site.datapath.table is not None or task.done())
            await body(site, api)
            site.stop.set()
            await task

    run(main)


async def shown(site: Site, good: Callable[[Any], object]) -> Any:
    """`source` of the status, once it is as it should be."""
    async with asyncio.timeout(20):
        while not good(source := (await site.get("status"))["source"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return source


def labels_of(site: Site, address: str) -> tuple[str, ...]:
    table = site.datapath.table
    assert table is not None
    return table.identities[identify(table.ipcache, ip_address(address))]


def test_what_it_shows(tmp_path: Path) -> None:
    async def body(site: Site, api: KubeApi) -> None:
        status = await site.get("status")
        source = status["source"]
        assert (source["objects"], source["refusals"]) == (7, [])
        found = source["kubernetes"]
        assert (found["server"], found["whole"], found["lost"]) == (api.url, True, "")
        states = {one["kind"]: one["state"] for one in found["resources"]}
        assert (states["Pod"], states["CiliumNetworkPolicy"], states["AdminNetworkPolicy"]) == (
            "listed", "listed", "absent",
        )  # fmt: skip
        assert [one.name for one in site.datapath.endpoints] == ["default/server"]
        (server,) = await site.get("policy", endpoint="default/server")
        row = next(row for row in server["rows"] if row["ports"] == "80")
        assert row["rule"] == "CiliumNetworkPolicy default/web spec.ingress[0].toPorts[0]"
        text = await site.cli("status", status=1)  # no proxy is connected
        assert f"kubernetes {api.url}: 7 kinds listed, 5 not served, 7 objects" in " ".join(text.split())

    with_agent(tmp_path, body, CILIUM, SERVER, pod("client", "10.240.1.10"), policy("web"))


def test_a_refused_edit_and_a_server_that_is_gone(tmp_path: Path) -> None:
    async def body(site: Site, api: KubeApi) -> None:
        await ask(api.put, policy("web", 70_000))
        refusals = (await shown(site, lambda source: source["refusals"]))["refusals"]
        assert (refusals[0]["file"], refusals[0]["kept"]) == ("kubernetes:CiliumNetworkPolicy/default/web", True)
        table = site.datapath.table
        await ask(api.stop, abrupt=True)
        await shown(site, lambda source: source["kubernetes"]["lost"])
        text = await site.cli("status", status=1)
        assert "source.kubernetes: " in text
        assert site.datapath.table is table, "nothing has changed"
        await ask(api.put, policy("web", 81))
        await ask(api.start)
        await until(lambda: site.datapath.table is not table)
        (server,) = await site.get("policy", endpoint="default/server")
        assert {row["ports"] for row in server["rows"]} >= {"81"}

    with_agent(tmp_path, body, CILIUM, SERVER, policy("web"))


def test_an_address_has_the_identity_of_the_pod_that_has_it_now(tmp_path: Path) -> None:
    async def body(site: Site, api: KubeApi) -> None:
        assert "k8s:app=old" in labels_of(site, "10.240.1.20")
        table = site.datapath.table
        await ask(api.put, pod("new", "10.240.1.20", created=YOUNG))
        await until(lambda: site.datapath.table is not table)
        assert "k8s:app=new" in labels_of(site, "10.240.1.20")
        table = site.datapath.table
        await ask(api.drop, "v1", "Pod", "default/new")
        await until(lambda: site.datapath.table is not table)
        assert "k8s:app=old" not in labels_of(site, "10.240.1.20"), "it has lost it for good"

    with_agent(tmp_path, body, SERVER, pod("old", "10.240.1.20", created=OLD))


def test_what_was_refused_is_in_force_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(CILIUM, SERVER, policy("web"))
            for number in range(2):
                site = site_of(tmp_path, api)
                task = asyncio.create_task(site.agent().run(site.stop))
                await until(lambda site=site, task=task: site.datapath.table is not None or task.done(), 20)  # type: ignore[misc]
                (server,) = await site.get("policy", endpoint="default/server")
                assert {row["ports"] for row in server["rows"]} >= {"80"}
                if not number:
                    await ask(api.put, policy("web", 70_000))
                    await shown(site, lambda source: source["refusals"])
                    state = tmp_path / "state" / "state.json"
                    await until(lambda state=state: "kubernetes:Cilium" in state.read_text())  # type: ignore[misc]
                site.stop.set()
                await task

    run(main)


def test_nothing_is_in_force_before_all_was_seen(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(CILIUM, SERVER, policy("web"))
            api.faults(refuse={"ciliumnetworkpolicies": (503, 0)})
            site = site_of(tmp_path, api)
            task = asyncio.create_task(site.agent().run(site.stop))
            await until(site.socket.exists, 20)
            source = await shown(site, lambda source: "ciliumnetworkpolicies" in source["kubernetes"]["lost"])
            assert site.datapath.table is None
            assert source["kubernetes"]["whole"] is False
            await ask(api.faults, refuse={})
            await until(lambda: site.datapath.table is not None or task.done())
            site.stop.set()
            await task

    run(main)


@pytest.mark.parametrize("text", ["{}", "{directory: /tmp, kubernetes: {}}", "{kubernetes: {context: other}}"])
def test_a_source_that_cannot_be(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="source"):
        Site(tmp_path, source=text)
