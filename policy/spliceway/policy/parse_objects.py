"""Namespaces, Pods and Nodes (v1). Real ones have many fields; only those that verdicts depend on are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spliceway.policy.errors import PolicyError
from spliceway.policy.fields import Fields, Where
from spliceway.policy.istio.hbone import mark
from spliceway.policy.istio.sidecar import seen_ports
from spliceway.policy.labels import HBONE_KEY, SIDECAR_KEY
from spliceway.policy.model import ContainerPort, IPAddress, Namespace, Node, Pod
from spliceway.policy.nodeaddresses import annotated, conventional
from spliceway.policy.parse_address import parse_address, parse_network
from spliceway.policy.parse_metadata import Metadata
from spliceway.policy.parse_port import check_port_name, check_port_number, kubernetes_protocol

#: Phases in which a pod has no address of its own any more: it may already be another pod's.
_FINISHED = ("Succeeded", "Failed")


def parse_namespace(fields: Fields, where: Where) -> Namespace:
    """A Namespace: name and labels."""
    meta = Metadata(fields, where, "Namespace", namespaced=False)
    return Namespace(meta.name, meta.labels, where.file)


def parse_pod(fields: Fields, where: Where) -> Pod:
    """A Pod: labels, spec.nodeName, spec.hostNetwork, spec.serviceAccountName, named ports, status.podIPs or podIP.

    A pod that has finished keeps its last addresses in its status; they are not its own any more and are left out.
    What it says of HBONE (`istio.hbone.mark`) and what its sidecar sees (`istio.sidecar`) stands among its labels.
    """
    meta = Metadata(fields, where, "Pod")
    where = meta.where
    given = fields.take("spec", dict, {})
    spec = Fields(given, where.at("spec"))
    status = Fields(fields.take("status", dict, {}), where.at("status"))
    addresses = []
    if status.take("phase", str, "") not in _FINISHED:
        addresses = _pod_addresses(status)
    ports = tuple(sorted(set(_named_ports(spec)), key=lambda port: (port.name, port.protocol, port.port)))
    seen = seen_ports(meta.annotations, given, ports, addresses)
    marks = {HBONE_KEY: mark(meta.labels, meta.annotations), SIDECAR_KEY: seen}
    told = {key: value for key, value in marks.items() if value}
    return Pod(
        meta.namespace,
        meta.name,
        {**meta.labels, **told} if told else meta.labels,
        tuple(dict.fromkeys(addresses)),
        spec.take("nodeName", str, ""),
        spec.take("hostNetwork", bool, False),
        spec.take_name("serviceAccountName"),
        where.file,
        ports,
    )


def parse_node(fields: Fields, where: Where) -> Node:
    """A Node: its labels, the IP addresses of status.addresses, spec.podCIDRs or podCIDR; what annotations add.

    Bad annotations are passed over: `annotation_errors` tells them.
    """
    meta = Metadata(fields, where, "Node", namespaced=False)
    where = meta.where
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    status = Fields(fields.take("status", dict, {}), where.at("status"))
    addresses = []
    for place, item in status.where.at("addresses").items(status.take("addresses", list, []), dict):
        entry = Fields(item, place)
        if entry.need("type", str) in ("InternalIP", "ExternalIP"):
            addresses.append(parse_address(entry.need("address", str), place.at("address")))
    cidrs = spec.take("podCIDRs", list, [])
    where_cidrs = spec.where.at("podCIDRs")
    found = [parse_network(item, place) for place, item in where_cidrs.items(cidrs, str)]
    if not found and (one := spec.take("podCIDR", str, "")):
        found = [parse_network(one, spec.where.at("podCIDR"))]
    own = tuple(dict.fromkeys(addresses))
    told, _errors = annotated(meta.annotations, where.at("metadata.annotations"))
    further = tuple(dict.fromkeys(one for one in (*told, *conventional(tuple(found))) if one not in own))
    return Node(meta.name, own, tuple(found), where.file, meta.labels, further)


def annotation_errors(node: Node, annotations: Any) -> tuple[PolicyError, ...]:
    """What of a Node's annotations (`metadata.annotations`, as it was read) was passed over."""
    return annotated(annotations, Where(node.file, f"Node {node.name}", "metadata.annotations"))[1]


def _pod_addresses(status: Fields) -> list[IPAddress]:
    addresses = [
        parse_address(Fields(item, place).need("ip", str), place.at("ip"))
        for place, item in status.where.at("podIPs").items(status.take("podIPs", list, []), dict)
    ]
    one = status.take("podIP", str, "")
    if one and not addresses:
        addresses.append(parse_address(one, status.where.at("podIP")))
    return addresses


def _named_ports(spec: Fields) -> Iterator[ContainerPort]:
    """Named ports of what runs as long as the pod: containers, and init containers that are restarted (sidecars)."""
    for field in ("containers", "initContainers"):
        for place, item in spec.where.at(field).items(spec.take(field, list, []), dict):
            container = Fields(item, place)
            if field == "containers" or container.take("restartPolicy", str) == "Always":
                yield from _container_ports(container)


def _container_ports(container: Fields) -> Iterator[ContainerPort]:
    for place, item in container.where.at("ports").items(container.take("ports", list, []), dict):
        port = Fields(item, place)
        name = port.take("name", str, "")
        if not name:
            continue
        check_port_name(name, place.at("name"))
        protocol = kubernetes_protocol(port)
        yield ContainerPort(
            name, protocol, check_port_number(port.need("containerPort", int), place.at("containerPort"))
        )
