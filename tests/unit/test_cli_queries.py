"""Queries of `policy evaluate` without files: ends, ports, requests, what an answer says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spliceway.agent.cli.queries import Asker
from spliceway.policy.model import Cluster
from spliceway.policy.parse import parse_text

MANIFESTS = """
apiVersion: v1
kind: List
items:
  - {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
  - {apiVersion: v1, kind: Node, metadata: {name: node1},
     status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {nodeName: node1},
     status: {podIPs: [{ip: 10.240.1.10}, {ip: "fd00:240:1::10"}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: node1},
     status: {podIPs: [{ip: "fd00:240:1::11"}, {ip: 10.240.1.11}]}}
  - {apiVersion: v1, kind: Pod, metadata: {name: six, namespace: shop, labels: {app: six}}, spec: {nodeName: node1},
     status: {podIP: "fd00:240:1::12"}}
  - {apiVersion: v1, kind: Pod, metadata: {name: four, namespace: shop, labels: {app: four}}, spec: {nodeName: node1},
     status: {podIP: 10.240.1.13}}
  - {apiVersion: v1, kind: Pod, metadata: {name: new, namespace: shop}}
  - apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: db, namespace: shop}
    spec:
      podSelector: {matchLabels: {app: db}}
      ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
  - apiVersion: cilium.io/v2
    kind: CiliumNetworkPolicy
    metadata: {name: web, namespace: shop}
    spec:
      endpointSelector: {matchLabels: {app: web}}
      ingress:
        - toPorts:
            - ports: [{port: "80", protocol: TCP}]
              rules: {http: [{path: /host, host: '10\\.240\\.1\\.10|\\[fd00:240:1::10\\]'}, {path: /in|/both}]}
            - ports: [{port: "8080", protocol: TCP}]
              rules: {http: [{host: '10\\.240\\.1\\.10:8080|\\[fd00:240:1::10\\]:8080'}]}
        - icmps: [{fields: [{family: IPv4, type: 8}]}]
      ingressDeny: [{toPorts: [{ports: [{port: "81", protocol: TCP}]}]}]
  - apiVersion: cilium.io/v2
    kind: CiliumNetworkPolicy
    metadata: {name: six, namespace: shop}
    spec:
      endpointSelector: {matchLabels: {app: six}}
      egress: [{toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{path: /out|/both}]}}]}]
  - apiVersion: policy.networking.k8s.io/v1alpha2
    kind: ClusterNetworkPolicy
    metadata: {name: admin}
    spec:
      tier: Admin
      priority: 1
      subject: {namespaces: {}}
      ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}]
  - apiVersion: networking.k8s.io/v1
    kind: NetworkPolicy
    metadata: {name: dry, namespace: shop, annotations: {spliceway.io/enforcement: audit}}
    spec: {podSelector: {matchLabels: {app: four}}}
"""
WEB = {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": "web"}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    parsed = parse_text(MANIFESTS, "manifests.yaml")
    assert not parsed.errors
    return Cluster().with_objects(parsed.objects)


def ask(cluster: Cluster, source: str, destination: str, **more: Any) -> dict[str, Any]:
    query = {"from": source, "to": destination, **more}
    found = json.loads(Asker(cluster).line(json.dumps(query).encode()))
    assert {key: found.pop(key) for key in query} == query
    assert isinstance(found, dict)
    return found


def test_an_answer_repeats_the_query_as_it_came(cluster: Cluster) -> None:
    text = b' {"to":"shop/db",  "from": "shop/web", "port": 5432} \n'
    assert Asker(cluster).line(text) == (
        b'{"to":"shop/db",  "from": "shop/web", "port": 5432,"verdict":"allow","ingress":"allow","egress":"allow",'
        b'"reason":"policy-allowed","rules":[{"kind":"NetworkPolicy","namespace":"shop","name":"db","index":1,'
        b'"path":"spec.ingress[1]"}]}'
    )


SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: both, namespace: shop}
spec: {clusterIP: 10.96.0.10, externalIPs: [10.240.1.11], ports: [{name: sql, port: 80}, {name: none, port: 81}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: both, namespace: shop, labels: {kubernetes.io/service-name: both}}
addressType: IPv4
endpoints: [{addresses: [10.240.1.10]}, {addresses: [10.240.1.11]}]
ports: [{name: sql, port: 5432}]
"""


def test_a_service_is_answered_for_by_its_backends(cluster: Cluster) -> None:
    parsed = parse_text(SERVICES, "services.yaml")
    assert not parsed.errors
    whole = cluster.with_objects(parsed.objects)
    found = ask(whole, "shop/four", "10.96.0.10", port=80)
    assert (found["verdict"], found["reason"], found["service"]) == ("deny", "default-deny", "shop/both")
    assert [(one["to"], one["port"], one["verdict"]) for one in found["backends"]] == [
        ("10.240.1.10", 5432, "deny"),
        ("10.240.1.11", 5432, "deny"),
    ]
    found = ask(whole, "shop/web", "10.96.0.10", port=80)
    assert (found["verdict"], found["reason"], found["egress"]) == ("depends", "service", None)
    assert [one["verdict"] for one in found["backends"]] == ["allow", "allow"]
    found = ask(whole, "shop/web", "10.96.0.10", port=81)
    assert (found["verdict"], found["backends"]) == ("depends", [])
    for source, destination, protocol in (
        ("shop/web", "10.96.0.10", "SCTP"),
        ("203.0.113.9", "10.96.0.10", "TCP"),
        ("shop/web", "10.240.1.11", "TCP"),
    ):
        assert "service" not in ask(whole, source, destination, port=80, protocol=protocol)


def test_denials(cluster: Cluster) -> None:
    assert ask(cluster, "203.0.113.9", "shop/db", port=5432) == {
        "verdict": "deny",
        "ingress": "deny",
        "egress": None,
        "reason": "default-deny",
        "rules": [],
    }
    found = ask(cluster, "shop/db", "shop/web", port=81)
    assert found["reason"] == "policy-denied"
    assert found["rules"] == [{**WEB, "index": 0, "path": "spec.ingressDeny[0].toPorts[0]"}]
    assert ask(cluster, "shop/web", "shop/db", port=22)["rules"] == [
        {"kind": "ClusterNetworkPolicy", "namespace": "", "name": "admin", "index": 0, "path": "spec.ingress[0]"}
    ]


def test_audit(cluster: Cluster) -> None:
    assert ask(cluster, "shop/db", "shop/four", port=80) == {
        "verdict": "allow",
        "ingress": "allow",
        "egress": "allow",
        "reason": "default-deny",
        "rules": [],
        "audit": True,
    }


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        # verdict, egress, ingress, reason; rules by their paths
        ("203.0.113.9", "/in", ("allow", None, "allow", "http-allowed")),
        ("203.0.113.9", "/out", ("deny", None, "deny", "http-denied")),
        ("203.0.113.9", "/a;b", ("deny", None, "deny", "http-ambiguous")),
        ("shop/six", "/both", ("allow", "allow", "allow", "http-allowed")),
        ("shop/six", "/in", ("deny", "deny", "allow", "http-denied")),
        ("shop/six", "/out", ("deny", "allow", "deny", "http-denied")),
    ],
)
def test_requests(cluster: Cluster, source: str, path: str, expected: tuple[str | None, ...]) -> None:
    found = ask(cluster, source, "shop/web", port=80, http={"method": "GET", "path": path})
    assert tuple(found[key] for key in ("verdict", "egress", "ingress", "reason")) == expected
    assert ("nearestMiss" in found) == (found["verdict"] == "deny")
    if found["reason"] == "http-denied":
        assert [rule["name"] for rule in found["rules"]] == ["six" if expected[1] == "deny" else "web"]
    if found["verdict"] == "allow":
        assert found["rules"][-1] == {**WEB, "index": 0, "path": "spec.ingress[0].toPorts[0].rules.http[1]"}


def test_a_redirect_without_a_request(cluster: Cluster) -> None:
    found = ask(cluster, "203.0.113.9", "shop/web", port=80)
    assert (found["verdict"], found["ingress"], found["reason"]) == ("allow", "redirect", "redirected")


@pytest.mark.parametrize("source", ["203.0.113.9", "2001:db8::1"])
def test_the_default_host_is_what_a_client_sends(cluster: Cluster, source: str) -> None:
    """The server's address (in brackets for IPv6), with the port unless it is 80 (RFC 9110, 7.2)."""
    for port, path in ((80, "/host"), (8080, "/")):
        assert ask(cluster, source, "shop/web", port=port, http={"method": "GET", "path": path})["verdict"] == "allow"
        named = {"method": "GET", "path": path, "headers": {"host": "other"}}
        assert ask(cluster, source, "shop/web", port=port, http=named)["verdict"] == "deny"


def test_a_header_may_have_several_values(cluster: Cluster) -> None:
    http = {"method": "GET", "path": "/in", "headers": {"Host": ["a", "b"]}}
    assert ask(cluster, "203.0.113.9", "shop/web", port=80, http=http)["reason"] == "http-malformed"


def test_the_family_is_the_first_of_the_client_that_the_server_has(cluster: Cluster) -> None:
    """IPv4 between web and db, as web has it first: ICMP (version 4) is asked, ICMPv6 is wrong."""
    assert ask(cluster, "shop/web", "shop/db", protocol="icmp", type=8)["verdict"] == "deny"
    assert "error" in ask(cluster, "shop/web", "shop/db", protocol="ICMPv6", type=128)
    assert ask(cluster, "shop/db", "shop/web", protocol="ICMPv6", type=128)["verdict"] == "deny"
    assert ask(cluster, "shop/six", "shop/web", protocol="ICMPv6", type=128)["verdict"] == "deny"
    assert ask(cluster, "shop/four", "shop/web", protocol="ICMP", type=8)["verdict"] == "allow"
    assert ask(cluster, "shop/four", "shop/web", protocol=1, type=3, code=1)["verdict"] == "deny"


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"from": "shop/nobody", "to": "shop/web", "port": 80}, "from: the inventory has no pod shop/nobody"),
        ({"from": "shop/web", "to": "shop/new", "port": 80}, "to: pod shop/new has no address (status.podIP)"),
        ({"from": "shop/web", "to": "web", "port": 80}, "to: web is neither NAMESPACE/POD nor an IP address"),
        ({"from": "::ffff:1.2.3.4", "to": "shop/web", "port": 80}, "from: ::ffff:1.2.3.4 is neither"),
        ({"from": "shop/four", "to": "shop/six", "port": 80}, "from, to: shop/four and shop/six have no addresses"),
        ({"from": "shop/web", "to": "2001:db8::1"}, "port: is missing (1 to 65535)"),
        ({"from": "shop/web", "to": "shop/db", "port": 0}, "port: 0 (1 to 65535)"),
        ({"from": "shop/web", "to": "shop/db", "port": 65536}, "port: 65536 (1 to 65535)"),
        ({"from": "shop/web", "to": "shop/db", "port": "80"}, "port: Expected `int | null`, got `str`"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "protocl": "UDP"}, "protocl: unknown field"),
        ({"to": "shop/db", "port": 80}, "from: is required"),
        (
            {"from": "shop/web", "to": "shop/db", "port": 80, "http": {"headers": {"a": "b", "X-Odd": 5}}},
            "http.headers[X-Odd]: Expected `str | array`, got `int`",
        ),
        (
            {"from": "shop/web", "to": "shop/db", "port": 80, "http": {"headers": {"a": ["b"], "X-Odd": ["c", 5]}}},
            "http.headers[X-Odd][1]: Expected `str`, got `int`",
        ),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "protocol": "ANY"}, "protocol: ANY is none of"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "protocol": 256}, "protocol: 256 is not an IP protocol"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "protocol": "ICMP"}, "port: ICMP has none"),
        ({"from": "shop/web", "to": "shop/db", "protocol": "ICMP"}, "type: ICMP needs a type"),
        ({"from": "shop/web", "to": "shop/db", "protocol": 47, "port": 80}, "port: IP protocol 47 has none"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "type": 8}, "type, code: only with ICMP"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "protocol": "UDP", "http": {}}, "http: only with protocol"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "http": {"path": "/€"}}, "http: /€ has characters beyond"),
        ({"from": "shop/web", "to": "shop/db", "port": 80, "http": {"header": {}}}, "http.header: unknown field"),
    ],
)
def test_wrong_queries(cluster: Cluster, query: dict[str, Any], error: str) -> None:
    asker = Asker(cluster)
    found = json.loads(asker.line(json.dumps(query).encode()))
    assert found.pop("error").startswith(error)
    assert found == query
    assert (asker.asked, asker.wrong) == (1, 1)
    assert asker.first_error.startswith(f"query 1: {error}")


@pytest.mark.parametrize("text", [b"[1]", b"nothing", b'{"from": "a"', b"\xff", b'"text"', b"[" * 5000, b"\xff" * 999])
def test_lines_that_are_no_query(cluster: Cluster, text: bytes) -> None:
    found = json.loads(Asker(cluster).line(text))
    assert set(found) == {"query", "error"}
    assert len(found["query"]) <= 201


def test_half_a_character_is_no_crash(cluster: Cluster) -> None:
    query = b'{"from": "shop/web", "to": "shop/db", "port": 80, "http": {"path": "/\\ud800"}}'
    assert b'"error"' in Asker(cluster).line(query)
