"""Ambient pods: HTTP is judged by a waypoint, and ztunnel must let nobody else in where HTTP is judged.

ztunnel leaves rules of an ALLOW policy out that ask for anything of HTTP, and drops the HTTP parts of a DENY policy
(which then denies more, or nothing). So the rules go to the waypoint (`targetRefs` to the Services, whose ports they
name), and a second policy, which ztunnel reads, lets the waypoint in on ports with HTTP rules, and on others whom
rules without HTTP mean. Sources: Istio, «Use Layer 7 features» and «L4 authorization policy» of ambient mode;
istio/istio, convertAuthorizationPolicy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import msgspec

from spliceway.policy.istio.compilerules import Compiled, Entry
from spliceway.policy.istio.httprules import RefusedError
from spliceway.policy.istio.mesh import Foreign, Mesh
from spliceway.policy.istio.objects import AuthorizationPolicy, AuthorizationRule, Operation, Source
from spliceway.policy.model import Cluster, Pod, Service
from spliceway.policy.verdict import Protocol

#: Which of an entry's policies a name is for.
Name = Callable[[Entry, str, int], str]


def for_waypoint(
    cluster: Cluster,
    mesh: Mesh,
    trust_domain: str,
    allowing: Mapping[Entry, tuple[AuthorizationRule, ...]],
    ready: Iterable[tuple[Entry, Compiled]],
    name: Name,
) -> Iterator[AuthorizationPolicy]:
    """Policies of one component of ambient pods. Raises RefusedError."""
    ready = list(ready)
    for entry, compiled in ready:
        if not entry.pods:
            raise RefusedError(f"{entry.policy.title} selects no pod, which could tell its Services")
        services = _services(cluster, entry.pods)
        waypoints = {_waypoint(cluster, mesh, service) for service in services}
        if entry.http and not services:
            raise RefusedError(
                "no Service selects these ambient pods: nothing leads to a waypoint, and ztunnel judges no HTTP"
            )
        if entry.http:
            _check_ways(cluster, mesh, entry.pods, services, waypoints)
        rules = allowing.get(entry)
        if any(
            source.ip_blocks or source.not_ip_blocks
            for rule in (*(rules or ()), *compiled.deny)
            for source in rule.sources
        ):
            raise RefusedError(f"{entry.policy.title} means addresses, and behind a waypoint those are the waypoint's")
        if any(target.namespace == mesh.root_namespace and target.match_labels for target in entry.targets):
            raise RefusedError(f"{entry.policy.title} is about every namespace, which no selector of ztunnel's is")
        _check_denied(entry, compiled, waypoints, trust_domain)
        if rules is not None:
            yield from _allow(entry, trust_domain, rules, services, waypoints, name)
        if compiled.deny:
            for index, service in enumerate(services):
                mapped = tuple(_mapped(rule, service, entry.pods) for rule in compiled.deny)
                kept = tuple(rule for rule in mapped if rule is not None)
                if kept:
                    yield AuthorizationPolicy(
                        service.namespace,
                        name(entry, "DENY", index),
                        "DENY",
                        kept,
                        (),
                        (service.name,),
                        entry.policy.title,
                    )
            for index, target in enumerate(entry.targets):
                yield AuthorizationPolicy(
                    target.namespace,
                    name(entry, "DENY-L4", index),
                    "DENY",
                    compiled.deny,
                    target.match_labels,
                    (),
                    entry.policy.title,
                )


def beside(cluster: Cluster, mesh: Mesh, pods: Iterable[Pod]) -> Foreign | None:
    """Somebody's AuthorizationPolicy that is judged at these pods' waypoints, beside ours."""
    pods = list(pods)
    places: set[tuple[str, str, str]] = set()
    for service in cluster.services.values():
        if not service.selector or not any(
            pod.namespace == service.namespace and service.selector.items() <= pod.labels.items() for pod in pods
        ):
            continue
        places.add((service.namespace, "Service", service.name))
        if (waypoint := mesh.waypoint(cluster, service.namespace, service.labels)) is not None:
            places.add((waypoint[0], "Gateway", waypoint[1]))
    for one in mesh.foreign:
        if any(
            (one.namespace, kind, name) in places or (kind == "GatewayClass" and one.namespace == mesh.root_namespace)
            for kind, name in one.targets
        ):
            return one
    return None


def _allow(
    entry: Entry,
    trust_domain: str,
    rules: tuple[AuthorizationRule, ...],
    services: list[Service],
    waypoints: set[tuple[str, str]],
    name: Name,
) -> Iterator[AuthorizationPolicy]:
    if any(rule.operation.not_ports for rule in rules):
        raise RefusedError("default deny is off, and a waypoint's ports are those of Services")
    for index, service in enumerate(services):
        mapped = tuple(_mapped(rule, service, entry.pods) for rule in rules)
        yield AuthorizationPolicy(
            service.namespace,
            name(entry, "ALLOW", index),
            "ALLOW",
            tuple(rule for rule in mapped if rule is not None),
            (),
            (service.name,),
            entry.policy.title,
        )
    behind = tuple(sorted({port for service in services for _, port in _ports(service, entry.pods)}))
    principals = _principals(waypoints, trust_domain)
    judged = tuple(rule for rule in rules if not rule.http)
    if principals and behind:
        judged = (AuthorizationRule((Source(principals),), Operation(behind)), *judged)
    for index, target in enumerate(entry.targets):
        yield AuthorizationPolicy(
            target.namespace,
            name(entry, "ALLOW-L4", index),
            "ALLOW",
            judged,
            target.match_labels,
            (),
            entry.policy.title,
        )


def _principals(waypoints: Iterable[tuple[str, str]], trust_domain: str) -> tuple[str, ...]:
    """A waypoint's service account has its Gateway's name."""
    return tuple(f"{trust_domain}/ns/{namespace}/sa/{name}" for namespace, name in sorted(waypoints))


def _check_denied(entry: Entry, compiled: Compiled, waypoints: Iterable[tuple[str, str]], trust_domain: str) -> None:
    """What ztunnel denies a waypoint would be denied whoever comes by it."""
    for waypoint in _principals(waypoints, trust_domain):
        for rule in compiled.deny:
            for source in rule.sources:
                if any(
                    waypoint == one or (one[-1] == "*" and waypoint.startswith(one[:-1])) for one in source.principals
                ):
                    raise RefusedError(f"{entry.policy.title} denies {waypoint}, by which everybody comes")


def _services(cluster: Cluster, pods: tuple[Pod, ...]) -> list[Service]:
    """Services that lead to these pods, and to no others: those would get the same rules."""
    wanted = {pod.key for pod in pods}
    found = []
    for service in cluster.services.values():
        behind = {
            pod.key
            for pod in cluster.pods.values()
            if service.selector
            and pod.namespace == service.namespace
            and service.selector.items() <= pod.labels.items()
            and not pod.host_network
        }
        if not behind & wanted:
            continue
        if not behind <= wanted:
            other = min(behind - wanted)
            raise RefusedError(f"Service {service.key} leads to pod {other}, too, which the policy is not about")
        found.append(service)
    return found


def _check_ways(
    cluster: Cluster, mesh: Mesh, pods: tuple[Pod, ...], services: list[Service], waypoints: Collection[tuple[str, str]]
) -> None:
    """A Service without a selector may lead to these pods by the same waypoint, which asks its policies then."""
    addresses = {address for pod in pods for address in pod.addresses}
    ours = {service.key for service in services}
    for found in cluster.slices.values():
        service = cluster.services.get(f"{found.namespace}/{found.service}")
        if service is None or service.key in ours:
            continue
        if mesh.waypoint(cluster, service.namespace, service.labels) in waypoints and any(
            not addresses.isdisjoint(endpoint.addresses) for endpoint in found.endpoints
        ):
            raise RefusedError(f"Service {service.key} leads to these pods, too, by EndpointSlice {found.key}")


def _waypoint(cluster: Cluster, mesh: Mesh, service: Service) -> tuple[str, str]:
    found = mesh.waypoint(cluster, service.namespace, service.labels)
    if found is None:
        raise RefusedError(
            f"Service {service.key} has no waypoint (label istio.io/use-waypoint), and ztunnel judges no HTTP"
        )
    return found


def _ports(service: Service, pods: tuple[Pod, ...]) -> list[tuple[int, int]]:
    """(port of the Service, port of the pods) of TCP ports. Raises RefusedError."""
    found = []
    for port in service.ports:
        if port.protocol is not Protocol.TCP:
            continue
        target = port.target
        if isinstance(target, str):
            numbers = {
                one.port for pod in pods for one in pod.ports if one.name == target and one.protocol is Protocol.TCP
            }
            if len(numbers) != 1:
                raise RefusedError(f"Service {service.key}: targetPort {target} is not one number for all its pods")
            target = numbers.pop()
        found.append((port.port, target or port.port))
    return found


def _mapped(rule: AuthorizationRule, service: Service, pods: tuple[Pod, ...]) -> AuthorizationRule | None:
    """The rule with the Service's ports, by which a waypoint knows them; None: the Service has none of them."""
    if not rule.operation.ports:
        return rule
    ports = tuple(port for port, target in _ports(service, pods) if target in rule.operation.ports)
    if not ports:
        return None
    return msgspec.structs.replace(rule, operation=msgspec.structs.replace(rule.operation, ports=ports))
