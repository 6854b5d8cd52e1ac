"""Who stands behind an address, and whether a rule's peers and ports mean him. Part of the reference interpreter.

Everything is read from the objects of the cluster: labels of pods, nodes and Services, addresses, prefixes.
Sources: Cilium 1.20, Documentation/security/policy/language and pkg/policy/api; Kubernetes, NetworkPolicy v1;
network-policy-api v1alpha2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from spliceway.policy.entity import ENTITY_SELECTORS, Reserved
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
from spliceway.policy.table import IPNetwork

#: The Service behind which the API server is (Kubernetes makes it in every cluster).
API_SERVER = ("default", "kubernetes")


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


def find_pod(cluster: Cluster, address: IPAddress) -> Pod | None:
    """The endpoint of an address. Pods in their host's network, and addresses of nodes, are none."""
    if any(address in node.addresses for node in cluster.nodes.values()):
        return None
    found = None
    for pod in cluster.pods.values():
        if address not in pod.addresses:
            continue
        if pod.host_network:
            return None
        if found is None or pod.key < found.key:
            found = pod
    return found


def find_peer(cluster: Cluster, endpoint: Pod, address: IPAddress) -> Peer:
    """Who an address is, seen from the node of an endpoint."""
    also = (Reserved.KUBE_APISERVER.label,) if _is_api_server(cluster, address) else ()
    nodes = sorted(_nodes_with(cluster, address))
    if nodes:
        host = endpoint.node in nodes
        kind = Reserved.HOST if host else Reserved.REMOTE_NODE
        labels = tuple(_k8s(cluster.nodes[name].labels) if name in cluster.nodes else () for name in nodes)
        return Peer(address, (kind.label, *also), nodes=labels, host=host)
    pods = tuple(pod for pod in cluster.pods.values() if address in pod.addresses)
    label_sets = {cluster.labels_of(pod) for pod in pods}
    if len(label_sets) == 1:
        return Peer(address, (*label_sets.pop(), *also), pods=pods)
    if pods or any(address in cidr for cidr in cluster.all_pod_cidrs()):
        return Peer(address, (Reserved.UNMANAGED.label, *also))
    world = Reserved.WORLD_IPV4 if address.version == 4 else Reserved.WORLD_IPV6
    named = _named_prefix(cluster, address)
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


def _nodes_with(cluster: Cluster, address: IPAddress) -> set[str]:
    """Names of the nodes an address belongs to, their own or by a pod in the host's network."""
    found = {node.name for node in cluster.nodes.values() if address in node.addresses}
    return found | {pod.node for pod in cluster.pods.values() if pod.host_network and address in pod.addresses}


def _is_api_server(cluster: Cluster, address: IPAddress) -> bool:
    return any(
        (found.namespace, found.service) == API_SERVER and address in found.addresses
        for found in cluster.slices.values()
    )


def _named_prefix(cluster: Cluster, address: IPAddress) -> str:
    """The longest prefix with this address that a CIDR rule names: it is a label that selectors can see."""
    rules = [rule for policy in cluster.policies.values() for spec in policy.specs for rule in spec.rules]
    peers = [peer for rule in rules if rule.peers for peer in rule.peers.cidrs if not peer.inside]
    blocks = [block for peer in peers for block in (*_prefixes(cluster, peer), *peer.excepts) if address in block]
    longest = max(blocks, key=lambda block: block.prefixlen, default=None)
    return str(longest) if longest is not None and longest.prefixlen else ""


def _cidr_matches(cluster: Cluster, rule: CidrPeer, peer: Peer) -> bool:
    if not peer.outside and not rule.inside:
        return False
    return any(peer.address in block for block in _prefixes(cluster, rule)) and not any(
        peer.address in block for block in rule.excepts
    )


def _prefixes(cluster: Cluster, rule: CidrPeer) -> Iterator[IPNetwork]:
    """What a CIDR rule names itself or by groups. A group that is not there names nothing."""
    if rule.cidr is not None:
        yield rule.cidr
    for group in cluster.cidr_groups.values():
        if group.name == rule.group or (rule.groups is not None and rule.groups.matches(_k8s(group.labels))):
            yield from group.cidrs


def _any_node(selectors: Iterable[Selector], peer: Peer) -> bool:
    return any(selector.matches(labels) for selector in selectors for labels in peer.nodes)


def _service_matches(cluster: Cluster, rule: ServicePeer, peer: Peer) -> bool:
    return any(_is_behind(cluster, service, peer) for service in cluster.services.values() if _named(rule, service))


def _named(rule: ServicePeer, service: Service) -> bool:
    if rule.namespace and rule.namespace != service.namespace:
        return False
    return rule.selector.matches(_k8s(service.labels)) if rule.selector is not None else rule.name == service.name


def _is_behind(cluster: Cluster, service: Service, peer: Peer) -> bool:
    """Whether the peer is an endpoint of the Service: a pod that it selects, or an address outside the cluster."""
    if service.selector:
        wanted = set(_k8s(service.selector))
        return any(pod.namespace == service.namespace and wanted <= set(peer.labels) for pod in peer.pods)
    return peer.outside and any(
        (found.namespace, found.service) == (service.namespace, service.name) and peer.address in found.addresses
        for found in cluster.slices.values()
    )


def _k8s(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Labels of an object as selectors see them."""
    return tuple(f"k8s:{key}={value}" for key, value in labels.items())
