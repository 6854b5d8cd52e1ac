"""Who stands behind an address, and whether a rule's peers and ports mean him. Part of the reference interpreter.

Everything is read from the objects of the cluster: labels of pods, nodes and Services, addresses, prefixes.
Sources: Cilium 1.20, Documentation/security/policy/language and pkg/policy/api; Kubernetes, NetworkPolicy v1;
network-policy-api v1alpha2.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from spliceway.policy.entity import ENTITY_SELECTORS, Reserved
from spliceway.policy.evaluate_facts import Facts, k8s_labels, prefixes
from spliceway.policy.labels import Selector
from spliceway.policy.model import (
    CidrPeer,
    Cluster,
    ContainerPort,
    IPAddress,
    Peers,
    Pod,
    PortRange,
    PortRule,
    Service,
    ServicePeer,
)


class Peer(msgspec.Struct, frozen=True):
    """Who stands behind an address, as one endpoint's node sees it.

    `labels`: what selectors see. `outside`: not of the cluster. `nodes`: the labels of each node that has the address.
    `host`: it is the endpoint's own node. `pods`: the pods that have the address, when they are one identity.
    """

    address: IPAddress
    labels: tuple[str, ...]
    outside: bool = False
    nodes: tuple[tuple[str, ...], ...] = ()
    host: bool = False
    pods: tuple[Pod, ...] = ()

    @property
    def ports(self) -> tuple[ContainerPort, ...]:
        """Named ports that it serves. Nodes and what is outside have none."""
        return tuple(port for pod in self.pods for port in pod.ports)


def find_peer(facts: Facts, node: str, address: IPAddress) -> Peer:
    """Who an address is, seen from the node of this name."""
    cluster = facts.cluster
    also = (Reserved.KUBE_APISERVER.label,) if facts.is_api_server(address) else ()
    nodes = sorted(facts.nodes_with(address))
    if nodes:
        host = node in nodes
        kind = Reserved.HOST if host else Reserved.REMOTE_NODE
        labels = tuple(k8s_labels(cluster.nodes[name].labels) if name in cluster.nodes else () for name in nodes)
        return Peer(address, (kind.label, *also), nodes=labels, host=host)
    pods = facts.pods_with(address)
    label_sets = {cluster.labels_of(pod) for pod in pods}
    if len(label_sets) == 1:
        return Peer(address, (*label_sets.pop(), *also), pods=pods)
    if pods or facts.in_pod_range(address):
        return Peer(address, (Reserved.UNMANAGED.label, *also))
    world = Reserved.WORLD_IPV4 if address.version == 4 else Reserved.WORLD_IPV6
    named = facts.named_prefix(address)
    return Peer(address, (world.label, *((f"cidr:{named}",) if named else ()), *also), outside=True)


def peers_match(cluster: Cluster, peers: Peers | None, peer: Peer) -> bool:
    """Whether a rule about these peers is about this one."""
    if peers is None:
        return True
    return (
        any(selector.matches(peer.labels) for selector in peers.endpoints)
        or any(selector.matches(peer.labels) for entity in peers.entities for selector in ENTITY_SELECTORS[entity])
        or any(_cidr_matches(cluster, cidr, peer) for cidr in peers.cidrs)
        or (not peer.host and _any_node(peers.nodes, peer))
        or _any_node(peers.all_nodes, peer)
        or any(_service_matches(cluster, service, peer) for service in peers.services)
    )


def ports_match(entry: PortRule | None, protocol: int, port: int, serving: Iterable[ContainerPort]) -> bool:
    """Whether an entry of toPorts (None: every port) has this port. `serving`: the server's named ports."""
    return entry is None or any(_range_covers(ports, protocol, port, serving) for ports in entry.ports)


def _range_covers(ports: PortRange, protocol: int, port: int, serving: Iterable[ContainerPort]) -> bool:
    if not ports.name:
        return ports.covers(protocol, port)
    return any(
        named.name == ports.name
        and named.port == port
        and named.protocol == protocol
        # The protocol of the rule, or any that has ports.
        and msgspec.structs.replace(ports, first=port, last=port).covers(protocol, port)
        for named in serving
    )


def _cidr_matches(cluster: Cluster, rule: CidrPeer, peer: Peer) -> bool:
    if not peer.outside and not rule.inside:
        return False
    return any(peer.address in block for block in prefixes(cluster, rule)) and not any(
        peer.address in block for block in rule.excepts
    )


def _any_node(selectors: Iterable[Selector], peer: Peer) -> bool:
    return any(selector.matches(labels) for selector in selectors for labels in peer.nodes)


def _service_matches(cluster: Cluster, rule: ServicePeer, peer: Peer) -> bool:
    return any(_is_behind(cluster, service, peer) for service in cluster.services.values() if _named(rule, service))


def _named(rule: ServicePeer, service: Service) -> bool:
    if rule.namespace and rule.namespace != service.namespace:
        return False
    return rule.selector.matches(k8s_labels(service.labels)) if rule.selector is not None else rule.name == service.name


def _is_behind(cluster: Cluster, service: Service, peer: Peer) -> bool:
    """Whether the peer is an endpoint of the Service: a pod that it selects, or an address outside the cluster."""
    if service.selector:
        wanted = set(k8s_labels(service.selector))
        return any(pod.namespace == service.namespace and wanted <= set(peer.labels) for pod in peer.pods)
    return peer.outside and any(
        (found.namespace, found.service) == (service.namespace, service.name) and peer.address in found.addresses
        for found in cluster.slices.values()
    )
