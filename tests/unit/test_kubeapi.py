"""The API server's double, as a client that knows nothing of it sees it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

from support.kubeapi import KubeApi, Rule
from support.kubesource import CILIUM, pod, policy

PODS = "/api/v1/namespaces/default/pods"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
CNPS = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies"
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


class Said(NamedTuple):
    code: int
    body: Any


def ask(
    api: KubeApi,
    path: str,
    method: str = "GET",
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    **query: Any,
) -> Said:
    url = urlsplit(api.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10)
    try:
        sent = None if body is None else json.dumps(body)
        target = f"{path}?{urlencode(query)}" if query else path
        connection.request(method, target, sent, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if query.get("watch") and answer.status == 200:
        return Said(200, [json.loads(line) for line in text.splitlines()])
    return Said(answer.status, json.loads(text) if text.startswith("{") else text)


def watch(api: KubeApi, path: str = "/api/v1/pods", **query: Any) -> list[tuple[str, str]]:
    """Type, and name or bookmark's revision, of what a watch of a second says."""
    said = ask(api, path, watch="1", timeoutSeconds="1", **query).body
    return [(one["type"], one["object"]["metadata"].get("name") or one["object"].get("reason", "")) for one in said]


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with KubeApi() as made:
        yield made


def test_lists_pages_and_revisions(api: KubeApi) -> None:
    first = api.put(*(pod(f"p{n}", f"10.0.0.{n}", node=f"n{n % 2}") for n in range(5)))
    page = ask(api, "/api/v1/pods", limit=2).body
    assert [one["metadata"]["name"] for one in page["items"]] == ["p0", "p1"]
    assert (page["metadata"]["resourceVersion"], page["metadata"]["remainingItemCount"]) == (str(first), 3)
    assert "kind" not in page["items"][0], "as in lists of built-in kinds"
    api.put(pod("p9", "10.0.0.9"))
    api.drop("v1", "Pod", "default/p3")
    rest = ask(api, "/api/v1/pods", limit=9, **{"continue": page["metadata"]["continue"]}).body
    assert [one["metadata"]["name"] for one in rest["items"]] == ["p2", "p3", "p4"], "as it was at the first page"
    exact = ask(api, "/api/v1/pods", resourceVersion=first, resourceVersionMatch="Exact").body
    assert len(exact["items"]) == 5
    api.compact()
    code, status = ask(api, "/api/v1/pods", limit=9, **{"continue": page["metadata"]["continue"]})
    assert (code, status["reason"]) == (410, "Expired")
    left = ask(api, "/api/v1/pods", limit=9, **{"continue": status["metadata"]["continue"]}).body
    assert [one["metadata"]["name"] for one in left["items"]] == ["p2", "p4", "p9"], "as it is now"
    code, status = ask(api, "/api/v1/pods", resourceVersion=10**6)
    assert (code, status["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")
    found = ask(api, "/api/v1/pods", fieldSelector="spec.nodeName=n1", labelSelector="app in (p1,p2)").body["items"]
    assert [one["metadata"]["name"] for one in found] == ["p1"]
    assert ask(api, "/api/v1/pods", fieldSelector="spec.image=x").code == 400
    assert ask(api, "/api/v1/pods", resourceVersionMatch="Exact").code == 422


def test_watches(api: KubeApi) -> None:
    begin = api.put(pod("a", labels={"app": "x"}))
    api.put(pod("a", "10.0.0.1", labels={"app": "y"}), pod("b", labels={"app": "x"}))
    api.drop("v1", "Pod", "default/b")
    changes = [("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "b")]
    assert watch(api, resourceVersion=begin) == changes
    left = [("DELETED", "a"), ("ADDED", "b"), ("DELETED", "b")]
    assert watch(api, resourceVersion=begin, labelSelector="app=x") == left
    assert watch(api) == [("ADDED", "a")]
    said = ask(
        api, "/api/v1/pods", watch="1", timeoutSeconds="1", sendInitialEvents="true", allowWatchBookmarks="true",
        resourceVersionMatch="NotOlderThan",
    ).body  # fmt: skip
    assert [one["type"] for one in said] == ["ADDED", "BOOKMARK"]
    assert said[-1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert said[-1]["object"]["metadata"]["resourceVersion"] == str(api.revision)
    assert ask(api, "/api/v1/pods", watch="1", sendInitialEvents="true").code == 422
    api.watch_list(False)
    refused = ask(api, "/api/v1/pods", watch="1", sendInitialEvents="true", resourceVersionMatch="NotOlderThan")
    assert (refused.code, "WatchList feature gate" in refused.body["message"]) == (422, True)
    api.compact()
    assert watch(api, resourceVersion=begin) == [("ERROR", "Expired")]
    api.put(pod("c"))
    api.restart(forget=True)
    assert watch(api, resourceVersion=api.revision - 1) == [("ERROR", "Expired")], "a new watch cache has no history"
    assert watch(api, resourceVersion=api.revision) == []


def test_writes_and_their_conflicts(api: KubeApi) -> None:
    assert ask(api, CNPS, "POST", policy("web")).code == 404, "no such kind"
    assert ask(api, "/apis/cilium.io/v2").code == 404
    api.put(CILIUM)
    assert [one["name"] for one in ask(api, "/apis/cilium.io/v2").body["resources"]] == [
        "ciliumnetworkpolicies",
        "ciliumnetworkpolicies/status",
    ]
    made = ask(api, CNPS, "POST", policy("web"))
    assert (made.code, made.body["metadata"]["generation"], "status" in made.body) == (201, 1, False)
    assert ask(api, CNPS, "POST", policy("web")).body["reason"] == "AlreadyExists"
    assert ask(api, CNPS.replace("default", "none"), "POST", policy("web")).code == 400
    new = made.body | {"spec": policy("web", 81)["spec"]}
    done = ask(api, f"{CNPS}/web", "PUT", new)
    assert (done.code, done.body["metadata"]["generation"]) == (200, 2)
    assert ask(api, f"{CNPS}/web", "PUT", new).body["reason"] == "Conflict"
    assert ask(api, f"{CNPS}/web", "PUT", policy("web")).code == 422, "custom resources need a revision"
    status = ask(api, f"{CNPS}/web/status", "PATCH", {"status": {"ok": True}}, headers={"content-type": MERGE})
    assert (status.body["status"], status.body["metadata"]["generation"]) == ({"ok": True}, 2)
    before = api.revision
    ask(api, f"{CNPS}/web/status", "PATCH", {"status": {"ok": True}}, headers={"content-type": MERGE})
    assert api.revision == before, "what changes nothing is no write"
    assert ask(api, f"{CNPS}/web", "DELETE").code == 200
    assert ask(api, f"{CNPS}/web").code == 404
    api.drop("apiextensions.k8s.io/v1", "CustomResourceDefinition", "ciliumnetworkpolicies.cilium.io")
    assert ask(api, CNPS).code == 404


def test_a_lease_that_is_gone_is_made_by_a_put(api: KubeApi) -> None:
    """Whatever revision it names; in a namespace that there is."""
    lease = {"metadata": {"name": "one"}, "spec": {"holderIdentity": "a"}}
    made = ask(api, LEASES, "POST", lease).body
    assert ask(api, f"{LEASES}/one", "DELETE").code == 200
    again = ask(api, f"{LEASES}/one", "PUT", {**made, "spec": {"holderIdentity": "b"}}).body
    assert again["spec"] == {"holderIdentity": "b"}
    assert again["metadata"]["uid"] != made["metadata"]["uid"]
    assert ask(api, f"{LEASES}/one", "PUT", made).body["reason"] == "Conflict"
    assert ask(api, f"{LEASES.replace('default', 'none')}/one", "PUT", lease).code == 404


def test_server_side_apply(api: KubeApi) -> None:
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases/one"
    head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "one"}}

    def applied(manager: str, force: bool = False, **spec: Any) -> Said:
        query = {"fieldManager": manager, **({"force": "true"} if force else {})}
        return ask(api, leases, "PATCH", head | {"spec": spec}, headers={"content-type": APPLY}, **query)

    assert applied("a", holderIdentity="x", leaseDurationSeconds=9).code == 201
    assert applied("a", holderIdentity="x").body["spec"] == {"holderIdentity": "x"}, "what it says no more goes"
    assert applied("b", holderIdentity="y").body["reason"] == "Conflict"
    assert applied("b", force=True, holderIdentity="y").body["spec"] == {"holderIdentity": "y"}
    assert applied("b", holderIdentity="y", leaseTransitions=1).code == 200


def test_pods_go_in_two_steps(api: KubeApi) -> None:
    api.put(pod("a", "10.0.0.1"), pod("b", phase="Succeeded"))
    going = ask(api, f"{PODS}/a", "DELETE")
    assert going.body["metadata"]["deletionGracePeriodSeconds"] == 30
    assert ask(api, f"{PODS}/a").code == 200
    assert ask(api, f"{PODS}/a", "DELETE", gracePeriodSeconds=0).body["status"] == "Success"
    assert ask(api, f"{PODS}/a").code == 404
    assert ask(api, f"{PODS}/b", "DELETE").body["status"] == "Success"


def test_a_namespace_takes_all_with_it(api: KubeApi) -> None:
    api.put(pod("a", namespace="shop"), pod("b"))
    assert ask(api, "/api/v1/namespaces/shop").body["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}
    ask(api, "/api/v1/namespaces/shop", "DELETE")
    assert [one["metadata"]["name"] for one in ask(api, "/api/v1/pods").body["items"]] == ["b"]


def test_who_asks_and_what_they_may(api: KubeApi) -> None:
    api.rights(lambda rights: rights.token("t", "reader"))
    api.rights(lambda rights: rights.token("old", "reader", seconds=0.0))
    bearer = {"authorization": "Bearer t"}
    assert ask(api, "/api/v1/pods").code == 401
    assert ask(api, "/api/v1/pods", headers={"authorization": "Bearer old"}).code == 401
    assert ask(api, "/api/v1/pods", headers=bearer).code == 200
    rule = Rule(("get", "list", "watch"), ("",), ("pods",))
    named = Rule(("get", "list", "watch"), ("",), ("secrets",), ("one",), "default")
    api.rights(lambda rights: rights.allow("reader", [rule, named]))
    assert ask(api, "/api/v1/pods", headers=bearer).code == 200
    said = ask(api, "/api/v1/nodes", headers=bearer)
    assert said.code == 403
    assert said.body["message"] == (
        'nodes is forbidden: User "reader" cannot list resource "nodes" in API group "" at the cluster scope'
    )
    assert ask(api, PODS, "POST", pod("x"), headers=bearer).code == 403
    secrets = "/api/v1/namespaces/default/secrets"
    assert ask(api, secrets, headers=bearer).code == 403
    assert ask(api, secrets, headers=bearer, fieldSelector="metadata.name=one").code == 200
    assert ask(api, "/apis", headers=bearer).code == 200


def test_it_is_the_same_after_a_restart(api: KubeApi) -> None:
    api.put(pod("a"))
    port = api.port
    api.stop(abrupt=True)
    with pytest.raises(OSError, match="refused"):
        ask(api, "/api/v1/pods")
    api.put(pod("b"))
    api.start()
    assert api.port == port
    assert len(ask(api, "/api/v1/pods").body["items"]) == 2
