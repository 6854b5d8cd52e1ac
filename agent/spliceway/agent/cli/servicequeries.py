"""Queries of `policy evaluate` about Services' addresses: what is dialled there is decided by each backend. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from spliceway.policy.evaluate_facts import Facts, find_pod
from spliceway.policy.lbmodel import Frontend, FrontendState
from spliceway.policy.loadbalancing import LoadBalancing
from spliceway.policy.model import Cluster, IPAddress
from spliceway.policy.verdict import Protocol

_PROTOCOLS = (Protocol.TCP, Protocol.UDP)


class AnswerBackend(msgspec.Struct, frozen=True, rename={"address": "to"}):
    """What a connection gets that the Service leads there."""

    address: str
    port: int
    verdict: str
    reason: str


class Frontends:
    """What addresses of Services lead to, for pods of each node."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._facts = cluster, Facts(cluster)
        self._addresses = {one for service in cluster.services.values() for one in service.cluster_ips}
        for service in cluster.services.values():
            self._addresses.update(service.external_ips, (one.address for one in service.ingress))
        self._by_node: dict[str, Mapping[Frontend, FrontendState]] = {}

    def __repr__(self) -> str:
        return f"Frontends({len(self._addresses)} addresses)"

    def of(self, source: IPAddress, address: IPAddress, protocol: int, port: int) -> FrontendState | None:
        """Where a pod's connection leads, None when that is no Service. Addresses of pods and nodes are theirs."""
        if address not in self._addresses or protocol not in _PROTOCOLS:
            return None
        client = find_pod(self._facts, source)
        if client is None or self._facts.pods_with(address) or self._facts.nodes_with(address):
            return None
        if client.node not in self._by_node:
            balancing = LoadBalancing(client.node)
            objects = {("Service", key): one for key, one in self._cluster.services.items()}
            slices = {("EndpointSlice", key): one for key, one in self._cluster.slices.items()}
            nodes = {("Node", key): one for key, one in self._cluster.nodes.items()}
            balancing.apply({**objects, **slices, **nodes})
            self._by_node[client.node] = balancing.balance.frontends
        return self._by_node[client.node].get(Frontend(address, port, Protocol(protocol)))
