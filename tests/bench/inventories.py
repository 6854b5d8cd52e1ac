"""Made-up clusters of any size, each with policies of its own, for `bench_policy.py`. The same every time."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from spliceway.policy.documents import Document
from spliceway.policy.model import Namespace, Node, Object, Pod
from spliceway.policy.parse import parse_document

NODE = "node0"
NAMESPACES = 500
APPS = ("front", "api", "store", "job")
POLICIES = 2_000
LOCAL = 100
POD_CIDR = ip_network("10.0.0.0/8")
Labels = dict[str, str]


def base(number: int) -> Labels:
    """Labels of one of 2,000 workloads: four in each namespace."""
    app = APPS[number % 4]
    return {
        "app": app,
        "tier": f"t{number % 7}",
        "part-of": f"product{number // 4 % 50}",
        "pod-template-hash": f"h{number:04x}",
    }


def typical(number: int) -> Labels:
    """2,000 label sets, however many pods there are."""
    return base(number)


def statefulsets(number: int) -> Labels:
    """Every pod has labels of its own, from its StatefulSet or Job: none of them counts."""
    if number % 2:
        own = {"batch.kubernetes.io/job-name": f"job-{number}", "batch.kubernetes.io/controller-uid": f"uid-{number}"}
    else:
        own = {"statefulset.kubernetes.io/pod-name": f"db-{number}", "apps.kubernetes.io/pod-index": str(number)}
    return {**base(number % POLICIES), **own}


def unkind(number: int) -> Labels:
    """Every pod has a label of its own that counts: as many identities as pods."""
    return {**base(number % POLICIES), "instance": f"i{number}"}


LABELS = {"typical": typical, "statefulsets": statefulsets, "unkind": unkind}


def pod(number: int, inventory: str, *, workload: int | None = None) -> Pod:
    """Pod `number`; the first hundred are on our node, each of another workload."""
    # Workloads of the local pods are spread over the namespaces, five of them with two pods.
    own = workload if workload is not None else number * 21 % POLICIES if number < LOCAL - 5 else number % POLICIES
    labels = LABELS[inventory](own if inventory == "typical" else own + POLICIES * (number // POLICIES))
    return Pod(
        f"ns{own // 4}",
        f"pod{number}",
        labels,
        (ip_address((10 << 24) + 1 + number),),
        NODE if number < LOCAL else f"node{1 + number // 100}",
    )


def objects(pods: int, inventory: str) -> list[Object]:
    """The whole cluster."""
    found: list[Object] = [Namespace(f"ns{n}", {"team": f"team{n % 20}"}) for n in range(NAMESPACES)]
    found += [Node(f"node{n}", (ip_address((172 << 24) + (16 << 16) + 1 + n),)) for n in range(1 + pods // 100)]
    found += [pod(number, inventory) for number in range(pods)]
    documents = [*policies(), *(unkind_policies() if inventory == "unkind" else ())]
    for number, content in enumerate(documents):
        found += parse_document(Document("bench", number + 1, 1, content))
    return found


def policies() -> Iterator[dict[str, Any]]:
    """2,000 policies: four for each namespace, of different kinds, one of them clusterwide for every fifty."""
    for number in range(POLICIES):
        namespace, app = number // 4, APPS[number % 4]
        yield [_front, _api, _store, _job][number % 4](f"ns{namespace}", app, number)


def _front(namespace: str, app: str, number: int) -> dict[str, Any]:
    if number % 200 == 0:
        return _policy(
            "CiliumClusterwideNetworkPolicy",
            "",
            f"wide{number}",
            {
                "endpointSelector": {"matchLabels": {"tier": f"t{number // 200 % 7}"}},
                "ingress": [
                    {
                        "fromEndpoints": [{"matchLabels": {"part-of": f"product{number // 200}"}}],
                        "toPorts": [{"ports": _ports(8000, 9000, 9100, 9200, 10250)}],
                    }
                ],
                "enableDefaultDeny": {"ingress": False},
            },
        )
    return _policy(
        "CiliumNetworkPolicy",
        namespace,
        "front",
        {
            "endpointSelector": {"matchLabels": {"app": app}},
            "ingress": [
                {"fromEntities": ["world"], "toPorts": [{"ports": _ports(80, 443)}]},
                {
                    "fromEndpoints": [
                        {"matchLabels": {"io.cilium.k8s.namespace.labels.team": f"team{number // 4 % 20}"}}
                    ],
                    "toPorts": [{"ports": _ports(8080, 8443, 9090, 9091, 9102, 15020)}],
                },
            ],
        },
    )


def _api(namespace: str, app: str, number: int) -> dict[str, Any]:
    http = {"http": [{"method": "GET", "path": f"/v{number % 9}/.*"}, {"method": "POST", "path": "/orders"}]}
    return _policy(
        "CiliumNetworkPolicy",
        namespace,
        "api",
        {
            "endpointSelector": {"matchLabels": {"app": app}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": "front"}}],
                    "toPorts": [{"ports": _ports(80), "rules": http}],
                },
                {
                    "fromEndpoints": [
                        {
                            "matchLabels": {
                                "tier": f"t{number % 7}",
                                "io.kubernetes.pod.namespace": f"ns{n % NAMESPACES}",
                            }
                        }
                        for n in range(number, number + 20)
                    ],
                    "toPorts": [
                        {"ports": [*_ports(50051, 9090), {"port": "30000", "endPort": 30100, "protocol": "TCP"}]}
                    ],
                },
            ],
            "egress": [
                {"toEndpoints": [{"matchLabels": {"app": "store"}}], "toPorts": [{"ports": _ports(5432, 6379, 9042)}]},
                {
                    "toCIDRSet": [{"cidr": f"52.{number % 200}.0.0/16", "except": [f"52.{number % 200}.8.0/24"]}],
                    "toPorts": [{"ports": _ports(443)}],
                },
            ],
        },
    )


def _store(namespace: str, app: str, number: int) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "store", "namespace": namespace},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        {
                            "podSelector": {
                                "matchExpressions": [{"key": "app", "operator": "In", "values": ["api", "job"]}]
                            }
                        },
                        {"namespaceSelector": {"matchLabels": {"team": f"team{number % 20}"}}},
                    ],
                    "ports": [{"port": port, "protocol": "TCP"} for port in (5432, 6379, 7000, 9042, 9100, 9187)],
                }
            ],
        },
    }


def _job(namespace: str, app: str, number: int) -> dict[str, Any]:
    return _policy(
        "CiliumNetworkPolicy",
        namespace,
        "job",
        {
            "endpointSelector": {"matchLabels": {"app": app}},
            "egress": [
                {"toEndpoints": [{}]},
                {
                    "toEndpoints": [{"matchLabels": {"io.kubernetes.pod.namespace": "ns0", "app": "api"}}],
                    "toPorts": [{"ports": [{"port": "53", "protocol": "ANY"}]}],
                },
                {"toCIDR": [f"198.51.{number % 100}.0/24"], "toPorts": [{"ports": _ports(22, 443, 8443)}]},
            ],
            "egressDeny": [{"toEntities": ["remote-node"], "toPorts": [{"ports": _ports(10250)}]}],
        },
    )


def unkind_policies() -> Iterator[dict[str, Any]]:
    """Clusterwide ones about every seventh pod of all namespaces, and 10,000 prefixes with holes for all endpoints."""
    for number in range(7):
        yield _policy(
            "CiliumClusterwideNetworkPolicy",
            "",
            f"tier{number}",
            {
                "endpointSelector": {"matchLabels": {"tier": f"t{number}", "app": "job"}},
                "egress": [
                    {
                        "toEndpoints": [{"matchLabels": {"tier": f"t{(number + n) % 7}"}}],
                        "toPorts": [{"ports": _ports(9000 + n, 9100 + n)}],
                    }
                    for n in range(2)
                ],
            },
        )
    for number in range(100):
        yield _policy(
            "CiliumClusterwideNetworkPolicy",
            "",
            f"feed{number}",
            {
                "endpointSelector": {"matchLabels": {"app": "front"}},
                "egressDeny": [
                    {
                        "toCIDRSet": [
                            {"cidr": f"{100 + number}.{n}.0.0/16", "except": [f"{100 + number}.{n}.7.0/24"]}
                            for n in range(50)
                        ]
                    }
                ],
                "enableDefaultDeny": {"egress": False},
            },
        )


def _ports(*numbers: int) -> list[dict[str, Any]]:
    return [{"port": str(number), "protocol": "TCP"} for number in numbers]


def _policy(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}
