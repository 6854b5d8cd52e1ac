"""What Services mean on a node, worked out from scratch by the rules in docs/services.md, one after the other.

It shares nothing with the implementation but the values that it is asked for. Slow on purpose: every answer looks at
every object.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.model import EndpointSlice, Node, Object, Service


class End(NamedTuple):
    """One line of a slice: an address and port, and what is said of it."""

    address: Any
    port: int
    state: str  # ready, draining or down
    here: bool
    zones: frozenset[str]
    nodes: frozenset[str]


class Expected(NamedTuple):
    """`contested`: who else wants a frontend, best first."""

    frontends: dict[Frontend, FrontendState]
    contested: dict[Frontend, list[tuple[str, str]]]


def expected(objects: Iterable[Object], node: str) -> Expected:
    """All frontends of these objects for this node."""
    everything = list(objects)
    nodes = [item for item in everything if isinstance(item, Node) and item.name == node]
    zone = nodes[0].labels.get("topology.kubernetes.io/zone") if nodes else None
    wishes: dict[Frontend, list[tuple[tuple[Any, ...], FrontendState]]] = {}
    for service in (item for item in everything if isinstance(item, Service)):
        for frontend, kind, port_name in _frontends(service):
            ends = _ends(everything, service, frontend, port_name, node)
            if kind == "ClusterIP" and service.internal_local:
                chosen = _usable([end for end in ends if end.here])
            else:
                chosen = _near(ends, node, zone)
            numbers = sorted({(int(end.address), end.port) for end in chosen})
            make = type(frontend.address)
            backends = tuple(Backend(make(address), port) for address, port in numbers)
            state = FrontendState(
                f"{service.namespace}/{service.name}", port_name, kind, backends, service.affinity_seconds
            )
            place = ["ClusterIP", "LoadBalancer", "ExternalIP"].index(kind)
            age = service.created or "9999"
            wishes.setdefault(frontend, []).append(((place, age, f"{service.namespace}/{service.name}"), state))
    found: dict[Frontend, FrontendState] = {}
    contested: dict[Frontend, list[tuple[str, str]]] = {}
    for frontend, wanted in wishes.items():
        wanted.sort(key=lambda wish: wish[0])
        found[frontend] = wanted[0][1]
        others = [(state.service, state.kind) for _, state in wanted[1:] if state.service != wanted[0][1].service]
        if others:
            contested[frontend] = list(dict.fromkeys(others))
    return Expected(found, contested)


def _frontends(service: Service) -> list[tuple[Frontend, str, str]]:
    """Frontends of one Service with kind and port name; each once, as the best kind."""
    if service.type == "ExternalName":
        return []
    if {"service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"} & service.labels.keys():
        return []
    versions = [address.version for address in service.cluster_ips]
    addresses = [("ClusterIP", address) for address in service.cluster_ips]
    ranges = {block.version for block in service.source_ranges}
    for ingress in service.ingress:
        if not ingress.proxied and ingress.address.version not in ranges:
            addresses.append(("LoadBalancer", ingress.address))
    addresses += [("ExternalIP", address) for address in service.external_ips]
    found = []
    seen = set()
    for kind, address in addresses:
        for port in service.ports:
            frontend = Frontend(address, port.port, port.protocol)
            if address.version in versions and frontend not in seen:
                seen.add(frontend)
                found.append((frontend, kind, port.name))
    return found


def _ends(objects: list[Object], service: Service, frontend: Frontend, port_name: str, node: str) -> list[End]:
    lines: dict[tuple[Any, int], list[End]] = {}
    slices = [item for item in objects if isinstance(item, EndpointSlice)]
    for one in sorted(slices, key=lambda item: item.name):
        if (one.namespace, one.service) != (service.namespace, service.name) or one.headless:
            continue
        if one.family != frontend.address.version:
            continue
        for port in one.ports:
            if port.name != port_name or port.protocol != frontend.protocol or port.port is None:
                continue
            for endpoint in one.endpoints:
                if endpoint.addresses:
                    draining = endpoint.serving and endpoint.terminating
                    state = "ready" if endpoint.ready else "draining" if draining else "down"
                    end = End(
                        endpoint.addresses[0],
                        port.port,
                        state,
                        endpoint.node == node,
                        frozenset(endpoint.zones),
                        frozenset(endpoint.nodes),
                    )
                    lines.setdefault((end.address, end.port), []).append(end)
    return [([end for end in same if end.here] or same[:1])[-1] for same in lines.values()]


def _usable(ends: list[End]) -> list[End]:
    for state in ("ready", "draining"):
        if chosen := [end for end in ends if end.state == state]:
            return chosen
    return []


def _near(ends: list[End], node: str, zone: str | None) -> list[End]:
    usable = _usable(ends)
    if any(end.state != "ready" for end in usable):
        return usable
    if all(end.nodes for end in usable) and any(node in end.nodes for end in usable):
        return [end for end in usable if node in end.nodes]
    if all(end.zones for end in usable) and any(zone in end.zones for end in usable):
        return [end for end in usable if zone in end.zones]
    return usable
