"""What is kept of the server's JSON, and what the inventory makes of single objects."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from spliceway.agent.inventory import Inventory
from spliceway.agent.sources.events import FileRemoved, MoreToCome, ObjectChanged
from spliceway.agent.sources.kubernetes.objects import Reader, bookmarked
from spliceway.agent.state import Held
from spliceway.policy.model import Pod
from support.kubesource import NODE, pod, policy

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def read(kind: str, content: dict[str, Any], api_version: str = "v1") -> dict[str, Any]:
    return Reader(kind, api_version, NODE).read(msgspec.json.encode(content)).content


def test_no_pod_says_how_it_is_wired_where_runtimes_do() -> None:
    """Otherwise whoever may make a pod could take another one's interface, and leave its own without a policy."""
    content = real_pod(NODE)
    content["metadata"]["annotations"] |= {"spliceway.io/interface": "lxcvictim", "spliceway.io/netns": "/run/netns/v"}
    for wired in (False, True):
        reader = Reader("Pod", "v1", NODE, wired=wired)
        inventory = Inventory(NODE)
        inventory.feed((reader.read(msgspec.json.encode(content)).event,))
        assert [one.interface for one in inventory.endpoints] == ([] if wired else ["lxcvictim"])
        assert list(inventory.claims) == (["shop/web-0"] if wired else [])


def real_pod(node: str = "other") -> dict[str, Any]:
    """As a server gives it in a list: without its kind, with what nobody here needs."""
    return {
        "metadata": {
            "name": "web-0",
            "namespace": "shop",
            "uid": "1",
            "resourceVersion": "77",
            "labels": {"app": "web"},
            "annotations": {"a": "b", LAST_APPLIED: "{}"},
            "managedFields": [{"manager": "x", "fieldsV1": {"f:a": {}}}],
            "ownerReferences": [{"kind": "StatefulSet"}],
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "web",
            "containers": [
                {
                    "name": "main",
                    "image": "i",
                    "env": [{"name": "A"}],
                    "ports": [{"name": "http", "containerPort": 80}],
                },
                {"name": "quiet", "ports": [{"containerPort": 81}]},
            ],
            "initContainers": [
                {
                    "name": "side",
                    "restartPolicy": "Always",
                    "ports": [{"name": "m", "containerPort": 9, "protocol": "UDP"}],
                }
            ],
            "volumes": [{"name": "v"}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": "x"}}}],
        },
    }


def test_what_is_kept_of_a_pod() -> None:
    assert read("Pod", real_pod()) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-0",
            "namespace": "shop",
            "labels": {"app": "web"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": "other",
            "serviceAccountName": "web",
            "containers": [{"ports": [{"name": "http", "containerPort": 80}]}],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 9, "protocol": "UDP"}]}
            ],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    }
    assert read("Pod", real_pod(NODE))["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize(
    ("states", "deleted", "kept"),
    [
        ([{"terminated": {"exitCode": 0}}], True, False),
        ([{"terminated": {"exitCode": 0}}], False, True),  # it crashes, and begins again
        ([{"terminated": {}}, {"running": {}}], True, True),
        ([{"waiting": {}}], True, True),
        ([], True, True),  # nobody has said anything of it
    ],
)
def test_a_pod_that_goes_has_its_address_until_nothing_of_it_runs(
    states: list[dict[str, Any]], deleted: bool, kept: bool
) -> None:
    content = real_pod()
    content["status"]["containerStatuses"] = [{"name": "c", "state": state} for state in states]
    if deleted:
        content["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert ("status" in read("Pod", content)) is kept


def test_a_sidecar_that_runs_keeps_the_address() -> None:
    content = real_pod()
    content["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    content["status"]["containerStatuses"] = [{"state": {"terminated": {}}}]
    content["status"]["initContainerStatuses"] = [{"state": {"running": {}}}]
    assert "status" in read("Pod", content)


def test_what_is_kept_of_others() -> None:
    found = read("CiliumNetworkPolicy", policy("web") | {"status": {"conditions": []}}, "cilium.io/v2")
    assert found == policy("web")
    service = {"metadata": {"name": "s", "managedFields": []}, "spec": {}, "status": {"loadBalancer": {}}}
    assert read("Service", service) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s"},
        "spec": {},
        "status": {"loadBalancer": {}},
    }
    node = {
        "metadata": {"name": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "taints": []},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "images": [{"names": ["i"]}]},
    }
    assert read("Node", node)["status"] == {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
    assert read("Node", node)["metadata"]["annotations"] == {"c": "d"}


@pytest.mark.parametrize("text", [b"{}", b"[]", b"{", b'{"metadata": {}}', b'{"metadata": {"name": 1}}', b"null"])
def test_what_is_no_object(text: bytes) -> None:
    for kind in ("Pod", "Node", "Namespace"):
        with pytest.raises(msgspec.MsgspecError):
            Reader(kind, "v1", NODE).read(text)


def test_bookmarks() -> None:
    def of(**metadata: Any) -> tuple[str, bool]:
        return bookmarked(msgspec.Raw(msgspec.json.encode({"kind": "Pod", "metadata": metadata})))

    assert of(resourceVersion="7", creationTimestamp=None) == ("7", False)
    assert of(resourceVersion="7", annotations={"k8s.io/initial-events-end": "true"}) == ("7", True)
    assert of(resourceVersion="7", annotations=None) == ("7", False)


def changed(content: dict[str, Any]) -> ObjectChanged:
    metadata = content["metadata"]
    return ObjectChanged(f"kubernetes:{content['kind']}/{metadata['namespace']}/{metadata['name']}", content)


def test_a_first_look_in_parts_counts_when_it_is_whole() -> None:
    held = Held(documents={"kubernetes:CiliumNetworkPolicy/default/gone": (policy("gone"),)})
    inventory = Inventory(NODE, held)
    inventory.feed((changed(pod("a", "10.0.0.1")), MoreToCome()))
    assert not inventory.synced
    assert "default/gone" in inventory.names("CiliumNetworkPolicy")
    inventory.feed((changed(pod("b", "10.0.0.2")), MoreToCome()))
    assert not inventory.synced
    assert inventory.feed(())
    assert inventory.synced
    assert sorted(inventory.names("Pod")) == ["default/a", "default/b"]
    assert inventory.names("CiliumNetworkPolicy") == []


def test_what_is_held_of_a_cluster_survives_a_restart() -> None:
    before = Inventory(NODE)
    before.feed((changed(policy("web")), changed(pod("a", "10.0.0.1"))))
    before.feed((changed(policy("web", 70_000)),))
    held = msgspec.json.decode(msgspec.json.encode(before.held), type=Held)
    after = Inventory(NODE, held)
    after.feed((changed(policy("web", 70_000)), changed(pod("a", "10.0.0.1"))))
    assert after.names("CiliumNetworkPolicy") == ["default/web"]
    assert [one.kept for one in after.refusals] == [True]


def test_pods_share_what_they_have_alike() -> None:
    inventory = Inventory(NODE)
    inventory.feed(tuple(changed(pod(f"p{n}", f"10.0.0.{n}", labels={"app": f"x{n % 2}"})) for n in range(1, 9)))
    pods = [entry.item for n in range(1, 9) if (entry := inventory.entry(("Pod", f"default/p{n}")))]
    assert len({id(one.labels) for one in pods if isinstance(one, Pod)}) == 2
    assert inventory.feed((FileRemoved("kubernetes:Pod/default/p1"),))
    assert inventory.entry(("Pod", "default/p1")) is None
