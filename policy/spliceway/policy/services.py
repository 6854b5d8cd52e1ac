"""What names in rules stand for: CIDR groups, Services, and the pods and addresses behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from spliceway.policy.labels import NAMESPACE_KEY, Operator, Requirement, Selector
from spliceway.policy.model import CidrGroup, CidrPeer, EndpointSlice, IPAddress, Peers, Service, ServicePeer
from spliceway.policy.prefixsets import host_prefix
from spliceway.policy.selectors import facts_of, matcher
from spliceway.policy.table import IPNetwork

#: The Service behind which the API server is (Kubernetes makes it in every cluster).
API_SERVER = ("default", "kubernetes")


class Directory:
    """Services, their EndpointSlices, and CIDR groups by name."""

    def __init__(self) -> None:
        self._services: dict[str, dict[str, Service]] = {}
        self._slices: dict[tuple[str, str], dict[str, EndpointSlice]] = {}
        self._groups: dict[str, CidrGroup] = {}

    def put_service(self, old: Service | None, new: Service | None) -> None:
        """A Service came, changed or went."""
        if old is not None:
            of_namespace = self._services[old.namespace]
            del of_namespace[old.name]
            if not of_namespace:
                del self._services[old.namespace]
        if new is not None:
            self._services.setdefault(new.namespace, {})[new.name] = new

    def put_slice(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        """An EndpointSlice came, changed or went."""
        if old is not None:
            place = old.namespace, old.service
            del self._slices[place][old.name]
            if not self._slices[place]:
                del self._slices[place]
        if new is not None:
            self._slices.setdefault((new.namespace, new.service), {})[new.name] = new

    def put_group(self, old: CidrGroup | None, new: CidrGroup | None) -> None:
        """A CIDR group came, changed or went."""
        if old is not None:
            del self._groups[old.name]
        if new is not None:
            self._groups[new.name] = new

    def service(self, namespace: str, name: str) -> Service | None:
        """A Service by its name."""
        return self._services.get(namespace, {}).get(name)

    def services(self, peer: ServicePeer) -> Iterator[Service]:
        """The Services that a rule means."""
        for namespace in (peer.namespace,) if peer.namespace else sorted(self._services):
            known = self._services.get(namespace, {})
            if peer.selector is None:
                if peer.name in known:
                    yield known[peer.name]
            else:
                yield from (service for _, service in sorted(known.items()) if means(peer, service))

    def prefixes(self, peer: CidrPeer) -> Iterator[IPNetwork]:
        """What a CIDR rule names, itself or by groups. A group that is not there names nothing."""
        if peer.cidr is not None:
            yield peer.cidr
        elif peer.groups is None:
            yield from self._groups[peer.group].cidrs if peer.group in self._groups else ()
        else:
            for _, group in sorted(self._groups.items()):
                if matcher(peer.groups).matches(k8s_facts(group.labels)):
                    yield from group.cidrs

    def behind(self, service: Service) -> Iterator[IPAddress]:
        """The addresses of a Service's EndpointSlices."""
        for _, found in sorted(self._slices.get((service.namespace, service.name), {}).items()):
            yield from found.addresses


def means(peer: ServicePeer, service: Service) -> bool:
    """Whether a rule means this Service."""
    if peer.namespace and peer.namespace != service.namespace:
        return False
    if peer.selector is None:
        return peer.name == service.name
    return matcher(peer.selector).matches(k8s_facts(service.labels))


def service_selector(service: Service) -> Selector | None:
    """The selector of a Service, for identities; None when it has none (also when it is empty, as in Kubernetes)."""
    if not service.selector:
        return None
    labels = {**service.selector, NAMESPACE_KEY: service.namespace}
    return Selector(tuple(Requirement("k8s", key, Operator.IN, (value,)) for key, value in sorted(labels.items())))


def k8s_facts(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels of an object as selectors see them."""
    return facts_of(f"k8s:{key}={value}" for key, value in labels.items())


def cidr_atoms(directory: Directory, peers: Peers) -> Iterator[tuple[IPNetwork, tuple[IPNetwork, ...], bool]]:
    """Every prefix that these peers mean, with its exceptions, and whether it means pods and nodes too."""
    for peer in peers.cidrs:
        for prefix in directory.prefixes(peer):
            yield prefix, peer.excepts, peer.inside
    for named in peers.services:
        for service in directory.services(named):
            if not service.selector:
                for address in directory.behind(service):
                    yield host_prefix(address), (), False


def selector_atoms(directory: Directory, peers: Peers) -> Iterable[Selector]:
    """Every selector that these Services stand for."""
    for named in peers.services:
        for service in directory.services(named):
            selector = service_selector(service)
            if selector is not None:
                yield selector
