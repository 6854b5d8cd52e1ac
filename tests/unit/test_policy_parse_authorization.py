"""AuthorizationPolicies: what DENY and AUDIT mean for whom, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.model import Cluster
from spliceway.policy.parse import parse_document
from spliceway.policy.parse_metadata import ENFORCEMENT
from spliceway.policy.verdict import Reason, Verdict

SERVER, FRONT, TELLER, WORLD, NODE = "10.0.0.1", "10.0.0.2", "10.0.1.2", "192.0.2.7", "172.30.0.1"


def pod(namespace: str, name: str, address: str, account: str = "") -> dict[str, Any]:
    spec = {"nodeName": "n", **({"serviceAccountName": account} if account else {})}
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"podIP": address}}


WORLD_OF_PODS = (
    pod("shop", "server", SERVER, "server"),
    pod("shop", "front", FRONT, "front"),
    pod("bank", "teller", TELLER),
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    },
)
ADMIN_ACCEPT = {
    "apiVersion": "policy.networking.k8s.io/v1alpha1",
    "kind": "AdminNetworkPolicy",
    "metadata": {"name": "accept"},
    "spec": {
        "priority": 0,
        "subject": {"namespaces": {}},
        "ingress": [{"action": "Allow", "from": [{"namespaces": {}}]}],
    },
}


def authorization(spec: dict[str, Any], namespace: str = "shop", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "a", "namespace": namespace, **metadata},
        "spec": spec,
    }


def cluster(*contents: dict[str, Any]) -> Cluster:
    documents = [Document("test", index, 1, one) for index, one in enumerate((*WORLD_OF_PODS, *contents))]
    return Cluster().with_objects(item for one in documents for item in parse_document(one))


def denied(*contents: dict[str, Any], port: int = 80, protocol: int = 6) -> set[str]:
    """Of the four clients those whose connections to the server are denied."""
    found, everything = set(), cluster(*contents)
    for source in (FRONT, TELLER, WORLD, NODE):
        asked = Connection(ip_address(source), ip_address(SERVER), protocol, port)
        if evaluate(everything, asked).verdict is Verdict.DENY:
            found.add(source)
    return found


def deny(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return authorization({"action": "DENY", "rules": list(rules), **more})


def source(**fields: list[str]) -> dict[str, Any]:
    return {"from": [{"source": fields}]}


ALL = {FRONT, TELLER, WORLD, NODE}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, ALL),
        (source(principals=["cluster.local/ns/shop/sa/front"]), {FRONT}),
        (source(principals=["cluster.local/ns/shop/*"]), {FRONT}),
        (source(principals=["cluster.local/ns/bank/sa/default"]), {TELLER}),
        (source(principals=["*/sa/front"]), {FRONT}),
        (source(principals=["*/sa/default"]), {TELLER}),
        (source(principals=["*"]), {FRONT, TELLER}),
        (source(notPrincipals=["*"]), {WORLD, NODE}),
        (source(notPrincipals=["cluster.local/ns/shop/sa/front"]), {TELLER, WORLD, NODE}),
        (source(notPrincipals=["cluster.local/ns/bank/sa/default"]), {FRONT, WORLD, NODE}),
        (source(notPrincipals=["cluster.local/ns/bank/sa/default", "cluster.local/ns/shop/*"]), {WORLD, NODE}),
        (source(namespaces=["bank"]), {TELLER}),
        (source(namespaces=["bank", "shop"]), {FRONT, TELLER}),
        (source(notNamespaces=["bank"]), {FRONT, WORLD, NODE}),
        (source(namespaces=["bank", "shop"], notPrincipals=["cluster.local/ns/shop/sa/front"]), {TELLER}),
        (source(serviceAccounts=["front"]), {FRONT}),
        (source(serviceAccounts=["bank/default"]), {TELLER}),
        (source(notServiceAccounts=["front"]), {TELLER, WORLD, NODE}),
        (source(ipBlocks=["10.0.0.0/8"]), {FRONT, TELLER}),
        (source(ipBlocks=["10.0.0.0/8"], notIpBlocks=["10.0.1.0/24"]), {FRONT}),
        (source(ipBlocks=["10.0.1.0/24"], notIpBlocks=["10.0.0.0/8"]), set()),
        (source(notIpBlocks=["10.0.0.0/8"]), {WORLD, NODE}),
        (source(ipBlocks=["192.0.2.7", "2001:db8::1"]), {WORLD}),
        ({"from": [{"source": {"namespaces": ["bank"]}}, {"source": {"ipBlocks": [WORLD]}}]}, {TELLER, WORLD}),
        ({"to": [{"operation": {"ports": ["80"]}}]}, ALL),
        ({"to": [{"operation": {"ports": ["81"]}}]}, set()),
        ({"to": [{"operation": {"notPorts": ["80"]}}]}, set()),
        ({"to": [{"operation": {"notPorts": ["81"]}}]}, ALL),
        ({"to": [{"operation": {"ports": ["81"]}}, {"operation": {"ports": ["80", "82"]}}]}, ALL),
        ({"to": [{"operation": {"ports": ["80"], "notPorts": ["80"]}}]}, set()),
    ],
)
def test_whom_a_denial_means(rule: dict[str, Any], expected: set[str]) -> None:
    assert denied(deny(rule)) == expected
    # It is an additional one, whatever others allow; and nothing but TCP.
    assert denied(deny(rule), ADMIN_ACCEPT) == expected
    assert denied(deny(rule), protocol=17) == set()


def test_workloads() -> None:
    front = {"selector": {"matchLabels": {"app": "front"}}}
    server = {"selector": {"matchLabels": {"app": "server"}}}
    assert denied(deny({}, **front)) == set()
    assert denied(deny({}, **server)) == ALL
    assert denied(authorization({"action": "DENY", "rules": [{}]}, "bank")) == set()
    assert denied(authorization({"action": "DENY", "rules": [{}]}, "istio-system")) == ALL
    assert denied(authorization({"action": "DENY", "rules": [{}], **front}, "istio-system")) == set()


def test_what_denies_nothing() -> None:
    assert denied(deny()) == set()
    assert denied(authorization({"action": "DENY"})) == set()
    assert denied(authorization({"action": "AUDIT", "rules": [{"when": [{"key": "x", "values": ["y"]}]}]})) == set()
    dry = authorization({"action": "DENY", "rules": [{}]}, annotations={"istio.io/dry-run": "true"})
    assert denied(dry) == set()
    assert denied(authorization({"action": "DENY", "rules": [{}]}, annotations={ENFORCEMENT: "audit"})) == set()
    asked = Connection(ip_address(FRONT), ip_address(SERVER), 6, 80)
    assert evaluate(cluster(dry), asked).reason is Reason.POLICY_DENIED


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.action"),
        ({"action": "ALLOW", "rules": [{}]}, "spec.action"),
        ({"action": "CUSTOM", "rules": [{}]}, "spec.action"),
        ({"action": "deny"}, "spec.action"),
        ({"action": "DENY", "targetRefs": [{"kind": "Gateway"}]}, "spec.targetRefs"),
        ({"action": "DENY", "selector": {"matchExpressions": []}}, "spec.selector.matchExpressions"),
        ({"action": "DENY", "rules": [{"when": [{"key": "source.ip"}]}]}, "spec.rules[0].when"),
        (
            {"action": "DENY", "rules": [source(requestPrincipals=["*"])]},
            "spec.rules[0].from[0].source.requestPrincipals",
        ),
        ({"action": "DENY", "rules": [source(remoteIpBlocks=["::/0"])]}, "spec.rules[0].from[0].source.remoteIpBlocks"),
        ({"action": "DENY", "rules": [source(trustDomains=["a"])]}, "spec.rules[0].from[0].source.trustDomains"),
        ({"action": "DENY", "rules": [source(principal=["a"])]}, "spec.rules[0].from[0].source.principal"),
        ({"action": "DENY", "rules": [source(namespaces=[])]}, "spec.rules[0].from[0].source.namespaces"),
        ({"action": "DENY", "rules": [source(namespaces=["a*"])]}, "spec.rules[0].from[0].source.namespaces[0]"),
        (
            {"action": "DENY", "rules": [source(principals=["other/ns/a/sa/b"])]},
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (
            {"action": "DENY", "rules": [source(principals=["cluster.local/ns/a*"])]},
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (
            {"action": "DENY", "rules": [source(serviceAccounts=["a/b/c"])]},
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        ({"action": "DENY", "rules": [source(namespaces=["a"], ipBlocks=["::/0"])]}, "spec.rules[0].from[0].source"),
        ({"action": "DENY", "rules": [source()]}, "spec.rules[0].from[0].source"),
        (
            {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]},
            "spec.rules[0].to[0].operation.paths",
        ),
        (
            {"action": "DENY", "rules": [{"to": [{"operation": {"notHosts": ["a"]}}]}]},
            "spec.rules[0].to[0].operation.notHosts",
        ),
        (
            {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["x"]}}]}]},
            "spec.rules[0].to[0].operation.ports[0]",
        ),
        ({"action": "DENY", "rules": [{"to": [{"operation": {}}]}]}, "spec.rules[0].to[0].operation"),
        ({"action": "DENY", "rule": []}, "spec.rule"),
    ],
)
def test_what_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as refused:
        cluster(authorization(spec))
    assert refused.value.field == field


def test_many_negative_principals_are_refused() -> None:
    many = [f"cluster.local/ns/a{number}/sa/b" for number in range(7)]
    with pytest.raises(PolicyError, match="more than 64 selectors"):
        cluster(deny(source(notPrincipals=many)))
