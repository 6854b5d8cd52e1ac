"""A release's life by Helm's own code against an API server: install, upgrade, rollback, uninstall; what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.helm import CHART, NAME, NAMESPACE, Helm, HelmError
from support.helmrelease import Jobs, Release
from support.kubeapi import KubeApi

Json = dict[str, Any]

GUARD = "spliceway-first-set-uninstall-true"
KEEP = {"helm.sh/resource-policy": "keep"}
OURS = {"meta.helm.sh/release-name": NAME, "meta.helm.sh/release-namespace": NAMESPACE}
CRDS = tuple(yaml.safe_load(file.read_text()) for file in sorted((CHART / "files").glob("crd-*.yaml")))
CRD = ("apiextensions.k8s.io/v1", "CustomResourceDefinition")


class Cluster:
    """An API server, a release, and what runs Jobs."""

    def __init__(self, api: KubeApi, release: Release, jobs: Jobs) -> None:
        self.api, self.release, self.jobs = api, release, jobs

    def object(self, kind: str, name: str = NAME, api_version: str = "v1") -> Json | None:
        """Of the release's namespace."""
        return self.api.get(api_version, kind, f"{NAMESPACE}/{name}")

    def configured(self) -> Json:
        """The agent's configuration, as it is in the cluster."""
        found = self.object("ConfigMap")
        assert found is not None
        told: Json = yaml.safe_load(found["data"]["agent.yaml"])
        return told

    def checksum(self) -> str:
        """By which the DaemonSet's pods are made anew."""
        found = self.object("DaemonSet", api_version="apps/v1")
        assert found is not None
        return str(found["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    def crds(self) -> list[str]:
        """Names of those that the chart has and that are there."""
        there = {one["metadata"]["name"] for one in self.api.all(*CRD)}
        return [name for name in (one["metadata"]["name"] for one in CRDS) if name in there]

    def records(self) -> list[str]:
        """Names of Helm's own Secrets, one for each revision."""
        return [one["metadata"]["name"] for one in self.api.all("v1", "Secret") if one["type"] == "helm.sh/release.v1"]

    def lacks(self, rendered: list[Json]) -> list[str]:
        """What of the rendered objects, hooks apart, is not in the cluster or does not say what they say."""
        found = []
        for one in rendered:
            metadata = one["metadata"]
            if "helm.sh/hook" in metadata.get("annotations", {}):
                continue
            there = self.api.get(
                one["apiVersion"], one["kind"], "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))
            )
            if there is None or not holds(there, one):
                found.append(f"{one['kind']} {metadata['name']}")
        return found


def holds(there: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there; what a server adds to it does not count."""
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(
            key in there and holds(there[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(there, list) and len(there) == len(wanted) and all(map(holds, there, wanted))
    return bool(there == wanted)


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with Helm() as made:
        yield made


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with KubeApi() as api, Release(api.kubeconfig(tmp_path / "kubeconfig")) as release, Jobs(api) as jobs:
        yield Cluster(api, release, jobs)


def test_a_releases_life(cluster: Cluster, helm: Helm) -> None:
    release = cluster.release
    assert release.install({"crds": {"install": True}})["status"] == "deployed"
    rendered = helm.render({"crds": {"install": True}})
    assert len(rendered) > 8
    assert cluster.lacks(rendered) == []
    assert cluster.crds() == [one["metadata"]["name"] for one in CRDS]
    daemons = cluster.object("DaemonSet", api_version="apps/v1")
    assert daemons is not None
    assert holds(daemons["metadata"], {"annotations": OURS, "labels": {"app.kubernetes.io/managed-by": "Helm"}})
    first, checksum = cluster.configured(), cluster.checksum()
    assert first["enforcement"] == "audit"

    # Other values: what they change is changed, and what is rendered no more goes, but definitions.
    others = {"crds": {"install": False}, "policyStatus": {"enabled": False}, "enforcement": "enforce"}
    release.upgrade(others)
    assert cluster.lacks(helm.render(others)) == []
    assert cluster.configured() != first
    assert cluster.checksum() != checksum
    assert cluster.object("Role", api_version="rbac.authorization.k8s.io/v1") is None
    assert cluster.crds() == [one["metadata"]["name"] for one in CRDS]

    release.rollback(1)
    assert cluster.lacks(rendered) == []
    assert (cluster.configured(), cluster.checksum()) == (first, checksum)
    assert release.history() == ["superseded", "superseded", "deployed"]
    assert cluster.records() == [f"sh.helm.release.v1.{NAME}.v{revision}" for revision in (1, 2, 3)]

    # It is refused as long as nodes have what the agent has put there, and nothing is taken out.
    with pytest.raises(HelmError, match=GUARD):
        release.uninstall()
    assert cluster.jobs.ran == [GUARD]
    assert cluster.lacks(rendered) == []
    # Helm takes it for half gone. The Job's log and docs/operations.md say what to do.
    assert release.history()[-1] == "uninstalling"
    with pytest.raises(HelmError, match="no deployed releases"):
        release.upgrade({"uninstall": True}, reuse=True)
    release.rollback(3)
    assert cluster.lacks(rendered) == []
    release.upgrade({"uninstall": True}, reuse=True)
    assert cluster.lacks(helm.render({"crds": {"install": True}, "uninstall": True})) == []
    release.uninstall()
    assert cluster.jobs.ran == [GUARD]
    left = [one for one in rendered if one["kind"] != "CustomResourceDefinition"]
    assert all(
        f"{one['kind']} {one['metadata']['name']}" in cluster.lacks(left)
        for one in left
        if "helm.sh/hook" not in one["metadata"].get("annotations", {})
    )
    assert cluster.records() == []
    assert cluster.crds() == [one["metadata"]["name"] for one in CRDS]

    # And once more: the definitions that were kept are this release's.
    release.install({"crds": {"install": True}})
    assert cluster.lacks(rendered) == []


@pytest.mark.double  # the older ones are written as nobody's, and a real server knows whose a field is
def test_definitions_of_its_own_follow_the_chart(cluster: Cluster) -> None:
    cluster.release.install({"crds": {"install": True}})
    for name in cluster.crds():
        found = cluster.api.get(*CRD, name)
        assert found is not None
        assert holds(found["metadata"]["annotations"], {**KEEP, **OURS})
        older = copy.deepcopy(found)
        older["spec"]["names"]["shortNames"] = ["old"]
        cluster.api.put(older)
    cluster.release.upgrade({"crds": {"install": True}, "agent": {"logLevel": "debug"}})
    for wanted in CRDS:
        found = cluster.api.get(*CRD, wanted["metadata"]["name"])
        assert found is not None
        assert found["spec"]["names"] == wanted["spec"]["names"]


@pytest.mark.parametrize("whose", ["nobody's", "another release's"])
def test_definitions_of_others_stay_as_they_are(cluster: Cluster, whose: str) -> None:
    theirs = copy.deepcopy(CRDS[0])
    theirs["spec"]["names"]["shortNames"] = ["theirs"]
    if whose != "nobody's":
        theirs["metadata"]["annotations"] = {**OURS, "meta.helm.sh/release-name": "crds"}
    cluster.api.put(theirs)
    name = theirs["metadata"]["name"]
    before = cluster.api.get(*CRD, name)
    cluster.release.install({"crds": {"install": True}})
    cluster.release.upgrade({"crds": {"install": True}, "enforcement": "enforce"})
    assert cluster.crds() == [one["metadata"]["name"] for one in CRDS]
    assert cluster.api.get(*CRD, name) == before
    cluster.release.upgrade({"uninstall": True}, reuse=True)
    cluster.release.uninstall()
    assert cluster.api.get(*CRD, name) == before


@pytest.mark.double  # a real server writes something all the time
@pytest.mark.parametrize("values", [{"enforcment": "enforce"}, {"mode": "mesh"}, {"cni": {"timeout": "soon"}}])
def test_what_is_refused_changes_nothing(cluster: Cluster, values: Json) -> None:
    revision = cluster.api.revision
    with pytest.raises(HelmError):
        cluster.release.install(values)
    assert cluster.api.revision == revision
    cluster.release.install()
    revision = cluster.api.revision
    with pytest.raises(HelmError):
        cluster.release.upgrade(values)
    assert cluster.api.revision == revision
    assert cluster.release.history() == ["deployed"]


def test_without_the_guard_it_is_not_refused(cluster: Cluster) -> None:
    cluster.release.install({"uninstallGuard": False})
    cluster.release.uninstall()
    assert cluster.jobs.ran == []
    assert cluster.object("DaemonSet", api_version="apps/v1") is None
