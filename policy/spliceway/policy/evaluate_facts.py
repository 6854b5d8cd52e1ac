"""What the cluster's objects say about an address: whose it is. Part of the reference interpreter.

Everything is looked up by reading through all objects. `evaluator.py` has the same answers from indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from spliceway.policy.model import CidrPeer, Cluster, IPAddress, Pod
from spliceway.policy.table import IPNetwork

#: The Service behind which the API server is (Kubernetes makes it in every cluster).
API_SERVER = ("default", "kubernetes")


class Facts:
    """Questions about addresses, answered from a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def __repr__(self) -> str:
        return f"{type(self).__name__}(pods={len(self.cluster.pods)}, nodes={len(self.cluster.nodes)})"

    def nodes_with(self, address: IPAddress) -> frozenset[str]:
        """Names of the nodes an address belongs to: their own, or that of a pod in the host's network.

        Where there are none, and no pod has it: of those that have it by annotations or by convention.
        """
        found = {node.name for node in self.cluster.nodes.values() if address in node.addresses}
        found |= {pod.node for pod in self.cluster.pods.values() if pod.host_network and address in pod.addresses}
        if not found and not self.pods_with(address):
            found = {node.name for node in self.cluster.nodes.values() if address in node.further}
        return frozenset(found)

    def pods_with(self, address: IPAddress) -> tuple[Pod, ...]:
        """The pods that have an address."""
        return tuple(pod for pod in self.cluster.pods.values() if address in pod.addresses)

    def is_api_server(self, address: IPAddress) -> bool:
        """Whether the Service default/kubernetes has this address among its endpoints."""
        return any(
            (found.namespace, found.service) == API_SERVER and address in found.addresses
            for found in self.cluster.slices.values()
        )

    def in_pod_range(self, address: IPAddress) -> bool:
        """Whether pods have their addresses from there."""
        return any(address in cidr for cidr in self.cluster.all_pod_cidrs())

    def named_prefix(self, address: IPAddress) -> str:
        """The longest prefix with this address that a CIDR rule names: it is a label that selectors can see."""
        blocks = [block for block in named_prefixes(self.cluster) if address in block]
        longest = max(blocks, key=lambda block: block.prefixlen, default=None)
        return str(longest) if longest is not None and longest.prefixlen else ""


def named_prefixes(cluster: Cluster) -> Iterator[IPNetwork]:
    """Prefixes and exceptions of all rules about addresses outside the cluster."""
    for policy in cluster.policies.values():
        for spec in policy.specs:
            for rule in spec.rules:
                for peer in rule.peers.cidrs if rule.peers else ():
                    if not peer.inside:
                        yield from prefixes(cluster, peer)
                        yield from peer.excepts


def prefixes(cluster: Cluster, rule: CidrPeer) -> Iterator[IPNetwork]:
    """What a CIDR rule names itself or by groups. A group that is not there names nothing."""
    if rule.cidr is not None:
        yield rule.cidr
    for group in cluster.cidr_groups.values():
        if group.name == rule.group or (rule.groups is not None and rule.groups.matches(k8s_labels(group.labels))):
            yield from group.cidrs


def find_pod(facts: Facts, address: IPAddress) -> Pod | None:
    """The endpoint of an address. Pods in their host's network, and addresses of nodes, are none."""
    if facts.nodes_with(address):
        return None
    return _first(facts.pods_with(address))


def k8s_labels(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Labels of an object as selectors see them."""
    return tuple(f"k8s:{key}={value}" for key, value in labels.items())


def _first(pods: Iterable[Pod]) -> Pod | None:
    return min(pods, key=lambda pod: pod.key, default=None)
