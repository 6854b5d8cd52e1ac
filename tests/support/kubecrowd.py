"""A cluster in the API server's double that changes at random: pods of other nodes, namespaces, policies."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from random import Random
from typing import Any

from spliceway.agent.hostaddresses import Own, with_own
from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.model import Cluster, Node, Object
from spliceway.policy.parse import READERS, parse_document
from support.generated_policies import policies
from support.realapi import AnyApi

Doc = dict[str, Any]
_FIRST4, _FIRST6 = ip_address("10.241.0.0"), ip_address("fd00:241::")


class Crowd:
    """Pods on other nodes, and policies, as they are in the double."""

    def __init__(self, api: AnyApi, random: Random, *, pods: int, policies: int) -> None:
        """`api` has the definitions of all kinds."""
        self._api = api
        self._random = random
        self._numbers = 0
        self._pods: dict[str, Doc] = {}
        self._policies: dict[tuple[str, str, str], Doc] = {}
        nodes = [_node(number) for number in range(8)]
        namespaces = [_namespace(name, random) for name in "abc"]
        api.put(*nodes, *namespaces, *(self._new_pod() for _ in range(pods)))
        while len(self._policies) < policies:
            api.put(*self._new_policies())

    def change(self) -> list[str]:
        """Some changes, in any order; what they were."""
        chosen = [self._random.choice(_CHANGES) for _ in range(self._random.randint(1, 12))]
        for what in chosen:
            getattr(self, f"_{what}")()
        return chosen

    def _pod_comes(self) -> None:
        self._api.put(*(self._new_pod() for _ in range(self._random.randint(1, 20))))

    def _pod_goes(self) -> None:
        for name in self._some(self._pods, 20):
            del self._pods[name]
            self._api.drop("v1", "Pod", name)

    def _pod_has_other_labels(self) -> None:
        for name in self._some(self._pods, 10):
            self._pods[name]["metadata"]["labels"] = _labels(self._random)
            self._api.put(self._pods[name])

    def _pod_ends_and_another_has_its_address(self) -> None:
        for name in self._some(self._pods, 5):
            old = self._pods.pop(name)
            self._api.put({**old, "status": {**old["status"], "phase": self._random.choice(("Succeeded", "Failed"))}})
            new = self._new_pod()
            new["status"]["podIPs"] = old["status"]["podIPs"]
            self._api.put(new)

    def _policy_comes(self) -> None:
        self._api.put(*self._new_policies())

    def _policy_goes(self) -> None:
        for key in self._some(self._policies, 5):
            document = self._policies.pop(key)
            self._api.drop(document["apiVersion"], document["kind"], f"{key[1]}/{key[2]}" if key[1] else key[2])

    def _policy_is_edited(self) -> None:
        """It has the words of another one of its kind."""
        for key in self._some(self._policies, 5):
            alike = [other for other in self._policies if other[0] == key[0]]
            self._policies[key]["spec"] = self._policies[self._random.choice(alike)]["spec"]
            self._api.put(self._policies[key])

    def _namespace_has_other_labels(self) -> None:
        self._api.put(_namespace(self._random.choice("abc"), self._random))

    def _some(self, of: Mapping[Any, Any], most: int) -> list[Any]:
        return self._random.sample(sorted(of), min(len(of), self._random.randint(1, most)))

    def _new_pod(self) -> Doc:
        self._numbers += 1
        name = f"crowd-{self._numbers}"
        addresses = [{"ip": str(_FIRST4 + self._numbers)}, {"ip": str(_FIRST6 + self._numbers)}]
        ports = [{"name": self._random.choice(("http", "dns")), "containerPort": self._random.choice((80, 8080, 53))}]
        namespace = self._random.choice("abc")
        self._pods[f"{namespace}/{name}"] = document = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": _labels(self._random)},
            "spec": {"nodeName": f"other{self._numbers % 8}", "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": addresses},
        }
        return document

    def _new_policies(self) -> list[Doc]:
        found = []
        for document in policies(self._random):
            if document["kind"] == "BaselineAdminNetworkPolicy" or not _is_good(document):
                continue
            self._numbers += 1
            metadata = document["metadata"] = {**document["metadata"], "name": f"policy-{self._numbers}"}
            self._policies[document["kind"], metadata.get("namespace", ""), metadata["name"]] = document
            found.append(document)
        return found


_CHANGES = (
    *("pod_comes", "pod_goes", "pod_has_other_labels", "pod_ends_and_another_has_its_address"),
    *("policy_comes", "policy_goes", "policy_is_edited", "namespace_has_other_labels"),
)


def cluster_in(api: AnyApi, node: str, own: Own) -> Cluster:
    """All that the double has, read by `policy` alone; `own`: the addresses of this node."""
    objects: list[Object] = []
    for api_version, kind in READERS:
        if api_version == "cilium.io/v2alpha1":
            continue
        for document in api.all(api_version, kind):
            (item,) = parse_document(Document("double", 1, 1, document))
            objects.append(with_own(item, own) if isinstance(item, Node) and item.name == node else item)
    return Cluster().with_objects(objects)


def _is_good(document: Doc) -> bool:
    try:
        parse_document(Document("", 1, 1, document))
    except PolicyError:
        return False
    return True


def _labels(random: Random) -> dict[str, str]:
    found = {"app": random.choice("pqr")}
    return found | {"tier": random.choice("uv")} if random.random() < 0.7 else found


def _namespace(name: str, random: Random) -> Doc:
    labels = {"kubernetes.io/metadata.name": name, "team": random.choice(("red", "blue"))}
    if random.random() < 0.5:
        labels["level"] = "gold"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _node(number: int) -> Doc:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"other{number}", "labels": {"zone": "xy"[number % 2]}},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.77.{number + 1}"}]},
    }
