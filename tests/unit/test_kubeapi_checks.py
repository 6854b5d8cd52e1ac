"""The double refuses what a real API server refuses of objects that agents write."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.fleet import DEFINITIONS
from support.kubeapi import KubeApi
from support.kubeapi.api import Answer, Api, Request
from support.kubeapi.errors import ApiError

ROOT = "/apis/spliceway.io/v1alpha1"
POLICY = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "name": "web", "uid": "u"}


def asked(api: Api, method: str, path: str, content: Any, kind: str = "application/json") -> dict[str, Any]:
    answer = api.answer(Request(method, path, {}, {"content-type": kind}, msgspec.json.encode(content)))
    assert isinstance(answer, Answer)
    found: dict[str, Any] = msgspec.json.decode(answer.body)
    return found


@pytest.fixture
def api() -> Api:
    made = Api()
    for one in DEFINITIONS:
        made.put(one)
    return made


def status(name: str = "x", **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **more.pop("metadata", {})}, "spec": {"policy": POLICY}, **more}


def test_what_no_schema_knows_is_left_out(api: Api) -> None:
    path = f"{ROOT}/namespaces/default/policystatuses"
    made = asked(api, "POST", path, status(spec={"policy": {**POLICY, "colour": "red"}}, more=1))
    assert made["spec"]["policy"] == POLICY
    assert "more" not in made
    revision = made["metadata"]["resourceVersion"]
    told = {**made, "status": {"revision": "a", "unknown": True}, "spec": {"policy": {**POLICY, "name": "other"}}}
    after = asked(api, "PUT", f"{path}/x/status", told)
    assert after["status"] == {"revision": "a"}
    assert after["spec"]["policy"] == POLICY, "only the status is written there"
    assert after["metadata"]["resourceVersion"] != revision
    with pytest.raises(ApiError, match="409"):
        asked(api, "PUT", f"{path}/x/status", told)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (f"{ROOT}/namespaces/default/policystatuses", {"metadata": {"name": "x"}, "spec": {}}),
        (f"{ROOT}/namespaces/default/policystatuses", status("Not.A.Name")),
        (f"{ROOT}/namespaces/default/policystatuses", status("x" * 254)),
        (f"{ROOT}/clusterpolicystatuses", status(metadata={"ownerReferences": [{**POLICY, "uid": ""}]})),
        (f"{ROOT}/nodepolicyreports", {"metadata": {"name": "n"}, "spec": {"enforcement": "maybe"}}),
        (f"{ROOT}/nodepolicyreports", {"metadata": {"name": "n"}, "spec": {"applied": ["a", 1]}}),
        (
            "/api/v1/namespaces/kube-system/events",
            {"metadata": {"name": "e"}, "involvedObject": {"kind": "ClusterNetworkPolicy", "name": "all"}},
        ),
        (
            "/api/v1/namespaces/default/events",
            {"metadata": {"name": "e"}, "involvedObject": {"namespace": "shop", "name": "web"}},
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            {"metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}},
        ),
    ],
)
def test_what_is_wrong_is_refused(api: Api, path: str, content: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="422"):
        asked(api, "POST", path, content)


def test_conditions_are_one_of_each_type(api: Api) -> None:
    path = f"{ROOT}/namespaces/default/policystatuses"
    made = asked(api, "POST", path, status())
    when = "2026-11-22T12:00:00Z"
    one = {"type": "Valid", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": when}
    good = asked(api, "PUT", f"{path}/x/status", {**made, "status": {"conditions": [one]}})
    for wrong in ([one, one], [{**one, "lastTransitionTime": "yesterday"}], [{**one, "type": "Ready"}]):
        with pytest.raises(ApiError, match="422"):
            asked(api, "PUT", f"{path}/x/status", {**good, "status": {"conditions": wrong}})


def test_what_has_lost_its_owner_is_collected() -> None:
    with KubeApi() as api:
        api.put(*DEFINITIONS, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
        node = api.get("v1", "Node", "n")
        assert node is not None
        owner = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": node["metadata"]["uid"]}
        report = {"apiVersion": "spliceway.io/v1alpha1", "kind": "NodePolicyReport", "spec": {}}
        api.put({**report, "metadata": {"name": "n", "ownerReferences": [owner]}})
        assert api.collect() == []
        api.drop("v1", "Node", "n")
        api.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
        assert api.collect() == ["NodePolicyReport/n"]
