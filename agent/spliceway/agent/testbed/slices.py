"""EndpointSlices of Services that have a selector and none of their own, as Kubernetes' controller writes them. Pure.

A testbed has no controllers: without these an agent would see such a Service without backends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spliceway.agent.testbed.manifests import Manifest, is_sound
from spliceway.agent.testbed.plan import PodPlan
from spliceway.agent.testbed.services import selected
from spliceway.policy.servicemodel import SERVICE_NAME

Document = dict[str, Any]
_Ports = tuple[tuple[str, str, int], ...]


def slices_of(manifests: Iterable[Manifest], pods: Sequence[PodPlan]) -> dict[str, list[Document]]:
    """«namespace_name» of each Service that wants them → its slices: for each family, and each set of ports.

    `manifests`: with all Services and EndpointSlices there are; one that has a slice of its own gets none.
    """
    given = [one for one in manifests if one.kind in ("Service", "EndpointSlice") and is_sound(one)]
    described = {
        (one.namespace, one.mapping("metadata", "labels").get(SERVICE_NAME))
        for one in given
        if one.kind == "EndpointSlice"
    }
    return {
        f"{one.namespace}_{one.name}": _slices(one, [pod for pod in pods if not pod.outside and selected(one, pod)])
        for one in given
        if one.kind == "Service"
        and one.mapping("spec", "selector")
        and one.mapping("spec").get("type") != "ExternalName"
        and (one.namespace, one.name) not in described
    }


def _slices(service: Manifest, pods: Sequence[PodPlan]) -> list[Document]:
    found = []
    for version in _families(service, pods):
        by_ports: dict[_Ports, list[Document]] = defaultdict(list)
        for pod in pods:
            for address in pod.addresses:
                if address.version == version:
                    by_ports[_ports(service, pod)].append(_endpoint(pod, str(address)))
        found += [
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{service.name}-ipv{version}-{number}",
                    "namespace": service.namespace,
                    "labels": {SERVICE_NAME: service.name},
                },
                "addressType": f"IPv{version}",
                "ports": [{"name": name, "protocol": protocol, "port": port} for name, protocol, port in ports],
                "endpoints": endpoints,
            }
            for number, (ports, endpoints) in enumerate(by_ports.items(), 1)
            if ports
        ]
    return found


def _families(service: Manifest, pods: Sequence[PodPlan]) -> list[int]:
    """IP versions of the cluster IPs; of a Service without, all that its pods have."""
    spec = service.mapping("spec")
    addresses = [*(spec.get("clusterIPs") or []), spec.get("clusterIP") or "None"]
    versions = {6 if ":" in text else 4 for text in addresses if text != "None"}
    return sorted(versions or {address.version for pod in pods for address in pod.addresses})


def _endpoint(pod: PodPlan, address: str) -> Document:
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": pod.node,
        "targetRef": {"kind": "Pod", "namespace": pod.namespace, "name": pod.name},
    }


def _ports(service: Manifest, pod: PodPlan) -> _Ports:
    """Name, protocol and number of each port that the pod has: a targetPort that is a name is looked up there."""
    found = []
    for port in service.items("spec", "ports"):
        protocol = port.get("protocol", "TCP")
        target = port.get("targetPort", port["port"])
        number = target if isinstance(target, int) else _named(pod.document, target, protocol)
        if number is not None:
            found.append((port.get("name", ""), protocol, number))
    return tuple(found)


def _named(pod: Mapping[str, Any], name: str, protocol: str) -> int | None:
    for container in pod["spec"].get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None
