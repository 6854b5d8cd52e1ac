"""Which labels an address has: the ipcache, before it gets numbers.

An address is exactly one of: a node's (`host` for the node itself, `remote-node` for others), a pod's, one of a pod
range without a pod (`unmanaged`), or outside the cluster: then the longest prefix that any policy names, or the world.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from spliceway.policy.entity import Reserved
from spliceway.policy.model import Cluster, IPAddress
from spliceway.policy.table import IPNetwork

WORLD_PREFIXES: tuple[tuple[IPNetwork, Reserved], ...] = (
    (ip_network("0.0.0.0/0"), Reserved.WORLD_IPV4),
    (ip_network("::/0"), Reserved.WORLD_IPV6),
)


def cidr_labels(prefix: IPNetwork) -> tuple[str, ...]:
    """Labels of a prefix outside the cluster. It stays part of the world."""
    world = Reserved.WORLD_IPV4 if prefix.version == 4 else Reserved.WORLD_IPV6
    return (f"cidr:{prefix}", world.label) if prefix.prefixlen else (world.label,)


def host_prefix(address: IPAddress) -> IPNetwork:
    """The /32 or /128 of an address."""
    return ip_network(address)


def policy_prefixes(cluster: Cluster) -> set[IPNetwork]:
    """Every prefix that a policy names, exceptions included."""
    found: set[IPNetwork] = set()
    for policy in cluster.policies.values():
        for spec in policy.specs:
            for rule in spec.rules:
                for peer in rule.peers.cidrs if rule.peers else ():
                    assert peer.cidr is not None
                    found.add(peer.cidr)
                    found.update(peer.excepts)
    return found


def address_labels(cluster: Cluster, node: str) -> dict[IPNetwork, tuple[str, ...]]:
    """Labels of every prefix, as the node of this name sees them; the longest prefix of an address counts.

    A prefix that a policy names inside a pod range is left out: what has an address there is never outside the cluster.
    Two pods with one address and different labels make it `unmanaged`, so that neither gets what the other may.
    """
    found: dict[IPNetwork, tuple[str, ...]] = {prefix: (world.label,) for prefix, world in WORLD_PREFIXES}
    pod_cidrs = cluster.all_pod_cidrs()
    ranges = _Ranges(pod_cidrs)
    for prefix in policy_prefixes(cluster):
        if prefix.prefixlen and not ranges.contain(prefix):
            found[prefix] = cidr_labels(prefix)
    for prefix in pod_cidrs:
        found[prefix] = (Reserved.UNMANAGED.label,)

    pods: dict[IPNetwork, tuple[str, ...]] = {}
    hosts: dict[IPNetwork, tuple[str, ...]] = {}
    for pod in cluster.pods.values():
        if pod.host_network:
            _add_node(hosts, pod.addresses, local=pod.node == node)
            continue
        labels = cluster.labels_of(pod)
        for address in pod.addresses:
            prefix = host_prefix(address)
            if pods.setdefault(prefix, labels) != labels:
                pods[prefix] = (Reserved.UNMANAGED.label,)
    for member in cluster.nodes.values():
        _add_node(hosts, member.addresses, local=member.name == node)
    return {**found, **pods, **hosts}


def _add_node(hosts: dict[IPNetwork, tuple[str, ...]], addresses: Iterable[IPAddress], *, local: bool) -> None:
    for address in addresses:
        prefix = host_prefix(address)
        if local or prefix not in hosts:
            hosts[prefix] = ((Reserved.HOST if local else Reserved.REMOTE_NODE).label,)


class _Ranges:
    """A set of prefixes that can be asked whether one of them contains another prefix."""

    def __init__(self, prefixes: Iterable[IPNetwork]) -> None:
        self._known = {(prefix.version, prefix.prefixlen, int(prefix.network_address)) for prefix in prefixes}
        self._lengths = sorted({(version, length) for version, length, _ in self._known})

    def contain(self, prefix: IPNetwork) -> bool:
        address = int(prefix.network_address)
        for version, length in self._lengths:
            if version == prefix.version and length <= prefix.prefixlen:
                host_bits = prefix.max_prefixlen - length
                if (version, length, address >> host_bits << host_bits) in self._known:
                    return True
        return False
