"""The pure half of the testbed: what is read, what is decided, what is written."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from spliceway.agent.testbed import manifests, mounts, resolve
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.plan import Plan, make_plan
from spliceway.policy.parse import READERS
from support.node import demo_manifests, pod_manifest


def plan_of(*documents: dict[str, Any]) -> Plan:
    return make_plan(manifests.load(documents))


def test_addresses_are_allocated_beside_given_ones() -> None:
    plan = plan_of(
        pod_manifest("first"),
        pod_manifest("given", addresses=["10.240.1.10", "fd00:240:1::77"]),
        pod_manifest("second"),
    )
    assert [pod.name for pod in plan.pods] == ["first", "given", "second"]
    assert [tuple(map(str, pod.addresses)) for pod in plan.pods] == [
        ("10.240.1.11", "fd00:240:1::11"),
        ("10.240.1.10", "fd00:240:1::77"),
        ("10.240.1.12", "fd00:240:1::12"),
    ]


def test_the_first_address_alone_is_an_address_too() -> None:
    pods = [pod_manifest("a"), pod_manifest("b")]
    pods[1]["status"] = {"podIP": "10.240.1.10"}
    assert [tuple(map(str, pod.addresses)) for pod in plan_of(*pods).pods] == [
        ("10.240.1.11", "fd00:240:1::11"),
        ("10.240.1.10",),
    ]
    pods[1]["status"] = {"podIP": "10.240.2.1"}
    with pytest.raises(TestbedError, match=r"status\.podIP: 10\.240\.2\.1 is not in a pod prefix of node1"):
        plan_of(*pods)


@pytest.mark.parametrize("kind", sorted({kind for _, kind in READERS} - {"Namespace", "Node", "Pod"}))
def test_what_else_the_agent_reads_is_handed_to_it(kind: str) -> None:
    document = {"kind": kind, "metadata": {"name": "x", "namespace": "shop"}}
    assert [(given.kind, given.name) for given in plan_of(pod_manifest("web"), document).policies] == [(kind, "x")]
    with pytest.raises(TestbedError, match="name: is missing"):
        plan_of({"kind": kind, "metadata": {}})


def test_the_demo_has_one_node_and_two_hosts_outside() -> None:
    plan = make_plan(manifests.load(demo_manifests()))
    assert [(node.name, node.number) for node in plan.nodes] == [("node1", 1)]
    assert [host.key for host in plan.hosts] == ["default/inside", "default/outside"]
    assert [document["metadata"]["name"] for document in plan.namespaces] == ["default"]


def test_nodes_come_from_node_manifests_and_node_names() -> None:
    other = pod_manifest("away")
    other["spec"]["nodeName"] = "west"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "east", "labels": {"zone": "a"}}}
    plan = plan_of(pod_manifest("home"), other, node)
    assert [node.name for node in plan.nodes] == ["east", "west"]
    assert {pod.name: (pod.node, str(pod.addresses[0])) for pod in plan.pods} == {
        "home": ("east", "10.240.1.10"),
        "away": ("west", "10.240.2.10"),
    }
    resolved = resolve.node(plan.nodes[0])
    assert resolved["metadata"]["labels"] == {"zone": "a"}
    assert resolved["spec"]["podCIDRs"] == ["10.240.1.0/24", "fd00:240:1::/64"]
    assert resolved["status"]["addresses"][0] == {"type": "InternalIP", "address": "10.10.0.2"}


def test_pods_whose_names_join_to_the_same_text_stay_apart() -> None:
    plan = plan_of(pod_manifest("c", namespace="a-b"), pod_manifest("b-c", namespace="a"))
    assert len({pod.slug for pod in plan.pods}) == 2


def test_a_resolved_pod_names_its_interface_to_its_own_node_only() -> None:
    plan = plan_of(pod_manifest("web", {"role": "web"}))
    pod, node = plan.pods[0], plan.nodes[0]
    local = resolve.pod(pod, node, "lxc0", Path("/run/netns/x"), local=True)
    assert local["metadata"]["annotations"] == {"spliceway.io/interface": "lxc0", "spliceway.io/netns": "/run/netns/x"}
    assert local["spec"]["nodeName"] == "node1"
    assert local["status"]["podIPs"] == [{"ip": "10.240.1.10"}, {"ip": "fd00:240:1::10"}]
    remote = resolve.pod(pod, node, "lxc0", Path("/run/netns/x"), local=False)
    assert "annotations" not in remote["metadata"]
    assert "annotations" not in pod.document["metadata"], "the document that was given stays as it was"


def test_a_namespace_gets_the_label_of_the_api_server() -> None:
    document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
    labels = resolve.namespace(document)["metadata"]["labels"]
    assert labels == {"team": "a", "kubernetes.io/metadata.name": "shop"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            pod_manifest("web", addresses=["10.240.2.1"]),
            "status.podIPs[0].ip: 10.240.2.1 is not in a pod prefix of node1",
        ),
        (pod_manifest("web", addresses=["10.240.1"]), "status.podIPs[0].ip: 10.240.1 is not an IP address"),
        (pod_manifest("Web"), "metadata.name: "),
        (pod_manifest("web", namespace="a.b"), "metadata.namespace: "),
        (pod_manifest("w", outside=True), "status.podIPs: a host outside the cluster must name its addresses"),
        (pod_manifest("w", outside=True, addresses=["10.250.0.1"]), "10.250.0.1 is a pod address"),
        (pod_manifest("w", outside=True, addresses=["10.10.0.2"]), "10.10.0.2 is a node's address"),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {}}, "metadata.name: "),
        ({"kind": "Deployment", "metadata": {"name": "x"}}, "kind: 'Deployment' is not something a testbed"),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"hostNetwork": True}},
            "spec.hostNetwork",
        ),
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": []}, "spec: "),
        (
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "x"},
                "spec": {"containers": [{"name": "c", "command": "sh"}]},
            },
            "spec.containers[c].command: must be a list of strings",
        ),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"nodeName": "A/B"}},
            "node 'A/B': must be a DNS label",
        ),
    ],
)
def test_a_document_that_cannot_be_used_is_refused_with_its_field(document: dict[str, Any], message: str) -> None:
    with pytest.raises(TestbedError) as refused:
        plan_of(document)
    assert message in str(refused.value)


def test_one_address_for_two_pods_is_refused() -> None:
    with pytest.raises(TestbedError, match=r"10\.240\.1\.5 already belongs to default/a"):
        plan_of(pod_manifest("a", addresses=["10.240.1.5"]), pod_manifest("b", addresses=["10.240.1.5"]))
    with pytest.raises(TestbedError, match="pod default/a is there twice"):
        plan_of(pod_manifest("a"), pod_manifest("a"))


def test_a_file_that_is_not_there_or_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"gone\.yaml: No such file"):
        manifests.load([tmp_path / "gone.yaml"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(TestbedError, match=r"broken\.yaml: line"):
        manifests.load([broken])


def test_policies_among_the_manifests_are_passed_on_unread() -> None:
    policy = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p"}, "spec": {"x": 1}}
    plan = plan_of(pod_manifest("web"), policy)
    assert [manifest.document for manifest in plan.policies] == [policy]
    assert yaml.safe_load(manifests.dump([policy])) == policy


def test_mountinfo_with_escapes() -> None:
    text = "36 35 0:31 / /mnt/a\\040b\\134c rw,noatime master:1 - cgroup2 cgroup2 rw\n"
    assert mounts.parse_mountinfo(text) == [mounts.Mount(path=Path("/mnt/a b\\c"), root="/", kind="cgroup2")]


def test_host_addresses_are_of_the_right_type() -> None:
    plan = make_plan(manifests.load(demo_manifests()))
    assert plan.hosts[0].addresses == (ip_address("10.10.1.5"), ip_address("fd00:10:1::5"))
