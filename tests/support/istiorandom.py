"""Random clusters with HTTP rules, connections and requests, by seed: for the translation into AuthorizationPolicies.

Each has addresses of its own, so that one Envoy can be the sidecars of many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random
from typing import Any

import msgspec

from spliceway.policy.http import HttpRequest
from spliceway.policy.verdict import Protocol
from support.cases import Case, Expect
from support.istiocases import MeshFile, Way, asked, in_mesh

Doc = dict[str, Any]
_NAMESPACES = {"shop": {"team": "red"}, "bank": {"team": "blue"}}
_APPS = ("web", "api", "job")
_PORTS = ("80", "81", "8080")
_METHODS = ("", "", "", "GET", "GET|HEAD", "P.*|GET")
_FIXED = ("", "/a", "/a|/b", "/a/[bc]", r"/a(\?.*)?", r"/b\?x=.*", "/.*", r"/[ab]/d(\?.*)?")
_SEGMENT = "[a-zA-Z0-9._~%!$&'()+,;:@=-]+"
_OPEN = (
    *("/a/.*", "/a/.+", r".*\.css", "/a/.*/c", "/a(/.*)?"),
    *(rf"/a/{_SEGMENT}(\?.*)?", rf"/a/{_SEGMENT}/c(\?.*)?", r"/a/[a-zA-Z0-9._~%!$&'()+,;:@=/-]*(\?.*)?"),
)
_HOSTS = ("", "", "", "server", "server|other", "s.*")
_HEADERS = ("X-Role: admin", "X-Role: user", "X-Team")
_TARGETS = (
    "/",
    "/a",
    "/b",
    "/a?x=1",
    "/b?x=1",
    "/a/",
    "/a/b",
    "/a/c",
    "/a/b/c",
    "/a/x.css",
    "/x.css?y",
    "/a/b?c",
    "/a//c",
)
_ODD = (
    "/a/../b",
    "/%61",
    "/a/%2e%2e/b",
    "/A",
    "/a/b/d?/c",
    "/b/d?x",
    "/a/*",
    "/a/[b]",
    "/a/b/",
    "/a;b",
    "/a/..%2fb",
    "/a/%2f/c",
)


def random_file(seed: int, way: Way, *, wanted: int = 45) -> MeshFile:
    """A cluster of three to eight pods with one to three policies, and up to so many connections and requests.

    A third of them are requests that pass, a third such as don't, as far as there are any. In every other cluster HTTP
    rules are such as can be translated whatever servers do.
    """
    random = Random(f"istio {seed}")
    plain = seed % 2 == 0
    pods = [_pod(random, seed, index) for index in range(random.randint(3, 8))]
    nodes = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "node1"},
            "spec": {"podCIDRs": [f"10.241.{seed % 250}.0/24", f"fd00:241:{seed % 250:x}::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.30.9.1"}]},
        }
    ]
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in _NAMESPACES.items()
    ]
    policies = [_policy(random, index, plain) for index in range(random.randint(1, 3))]
    cases = tuple(_case(random, seed, pods, index) for index in range(wanted * 8))
    found = in_mesh(f"random {seed // 250}", [*spaces, *nodes, *pods, *policies], cases, way)
    return msgspec.structs.replace(found, cases=tuple(_chosen(found, wanted // 3)))


def _chosen(file: MeshFile, each: int) -> Iterator[Case]:
    left: Counter[bool | None] = Counter({True: each, False: each, None: each})
    for one in asked(file):
        kind = one.passes if one.http is not None else None
        if left[kind] > 0:
            left[kind] -= 1
            yield one.case


def _pod(random: Random, seed: int, index: int) -> Doc:
    octet = seed % 250
    name = f"pod{index}"
    shared = random.random() < 0.15
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": random.choice(list(_NAMESPACES)),
            "labels": {"app": random.choice(_APPS), "tier": random.choice(("front", "back"))},
        },
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": "shared" if shared else name,
            "containers": [
                {"name": "main", "ports": [{"name": "http", "containerPort": random.choice((80, 80, 8080))}]}
            ],
        },
        "status": {"podIPs": [{"ip": f"10.241.{octet}.{index + 10}"}, {"ip": f"fd00:241:{octet:x}::{index + 10}"}]},
    }


def _policy(random: Random, index: int, plain: bool) -> Doc:
    kind = random.choice(("CiliumNetworkPolicy",) * 4 + ("CiliumClusterwideNetworkPolicy", "NetworkPolicy"))
    metadata: Doc = {"name": f"policy{index}"}
    if kind != "CiliumClusterwideNetworkPolicy":
        metadata["namespace"] = random.choice(list(_NAMESPACES))
    if kind == "NetworkPolicy":
        spec: Doc = {"podSelector": _labels(random), "policyTypes": ["Ingress"], "ingress": []}
        for _ in range(random.randint(0, 2)):
            peers = random.choice(([], [{"podSelector": _labels(random)}], [{"ipBlock": {"cidr": "198.51.100.0/24"}}]))
            spec["ingress"].append({"from": peers, "ports": [{"port": int(random.choice(_PORTS))}]})
        return {"apiVersion": "networking.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
    spec = {
        "endpointSelector": _labels(random),
        "ingress": [_rule(random, True, plain) for _ in range(random.randint(1, 3))],
    }
    if random.random() < 0.2:
        spec["ingressDeny"] = [_rule(random, False, plain)]
    if random.random() < 0.2:
        spec["enableDefaultDeny"] = {"ingress": False}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def _labels(random: Random) -> Doc:
    return random.choice(
        (
            {"matchLabels": {"app": random.choice(_APPS)}},
            {"matchLabels": {"tier": random.choice(("front", "back"))}},
            {"matchExpressions": [{"key": "app", "operator": "In", "values": random.sample(_APPS, 2)}]},
            {},
        )
    )


def _rule(random: Random, allow: bool, plain: bool) -> Doc:
    found: Doc = random.choice(
        (
            {"fromEndpoints": [_labels(random)]},
            {"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": random.choice(list(_NAMESPACES))}}]},
            {
                "fromEndpoints": [
                    {"matchLabels": {"io.cilium.k8s.namespace.labels.team": random.choice(("red", "blue"))}}
                ]
            },
            {"fromCIDR": [random.choice(("198.51.100.0/25", "0.0.0.0/0", "2001:db8::/33"))]},
            {"fromCIDRSet": [{"cidr": "198.51.100.0/24", "except": ["198.51.100.64/26"]}]},
            {"fromEntities": [random.choice(("world", "cluster", "all"))]},
            {},
            {},
        )
    )
    if found and random.random() < 0.2:
        return found
    port: Doc = {"port": random.choice((*_PORTS, "80", "80") * 3 + ("http",)), "protocol": "TCP"}
    if port["port"] == "80" and random.random() < 0.2:
        port["endPort"] = 81
    entry: Doc = {"ports": [port]}
    if allow and random.random() < 0.65:
        entry["rules"] = {"http": [_http(random, plain) for _ in range(random.randint(1, 3))]}
    return {**found, "toPorts": [entry]}


def _http(random: Random, plain: bool) -> Doc:
    found: Doc = {}
    for field, values in (
        ("method", _METHODS),
        ("path", _FIXED if plain or random.random() < 0.6 else _OPEN),
        ("host", _HOSTS),
    ):
        if value := random.choice(values):
            found[field] = value
    if not plain and random.random() < 0.2:
        found["headers"] = [random.choice(_HEADERS)]
    return found


def _case(random: Random, seed: int, pods: list[Doc], index: int) -> Case:
    version = random.choice((4, 6))
    server = random.choice(pods)
    destination = ip_address(server["status"]["podIPs"][version == 6]["ip"])
    outside = ("198.51.100.9", "198.51.100.70", "203.0.113.5") if version == 4 else ("2001:db8::5", "2001:db8:8000::5")
    sources = [pod["status"]["podIPs"][version == 6]["ip"] for pod in pods if pod is not server]
    source = ip_address(random.choice((*sources, *sources, random.choice(outside))))
    headers = [("Host", random.choice(("server", "Server", "other", "server:80")))]
    if random.random() < 0.4:
        headers.append(("X-Role", random.choice(("admin", "user"))))
    if random.random() < 0.2:
        headers.append(("X-Team", "red"))
    target = random.choice(_TARGETS if random.random() < 0.8 else _ODD)
    request = HttpRequest.of(random.choice(("GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE")), target, headers)
    name = f"seed {seed}, case {index}: {source} to {destination} {request.method.decode()} {target}"
    port = random.choice((80, 80, 80, 81, 8080, 443))
    return Case(f"random {seed}", name, "", "", source, destination, int(Protocol.TCP), port, Expect("", ""), request)
