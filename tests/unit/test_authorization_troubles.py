"""Writes that fail, bugs, and marks that anybody may write: none of it holds up what it is not about."""

from __future__ import annotations

import asyncio
import json
import re
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
from support.kubesource import CRDS, ask, pod
from support.meshfleet import (
    API,
    AUTHENTICATIONS,
    INJECTED,
    KIND,
    MESHED,
    STRICT,
    applied,
    complete,
    denying,
    heard,
    http,
    paths,
    recorded,
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


def writer_of(agent: FleetAgent) -> Any:
    """Its writer, while it is elected."""
    return agent.side._authorization._writer


def test_what_cant_be_deleted_is_told_and_holds_nobody_else_up(tmp_path: Path, refuse: Refuse) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await heard(api, DB, "True", "Emitted")
        stuck = of(await ask(applied, api), WEB)["metadata"]["name"]
        refuse(lambda method, path: method == "DELETE" and path.endswith(f"/{stuck}"))
        await ask(api.put, http("web", "web", "/b"), http("db", "db", "/e"))
        await until(lambda: paths(api) == ["/a", "/b", "/e"], 20)
        assert "1 of earlier ones still in force" in await heard(api, WEB, "False", "Pending")
        await heard(api, DB, "True", "Emitted")
        refuse(None)
        await until(lambda: paths(api) == ["/b", "/e"], 20)
        await heard(api, WEB, "True", "Emitted")

    with_mesh(tmp_path, body, http("web", "web"), http("db", "db", "/d"))


def test_what_somebody_holds_up_keeps_what_must_go_later_and_nothing_else(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await heard(api, DB, "True", "Emitted")
        one = of(await ask(applied, api), WEB)
        await ask(api.put, {**one, "metadata": {**one["metadata"], "finalizers": ["a/b"]}})
        await ask(api.put, denying(http("web", "web", "/b"), "82"), denying(http("db", "db", "/e"), "82"))
        await heard(api, DB, "True", "Emitted")
        # The old denial of `web` is there as long as what the old one allows.
        assert "2 of earlier ones still in force" in await heard(api, WEB, "False", "Pending")
        assert await ask(paths, api) == ["/a", "/b", "/e"]
        assert len(await ask(applied, api)) == 6
        await ask(api.drop, API, KIND, named(one))
        await heard(api, WEB, "True", "Emitted")
        assert len(await ask(applied, api)) == 4

    with_mesh(tmp_path, body, denying(http("web", "web")), denying(http("db", "db", "/d")))


def test_what_somebody_holds_up_leaves_no_bridge_over_anybodys_policy(tmp_path: Path) -> None:
    """Anybody can make what looks like one of ours, about other workloads even, and hold that up for ever."""

    def wide(name: str, path: str) -> Json:
        made = http(name, "x", path)
        spec = {**made["spec"], "endpointSelector": {"matchLabels": {"team": "t"}}}
        return {**made, "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": name}, "spec": spec}

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: paths(api) == ["/a", "/b"], 20)
        told = {
            "spliceway.io/translated-from": "CiliumNetworkPolicy tenant/none",
            "spliceway.io/emitted": "/1/aa 0123456789abcdef",
        }
        labels = (await ask(applied, api))[0]["metadata"]["labels"]
        marks = {"labels": labels, "annotations": told, "finalizers": ["a/b"]}
        forged = {"apiVersion": API, "kind": KIND, "metadata": {"name": "forged", "namespace": "tenant", **marks}}
        await ask(api.put, {**forged, "spec": {"action": "ALLOW", "selector": {"matchLabels": {"app": "no"}}}})
        await until(lambda: any("deletionTimestamp" in one["metadata"] for one in applied(api)), 20)
        for name in ("one", "two"):
            await ask(api.drop, "cilium.io/v2", "CiliumClusterwideNetworkPolicy", name)
        await until(lambda: paths(api) == [], 20)
        rule = {"to": [{"operation": {"paths": ["/ok"]}}]}
        own = {"apiVersion": API, "kind": KIND, "metadata": {"name": "own", "namespace": "istio-system"}}
        await ask(api.put, {**own, "spec": {"selector": {"matchLabels": {"team": "t"}}, "rules": [rule]}})
        await until(lambda: {one["metadata"]["namespace"] for one in applied(api)} == {"tenant"}, 20)

    pods = [
        pod(name, f"10.0.1.{number}", node="n1", namespace=name, labels={"team": "t", **INJECTED})
        for number, name in enumerate(("one", "two"), 1)
    ]
    with_mesh(tmp_path, body, *pods, wide("one", "/a"), wide("two", "/b"))


def test_a_namespace_that_takes_nothing_more_holds_no_other_up(tmp_path: Path, refuse: Refuse) -> None:
    names = [f"p{number}" for number in range(60)]
    full = [http(name, name, namespace="full") for name in names]
    pods = [pod(name, "", namespace="full", node="n3", labels={"app": name, **INJECTED}) for name in names]
    other = pod("z", "10.0.0.9", namespace="zoo", node="n3", labels={"app": "z", **INJECTED})

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        refuse(lambda method, path: method == "POST" and "/namespaces/full/authorizationpolicies" in path)
        await ask(api.put, *pods, other, *full, http("z", "z", "/z", namespace="zoo"))
        await heard(api, "zoo/z", "True", "Emitted")
        assert "403" in await heard(api, "full/p59", "False", "NotWritten")
        await ask(api.put, http("web", "web", "/b"))
        await heard(api, WEB, "True", "Emitted")
        refuse(None)
        for name in ("p0", "p59"):
            await heard(api, f"full/{name}", "True", "Emitted")

    with_mesh(tmp_path, body, http("web", "web"))


def test_what_cant_be_put_back_holds_nobody_else_up(tmp_path: Path, refuse: Refuse) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await heard(api, DB, "True", "Emitted")
        good = of(await ask(applied, api), WEB)
        await ask(api.put, http("web", "web", "/a/[0-9]+"))
        await heard(api, WEB, "False", "Refused")
        refuse(lambda method, path: method == "POST" and path.endswith("/authorizationpolicies"))
        await ask(api.drop, API, KIND, named(good))
        before = len(await ask(writes, api))
        await asyncio.sleep(0.5)
        # Deletions are none of its business.
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", DB)
        await until(lambda: applied(api) == [], 20)
        assert [method for method, _name in (await ask(writes, api))[before:]] == ["DELETE"]
        refuse(None)
        await until(lambda: paths(api) == ["/a"], 20)

    with_mesh(tmp_path, body, http("web", "web"), http("db", "db", "/d"))


def test_what_is_deleted_before_its_write_is_answered_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch may tell of it before the answer comes, and does not tell again."""
    send, late = FencedWrites.send, [False]

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        async def sending(self: FencedWrites, method: str, path: str, content: object) -> bytes:
            answer = await send(self, method, path, content)
            if method == "PUT" and "/authorizationpolicies/" in path:
                late[0] = True
                await ask(api.drop, API, KIND, named(one))
                await until(lambda: not seen.own, 20)
            return answer

        await heard(api, WEB, "True", "Emitted")
        (one,) = await ask(applied, api)
        seen = writer_of(next(each for each in agents if each.leads))._seen
        monkeypatch.setattr(FencedWrites, "send", sending)
        await ask(api.put, {**one, "spec": {**one["spec"], "rules": [{}]}})
        await until(lambda: late[0] and [each["spec"] for each in applied(api)] == [one["spec"]], 20)

    with_mesh(tmp_path, body, http("web", "web"))


@pytest.mark.double  # a real server still knows of it when etcd has forgotten, and tells
@pytest.mark.parametrize("late", [False, True])
def test_what_is_deleted_while_the_watch_is_away_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """The watch has never told of it, so that it can't tell that it has gone. `late`: all is seen before the answer."""
    send, done = FencedWrites.send, [False]

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: any(one.leads and writer_of(one) for one in agents), 20)
        seen = writer_of(next(one for one in agents if one.leads))._seen
        policies = seen.reflectors[0]
        await until(lambda: policies.state == "listed", 20)

        async def away() -> None:
            """Somebody deletes it, and the server forgets that there was one."""
            (one,) = await ask(applied, api)
            looks = policies.figures.lists
            await ask(api.drop, API, KIND, named(one))
            await ask(api.compact)
            await ask(api.drop_watches)
            await ask(lambda: api.faults(stalled=False))
            await until(lambda: policies.figures.lists > looks and policies.state == "listed", 20)
            done[0] = True

        async def sending(self: FencedWrites, method: str, path: str, content: object) -> bytes:
            if done[0] or method != "POST" or not path.endswith("/authorizationpolicies"):
                return await send(self, method, path, content)
            await ask(lambda: api.faults(stalled=True))
            answer = await send(self, method, path, content)
            if late:
                await away()
            return answer

        monkeypatch.setattr(FencedWrites, "send", sending)
        await ask(api.put, http("web", "web"))
        if not late:
            await until(lambda: bool(seen.own), 20)
            await away()
        await until(lambda: done[0] and paths(api) == ["/a"], 20)
        await heard(api, WEB, "True", "Emitted")

    with_mesh(tmp_path, body)


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


def test_nobodys_mark_of_a_later_generation_holds_a_policy_up(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        (one,) = await ask(applied, api)
        policy = await ask(api.get, "cilium.io/v2", "CiliumNetworkPolicy", WEB)
        for origin, version in ((WEB, f"{policy['metadata']['uid']}/99/aa"), ("default/none", "/99/aa")):
            told = {
                "spliceway.io/translated-from": f"CiliumNetworkPolicy {origin}",
                "spliceway.io/emitted": f"{version} 0123456789abcdef",
            }
            metadata = {"name": f"forged-{origin[8:]}", "namespace": "default", "labels": one["metadata"]["labels"]}
            await ask(api.put, {**one, "metadata": {**metadata, "annotations": told}})
        await ask(api.put, http("web", "web", "/b"))
        await until(lambda: paths(api) == ["/b"], 20)
        await heard(api, WEB, "True", "Emitted")
        assert len(await ask(applied, api)) == 1

    with_mesh(tmp_path, body, http("web", "web"))


@pytest.mark.parametrize("forbidden", [False, True])
def test_of_what_nobody_may_ask_all_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: bool) -> None:
    """As of policies of a kind that no right is left for."""
    get = FencedWrites.get

    async def getting(self: FencedWrites, path: str, query: Any) -> bytes:
        if forbidden:
            raise ApiFailure(403, "Forbidden", "not for us")
        return await get(self, path, query)

    monkeypatch.setattr(FencedWrites, "get", getting)

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await heard(api, DB, "True", "Emitted")
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", WEB)
        await ask(api.put, http("db", "db", "/e"))
        await until(lambda: paths(api) == (["/a", "/e"] if forbidden else ["/e"]), 20)
        await heard(api, DB, "True", "Emitted")

    with_mesh(tmp_path, body, http("web", "web"), http("db", "db", "/d"))


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


def test_another_trust_domain_opens_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The mesh calls itself something else: what is refused goes with it, too, or it would mean nobody any more."""
    istio = {"authorizationPolicies": "emit"}

    def domains(state: Sequence[Json], action: str, policy: str) -> set[str]:
        """Of the principals of what was made of a policy."""
        texts = (
            json.dumps(one["spec"].get("rules"))
            for one in state
            if one["spec"]["action"] == action
            and one["metadata"]["annotations"]["spliceway.io/translated-from"].endswith(policy)
        )
        return {found for text in texts for found in re.findall(r"[a-z.]+(?=/ns/)", text)}

    async def main() -> None:
        with KubeApi() as api:
            policies = [denying(http("web", "web")), denying(http("db", "db", "/d"))]
            api.put(*CRDS, *DEFINITIONS, AUTHENTICATIONS, STRICT, *map(node, NAMES), *MESHED, *policies)
            kubeconfig = kubeconfig_of(api, tmp_path, *EMISSION_RIGHTS)
            async with fleet([FleetAgent("n1", kubeconfig, istio=istio)]):
                await heard(api, WEB, "True", "Emitted")
                await ask(api.put, denying(http("db", "db", "/[0-9]+")))
                await heard(api, DB, "False", "Refused")
            states = await recorded(api)
            async with fleet([FleetAgent("n1", kubeconfig, istio={**istio, "trustDomain": "mesh.example"})]):
                await until(lambda: len(applied(api)) == 4 and "cluster.local" not in json.dumps(applied(api)), 20)
                # Who deletes or edits what stays has it back, in this trust domain.
                one = of(await ask(applied, api), DB)
                await ask(api.drop, API, KIND, named(one))
                await until(lambda: paths(api) == ["/a", "/d"], 20)
                assert "cluster.local" not in json.dumps(await ask(applied, api))
                await heard(api, WEB, "True", "Emitted")
                assert "(2 AuthorizationPolicies of its last" in await heard(api, DB, "False", "Refused")
                await complete(states, api)
            for state in states[:-2]:
                for policy in (WEB, DB):
                    allowed, denied = (domains(state, action, policy) for action in ("ALLOW", "DENY"))
                    assert allowed, "without any it would be open"
                    assert allowed <= denied, "what is allowed is denied first"
            assert len(states) > 8

    run(main, 90)
