"""What the chart asks for is what the code needs, and no more: API resources, capabilities, metrics of the alerts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from spliceway.agent.nodecheck.rights import NEEDED
from spliceway.policy.parse import READERS
from support.helm import CHART, Helm, one

ROOT = Path(__file__).parents[2]
#: Not by these rights: a Secret is a Secret (docs/install.md).
_NOT_GIVEN = {("v1", "Secret")}
#: A metric of the kill switch, which docs/metrics.md describes.
_COMING = "`spliceway_enforcement_disabled`"


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as asked:
        yield asked


def plural(kind: str) -> str:
    name = kind.lower()
    return re.sub("y$", "ie", name) + "s"


def rules(objects: list[dict[str, Any]], kind: str = "ClusterRole") -> set[tuple[str, str, str]]:
    """(group, resource, verb)."""
    return {
        (group, resource, verb)
        for rule in one(objects, kind)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_what_is_read_is_what_policy_knows(helm: Helm) -> None:
    wanted = {
        (version.rpartition("/")[0], plural(kind)) for version, kind in READERS if (version, kind) not in _NOT_GIVEN
    }
    given = rules(helm.render())
    for asked in ("list", "watch"):
        found = {(group, resource) for group, resource, verb in given if verb == asked and group != "spliceway.io"}
        assert found == wanted


def test_what_is_written_is_status_events_and_one_lease(helm: Helm) -> None:
    objects = helm.render()
    written = {each for each in rules(objects) if each[2] not in ("get", "list", "watch")}
    assert {(group, resource) for group, resource, _ in written} == {
        ("", "events"),
        ("events.k8s.io", "events"),
        *(
            ("spliceway.io", f"{name}{part}")
            for name in ("policystatuses", "clusterpolicystatuses")
            for part in ("", "/status")
        ),
    }
    assert {resource for _, resource, _ in rules(objects, "Role")} == {"leases"}
    # Whoever has taken a node could write the kill switch's annotation at all others.
    assert rules(helm.render({"cni": {"enabled": True}})) == rules(objects)
    everything = rules(objects) | rules(objects, "Role")
    assert not {each for each in everything if "*" in each or each[1] in ("secrets", "pods/exec")}


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
    docs = [path for path in (ROOT / "docs/cli.md", ROOT / "docs/metrics.md") if path.exists()]
    documented = "".join(path.read_text() for path in docs) + ("" if len(docs) == 2 else _COMING)
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
