"""What a testbed will consist of: every node, pod and outside host with its addresses and names. Pure.

Node N (from 1) has the pod prefixes 10.240.N.0/24 and fd00:240:N::/64 and the underlay addresses 10.10.0.(1+N) and
fd00:10::(1+N). A pod gets the addresses of its `status.podIPs` or `podIP`, or the next free ones of its node's
prefixes. A Pod with the annotation `testbed.spliceway.io/outside: "true"` is a host outside the cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import msgspec

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.manifests import POLICY_KINDS, Manifest

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

OUTSIDE = "testbed.spliceway.io/outside"
#: Every pod of every node is in here; nodes have blackhole routes for both.
CLUSTER_PREFIXES: tuple[IPNetwork, IPNetwork] = (IPv4Network("10.240.0.0/12"), IPv6Network("fd00:240::/32"))
#: What nodes and hosts can reach on the fabric without a router.
UNDERLAY_PREFIXES: tuple[IPNetwork, IPNetwork] = (IPv4Network("10.10.0.0/16"), IPv6Network("fd00:10::/32"))
#: First host number that a pod without addresses gets: 10.240.N.10 and fd00:240:N::10.
FIRST_FREE = 10

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Container(msgspec.Struct, frozen=True):
    """A program that runs in a pod. `ports` are the TCP ports that it will listen on."""

    name: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    ports: tuple[int, ...] = ()


class PodPlan(msgspec.Struct, frozen=True):
    """A pod, or a host outside the cluster when `node` is empty. `document` is the manifest as it was written."""

    namespace: str
    name: str
    node: str
    addresses: tuple[IPAddress, ...]
    containers: tuple[Container, ...]
    document: Mapping[str, Any]
    where: str

    @property
    def key(self) -> str:
        """«namespace/name»."""
        return f"{self.namespace}/{self.name}"

    @property
    def slug(self) -> str:
        """Name for files: a «_» can be in neither part, so that two pods never share one."""
        return f"{self.namespace}_{self.name}"

    @property
    def outside(self) -> bool:
        """Whether it is a host outside the cluster."""
        return not self.node


class NodePlan(msgspec.Struct, frozen=True):
    """A node. `addresses` are those of its uplink, `prefixes` those of its pods."""

    name: str
    number: int
    addresses: tuple[IPAddress, ...]
    prefixes: tuple[IPNetwork, ...]
    document: Mapping[str, Any]


class Plan(msgspec.Struct, frozen=True):
    """All of a testbed."""

    nodes: tuple[NodePlan, ...]
    pods: tuple[PodPlan, ...]
    hosts: tuple[PodPlan, ...]
    namespaces: tuple[Mapping[str, Any], ...]
    policies: tuple[Manifest, ...]


def make_plan(manifests: Iterable[Manifest]) -> Plan:
    """Decide everything about a testbed. Raises TestbedError with document and field."""
    by_kind: dict[str, list[Manifest]] = {"Namespace": [], "Node": [], "Pod": [], "policy": []}
    for manifest in manifests:
        by_kind["policy" if manifest.kind in POLICY_KINDS else manifest.kind].append(manifest)
    nodes = _nodes(by_kind["Node"], by_kind["Pod"])
    by_name = {node.name: node for node in nodes}
    pods: list[PodPlan] = []
    # Those with addresses of their own come first, or an allocated one could be in their way.
    for manifest in sorted(by_kind["Pod"], key=lambda pod: not _stated(pod)):
        pods.append(plan_pod(manifest, by_name, pods))
    order = {manifest.where: position for position, manifest in enumerate(by_kind["Pod"])}
    pods.sort(key=lambda pod: order[pod.where])
    return Plan(
        nodes=nodes,
        pods=tuple(pod for pod in pods if not pod.outside),
        hosts=tuple(pod for pod in pods if pod.outside),
        namespaces=_namespaces(by_kind["Namespace"], pods),
        policies=tuple(by_kind["policy"]),
    )


def plan_pod(manifest: Manifest, nodes: Mapping[str, NodePlan], others: Iterable[PodPlan]) -> PodPlan:
    """Decide about one pod beside `others`. Raises TestbedError."""
    where = manifest.where
    if manifest.mapping("spec").get("hostNetwork"):
        raise TestbedError(f"{where}: spec.hostNetwork: a testbed has no such pods; run the program on the node")
    outside = manifest.mapping("metadata", "annotations").get(OUTSIDE) == "true"
    others = list(others)
    if any((pod.namespace, pod.name) == (manifest.namespace, manifest.name) for pod in others):
        raise TestbedError(f"{where}: pod {manifest.namespace}/{manifest.name} is there twice")
    taken = {address: pod for pod in others for address in pod.addresses}
    node = None if outside else nodes[_node_name(manifest, default=next(iter(nodes)))]
    addresses = _given_addresses(manifest, node)
    for address in addresses:
        if any(address in other.addresses for other in nodes.values()):
            raise TestbedError(f"{where}: status.podIPs: {address} is a node's address")
        if address in taken:
            raise TestbedError(f"{where}: status.podIPs: {address} already belongs to {taken[address].key}")
    if not addresses:
        if node is None:
            raise TestbedError(f"{where}: status.podIPs: a host outside the cluster must name its addresses")
        addresses = _next_free(node, taken)
    return PodPlan(
        namespace=manifest.namespace,
        name=manifest.name,
        node=node.name if node else "",
        addresses=addresses,
        containers=tuple(_container(manifest, item) for item in manifest.items("spec", "containers")),
        document=manifest.document,
        where=where,
    )


def _nodes(given: list[Manifest], pods: list[Manifest]) -> tuple[NodePlan, ...]:
    names = [manifest.name for manifest in given]
    names += [name for pod in pods if (name := _node_name(pod, default="")) and name not in names]
    documents = {manifest.name: manifest.document for manifest in given}
    names = list(dict.fromkeys(names)) or ["node1"]
    for name in names:
        if not _DNS_LABEL.fullmatch(name) or len(name) > 40:
            raise TestbedError(f"node {name!r}: must be a DNS label of at most 40 characters")
    if len(names) > 200:
        raise TestbedError(f"{len(names)} nodes: a testbed has addresses for 200")
    return tuple(
        NodePlan(
            name=name,
            number=number,
            addresses=(IPv4Address("10.10.0.1") + number, IPv6Address("fd00:10::1") + number),
            prefixes=(IPv4Network(f"10.240.{number}.0/24"), IPv6Network(f"fd00:240:{number}::/64")),
            document=documents.get(name, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
        )
        for number, name in enumerate(names, 1)
    )


def _node_name(pod: Manifest, default: str) -> str:
    return str(pod.mapping("spec").get("nodeName") or default)


def _given_addresses(manifest: Manifest, node: NodePlan | None) -> tuple[IPAddress, ...]:
    addresses: list[IPAddress] = []
    for name, text in _stated(manifest):
        field = f"{manifest.where}: status.{name}"
        address = ip_address(text)
        if node and not any(address in prefix for prefix in node.prefixes):
            own = " and ".join(map(str, node.prefixes))
            raise TestbedError(f"{field}: {address} is not in a pod prefix of {node.name} ({own})")
        if not node and any(address in prefix for prefix in CLUSTER_PREFIXES):
            raise TestbedError(f"{field}: {address} is a pod address, and the host is outside the cluster")
        addresses.append(address)
    return tuple(addresses)


def _stated(manifest: Manifest) -> list[tuple[str, str]]:
    """Fields of `status` with the addresses that the manifest gives: `podIPs`, or `podIP` where that is missing."""
    given = [(f"podIPs[{index}].ip", item["ip"]) for index, item in enumerate(manifest.items("status", "podIPs"))]
    first = manifest.mapping("status").get("podIP")
    return given if given or not first else [("podIP", first)]


def _next_free(node: NodePlan, taken: Mapping[IPAddress, PodPlan]) -> tuple[IPAddress, ...]:
    for number in range(FIRST_FREE, 255):
        # fd00:240:1::12 beside 10.240.1.12: the decimal digits again, which people read more easily
        pair = (node.prefixes[0][number], IPv6Address(f"{node.prefixes[1].network_address}{number}"))
        if not any(address in taken for address in pair):
            return pair
    raise TestbedError(f"{node.name}: no address is free in {node.prefixes[0]}")


def _container(manifest: Manifest, item: Mapping[str, Any]) -> Container:
    name = str(item.get("name", "main"))
    field = f"{manifest.where}: spec.containers[{name}]"
    argv: list[str] = []
    for key in ("command", "args"):
        value = item.get(key) or []
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise TestbedError(f"{field}.{key}: must be a list of strings")
        argv += value
    try:
        env = tuple((str(entry["name"]), str(entry.get("value", ""))) for entry in item.get("env") or [])
        ports = tuple(
            int(entry["containerPort"]) for entry in item.get("ports") or [] if entry.get("protocol", "TCP") == "TCP"
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TestbedError(f"{field}: env or ports: {error!r}") from None
    return Container(name=name, argv=tuple(argv), env=env, ports=ports if argv else ())


def _namespaces(given: list[Manifest], pods: Iterable[PodPlan]) -> tuple[Mapping[str, Any], ...]:
    documents = {manifest.name: manifest.document for manifest in given}
    for name in ["default", *(pod.namespace for pod in pods if not pod.outside)]:
        documents.setdefault(name, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return tuple(documents.values())
