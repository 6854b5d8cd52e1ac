"""Services of a testbed, as far as its nodes' kube-proxy rules need them. Pure.

`spliceway.policy` reads whole Services; this is for building nodes, and knows the backends by the testbed's own pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import msgspec

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.kubeproxy import Backend, ServicePort
from spliceway.agent.testbed.manifests import Manifest
from spliceway.agent.testbed.plan import IPAddress, Plan, PodPlan

#: Where ClusterIPs are taken from; nodes have routes for both, as those with a default route.
SERVICE_PREFIXES = ("10.96.0.0/12", "fd00:96::/108")


class Service(msgspec.Struct, frozen=True):
    """A Service with one TCP port. `pods` are «namespace/name»; `node_port` 0: none; `local`: externalTrafficPolicy.

    `external_ips`: at most one of each family.
    """

    name: str
    cluster_ips: tuple[IPAddress, ...]
    port: int
    target_port: int
    pods: tuple[str, ...]
    node_port: int = 0
    local: bool = False
    external_ips: tuple[IPAddress, ...] = ()


def ports_on(node: str, services: Iterable[Service], pods: Sequence[PodPlan]) -> list[ServicePort]:
    """What kube-proxy on a node makes of them: a port for each ClusterIP, with the backends of its family."""
    found = []
    by_key = {pod.key: pod for pod in pods}
    for one in services:
        for cluster_ip in one.cluster_ips:
            backends, here = [], []
            for key in one.pods:
                pod = by_key.get(key)
                if pod is None:
                    raise TestbedError(f"Service {one.name}: no pod {key} is on a node")
                own = [Backend(a, one.target_port) for a in pod.addresses if a.version == cluster_ip.version]
                backends += own
                here += own if pod.node == node else []
            found.append(
                ServicePort(
                    name=f"{one.name}:{one.port}/{cluster_ip.version}",
                    cluster_ip=cluster_ip,
                    port=one.port,
                    backends=tuple(backends),
                    node_port=one.node_port,
                    local=one.local,
                    local_backends=tuple(here),
                    external_ip=next((a for a in one.external_ips if a.version == cluster_ip.version), None),
                )
            )
    return found


def services_of(plan: Plan, further: Iterable[Manifest] = ()) -> list[Service]:
    """The Services among the manifests: with a selector, ClusterIPs, and TCP ports whose targetPort is a number.

    `further`: those that are described elsewhere.

    Raises TestbedError with document and field.
    """
    found = []
    for manifest in (*plan.policies, *further):
        if manifest.kind != "Service":
            continue
        spec = manifest.mapping("spec")
        selector = manifest.mapping("spec", "selector")
        given = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        if not selector or not given or "None" in given:
            continue
        pods = tuple(pod.key for pod in plan.pods if selected(manifest, pod))
        for index, port in enumerate(manifest.items("spec", "ports")):
            if port.get("protocol", "TCP") != "TCP":
                continue
            target = port.get("targetPort", port["port"])
            if not isinstance(target, int):
                where = f"{manifest.where}: spec.ports[{index}].targetPort"
                raise TestbedError(f"{where}: {target!r}: a testbed's kube-proxy knows numbers only")
            found.append(
                Service(
                    name=f"{manifest.namespace}/{manifest.name}",
                    cluster_ips=tuple(ip_address(text) for text in given),
                    port=int(port["port"]),
                    target_port=target,
                    pods=pods,
                    node_port=int(port.get("nodePort", 0)),
                    local=spec.get("externalTrafficPolicy") == "Local",
                    external_ips=tuple(ip_address(text) for text in spec.get("externalIPs") or []),
                )
            )
    return found


def selected(service: Manifest, pod: PodPlan) -> bool:
    """Whether a Service's selector means this pod."""
    labels = pod.document["metadata"].get("labels") or {}
    wanted = service.mapping("spec", "selector").items()
    return pod.namespace == service.namespace and all(labels.get(key) == value for key, value in wanted)
