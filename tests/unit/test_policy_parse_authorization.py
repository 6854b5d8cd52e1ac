"""AuthorizationPolicies: what DENY and AUDIT mean for whom, and what is refused."""

from __future__ import annotations

import tracemalloc
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from spliceway.policy.documents import Document
from spliceway.policy.errors import PolicyError
from spliceway.policy.evaluate import Connection, evaluate
from spliceway.policy.istio.patterns import TEMPLATE
from spliceway.policy.model import Cluster, HttpMatch, NetworkPolicy
from spliceway.policy.parse import parse_document
from spliceway.policy.parse_authorization_source import IstioNames
from spliceway.policy.parse_metadata import ENFORCEMENT
from spliceway.policy.regex import compile_regex
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


def authorization(spec: dict[str, Any], namespace: str = "shop", *, name: str = "a", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec,
    }


def cluster(*contents: dict[str, Any], istio: IstioNames | None = None) -> Cluster:
    documents = [Document("test", index, 1, one) for index, one in enumerate((*WORLD_OF_PODS, *contents))]
    return Cluster().with_objects(item for one in documents for item in parse_document(one, istio))


def denied(*contents: dict[str, Any], port: int = 80, protocol: int = 6, istio: IstioNames | None = None) -> set[str]:
    """Of the four clients those whose connections to the server are denied."""
    found, everything = set(), cluster(*contents, istio=istio)
    for source in (FRONT, TELLER, WORLD, NODE):
        asked = Connection(ip_address(source), ip_address(SERVER), protocol, port)
        if evaluate(everything, asked).verdict is Verdict.DENY:
            found.add(source)
    return found


def deny(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return authorization({"action": "DENY", "rules": list(rules), **more})


def source(**fields: list[str]) -> dict[str, Any]:
    return {"from": [{"source": fields}]}


def when(key: str, values: Any = None, without: Any = None, **more: Any) -> dict[str, Any]:
    said = {"values": values, "notValues": without, **more}
    return {"when": [{"key": key, **{name: value for name, value in said.items() if value is not None}}]}


def operation(**fields: list[str]) -> dict[str, Any]:
    return {"rules": [{"to": [{"operation": fields}]}]}


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
        ({"to": [{"operation": {"ports": ["000080", "0", "65535"]}}]}, ALL),
        ({"to": [{"operation": {"notPorts": ["80"]}}]}, set()),
        ({"to": [{"operation": {"notPorts": ["81"]}}]}, ALL),
        ({"to": [{"operation": {"ports": ["81"]}}, {"operation": {"ports": ["80", "82"]}}]}, ALL),
        ({"to": [{"operation": {"ports": ["80"], "notPorts": ["80"]}}]}, set()),
        (when("source.ip", ["10.0.0.0/8"]), {FRONT, TELLER}),
        (when("source.ip", ["10.0.0.0/8"], ["10.0.1.0/24"]), {FRONT}),
        (when("source.ip", None, ["10.0.0.0/8"]), {WORLD, NODE}),
        (when("source.namespace", ["bank"]), {TELLER}),
        (when("source.namespace", None, ["bank"]), {FRONT, WORLD, NODE}),
        (when("source.principal", ["*"], ["cluster.local/ns/shop/sa/front"]), {TELLER}),
        (when("source.serviceAccount", ["front", "bank/default"]), {FRONT, TELLER}),
        (when("destination.port", ["80"]), ALL),
        (when("destination.port", ["81", "82"]), set()),
        (when("destination.port", None, ["80"]), set()),
        (when("destination.port", None, ["81"]), ALL),
        (when("destination.port", ["80", "81"], ["80"]), set()),
        # What is beside them must hold, too, whichever of several sources and operations it is.
        ({**source(ipBlocks=["10.0.0.0/8"]), **when("source.ip", ["10.0.1.0/24", WORLD])}, {TELLER}),
        ({**source(ipBlocks=["10.0.1.0/24"]), **when("source.ip", ["10.0.0.0/8", WORLD])}, {TELLER}),
        ({**source(ipBlocks=["10.0.1.0/24"]), **when("source.ip", ["10.0.0.0/24"])}, set()),
        ({**source(namespaces=["bank", "shop"]), **when("source.principal", ["*/sa/front"])}, {FRONT}),
        ({**source(notNamespaces=["bank"]), **when("source.serviceAccount", None, ["front"])}, {WORLD, NODE}),
        (
            {
                "from": [{"source": {"namespaces": ["bank"]}}, {"source": {"notPrincipals": ["*/sa/front"]}}],
                **when("source.namespace", ["shop", "bank"]),
            },
            {TELLER},
        ),
        ({"to": [{"operation": {"ports": ["80"]}}], **when("destination.port", ["80", "81"])}, ALL),
        ({"to": [{"operation": {"ports": ["80"]}}], **when("destination.port", ["81"])}, set()),
        (
            {
                "to": [{"operation": {"ports": ["81"]}}, {"operation": {"notPorts": ["82"]}}],
                **when("destination.port", None, ["83"]),
            },
            ALL,
        ),
        ({"when": when("source.ip", ["10.0.0.0/8"])["when"] + when("source.ip", ["10.0.1.0/24"])["when"]}, {TELLER}),
        ({"when": when("source.ip", ["10.0.0.0/8"])["when"] + when("destination.port", ["81"])["when"]}, set()),
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
        ({"action": "CUSTOM", "rules": [{}]}, "spec.action"),
        ({"action": "deny"}, "spec.action"),
        ({"action": "DENY", "targetRefs": [{"kind": "Gateway"}]}, "spec.targetRefs"),
        ({"action": "DENY", "selector": {"matchExpressions": []}}, "spec.selector.matchExpressions"),
        ({"action": "DENY", "rules": [{"when": [{"key": "source.ip"}]}]}, "spec.rules[0].when[0]"),
        ({"rules": [{"when": []}]}, "spec.rules[0].when"),
        ({"rules": [{"when": [{"values": ["a"]}]}]}, "spec.rules[0].when[0].key"),
        ({"rules": [when("source.ip", [])]}, "spec.rules[0].when[0].values"),
        ({"rules": [when("source.ip", ["10.0.0.0/8"], [])]}, "spec.rules[0].when[0].notValues"),
        ({"rules": [when("source.ip", ["10.0.0.0/8", "x"])]}, "spec.rules[0].when[0].values[1]"),
        ({"rules": [when("source.namespace", None, ["a*"])]}, "spec.rules[0].when[0].notValues[0]"),
        ({"rules": [when("source.principal", ["other/ns/a/sa/b"])]}, "spec.rules[0].when[0].values[0]"),
        ({"rules": [when("source.serviceAccount", ["a/b/c"])]}, "spec.rules[0].when[0].values[0]"),
        ({"rules": [when("destination.port", ["http"])]}, "spec.rules[0].when[0].values[0]"),
        ({"rules": [when("destination.port", ["80"], more=["81"])]}, "spec.rules[0].when[0].more"),
        ({"rules": [{**source(namespaces=["a"]), **when("source.ip", ["::/0"])}]}, "spec.rules[0].from[0].source"),
        (
            {"rules": [when("source.ip", ["::/0"]) | {"to": [{"operation": {}}]}]},
            "spec.rules[0].to[0].operation",
        ),
        *(
            ({"rules": [when(key, ["a"])]}, "spec.rules[0].when[0].key")
            for key in (
                *("request.headers[x]", "request.experimental.inline.headers[x]", "request.auth.claims[a]"),
                *("request.auth.principal", "remote.ip", "destination.ip", "connection.sni", "source.port"),
                *("experimental.envoy.filters.a.b[c]", "source.ip ", "Source.ip"),
            )
        ),
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
        ({"rules": [{"from": []}]}, "spec.rules[0].from"),
        ({"rules": [{"to": []}]}, "spec.rules[0].to"),
        (operation(paths=["a"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/a?b"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/a", "/a//b"]), "spec.rules[0].to[0].operation.paths[1]"),
        (operation(paths=["/a/../b"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/a;b"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/%61"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/a%2fb*"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["*%"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["*/a*"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/a*b"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/a/x{*}"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/{**}/{*}"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(paths=["/{*}/*"]), "spec.rules[0].to[0].operation.paths[0]"),
        (operation(notPaths=["{*}"]), "spec.rules[0].to[0].operation.notPaths[0]"),
        (operation(methods=["G ET"]), "spec.rules[0].to[0].operation.methods[0]"),
        (operation(hosts=["a/b"]), "spec.rules[0].to[0].operation.hosts[0]"),
        (operation(notHosts=[]), "spec.rules[0].to[0].operation.notHosts"),
        (operation(paths=[f"/{number}{'x' * 90}" for number in range(20)]), "spec.rules[0].to[0].operation.paths"),
        (operation(methods=["GET"], port=["80"]), "spec.rules[0].to[0].operation.port"),
        (operation(path=["/a"]), "spec.rules[0].to[0].operation.path"),
        ({"rules": [{"from": [{"principals": ["*"]}]}]}, "spec.rules[0].from[0].principals"),
        ({"rules": [{"from": [{}]}]}, "spec.rules[0].from[0].source"),
        *(
            (operation(ports=["80", port]), "spec.rules[0].to[0].operation.ports[1]")
            for port in ("x", "-1", "65536", "1" * 5000, "8 0", "\u0668")
        ),
        (operation(ports=["9" * 5000]), "spec.rules[0].to[0].operation.ports[0]"),
        ({"action": "DENY", "rules": [{"to": [{"operation": {}}]}]}, "spec.rules[0].to[0].operation"),
        ({"action": "DENY", "rule": []}, "spec.rule"),
    ],
)
def test_what_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as refused:
        cluster(authorization(spec))
    assert refused.value.field == field


@pytest.mark.parametrize("annotations", [5, "spliceway.io/translated-from", ["spliceway.io/translated-from"]])
def test_annotations_that_are_no_mapping_are_refused(annotations: object) -> None:
    labels = {"app.kubernetes.io/managed-by": "spliceway"}
    with pytest.raises(PolicyError) as refused:
        cluster(authorization({}, labels=labels, annotations=annotations))
    assert refused.value.field == "metadata.annotations"


def test_many_negative_principals_are_refused() -> None:
    many = [f"cluster.local/ns/a{number}/sa/b" for number in range(7)]
    with pytest.raises(PolicyError, match="more than 64 selectors"):
        cluster(deny(source(notPrincipals=many)))


def test_a_long_list_is_taken() -> None:
    many = [f"cluster.local/ns/a{number}/sa/b" for number in range(100)]
    assert denied(deny(source(principals=[*many, "cluster.local/ns/shop/sa/front"]))) == {FRONT}
    assert denied(deny(source(principals=many, notNamespaces=["shop"]))) == set()
    with pytest.raises(PolicyError, match="more than 64 selectors"):
        cluster(deny(source(principals=many, serviceAccounts=["shop/front", "bank/teller"])))


NOT_NODE = {FRONT, TELLER, WORLD}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], NOT_NODE),
        ([{}], set()),
        ([source(namespaces=["shop"])], {TELLER, WORLD}),
        ([source(principals=["cluster.local/ns/bank/sa/default"])], {FRONT, WORLD}),
        ([source(notPrincipals=["cluster.local/ns/bank/sa/default"])], {TELLER}),
        ([source(notNamespaces=["*"])], {FRONT, TELLER}),
        ([source(ipBlocks=["10.0.0.0/8"], notIpBlocks=["10.0.1.0/24"])], {TELLER, WORLD}),
        ([{"to": [{"operation": {"ports": ["80"]}}]}], set()),
        ([{"to": [{"operation": {"notPorts": ["80"]}}]}], NOT_NODE),
        ([source(namespaces=["shop"]), source(namespaces=["bank"])], {WORLD}),
        ([{**source(namespaces=["shop"]), "to": [{"operation": {"ports": ["81"]}}]}], NOT_NODE),
        ([when("source.namespace", ["shop"])], {TELLER, WORLD}),
        ([when("source.ip", ["10.0.0.0/8"], ["10.0.1.0/24"])], {TELLER, WORLD}),
        ([when("destination.port", ["81"])], NOT_NODE),
        ([{**source(namespaces=["shop"]), **when("source.serviceAccount", None, ["front"])}], NOT_NODE),
    ],
)
def test_whom_an_allowance_leaves_out(rules: list[dict[str, Any]], expected: set[str]) -> None:
    allow = authorization({"rules": rules})
    assert denied(allow) == expected
    # It is a say of its own: nobody else's allows more, not even administrators'; and nothing but TCP is judged.
    assert denied(allow, ADMIN_ACCEPT) == expected
    assert denied(allow, protocol=17) == set()


def test_what_all_policies_of_a_workload_say() -> None:
    shop = authorization({"rules": [source(namespaces=["shop"])]})
    world = authorization({"rules": [source(ipBlocks=[WORLD])]}, name="b")
    front = deny(source(principals=["*/sa/front"]), selector={"matchLabels": {"app": "server"}})
    front["metadata"]["name"] = "c"
    assert denied(shop, world) == {TELLER}
    assert denied(shop, world, front) == {FRONT, TELLER}
    closed = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.2/32"}}]}]}
    metadata = {"name": "a", "namespace": "shop"}
    narrow = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": closed}
    assert denied(narrow) == {TELLER, WORLD}
    assert denied(narrow, world) == {FRONT, TELLER, WORLD}
    assert denied(narrow, shop) == {TELLER, WORLD}


def test_a_dry_run_allows_and_denies_nothing() -> None:
    dry = authorization({"rules": [source(namespaces=["shop"])]}, annotations={"istio.io/dry-run": "true"})
    asked = Connection(ip_address(TELLER), ip_address(SERVER), 6, 80)
    found = evaluate(cluster(dry), asked)
    assert (found.verdict, found.reason) == (Verdict.ALLOW, Reason.DEFAULT_DENY)
    shut = authorization({}, name="b")
    assert denied(dry, shut) == NOT_NODE


@pytest.mark.parametrize(
    ("annotations", "labels", "namespace", "expected"),
    [
        ({}, {}, {}, NOT_NODE),
        ({"sidecar.istio.io/status": "{}"}, {}, {}, set()),
        ({"ambient.istio.io/redirection": "enabled"}, {}, {}, set()),
        ({}, {"istio.io/dataplane-mode": "ambient"}, {}, set()),
        ({}, {}, {"istio.io/dataplane-mode": "ambient"}, set()),
        ({}, {"istio.io/dataplane-mode": "none"}, {"istio.io/dataplane-mode": "ambient"}, NOT_NODE),
    ],
)
def test_where_a_proxy_of_istios_does_it(
    annotations: dict[str, str], labels: dict[str, str], namespace: dict[str, str], expected: set[str]
) -> None:
    meshed = pod("shop", "server", SERVER, "server")
    meshed["metadata"] |= {"annotations": annotations, "labels": labels}
    shop = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": namespace}}
    assert denied(shop, meshed, authorization({})) == expected
    http = authorization({"action": "DENY", **operation(paths=["/a"])})
    asked = Connection(ip_address(FRONT), ip_address(SERVER), 6, 80)
    found = evaluate(cluster(shop, meshed, http), asked).verdict
    assert found is (Verdict.REDIRECT if expected else Verdict.ALLOW)
    # What denies connections denies them all the same, but for HBONE's port where that could be another one.
    assert denied(shop, meshed, authorization({"action": "DENY", "rules": [{}]})) == ALL
    assert (
        denied(shop, meshed, authorization({"action": "DENY", **operation(ports=["80", "15008"])}), port=15008) == ALL
    )
    most = authorization({"action": "DENY", **operation(notPorts=["81"])})
    assert denied(shop, meshed, most) == ALL
    assert denied(shop, meshed, most, port=15009) == ALL
    assert denied(shop, meshed, most, port=81) == set()
    assert denied(shop, meshed, most, port=15008) == (ALL if expected else set())
    # By a condition as by a field.
    most = authorization({"action": "DENY", "rules": [when("destination.port", None, ["81"])]})
    assert denied(shop, meshed, most, port=15009) == ALL
    assert denied(shop, meshed, most, port=15008) == (ALL if expected else set())
    named = authorization({"action": "DENY", "rules": [when("destination.port", ["15007", "15008"])]})
    assert denied(shop, meshed, named, port=15008) == ALL


def test_names_of_the_mesh() -> None:
    names = IstioNames("mesh.example", "mesh-root")
    rules = [source(principals=["mesh.example/ns/shop/sa/front", "cluster.local/ns/bank/*"])]
    assert denied(authorization({"rules": rules}), istio=names) == {WORLD}
    assert denied(authorization({"action": "DENY", "rules": [{}]}, "mesh-root"), istio=names) == ALL
    assert denied(authorization({"action": "DENY", "rules": [{}]}, "istio-system"), istio=names) == set()
    with pytest.raises(PolicyError, match=r"mesh\.example/ns/NAMESPACE"):
        denied(authorization({"rules": [source(principals=["other.example/ns/a/sa/b"])]}), istio=names)


def test_our_own_are_no_input() -> None:
    labels = {"app.kubernetes.io/managed-by": "spliceway"}
    made_of = {"spliceway.io/translated-from": "CiliumNetworkPolicy shop/x"}
    own = authorization({"action": "odd", "rules": 5}, labels=labels, annotations=made_of)
    assert denied(own) == set()
    (found,) = parse_document(Document("test", 1, 1, own))
    assert isinstance(found, NetworkPolicy)
    assert found.specs == ()
    for other in (authorization({}, labels=labels), authorization({}, annotations=made_of)):
        assert denied(other) == NOT_NODE


def http_of(**fields: list[str]) -> HttpMatch:
    """What an operation asks of requests."""
    (found,) = parse_document(Document("test", 1, 1, authorization(operation(**fields))))
    assert isinstance(found, NetworkPolicy)
    (rule,) = found.specs[0].rules
    (entry,) = rule.to_ports
    assert entry.http is not None
    return entry.http[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"methods": ["GET", "P*", "*T"]}, HttpMatch("", "GET|P.*|.*T")),
        ({"methods": ["*"]}, HttpMatch("", ".+")),
        ({"notMethods": ["GET"]}, HttpMatch("", unless_method="GET")),
        ({"paths": ["/a.b", "/a/*", "*.b", "*"]}, HttpMatch("", "", r"/a\.b(\?.*)?|/a/.*|[^?]*\.b(\?.*)?|.+")),
        ({"notPaths": ["/a"]}, HttpMatch("", unless_path=r"/a(\?.*)?")),
        ({"hosts": ["a.B:80", "*.c", "d*"]}, HttpMatch("", "", "", r"(?i:a\.B:80)|(?i:.*\.c)|(?i:d.*)")),
        ({"notHosts": ["*"]}, HttpMatch("", unless_host=".+")),
    ],
)
def test_what_is_asked_of_requests(fields: dict[str, list[str]], expected: HttpMatch) -> None:
    found = http_of(**fields)
    assert found.path == "spec.rules[0].to[0].operation"
    assert msgspec.structs.replace(found, path="") == expected


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ([], [(0, 65535)]),
        (["81", "80", "15008"], [(0, 79), (82, 15007), (15009, 65535)]),
        (["0", "65535"], [(1, 65534)]),
        (["1"], [(0, 0), (2, 65535)]),
    ],
)
def test_all_ports_but_some(without: list[str], expected: list[tuple[int, int]]) -> None:
    parts = {"methods": ["GET"], **({"notPorts": without} if without else {})}
    (found,) = parse_document(Document("test", 1, 1, authorization(operation(**parts))))
    assert isinstance(found, NetworkPolicy)
    ((entry,),) = (rule.to_ports for rule in found.specs[0].rules)
    assert [(one.first, one.last) for one in entry.ports] == expected


def test_an_operation_without_ports_makes_no_list_of_all() -> None:
    """There may be thousands of operations, and each of them is read by every node."""
    http_of(methods=["GET"])  # what is made once is there
    tracemalloc.start()
    try:
        http_of(methods=["GET"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 200_000


def test_parts_of_templates_are_envoys() -> None:
    """`{*}` stands for the same characters as in the translation the other way round."""
    one = compile_regex(http_of(paths=["/{*}"]).path_regex)
    several = compile_regex(http_of(paths=["/{**}"]).path_regex)
    for char in map(chr, range(0x21, 0x7F)):
        path = f"/{char}".encode()
        assert (one.fullmatch(path) is not None) == (char in TEMPLATE), char
        assert (several.fullmatch(path) is not None) == (char in TEMPLATE or char in "/?"), char
    assert one.fullmatch(b"/") is None
    assert several.fullmatch(b"/a/b?c") is not None
    assert one.fullmatch(b"/a/b") is None
