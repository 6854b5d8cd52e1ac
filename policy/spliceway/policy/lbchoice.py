"""Which endpoints a node sends a Service's traffic to, and which frontends a Service has. Pure, for one Service.

The rules are kube-proxy's, for connections that pods of the node open. Sources: kubernetes, pkg/proxy: topology.go
(CategorizeEndpoints), endpointslicecache.go, serviceport.go, servicechangetracker.go, util/utils.go
(ShouldSkipService), cmd/kube-proxy/app/server.go; KEP-1669 (terminating endpoints), KEP-3015 (hints for nodes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from spliceway.policy.lbmodel import (
    CLUSTER_IP,
    EXTERNAL_IP,
    LOAD_BALANCER,
    Backend,
    Claim,
    Frontend,
    FrontendState,
    backend_order,
)
from spliceway.policy.servicemodel import HEADLESS, PROXY_NAME, Endpoint, EndpointSlice, Service, ServicePort
from spliceway.policy.table import IPAddress


class Here(msgspec.Struct, frozen=True):
    """The node that chooses, and its zone (label topology.kubernetes.io/zone), empty where that is not known."""

    node: str
    zone: str = ""


def left_out(service: Service) -> tuple[str, ...]:
    """Why a Service, or a part of it, has no frontends though it has addresses; one sentence for each reason."""
    if service.type == "ExternalName" or not service.cluster_ips:
        return ()
    if PROXY_NAME in service.labels:
        return (f"another service proxy has it (label {PROXY_NAME}: {service.labels[PROXY_NAME] or '(empty)'})",)
    if HEADLESS in service.labels:
        return (f"it is headless by its label {HEADLESS}",)
    families = {address.version for address in service.cluster_ips}
    found = []
    for ingress in service.ingress:
        if ingress.proxied:
            found.append(f"{ingress.address}: ipMode Proxy, the load balancer answers itself")
        elif ingress.address.version not in families:
            found.append(_without_family(ingress.address))
        elif _filtered(service, ingress.address):
            found.append(f"{ingress.address}: loadBalancerSourceRanges says who may dial it")
    found += [_without_family(address) for address in service.external_ips if address.version not in families]
    return tuple(found)


def claims(service: Service, slices: Iterable[EndpointSlice], here: Here) -> dict[Frontend, Claim]:
    """The frontends that a Service wants, with what they lead to; `slices` are those of the Service.

    A Service has frontends of the IP versions only of which it has a cluster IP. What pods dial from within is subject
    to internalTrafficPolicy at the cluster IP only: external addresses are answered for as a load balancer would
    answer, by any endpoint, whatever externalTrafficPolicy says.
    """
    if service.type == "ExternalName" or PROXY_NAME in service.labels or HEADLESS in service.labels:
        return {}
    found: dict[Frontend, Claim] = {}
    ordered = sorted(slices, key=lambda one: one.name)
    for cluster_ip in service.cluster_ips:
        outside = [
            (LOAD_BALANCER, one.address)
            for one in service.ingress
            if not one.proxied and one.address.version == cluster_ip.version and not _filtered(service, one.address)
        ]
        outside += [(EXTERNAL_IP, one) for one in service.external_ips if one.version == cluster_ip.version]
        for port in service.ports:
            endpoints = endpoints_of(ordered, port, cluster_ip.version, here)
            anywhere = _sorted(choose(endpoints, here))
            inside = _sorted(choose_local(endpoints, here)) if service.internal_local else anywhere
            for kind, address in ((CLUSTER_IP, cluster_ip), *outside):
                state = FrontendState(
                    service.key,
                    port.name,
                    kind,
                    inside if kind == CLUSTER_IP else anywhere,
                    service.affinity_seconds,
                )
                # An address that it has twice is of the kind that comes first.
                found.setdefault(Frontend(address, port.port, port.protocol), Claim(state, service.created))
    return found


def endpoints_of(
    slices: Iterable[EndpointSlice], port: ServicePort, family: int, here: Here
) -> dict[Backend, Endpoint]:
    """Endpoints of a port of a Service, each once. Of the same one in several slices the first counts, or a local one.

    A slice's port is that of the same name and protocol. One without a number, and a slice without ports, mean every
    port: nothing says then which one a connection should go to, and there are no endpoints. Of several addresses of
    an endpoint the first counts.
    """
    found: dict[Backend, Endpoint] = {}
    for one in slices:
        if one.family != family or one.headless:
            continue
        for named in one.ports:
            if named.port is None or (named.name, named.protocol) != (port.name, port.protocol):
                continue
            for endpoint in one.endpoints:
                if not endpoint.addresses:
                    continue
                backend = Backend(endpoint.addresses[0], named.port)
                if backend not in found or endpoint.node == here.node:
                    found[backend] = endpoint
    return found


def choose(endpoints: Mapping[Backend, Endpoint], here: Here) -> list[Backend]:
    """Traffic policy Cluster: the ready ones, of these the ones that hints mean for this node or else for its zone.

    Hints count only if every ready endpoint has some and one at least is for here. Where none is ready, those that
    still serve while they terminate.
    """
    ready = [backend for backend, endpoint in endpoints.items() if endpoint.ready]
    if not ready:
        return [backend for backend, endpoint in endpoints.items() if endpoint.serving and endpoint.terminating]
    said = [endpoint for endpoint in endpoints.values() if endpoint.ready]
    for name, hints in ((here.node, [one.nodes for one in said]), (here.zone, [one.zones for one in said])):
        if all(hints) and (meant := [one for one, names in zip(ready, hints, strict=True) if name in names]):
            return meant
    return ready


def choose_local(endpoints: Mapping[Backend, Endpoint], here: Here) -> list[Backend]:
    """Traffic policy Local: those of this node that are ready, or else still serve while they terminate."""
    local = {backend: endpoint for backend, endpoint in endpoints.items() if endpoint.node == here.node}
    ready = [backend for backend, endpoint in local.items() if endpoint.ready]
    return ready or [backend for backend, endpoint in local.items() if endpoint.serving and endpoint.terminating]


def _sorted(backends: Iterable[Backend]) -> tuple[Backend, ...]:
    return tuple(sorted(backends, key=backend_order))


def _filtered(service: Service, address: IPAddress) -> bool:
    """Whether only some may dial this address of a load balancer, which is not for a table of all pods to say."""
    return any(block.version == address.version for block in service.source_ranges)


def _without_family(address: IPAddress) -> str:
    return f"{address}: the Service has no cluster IP of IPv{address.version}"
