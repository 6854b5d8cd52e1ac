"""What agents tell of policies: their reports, and the status objects and Events that one of them makes of all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from spliceway.agent.policystatus.naming import status_name
from spliceway.agent.policystatus.told import WritingCollector
from spliceway.agent.provenance import PolicyState, Unapplied
from spliceway.policy.budget import Limits
from support.agent import run, until
from support.fleet import (
    DEFINITIONS,
    FAST,
    LEASE,
    NAMES,
    PODS,
    FleetAgent,
    all_rights,
    brief,
    cnp,
    events,
    fleet,
    node,
    status_in,
    told,
    with_fleet,
    written,
)
from support.kubeapi import KubeApi
from support.kubesource import CRDS, ask, pod

WEB = "ciliumnetworkpolicy.web"
REFUSED = cnp("web", "web", port="no port")


def test_each_policy_has_a_status_that_counts_its_nodes(tmp_path: Path) -> None:
    clusterwide = {**cnp("all", "web"), "kind": "CiliumClusterwideNetworkPolicy"}
    clusterwide["metadata"] = {"name": "all"}
    native = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "nobody"}}},
    }

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await told(api, "default/networkpolicy.web", ("True", "True", "False", "SelectsNothing", "0/0"))
        name = "ciliumclusterwidenetworkpolicy.all"
        await told(api, name, ("True", "True", "False", "InForce", "2/2"), "ClusterPolicyStatus")
        policy = api.get("cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        found = api.get("spliceway.io/v1alpha1", "PolicyStatus", f"default/{WEB}")
        assert policy is not None
        assert found is not None
        uid = policy["metadata"]["uid"]
        assert found["metadata"]["ownerReferences"] == [
            {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "name": "web", "uid": uid}
        ]
        assert found["spec"]["policy"] == found["metadata"]["ownerReferences"][0]
        assert found["status"]["observedGeneration"] == 1
        assert "status" not in policy, "nobody else's status is touched"
        assert sum(one.leads for one in agents) == 1
        assert await ask(api.collect) == [], "every owner is one that the collector finds"
        assert await ask(events, api) == []
        # When the policy goes, so does its status; a report goes with its node.
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        await ask(api.drop, "v1", "Node", "n3")
        assert await ask(api.collect) == ["NodePolicyReport/n3", f"PolicyStatus/default/{WEB}"]

    with_fleet(tmp_path, body, cnp("web", "web"), clusterwide, native)


def test_a_change_is_applied_only_when_every_node_has_it(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        before = await ask(status_in, api, f"default/{WEB}")
        agents[1].force.held = True
        await ask(api.put, cnp("web", "web", port=81))
        await told(api, f"default/{WEB}", ("True", "False", "False", "Pending", "1/2"))
        held = await ask(status_in, api, f"default/{WEB}")
        assert held["observedGeneration"] == 2
        assert held["revision"] != before["revision"]
        agents[1].force.held = False
        agents[1].look()
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        # Another enforcement is no new generation, and not in force before every node says so either.
        agents[0].force.held = True
        await ask(api.put, cnp("web", "web", port=81, **{"spliceway.io/enforcement": "audit"}))
        await told(api, f"default/{WEB}", ("True", "False", "False", "Pending", "1/2"))
        assert (await ask(status_in, api, f"default/{WEB}"))["observedGeneration"] == 2
        agents[0].force.held = False
        agents[0].look()
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_a_node_that_has_not_looked_at_it_yet_is_not_passed_over(tmp_path: Path) -> None:
    """Whether it has pods that the policy selects, nobody else can know."""

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        agents[2].force.held = True
        await ask(api.put, cnp("db", "db"))
        await told(api, "default/ciliumnetworkpolicy.db", ("True", "Unknown", "False", "NotSeen", "0/0"))
        await until(lambda: status_in(api, "default/ciliumnetworkpolicy.db")["nodes"]["unseen"] == 1)
        status = await ask(status_in, api, "default/ciliumnetworkpolicy.db")
        applied = next(one for one in status["conditions"] if one["type"] == "Applied")
        assert "on 1 node (n3)" in applied["message"]
        # A Node object that is deleted has no say any more.
        await ask(api.drop, "v1", "Node", "n3")
        await told(api, "default/ciliumnetworkpolicy.db", ("True", "True", "False", "SelectsNothing", "0/0"))

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_a_refused_policy_says_which_field_and_that_the_last_good_version_stays(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await told(api, "default/ciliumnetworkpolicy.never", ("False", "False", "True", "Refused", "0/0"))
        await ask(api.put, REFUSED)
        await told(api, f"default/{WEB}", ("False", "False", "True", "Refused", "0/2"))
        status = await ask(status_in, api, f"default/{WEB}")
        found = {one["type"]: one for one in status["conditions"]}
        for kind in ("Valid", "Refused"):
            assert found[kind]["field"] == "spec.ingress[0].toPorts[0].ports[0].port"
            assert "(the last good version stays in force)" in found[kind]["message"]
            assert found[kind]["observedGeneration"] == 2
        never = await ask(status_in, api, "default/ciliumnetworkpolicy.never")
        assert "last good" not in str(never)
        assert "nothing of it is in force" in str(never)
        warning = ("Warning", "PolicyRefused")
        await until(lambda: sorted(events(api)) == [(*warning, "never"), (*warning, "web")])
        about = next(one for one in await ask(api.all, "v1", "Event") if one["involvedObject"]["name"] == "web")
        policy = await ask(api.get, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        # `kubectl describe` looks for these.
        assert about["involvedObject"]["uid"] == policy["metadata"]["uid"]
        assert about["metadata"]["namespace"] == about["involvedObject"]["namespace"] == "default"
        assert "spec.ingress[0].toPorts[0].ports[0].port" in about["message"]
        await ask(api.put, cnp("web", "web", port=443))
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await until(lambda: ("Normal", "PolicyAccepted", "web") in events(api))
        assert len(await ask(events, api)) == 3, "one for all nodes"

    with_fleet(tmp_path, body, cnp("web", "web"), cnp("never", "web", port="no port"))


def test_what_keeps_it_from_being_in_force_on_a_node_is_told(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        name = f"default/{WEB}"
        good = ("True", "True", "False", "InForce", "2/2")
        await told(api, name, good)
        first = agents[0]
        words = Unapplied("rs", "refused", "RDS", "rule-set-1", "bad regex")
        first.missing = [PolicyState("CiliumNetworkPolicy default/web", "", "refused", (words,))]
        first.look()
        await told(api, name, ("True", "False", "True", "ProxyRefused", "1/2"))
        assert "bad regex" in str(await ask(status_in, api, name))
        await until(lambda: ("Warning", "PolicyRefused", "web") in events(api))
        first.missing = []
        first.look()
        await told(api, name, good)
        first.kernel.unwired.add("default/a")
        first.look()
        await told(api, name, ("True", "False", "False", "NotCovered", "1/2"))
        first.kernel.unwired.clear()
        first.kernel.unattached.add("default/a")
        first.look()
        await told(api, name, ("True", "False", "False", "NotCovered", "1/2"))
        first.kernel.unattached.clear()
        first.kernel.on = True
        first.look()
        await told(api, name, ("True", "False", "False", "Disabled", "1/2"))
        first.kernel.on = False
        first.look()
        await told(api, name, good)

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_a_policy_without_room_is_refused(tmp_path: Path) -> None:
    wide = cnp("wide", "web")
    wide["spec"]["ingress"][0]["toPorts"][0]["ports"] = [
        {"port": str(1000 + 7 * number), "protocol": "TCP"} for number in range(30)
    ]

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await ask(api.put, wide)
        await told(api, "default/ciliumnetworkpolicy.wide", ("True", "False", "True", "NoRoom", "0/0"))
        status = await ask(status_in, api, "default/ciliumnetworkpolicy.wide")
        assert "room" in str(status)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))

    with_fleet(tmp_path, body, cnp("web", "web"), limits=Limits(rows=12))


def test_in_audit_nothing_is_said_to_be_denied(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InAudit", "2/2"))

    with_fleet(tmp_path, body, cnp("web", "web"), enforcement="audit")


def test_a_policy_made_anew_is_another_one(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("False", "False", "True", "Refused", "0/0"))
        before = await ask(api.get, "spliceway.io/v1alpha1", "PolicyStatus", f"default/{WEB}")
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        await ask(api.put, cnp("web", "web"))
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        after = await ask(api.get, "spliceway.io/v1alpha1", "PolicyStatus", f"default/{WEB}")
        policy = await ask(api.get, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["spec"]["policy"]["uid"] == policy["metadata"]["uid"]
        assert await ask(api.collect) == []
        # Once more: a report of the one before says nothing of it, though it has the same generation.
        for one in agents:
            one.force.held = True
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        await ask(api.put, cnp("web", "web", port=81))
        await told(api, f"default/{WEB}", ("True", "Unknown", "False", "NotSeen", "0/0"))

    with_fleet(tmp_path, body, REFUSED)


def test_a_status_without_a_policy_is_deleted_where_nobody_collects_it(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await ask(api.drop, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
        await until(lambda: api.all("spliceway.io/v1alpha1", "PolicyStatus") == [])

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_nothing_is_written_when_nothing_changes(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await asyncio.sleep(0.5)
        before = await ask(written, api)
        # Pods come and go beside those that are there, and others write into policies.
        for number in range(20):
            await ask(api.put, pod("d", "10.0.0.9", node="n1", labels={"app": "web", "turn": str(number)}))
            policy = await ask(api.get, "cilium.io/v2", "CiliumNetworkPolicy", "default/web")
            await ask(api.put, {**policy, "status": {"conditions": [{"type": "Valid", "turn": number}]}})
            await ask(api.drop, "v1", "Pod", "default/d")
        await asyncio.sleep(0.5)
        assert await ask(written, api) == before

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_with_the_server_gone_and_back_it_goes_on(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await ask(api.stop, abrupt=True)
        await ask(api.put, cnp("web", "web", port=81))
        await until(lambda: not any(one.leads for one in agents))
        assert all(one.force.reached for one in agents)
        assert any(one.side.warnings() for one in agents)
        await ask(api.start, forget=True)
        await until(lambda: status_in(api, f"default/{WEB}")["observedGeneration"] == 2)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await until(lambda: not any(one.side.warnings() for one in agents))

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_without_definitions_all_else_works_and_with_them_it_begins(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: all(one.force.reached for one in agents))
        await until(lambda: all("not installed" in str(one.side.warnings()) for one in agents))
        await ask(api.put, *DEFINITIONS)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await until(lambda: not any(one.side.warnings() for one in agents))
        # And when they go.
        await ask(api.drop, "apiextensions.k8s.io/v1", "CustomResourceDefinition", "policystatuses.spliceway.io")
        await until(lambda: any("policystatuses" in str(one.side.warnings()) for one in agents))
        await ask(api.put, *DEFINITIONS)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))

    with_fleet(tmp_path, body, cnp("web", "web"), definitions=False)


def test_without_rights_it_is_said_and_policy_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        with KubeApi() as api:
            api.put(*CRDS, *DEFINITIONS, *map(node, NAMES), *PODS, cnp("web", "web"))
            rules = all_rights()
            api.rights(lambda one: one.token("secret", "agent"))
            api.rights(lambda one: one.allow("agent", [each for each in rules if set(each.verbs) <= {"list", "watch"}]))
            agents = [FleetAgent(name, api.kubeconfig(tmp_path / "kubeconfig", token="secret")) for name in NAMES]
            async with fleet(agents):
                await until(lambda: all(one.force.reached for one in agents))
                await until(lambda: all("nodepolicyreports" in str(one.side.warnings()) for one in agents))
                await until(lambda: all("leases" in str(one.side.warnings()) for one in agents))
                assert await ask(brief, api, f"default/{WEB}") == ()
                await ask(api.rights, lambda one: one.allow("agent", rules))
                await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
                await until(lambda: not any(one.side.warnings() for one in agents))

    run(main)


def test_one_object_that_is_refused_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        # Somebody edits what is ours: a conflict, and then right again.
        found = await ask(api.get, "spliceway.io/v1alpha1", "PolicyStatus", f"default/{WEB}")
        broken = {**found, "status": {**found["status"], "nodes": {"desired": 7, "applied": 0}}}
        await ask(api.put, broken)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await ask(api.drop, "spliceway.io/v1alpha1", "PolicyStatus", f"default/{WEB}")
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        # A report that somebody deletes comes back, at the latest when it is refreshed.
        await ask(api.faults, refuse={"policystatuses": (503, 1)})
        await ask(api.put, cnp("web", "web", port=81))
        await asyncio.sleep(0.5)
        await ask(api.faults, refuse={})
        await until(lambda: status_in(api, f"default/{WEB}")["observedGeneration"] == 2)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_reports_are_refreshed(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await until(lambda: len(api.all("spliceway.io/v1alpha1", "NodePolicyReport")) == 3)  # n1 has none of it
        await ask(api.drop, "spliceway.io/v1alpha1", "NodePolicyReport", "n1")
        await ask(api.drop, "spliceway.io/v1alpha1", "NodePolicyReport", "n2")
        await until(lambda: len(api.all("spliceway.io/v1alpha1", "NodePolicyReport")) == 3)
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))

    with_fleet(tmp_path, body, cnp("web", "web"), pacing=msgspec.structs.replace(FAST, refresh=0.3))


def test_a_node_made_anew_gets_a_report_of_its_own(tmp_path: Path) -> None:
    def is_its_own(api: KubeApi) -> bool:
        found, report = api.get("v1", "Node", "n2"), api.get("spliceway.io/v1alpha1", "NodePolicyReport", "n2")
        assert found is not None
        return report is not None and report["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"]

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await ask(api.drop, "v1", "Node", "n2")
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "1/1"))
        await ask(api.put, node("n2"))
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        await until(lambda: is_its_own(api))  # what writes does not wait for the report of its own node
        assert await ask(api.collect) == []

    with_fleet(tmp_path, body, cnp("web", "web"))


def test_names_of_namespaces_and_kinds_do_not_meet(tmp_path: Path) -> None:
    long = ".".join(["x" * 49] * 5)

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        for namespace, name in (("default", "web"), ("shop", "web"), ("default", long)):
            resource, _, short = status_name(("CiliumNetworkPolicy", f"{namespace}/{name}"))
            assert resource.kind == "PolicyStatus"
            wanted = "2/2" if namespace == "default" else "0/0"
            reason = "InForce" if namespace == "default" else "SelectsNothing"
            await told(api, f"{namespace}/{short}", ("True", "True", "False", reason, wanted))

    with_fleet(tmp_path, body, cnp("web", "web"), cnp("web", "web", namespace="shop"), cnp(long, "web"))


def test_the_lease_is_in_its_namespace(tmp_path: Path) -> None:
    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await until(lambda: any(one.leads for one in agents))
        lease = await ask(api.get, "coordination.k8s.io/v1", "Lease", "/".join(LEASE))
        assert lease["spec"]["holderIdentity"].startswith(("n1_", "n2_", "n3_"))
        status = [one.side.status() for one in agents]
        await until(lambda: len({one.side.status().writer for one in agents}) == 1)
        assert {one.problems for one in status} == {()}

    with_fleet(tmp_path, body)


def test_its_metrics_are_those_that_are_documented(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

    async def body(api: KubeApi, agents: Sequence[FleetAgent]) -> None:
        await told(api, f"default/{WEB}", ("True", "True", "False", "InForce", "2/2"))
        for one in agents:
            families = list(WritingCollector(one.side.status).collect())
            found = {each.name + ("_total" if each.type == "counter" else "") for each in families}
            assert found == set(re.findall(r"`(spliceway_status_\w+)`", document))
            assert {label for each in families for sample in each.samples for label in sample.labels} == {"kind"}
            assert sum(len(each.samples) for each in families) == 9

    with_fleet(tmp_path, body, cnp("web", "web"))
