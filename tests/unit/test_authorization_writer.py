"""One agent of all keeps translations of HTTP rules applied as AuthorizationPolicies, and touches nobody else's."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spliceway.agent.policystatus.told import collectors
from support.agent import until
from support.fleet import FAST, FleetAgent, cnp, events, status_in, told
from support.kubeapi import KubeApi
from support.kubesource import ask, pod
from support.meshfleet import (
    API,
    AUTHENTICATIONS,
    INJECTED,
    KIND,
    STRICT,
    applied,
    complete,
    denying,
    heard,
    http,
    paths,
    recorded,
    said,
    with_mesh,
    writes,
)

Json = dict[str, Any]
WEB = "default/web"
PERMISSIVE = {**STRICT, "spec": {"mtls": {"mode": "PERMISSIVE"}}}
#: A rule that has no counterpart.
REFUSED = http("web", "web", "/a/[0-9]+")


def leader(agents: Sequence[FleetAgent]) -> FleetAgent:
    return next(one for one in agents if one.leads)


def edited(one: Json, **spec: Any) -> Json:
    return {**one, "spec": {**one["spec"], **spec}}


def named(one: Json) -> str:
    return f"{one['metadata']['namespace']}/{one['metadata']['name']}"


def test_http_rules_are_applied_and_said_to_be(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        assert await heard(api, WEB, "True", "Emitted") == "2 AuthorizationPolicies"
        allow, deny = sorted(await ask(applied, api), key=lambda one: one["spec"]["action"])
        policy = await ask(api.get, "cilium.io/v2", "CiliumNetworkPolicy", WEB)
        for one in (allow, deny):
            metadata = one["metadata"]
            assert metadata["namespace"] == "default"
            assert metadata["labels"] == {"app.kubernetes.io/managed-by": "spliceway", "spliceway.io/emitted": "true"}
            assert metadata["annotations"]["spliceway.io/translated-from"] == f"CiliumNetworkPolicy {WEB}"
            version, digest = metadata["annotations"]["spliceway.io/emitted"].split(" ")
            assert version.split("/")[:2] == [policy["metadata"]["uid"], "1"]
            assert metadata["name"].endswith(f"-{digest[:10]}")
            assert "ownerReferences" not in metadata, "nobody may delete one of several first"
            assert one["spec"]["selector"] == {"matchLabels": {"app": "web"}}
        assert deny["spec"]["rules"][0]["to"] == [{"operation": {"ports": ["81"]}}]
        assert allow["spec"]["rules"][0]["from"] == [{"source": {"principals": ["cluster.local/ns/default/*"]}}]
        assert await ask(paths, api) == ["/a"]
        assert sum(bool(one.side.status().authorization.emitted) for one in agents) == 1
        status = leader(agents).side.status()
        assert (status.authorization.emitted, status.authorization.settled, status.problems) == (2, True, ())
        # What we apply is no policy to us, though the source reads the kind.
        assert not any(one.inventory.names(KIND) or one.inventory.refusals for one in agents)
        assert [
            one["spec"]["policy"]["kind"] for one in await ask(api.all, "spliceway.io/v1alpha1", "PolicyStatus")
        ] == ["CiliumNetworkPolicy"]
        # And then there is peace.
        before = await ask(writes, api)
        for number in range(5):
            await ask(api.put, pod("d", "10.0.0.9", node="n1", labels={"app": "db", "turn": str(number), **INJECTED}))
            await asyncio.sleep(0.1)
        assert await ask(writes, api) == before
        assert await ask(events, api) == []

    with_mesh(tmp_path, body, denying(http("web", "web")))


def test_what_is_new_comes_before_what_is_old_goes(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        old = await ask(applied, api)
        done = len(await ask(writes, api))
        await ask(api.put, denying(http("web", "web", "/b"), "82"))
        await until(lambda: paths(api) == ["/b"] and len(applied(api)) == 2, 20)
        new = (await ask(writes, api))[done:]
        allowed, denied = (next(one for one in old if one["spec"]["action"] == each) for each in ("ALLOW", "DENY"))
        assert [method for method, _name in new] == ["POST", "POST", "DELETE", "DELETE"]
        assert [name for _method, name in new[2:]] == [allowed["metadata"]["name"], denied["metadata"]["name"]]
        # Another generation that says the same is another annotation.
        await ask(
            api.put,
            {
                **denying(http("web", "web", "/b"), "82"),
                "spec": denying(http("web", "web", "/b"), "82")["spec"] | {"description": "x"},
            },
        )
        await until(
            lambda: all("/3/" in one["metadata"]["annotations"]["spliceway.io/emitted"] for one in applied(api)), 20
        )
        assert {method for method, _name in (await ask(writes, api))[done + 4 :]} == {"PUT"}
        await heard(api, WEB, "True", "Emitted")
        # When the policy goes, so do they, in the same order.
        done = len(await ask(writes, api))
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", WEB)
        await until(lambda: applied(api) == [], 20)
        names = {one["metadata"]["name"] for one in old}
        assert [method for method, _name in (await ask(writes, api))[done:]] == ["DELETE", "DELETE"]
        assert names.isdisjoint(name for _method, name in (await ask(writes, api))[done:])

    with_mesh(tmp_path, body, denying(http("web", "web")))


def test_several_come_over_a_bridge_which_goes(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, "default/one", "True", "Emitted")
        await heard(api, "default/two", "True", "Emitted")
        await until(lambda: len(applied(api)) == 2, 20)
        methods = [method for method, _name in await ask(writes, api)]
        assert methods == ["POST"] * 4 + ["DELETE"] * 2
        deleted = [name for method, name in await ask(writes, api) if method == "DELETE"]
        assert all(name.endswith("-bridge") for name in deleted)

    with_mesh(tmp_path, body, http("one", "web", "/a"), http("two", "web", "/b"))


def test_edits_are_put_back_and_what_others_add_stays(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        (one,) = await ask(applied, api)
        metadata = {**one["metadata"], "labels": {**one["metadata"]["labels"], "team": "red"}, "finalizers": ["a/b"]}
        await ask(api.put, {**edited(one, rules=[{}]), "metadata": metadata})
        await until(lambda: api.get(API, KIND, named(one))["spec"] == one["spec"], 20)  # type: ignore[index]
        found = await ask(api.get, API, KIND, named(one))
        assert found["metadata"]["labels"]["team"] == "red"
        assert found["metadata"]["finalizers"] == ["a/b"]
        await until(lambda: leader(agents).side.status().authorization.restored == 1)
        await ask(api.drop, API, KIND, named(one))
        await until(lambda: [each["spec"] for each in applied(api)] == [one["spec"]], 20)
        # Again and again: ever more rarely.
        before, began = len(await ask(writes, api)), time.monotonic()
        for _ in range(40):
            (now,) = await ask(applied, api)
            await ask(api.put, edited(now, rules=[{}]))
            await asyncio.sleep(0.02)
        longest = 0.75 * FAST.pause[1]
        assert len(await ask(writes, api)) - before < 6 + (time.monotonic() - began) / longest
        await until(lambda: paths(api) == ["/a"], 20)

    with_mesh(tmp_path, body, http("web", "web"))


def test_one_that_is_being_deleted_is_put_back_as_long_as_it_is_there(tmp_path: Path) -> None:
    """Somebody's finalizer holds it up: it is in force until that goes."""

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        (one,) = await ask(applied, api)
        going = {"finalizers": ["a/b"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        await ask(api.put, {**edited(one, rules=[{}]), "metadata": {**one["metadata"], **going}})
        await until(lambda: api.get(API, KIND, named(one))["spec"] == one["spec"], 20)  # type: ignore[index]

    with_mesh(tmp_path, body, http("web", "web"))


def test_a_refused_translation_keeps_its_last_good_one(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        (good,) = await ask(applied, api)
        await ask(api.put, REFUSED)
        message = await heard(api, WEB, "False", "Refused")
        assert "repeats without end" in message
        assert "(1 AuthorizationPolicy of its last good translation in force)" in message
        condition = next(
            one
            for one in status_in(api, "default/ciliumnetworkpolicy.web")["conditions"]
            if one["type"] == "Translated"
        )
        assert condition["field"] == "spec.ingress[0].toPorts[0].rules.http[0]"
        await until(lambda: ("Warning", "PolicyNotTranslated", "web") in events(api))
        assert await ask(applied, api) == [good]
        # The wire has the new one all the same.
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"))
        # Who edits or deletes it meanwhile does not open anything either.
        await ask(api.put, edited(good, rules=[{}]))
        await until(lambda: paths(api) == ["/a"], 20)
        await ask(api.drop, API, KIND, named(good))
        await until(lambda: paths(api) == ["/a"], 20)
        assert leader(agents).side.status().authorization.kept == 1
        await ask(api.put, http("web", "web", "/c"))
        await until(lambda: paths(api) == ["/c"], 20)
        await until(lambda: ("Normal", "PolicyTranslated", "web") in events(api), 20)
        await heard(api, WEB, "True", "Emitted")
        # mTLS that is not asked of everybody is a refusal, too; a policy that can't even be read keeps its own.
        await ask(api.put, PERMISSIVE)
        assert "is not STRICT" in await heard(api, WEB, "False", "Refused")
        await ask(api.put, STRICT)
        await heard(api, WEB, "True", "Emitted")
        await ask(api.put, cnp("web", "web", port="no port"))
        await until(lambda: status_in(api, "default/ciliumnetworkpolicy.web").get("observedGeneration") == 4, 20)
        assert await ask(paths, api) == ["/c"]

    with_mesh(tmp_path, body, http("web", "web"))


def test_nobody_asks_what_is_left_to_istio_and_has_no_counterpart(tmp_path: Path) -> None:
    left = {"spliceway.io/http-rules": "istio"}
    refused = http("web", "web", "/a/[0-9]+", **left)

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        told = await heard(api, WEB, "False", "Refused")
        assert "; at default/a, default/b nobody asks its HTTP rules" in told
        (problem,) = leader(agents).side.status().problems
        assert "HTTP rules of CiliumNetworkPolicy default/web at 2 of its pods: left to Istio" in problem
        await ask(api.put, http("web", "web", **left))
        await heard(api, WEB, "True", "Emitted")
        assert leader(agents).side.status().problems == ()
        # Its last good translation is asked.
        await ask(api.put, refused)
        assert "nobody" not in await heard(api, WEB, "False", "Refused")
        assert leader(agents).side.status().problems == ()

    with_mesh(tmp_path, body, refused)


def test_a_policy_that_goes_beside_a_refused_one_leaves_no_opening(tmp_path: Path) -> None:
    """Its workloads would have no ALLOW policy at all, though the other policy is to deny nearly everything."""

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, "default/one", "True", "Emitted")
        await ask(api.put, {**REFUSED, "metadata": {**REFUSED["metadata"], "name": "two"}})
        await heard(api, "default/two", "False", "Refused")
        assert "same workloads as CiliumNetworkPolicy default/two" in await heard(
            api, "default/one", "False", "Refused"
        )
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/one")
        await until(lambda: leader(agents).side.status().authorization.refused == 1, 20)
        await asyncio.sleep(0.3)
        assert await ask(paths, api) == ["/a"]
        await ask(api.put, http("two", "web", "/b"))
        await until(lambda: paths(api) == ["/b"], 20)

    with_mesh(tmp_path, body, http("one", "web"))


def test_somebody_elses_object_is_never_overwritten(tmp_path: Path) -> None:
    foreign = {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": "mine", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "db"}}, "action": "DENY", "rules": [{}]},
    }

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        assert "default/mine is about pod default/c, too" in await heard(api, "default/db", "False", "Refused")
        (one,) = await ask(applied, api)
        # Without our marks it is somebody's, whatever its name is.
        bare = {**one, "metadata": {"name": one["metadata"]["name"], "namespace": "default"}}
        await ask(api.put, edited(bare, selector={"matchLabels": {"app": "other"}}))
        message = await heard(api, WEB, "False", "Conflict")
        assert named(one) in message
        await until(lambda: ("Warning", "PolicyNotTranslated", "web") in events(api))
        done = await ask(writes, api)
        await ask(api.put, {**STRICT, "metadata": {**STRICT["metadata"], "labels": {"turn": "1"}}})
        await asyncio.sleep(0.3)
        assert await ask(writes, api) == done
        await ask(api.drop, API, KIND, named(one))
        await heard(api, WEB, "True", "Emitted")
        await ask(api.drop, API, KIND, "default/mine")
        await heard(api, "default/db", "True", "Emitted")

    with_mesh(tmp_path, body, http("web", "web"), http("db", "db"), foreign)


def test_translations_that_were_applied_by_hand_may_be_deleted_afterwards(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        (one,) = await ask(applied, api)
        marks = {
            "labels": {"app.kubernetes.io/managed-by": "spliceway"},
            "annotations": {"spliceway.io/translated-from": f"CiliumNetworkPolicy {WEB}"},
        }
        by_hand = {**one, "metadata": {"name": "by-hand", "namespace": "default", **marks}}
        await ask(api.put, by_hand)
        await asyncio.sleep(0.3)
        assert (await ask(said, api, WEB))[1] == "Emitted"
        # One that says something else adds to ours.
        await ask(api.put, edited(by_hand, rules=[{}]))
        assert "default/by-hand is about pod" in await heard(api, WEB, "False", "Refused")
        assert await ask(api.get, API, KIND, "default/by-hand") is not None
        await ask(api.drop, API, KIND, "default/by-hand")
        await heard(api, WEB, "True", "Emitted")

    with_mesh(tmp_path, body, http("web", "web"))


def test_the_next_writer_goes_on_with_what_there_is(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        left = bridge_of(await ask(applied, api))
        await ask(api.put, left)
        await until(lambda: len(applied(api)) == 1, 20)
        (before,) = await ask(applied, api)
        # The first is refused from now on, and the next writer has never seen its good version.
        await ask(api.put, REFUSED)
        await heard(api, WEB, "False", "Refused")
        first = leader(agents)
        done = len(await ask(writes, api))
        await first.stop()
        await until(lambda: any(one.leads and one.side.status().authorization.kept == 1 for one in agents), 20)
        assert (await ask(writes, api))[done:] == []
        assert await ask(applied, api) == [before]
        assert (await ask(said, api, WEB))[:2] == ("False", "Refused")
        await ask(api.put, http("web", "web", "/b"))
        await until(lambda: paths(api) == ["/b"], 20)

    with_mesh(tmp_path, body, http("web", "web"))


def bridge_of(found: list[Json]) -> Json:
    """What a writer that ended in the middle has left."""
    (one,) = found
    emitted = f"{one['metadata']['annotations']['spliceway.io/emitted']} bridge"
    annotations = {**one["metadata"]["annotations"], "spliceway.io/emitted": emitted}
    metadata = {**one["metadata"], "name": "left-bridge", "annotations": annotations}
    return {
        **edited(one, rules=[{}]),
        "metadata": {key: value for key, value in metadata.items() if key not in ("uid",)},
    }


def test_a_policy_that_is_gone_for_our_watch_alone_keeps_its_objects(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        one = leader(agents)
        key = ("CiliumNetworkPolicy", WEB)
        one.side._ledger.written.pop(key)
        done = await ask(writes, api)
        one.side._authorization._writer.stale()  # type: ignore[union-attr]
        await until(lambda: any("fieldSelector=metadata.name%3Dweb" in query for _m, _p, query in api.requests), 20)
        await until(lambda: one.side.status().authorization.kept == 1, 20)
        assert await ask(writes, api) == done

    with_mesh(tmp_path, body, http("web", "web"))


def test_whatever_changes_and_whoever_writes_nothing_is_open_for_a_moment(tmp_path: Path) -> None:
    """One policy closes `web` all the while; others come, go and are refused, and so do those who write."""
    chance = random.Random(1)

    def change(api: KubeApi) -> None:
        name, path = chance.choice(["one", "one", "two"]), chance.choice(["/a", "/b", "/c", "/d", "/[0-9]+"])
        api.put(PERMISSIVE if chance.random() < 0.1 else STRICT)
        match chance.randrange(6):
            case 0 if api.get("cilium.io/v2", "CiliumNetworkPolicy", "default/two"):
                api.drop("cilium.io/v2", "CiliumNetworkPolicy", "default/two")
            case 1:
                api.put(denying(http(name, "web", path), chance.choice(["81", "82"])))
            case _:
                api.put(http(name, "web", path))

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, "default/one", "True", "Emitted")
        states = await recorded(api)
        for number in range(30):
            await ask(change, api)
            await asyncio.sleep(0.05 + chance.random() * 0.3)
            if number % 10 == 9:
                gone = next((one for one in agents if one.leads), agents[0])
                await gone.stop()
                gone.start()
        await ask(api.put, STRICT, http("one", "web", "/end"), http("two", "web", "/also"))
        await until(lambda: paths(api) == ["/also", "/end"], 30)
        await heard(api, "default/one", "True", "Emitted")
        await complete(states, api)
        assert len(states) > 3
        for state in states:
            allowing = [one["spec"] for one in state if one["spec"]["action"] == "ALLOW"]
            assert allowing, "web would be open"
            assert not any(spec.get("rules") == [{}] for spec in allowing), "nothing was open before"

    with_mesh(tmp_path, body, http("one", "web"))


def test_off_asks_nothing_and_remove_takes_away_what_is_ours(tmp_path: Path) -> None:
    seen: list[Json] = []
    foreign = {"apiVersion": API, "kind": KIND, "metadata": {"name": "mine", "namespace": "default"}, "spec": {}}

    async def emitted(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        seen.extend(await ask(applied, api))

    async def off(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"))
        await asyncio.sleep(0.3)
        assert await ask(writes, api) == []
        assert not [path for _method, path, _query in api.requests if "peerauthentications" in path]
        assert len(await ask(applied, api)) == 2
        assert await ask(said, api, WEB) == ("", "", "")

    async def removed(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: applied(api) == [], 20)
        assert [method for method, _name in await ask(writes, api)] == ["DELETE"] * 2
        assert await ask(api.get, API, KIND, "default/mine") is not None
        await until(lambda: leader(agents).side.status().authorization.settled)

    policy = denying(http("web", "web"))
    with_mesh(tmp_path, emitted, policy)
    left = [{**one, "metadata": {k: v for k, v in one["metadata"].items() if k != "resourceVersion"}} for one in seen]
    with_mesh(tmp_path, off, policy, *left, foreign, mode="off")
    with_mesh(tmp_path, removed, policy, *left, foreign, mode="remove")


def test_without_istios_definitions_it_is_said_and_all_else_goes_on(tmp_path: Path) -> None:
    definition = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "authorizationpolicies.security.istio.io")

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        definitions = await ask(api.get, *definition)
        await ask(api.drop, *definition)
        await until(
            lambda: any("Istio's definitions are not installed" in str(one.side.warnings()) for one in agents), 20
        )
        await ask(api.put, http("web", "web", "/b"))
        await told(api, "default/ciliumnetworkpolicy.web", ("True", "True", "False", "InForce", "2/2"))
        await ask(api.put, {key: value for key, value in definitions.items() if key != "status"})
        await until(lambda: paths(api) == ["/b"], 20)
        await until(lambda: not any(one.side.warnings() for one in agents), 20)

    with_mesh(tmp_path, body, http("web", "web"))


def test_a_server_that_refuses_for_a_while_is_asked_again(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await ask(api.faults, refuse={"authorizationpolicies": (503, 1)})
        await ask(api.put, http("web", "web", "/b"))
        assert "503" in await heard(api, WEB, "False", "NotWritten")
        assert await ask(paths, api) == ["/a"]
        await ask(api.faults, refuse={})
        await until(lambda: paths(api) == ["/b"], 20)
        await until(lambda: not any(one.side.warnings() for one in agents), 20)

    with_mesh(tmp_path, body, http("web", "web"))


def test_pods_that_are_not_in_the_mesh_are_none_of_its_business(tmp_path: Path) -> None:
    plain = pod("c", "10.0.0.3", node="n3", labels={"app": "db"})

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await told(api, "default/ciliumnetworkpolicy.db", ("True", "True", "False", "InForce", "1/1"))
        assert await ask(said, api, "default/db") == ("", "", "")
        # One of both is refused: of a policy for the pods of both nobody could say what it is.
        await ask(api.put, pod("e", "10.0.0.5", node="n3", labels={"app": "web"}))
        assert "is not in the mesh" in await heard(api, WEB, "False", "Refused")
        assert await ask(paths, api) == ["/a"]
        await ask(api.drop, "v1", "Pod", "default/e")
        await heard(api, WEB, "True", "Emitted")
        # By its annotation alone, also on another node than the writer's.
        marked = pod("c", "10.0.0.3", node="n3", labels={"app": "db"})
        marked["metadata"]["annotations"] = {"sidecar.istio.io/status": "{}"}
        await ask(api.put, marked)
        await heard(api, "default/db", "True", "Emitted")
        # Nor in audit: it enforces nothing.
        await ask(api.put, http("web", "web", **{"spliceway.io/enforcement": "audit"}))
        await until(lambda: len(applied(api)) == 1, 20)

    with_mesh(tmp_path, body, http("web", "web"), http("db", "db", "/db"), plain)


def test_policies_without_pods_for_now_keep_what_holds_for_the_first_that_comes(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await until(lambda: len(applied(api)) == 2, 20)  # with the rules of the one without HTTP
        before = await ask(applied, api)
        for name in ("a", "b"):
            await ask(api.drop, "v1", "Pod", f"default/{name}")
        await asyncio.sleep(0.4)
        assert await ask(applied, api) == before
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/plain")
        await until(lambda: len(applied(api)) == 1, 20)

    with_mesh(tmp_path, body, http("web", "web"), cnp("plain", "web", port=9090))


def test_its_metrics_are_those_that_are_documented(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        for one in agents:
            families = list(collectors(one.side.status)[1].collect())
            found = {each.name + ("_total" if each.type == "counter" else "") for each in families}
            assert found == set(re.findall(r"`(spliceway_authorization_\w+)`", document))
            assert {label for each in families for sample in each.samples for label in sample.labels} == {
                "kind",
                "state",
            }
            assert sum(len(each.samples) for each in families) == 9

    with_mesh(tmp_path, body, http("web", "web"))


def test_without_the_kind_of_mtls_nobody_is_known(tmp_path: Path) -> None:
    """PeerAuthentications are not served: then none asks for certificates."""

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await heard(api, WEB, "True", "Emitted")
        await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", AUTHENTICATIONS["metadata"]["name"])
        await heard(api, WEB, "False", "Refused")
        assert await ask(paths, api) == ["/a"]

    with_mesh(tmp_path, body, http("web", "web"))
