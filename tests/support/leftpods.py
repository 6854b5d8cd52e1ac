"""Pods as Istio's injector leaves them, and policies that leave their HTTP rules to it, as documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Doc = dict[str, Any]
ANNOTATION = "spliceway.io/http-rules"
#: Mode, ports included and excluded, as the injector writes them where nobody has said anything.
PLAIN = ("REDIRECT", "*", "15090,15021,15020")


def injected(
    name: str,
    number: int,
    *,
    arguments: Sequence[str] | None = PLAIN,
    annotations: Doc | None = None,
    native: bool = False,
    writer: str = "istio-init",
    dual_stack: bool = True,
    families: tuple[int, ...] = (4, 6),
    labels: Doc | None = None,
    node: str = "node1",
) -> Doc:
    """A pod in namespace `shop` with a sidecar. `arguments` None: without a container that writes rules."""
    variables: Doc = {"env": [{"name": "ISTIO_DUAL_STACK", "value": "true"}]} if dual_stack else {}
    proxy: Doc = {"name": "istio-proxy", "ports": [{"name": "http-envoy-prom", "containerPort": 15090}], **variables}
    first: list[Doc] = []
    if arguments is not None:
        mode, only, but = arguments
        said = ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", mode, "-i", "*", "-x", ""]
        first.append({"name": writer, "args": [*said, "-b", only, "-d", but, "--log_output_level=info"], **variables})
    spec: Doc = {
        "nodeName": node,
        "serviceAccountName": name,
        "initContainers": first,
        "containers": [{"name": "app", "ports": PORTS}],
    }
    spec["initContainers" if native else "containers"].append(
        {**proxy, **({"restartPolicy": "Always"} if native else {})}
    )
    made = plain(name, number, families=families, labels=labels, node=node)
    made["metadata"]["annotations"] = {"sidecar.istio.io/status": "{}", **(annotations or {})}
    made["spec"] = spec
    return made


#: What the application names.
PORTS: list[Doc] = [{"name": "web", "containerPort": 80}, {"name": "admin", "containerPort": 9000}]


def plain(
    name: str, number: int, *, families: tuple[int, ...] = (4, 6), labels: Doc | None = None, node: str = "node1"
) -> Doc:
    """The same without a sidecar."""
    texts = {4: f"10.0.0.{number}", 6: f"fd00::{number}"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels or {"app": name}},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": [{"name": "app", "ports": PORTS}]},
        "status": {"podIPs": [{"ip": texts[one]} for one in families]},
    }


def asking(
    *ports: str, name: str = "p", left: bool = True, peer: str = "client", app: str = "api", path: str = "/a"
) -> Doc:
    """A policy with one HTTP rule of ingress for these ports (`80`, `web`, `80-90`)."""
    listed = []
    for one in ports:
        first, _, last = one.partition("-") if one[0].isdecimal() else (one, "", "")
        listed.append({"port": first, "protocol": "TCP", **({"endPort": int(last)} if last else {})})
    entry: Doc = {"ports": listed, "rules": {"http": [{"method": "GET", "path": path}]}}
    return policy(
        {"ingress": [{"fromEndpoints": [{"matchLabels": {"app": peer}}], "toPorts": [entry]}]}, name, left, app
    )


def policy(rules: Doc, name: str = "p", left: bool = True, app: str = "api") -> Doc:
    """A CiliumNetworkPolicy about pods with this label."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "shop", "annotations": {ANNOTATION: "istio"} if left else {}},
        "spec": {"endpointSelector": {"matchLabels": {"app": app}}, **rules},
    }
