"""AuthorizationPolicies at random, policies of other kinds beside them, and requests, by seed.

They are about pods `server` and `front` of the namespace `shop`, and clients of `shop` and `bank`.
"""

from __future__ import annotations

from random import Random
from typing import Any

from support.oracle_istio import Request
from support.oracle_world import Doc

_SOURCES: dict[str, tuple[str, ...]] = {
    "namespaces": ("shop", "bank", "*"),
    "principals": ("cluster.local/ns/shop/sa/front", "cluster.local/ns/bank/*", "*/sa/teller", "*"),
    "serviceAccounts": ("front", "bank/teller"),
}
_BLOCKS = ("10.1.0.0/16", "10.1.1.0/24", "10.240.0.0/16", "172.30.0.2/32", "fd00:1::/32", "fd00:1:1::/48")
_CONDITIONS = {
    "source.namespace": _SOURCES["namespaces"],
    "source.principal": _SOURCES["principals"],
    "source.serviceAccount": _SOURCES["serviceAccounts"],
}
_PORTS = ("80", "81")
_BOTH = ("values", "notValues")
_HTTP: dict[str, tuple[str, ...]] = {
    "methods": ("GET", "P*", "*T", "*", "DELETE"),
    "hosts": ("a.test", "*.TEST", "b*", "*"),
    "paths": ("/a", "/a/*", "*.txt", "/v/{*}", "/v/{**}/z", "*", "/"),
}
_TARGETS = ("/", "/a", "/a/", "/a/b?c", "/v/1", "/v/1/2", "/v/1/z", "/v/z?a.txt", "/b.txt", "/v/", "/v/[x]")
_HOSTS = ("a.test", "A.Test", "b", "b.test:80", "c")


class Maker:
    """Documents at random."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def some(self, values: tuple[str, ...]) -> list[str]:
        return self.random.sample(values, self.random.choice((1, 1, 2)))

    def source(self, *, by_address: bool) -> Doc:
        if by_address:
            found = {name: self.some(_BLOCKS) for name in self.some(("ipBlocks", "notIpBlocks"))}
        else:
            found = {}
            for name in self.some(tuple(_SOURCES)):
                key = name if self.random.random() < 0.7 else f"not{name[0].upper()}{name[1:]}"
                found[key] = self.some(_SOURCES[name])
        return {"source": found}

    def operation(self) -> Doc:
        found: dict[str, list[str]] = {}
        if self.random.random() < 0.6:
            found[self.random.choice(("ports", "ports", "notPorts"))] = self.some(_PORTS)
        if not found or self.random.random() < 0.6:
            for name in self.some(tuple(_HTTP)):
                key = name if self.random.random() < 0.7 else f"not{name.title()}"
                found[key] = self.some(_HTTP[name])
        return {"operation": found}

    def conditions(self, *, by_address: bool) -> list[Doc]:
        """On clients or ports or both. Of identities not `values` and `notValues`: they could be too many selectors."""
        found: list[Doc] = []
        if self.random.random() < 0.7:
            if by_address:
                found.append({"key": "source.ip", **{one: self.some(_BLOCKS) for one in self.some(_BOTH)}})
            else:
                key = self.random.choice(tuple(_CONDITIONS))
                found.append({"key": key, self.random.choice(("values", *_BOTH)): self.some(_CONDITIONS[key])})
        if not found or self.random.random() < 0.4:
            found.append({"key": "destination.port", **{one: self.some(_PORTS) for one in self.some(_BOTH)}})
        return found

    def authorization(self, name: str) -> Doc:
        rules = []
        for _ in range(self.random.choice((0, 1, 1, 2))):
            rule: dict[str, Any] = {}
            by_address = self.random.random() < 0.3
            if self.random.random() < 0.7:
                rule["from"] = [self.source(by_address=by_address) for _ in range(self.random.choice((1, 1, 2)))]
            if self.random.random() < 0.8:
                rule["to"] = [self.operation() for _ in range(self.random.choice((1, 1, 2)))]
            if self.random.random() < 0.4:
                rule["when"] = self.conditions(by_address=by_address)
            elif self.random.random() < 0.2:
                rule.setdefault("from", []).append(self.source(by_address=not by_address))
            rules.append(rule)
        spec: dict[str, Any] = {"rules": rules} if rules or self.random.random() < 0.5 else {}
        spec["action"] = self.random.choice(("ALLOW", "ALLOW", "DENY"))
        namespace = self.random.choice(("shop", "shop", "istio-system", "bank"))
        if self.random.random() < 0.5:
            spec["selector"] = {"matchLabels": {"app": self.random.choice(("server", "server", "front"))}}
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}

    def others(self) -> list[Doc]:
        """Policies of other kinds for the server."""
        http = [{"method": "GET"}, {"path": "/a.*", "method": "POST"}]
        rules = {"rules": {"http": self.random.sample(http, self.random.choice((1, 2)))}}
        ports = {"ports": [{"port": "80", "protocol": "TCP"}], **self.random.choice(({}, rules))}
        cilium = {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"toPorts": [ports]}]}
        plain = {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 81}]}]}
        accept = {"action": "Allow", "from": [{"namespaces": {}}]}
        admin = {"priority": 1, "subject": {"namespaces": {}}, "ingress": [accept]}
        found = [
            ("cilium.io/v2", "CiliumNetworkPolicy", {"name": "c", "namespace": "shop"}, cilium),
            ("networking.k8s.io/v1", "NetworkPolicy", {"name": "n", "namespace": "shop"}, plain),
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", {"name": "a"}, admin),
        ]
        chosen = self.random.sample(found, self.random.choice((0, 0, 1, 1, 2, 3)))
        return [{"apiVersion": version, "kind": kind, "metadata": m, "spec": spec} for version, kind, m, spec in chosen]

    def request(self) -> Request:
        return Request(
            self.random.choice(("GET", "POST", "PUT", "DELETE")),
            self.random.choice(_TARGETS),
            self.random.choice(_HOSTS),
        )
