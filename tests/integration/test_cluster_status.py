"""A real agent tells the API server what becomes of policies, and takes the taint off its node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.clusternode import ClusterNode, ask, cluster_node
from support.cninode import CniPod
from support.fleet import DEFINITIONS, brief, events, status_in
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

#: What an agent of a cluster asks for in seconds is a matter of seconds here, too.
LIMIT = 60.0
TAINT = {"key": "spliceway.io/agent-not-ready", "effect": "NoExecute"}
OTHER = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
STATUS = "default/ciliumnetworkpolicy.api"
IN_FORCE = ("True", "True", "False", "InForce", "1/1")


def policy(path: str = "/articles/.*", app: str = "good") -> dict[str, Any]:
    """`api` lets in pods of that label, for these paths alone."""
    rule = {
        "fromEndpoints": [{"matchLabels": {"app": app}}],
        "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": path}]}}],
    }
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "api", "namespace": "default"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "api"}}, "ingress": [rule]},
    }


@pytest.fixture(scope="module")
def pods() -> dict[str, CniPod]:
    return {}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pods: dict[str, CniPod]) -> Iterator[ClusterNode]:
    with cluster_node(tmp_path_factory.mktemp("cluster"), timeout=3) as made:
        made.api.put(*DEFINITIONS, policy())
        node = made.api.get("v1", "Node", made.node.name)
        assert node is not None
        made.api.put({**node, "spec": {**node.get("spec", {}), "taints": [TAINT, OTHER]}})
        made.overrides["status"] = {"write": True}
        made.overrides["node"] = {"name": made.node.name, "notReadyTaint": f"{TAINT['key']}:{TAINT['effect']}"}
        made.start()
        pods.update({name: made.pod(name, {"app": name}) for name in ("api", "good")})
        made.listen(pods["api"])
        for pod in pods.values():
            made.report(pod)
        yield made


def test_the_taint_goes_when_policy_is_in_force(site: ClusterNode) -> None:
    def taints() -> object:
        node = site.api.get("v1", "Node", site.node.name)
        return (node or {}).get("spec", {}).get("taints")

    until(lambda: taints() == [OTHER], LIMIT)


def test_a_policy_in_force_has_a_status_that_says_so(site: ClusterNode, pods: dict[str, CniPod]) -> None:
    until(lambda: brief(site.api, STATUS) == IN_FORCE, LIMIT)
    assert ask(pods["good"], pods["api"].address(), "/articles/1") == 200
    told = site.told()["policyStatus"]
    assert told["enabled"]
    assert told["leads"]
    assert (told["writer"], told["nodes"], told["problems"]) == (site.node.name, 1, [])
    assert told["taintRemoved"] == 1

    def reported() -> dict[str, Any]:
        found = site.api.get("spliceway.io/v1alpha1", "NodePolicyReport", site.node.name)
        return found["spec"] if found is not None else {}

    until(lambda: reported().get("exceptions") == [] and reported()["applied"], LIMIT)
    assert reported()["enforcement"] == "enforce"
    assert events(site.api) == []


def test_a_refused_one_says_why_and_its_last_good_version_is_enforced(
    site: ClusterNode, pods: dict[str, CniPod]
) -> None:
    until(lambda: brief(site.api, STATUS) == IN_FORCE, LIMIT)
    before = status_in(site.api, STATUS)["observedGeneration"]
    site.api.put(policy("(unclosed"))
    until(lambda: brief(site.api, STATUS) == ("False", "False", "True", "Refused", "0/1"), LIMIT)
    found = {one["type"]: one for one in status_in(site.api, STATUS)["conditions"]}
    assert found["Refused"]["field"] == "spec.ingress[0].toPorts[0].rules.http[0].path"
    assert "the last good version stays in force" in found["Valid"]["message"]
    assert found["Valid"]["observedGeneration"] == before + 1
    until(lambda: events(site.api) == [("Warning", "PolicyRefused", "api")], LIMIT)
    for version in (4, 6):
        assert ask(pods["good"], pods["api"].address(version), "/articles/1") == 200
        assert ask(pods["good"], pods["api"].address(version), "/private") == 403
    site.api.put(policy("/private"))
    until(lambda: brief(site.api, STATUS) == IN_FORCE, LIMIT)
    for version in (4, 6):
        assert ask(pods["good"], pods["api"].address(version), "/private") == 200
    until(lambda: ("Normal", "PolicyAccepted", "api") in events(site.api), LIMIT)


def test_a_pod_that_goes_is_nobodys_policy_any_more(site: ClusterNode, pods: dict[str, CniPod]) -> None:
    until(lambda: brief(site.api, STATUS) == IN_FORCE, LIMIT)
    second = site.pod("second", {"app": "api"})
    site.report(second)
    for pod in (second, pods.pop("api")):
        pod.delete()
        pod.gone()
        site.forget(pod.name)
    until(lambda: brief(site.api, STATUS) == ("True", "True", "False", "SelectsNothing", "0/0"), LIMIT)


def test_an_agent_that_starts_again_goes_on_with_what_there_is(site: ClusterNode) -> None:
    until(lambda: brief(site.api, STATUS)[:3] == ("True", "True", "False"), LIMIT)
    before = site.api.get("spliceway.io/v1alpha1", "PolicyStatus", STATUS)
    assert site.agent is not None
    site.agent.stop()
    lease = site.api.get("coordination.k8s.io/v1", "Lease", "kube-system/spliceway-policy-status")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "", "nobody needs to wait"
    site.start()
    until(lambda: site.told()["policyStatus"]["leads"] and site.told()["policyStatus"]["policies"], LIMIT)
    site.api.put(policy("/other"))
    until(lambda: status_in(site.api, STATUS)["observedGeneration"] > before["status"]["observedGeneration"], LIMIT)  # type: ignore[index]
    after = site.api.get("spliceway.io/v1alpha1", "PolicyStatus", STATUS)
    assert after is not None
    assert before is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
