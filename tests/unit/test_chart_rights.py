"""What the chart asks for is what the code needs, and no more: API resources, capabilities, metrics of the alerts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spliceway.agent.nodecheck.rights import NEEDED
from spliceway.agent.policystatus.resources import EMISSION_RIGHTS, RIGHTS, TAINT_RIGHTS, lease_rights
from spliceway.agent.sources.kubernetes.resources import rights
from support.helm import CHART, Helm, one

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


def rules(objects: list[dict[str, Any]], kind: str = "ClusterRole") -> set[tuple[str, str, str]]:
    """(group, resource, verb)."""
    return {
        (group, resource, verb)
        for rule in one(objects, kind)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(*several: dict[str, tuple[str, ...]]) -> set[tuple[str, str, str]]:
    """The same of what the code says it needs."""
    return {
        (group, resource, verb)
        for rule in several
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_what_is_read_is_what_the_source_asks_for(helm: Helm) -> None:
    objects = helm.render({"policyStatus": {"enabled": False}})
    assert rules(objects) == asked(*rights())
    assert {verb for *_, verb in rules(objects)} == {"list", "watch"}
    assert not [each for each in objects if each["kind"] in ("Role", "RoleBinding")]


def test_what_is_written_is_what_the_writer_asks_for(helm: Helm) -> None:
    for values in ({}, {"cni": {"enabled": False}}, {"crds": {"install": False}}):
        objects = helm.render(values)
        assert rules(objects) == asked(*rights(), *RIGHTS)
        lease = agent_config(objects)["status"]["lease"]
        assert rules(objects, "Role") == asked(*lease_rights(lease))
        named = {tuple(each.get("resourceNames", ())): each["verbs"] for each in one(objects, "Role")["rules"]}
        assert named == {(): ["create"], (lease,): ["get", "update"]}
        assert one(objects, "Role")["metadata"]["namespace"] == agent_config(objects)["status"]["namespace"]
    everything = rules(objects) | rules(objects, "Role")
    assert not {each for each in everything if "*" in each or each[1] in ("secrets", "pods/exec")}


def test_nodes_are_changed_only_where_a_taint_is_to_go(helm: Helm) -> None:
    objects = helm.render({"notReadyTaint": "spliceway.io/agent-not-ready:NoExecute"})
    assert rules(objects) == asked(*rights(), *RIGHTS, *TAINT_RIGHTS)
    assert agent_config(objects)["node"] == {"notReadyTaint": "spliceway.io/agent-not-ready:NoExecute"}
    assert "node" not in agent_config(helm.render())
    objects = helm.render({"notReadyTaint": "a:NoSchedule", "policyStatus": {"enabled": False}})
    assert rules(objects) == asked(*rights(), *TAINT_RIGHTS)
    assert "status" not in agent_config(objects)


@pytest.mark.parametrize("mode", ["emit", "remove"])
def test_authorization_policies_are_written_only_where_they_are_asked_for(helm: Helm, mode: str) -> None:
    objects = helm.render({"istio": {"authorizationPolicies": mode, "trustDomain": "mesh.example"}})
    assert rules(objects) == asked(*rights(), *RIGHTS, *EMISSION_RIGHTS)
    config = agent_config(objects)["istio"]
    assert (config["authorizationPolicies"], config["trustDomain"]) == (mode, "mesh.example")
    for off in ("off", False):  # YAML takes the word for a boolean
        objects = helm.render({"istio": {"authorizationPolicies": off}, "mode": "istio"})
        assert rules(objects) == asked(*rights(), *RIGHTS)
        assert agent_config(objects)["istio"] == {"enabled": True}


def test_authorization_policies_that_are_read_have_the_meshs_names(helm: Helm) -> None:
    """A root namespace that agents don't know would make policies about the mesh policies about one namespace."""
    names = {"trustDomain": "mesh.example", "rootNamespace": "mesh"}
    for mode, enabled in (("istio", {"enabled": True}), ("sidecar-free", {})):
        assert agent_config(helm.render({"istio": names, "mode": mode}))["istio"] == {**enabled, **names}
    assert "istio" not in agent_config(helm.render())


def agent_config(objects: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(one(objects, "ConfigMap")["data"]["agent.yaml"])
    return config


def test_bindings_are_of_the_account_that_the_pods_have(helm: Helm) -> None:
    objects = helm.render({"serviceAccount": {"name": "mine"}})
    account = one(objects, "ServiceAccount", "mine")["metadata"]
    for kind in ("ClusterRoleBinding", "RoleBinding"):
        subject = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        assert one(objects, kind)["subjects"] == [subject]
    assert one(objects, "DaemonSet")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_capabilities_are_those_that_preflight_asks_for(helm: Helm) -> None:
    spec = one(helm.render(), "DaemonSet")["spec"]["template"]["spec"]
    wanted = sorted(name.removeprefix("CAP_") for name, *_ in NEEDED)
    for container in (*spec["initContainers"], *spec["containers"]):
        assert sorted(container["securityContext"]["capabilities"]["add"]) == wanted
    texts = (ROOT / "docs/preflight.md").read_text() + (ROOT / "README.md").read_text()
    assert set(re.findall(r"CAP_[A-Z_]+", texts)) == {name for name, *_ in NEEDED}


def test_alerts_ask_for_metrics_that_there_are() -> None:
    documented = (ROOT / "docs/metrics.md").read_text()
    alerts = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    (group,) = alerts["groups"]
    names = set()
    for rule in group["rules"]:
        asked = set(re.findall(r"spliceway_[a-z_]+", rule["expr"]))
        assert asked
        for name in asked:
            assert f"`{name}`" in documented, f"{rule['alert']}: nobody knows {name}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        names.add(rule["alert"])
    assert len(names) == len(group["rules"])
