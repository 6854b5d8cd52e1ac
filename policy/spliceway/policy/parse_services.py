"""Services: strict where a wrong reading would send traffic elsewhere, tolerant of fields that mean nothing here.

Sources: Kubernetes API reference (Service v1) and its validation (pkg/apis/core/validation: ValidateService).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address

from spliceway.policy.fields import DNS_LABEL, Fields, Where, shown
from spliceway.policy.model import IPAddress
from spliceway.policy.parse_address import parse_address, parse_network
from spliceway.policy.parse_metadata import Metadata, parse_labels
from spliceway.policy.parse_port import LAST_PORT, check_port_name, check_port_number, kubernetes_protocol
from spliceway.policy.servicemodel import Ingress, Service, ServicePort
from spliceway.policy.table import IPNetwork

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_FAMILIES: Mapping[str, int] = {"IPv4": 4, "IPv6": 6}
_LOCAL: Mapping[str, bool] = {"Cluster": False, "Local": True}
_AFFINITIES: Mapping[str, bool] = {"None": False, "ClientIP": True}
_PROXIED: Mapping[str, bool] = {"VIP": False, "Proxy": True}
_NONE = "None"
_BROADCAST = IPv4Address("255.255.255.255")

#: How long a client stays with its endpoint where a Service does not say, and at most, in seconds.
AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400


def parse_service(fields: Fields, where: Where) -> Service:
    """A Service with what policies and load balancing read of it.

    Without a selector, or with an empty one, its endpoints come from elsewhere; ExternalName has none, only a name.
    """
    meta = Metadata(fields, where, "Service")
    where = meta.where
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    status = Fields(fields.take("status", dict, {}), where.at("status"))
    kind = spec.take("type", str, "ClusterIP")
    if kind not in _TYPES:
        spec.where.at("type").refuse(f"{shown(kind)} is not a type ({', '.join(_TYPES)})")
    selector = parse_labels(spec.take("selector", dict, {}), spec.where.at("selector"))
    headless, cluster_ips = _cluster_ips(spec)
    return Service(
        meta.namespace,
        meta.name,
        selector if selector and kind != "ExternalName" else None,
        meta.labels,
        where.file,
        type=kind,
        cluster_ips=cluster_ips,
        headless=headless,
        families=_families(spec, cluster_ips),
        external_ips=_external_ips(spec),
        ingress=tuple(dict.fromkeys(_ingress(status))),
        source_ranges=_source_ranges(spec),
        ports=_ports(spec),
        internal_local=_choice(spec, "internalTrafficPolicy", "a traffic policy", _LOCAL),
        external_local=_choice(spec, "externalTrafficPolicy", "a traffic policy", _LOCAL),
        affinity_seconds=_affinity(spec),
        distribution=spec.take("trafficDistribution", str, ""),
        publish_not_ready=spec.take("publishNotReadyAddresses", bool, False),
        external_name=spec.take("externalName", str, ""),
        created=meta.created,
    )


def _cluster_ips(spec: Fields) -> tuple[bool, tuple[IPAddress, ...]]:
    """Whether it is headless, and its cluster IPs: `clusterIPs`, of which `clusterIP` is the first."""
    one: str = spec.take("clusterIP", str, "")
    listed = list(spec.where.at("clusterIPs").items(spec.take("clusterIPs", list, []), str))
    if one not in ("", _NONE):
        parse_address(one, spec.where.at("clusterIP"))
    if one and listed and listed[0][1] != one:
        listed[0][0].refuse(f"{shown(listed[0][1])} is not spec.clusterIP ({shown(one)})")
    if not listed and one:
        listed = [(spec.where.at("clusterIP"), one)]
    if any(text == _NONE for _, text in listed):
        if len(listed) > 1:
            spec.where.at("clusterIPs").refuse(f"{_NONE} must be alone: there are addresses beside it")
        return True, ()
    found: list[IPAddress] = []
    for place, text in listed:
        address = _destination(text, place)
        if any(address.version == other.version for other in found):
            place.refuse(f"{shown(text)} is a second address of IPv{address.version}")
        found.append(address)
    return False, tuple(found)


def _families(spec: Fields, cluster_ips: tuple[IPAddress, ...]) -> tuple[int, ...]:
    """IP versions of ipFamilies, which are those of the cluster IPs, one by one, where both are there."""
    found: list[int] = []
    where = spec.where.at("ipFamilies")
    for place, text in where.items(spec.take("ipFamilies", list, []), str):
        if text not in _FAMILIES:
            place.refuse(f"{shown(text)} is not an IP family ({', '.join(_FAMILIES)})")
        found.append(_FAMILIES[text])
    versions = [address.version for address in cluster_ips]
    if found and versions and found != versions:
        of_addresses = ", ".join(f"IPv{version}" for version in versions)
        where.refuse(f"does not fit spec.clusterIPs, which are of {of_addresses}")
    return tuple(found)


def _external_ips(spec: Fields) -> tuple[IPAddress, ...]:
    items = spec.where.at("externalIPs").items(spec.take("externalIPs", list, []), str)
    return tuple(dict.fromkeys(_destination(text, place) for place, text in items))


def _ingress(status: Fields) -> Iterator[Ingress]:
    """Addresses of status.loadBalancer.ingress; entries that have only a host name are not for us."""
    balancer = Fields(status.take("loadBalancer", dict, {}), status.where.at("loadBalancer"))
    for place, item in balancer.where.at("ingress").items(balancer.take("ingress", list, []), dict):
        entry = Fields(item, place)
        proxied = _choice(entry, "ipMode", "an IP mode", _PROXIED)
        if text := entry.take("ip", str, ""):
            yield Ingress(_destination(text, place.at("ip")), proxied)


def _destination(text: str, where: Where) -> IPAddress:
    """An address of a Service. What means something else to a socket is refused: a frontend would take it away."""
    address = parse_address(text, where)
    several = address.is_multicast or address == _BROADCAST
    if address.is_unspecified or address.is_loopback or several or address.is_link_local:
        where.refuse(
            f"{shown(text)} is no address for a Service (unspecified, loopback, link-local, multicast or broadcast)"
        )
    return address


def _source_ranges(spec: Fields) -> tuple[IPNetwork, ...]:
    field = "loadBalancerSourceRanges"
    items = spec.where.at(field).items(spec.take(field, list, []), str)
    # The API server lets white space pass, and kube-proxy takes it off.
    return tuple(dict.fromkeys(parse_network(text.strip(), place) for place, text in items))


def _ports(spec: Fields) -> tuple[ServicePort, ...]:
    found: list[ServicePort] = []
    items = list(spec.where.at("ports").items(spec.take("ports", list, []), dict))
    for place, item in items:
        port = _port(Fields(item, place))
        if not port.name and len(items) > 1:
            place.at("name").refuse("is missing: of several ports each needs a name")
        for other in found:
            if other.name == port.name:
                place.at("name").refuse(f"{shown(port.name)} appears twice")
            if (other.protocol, other.port) == (port.protocol, port.port):
                place.at("port").refuse(f"{port.port} of {port.protocol.name} appears twice")
        found.append(port)
    return tuple(found)


def _port(fields: Fields) -> ServicePort:
    where = fields.where
    number = check_port_number(fields.need("port", int), where.at("port"))
    target: int | str = fields.raw("targetPort") or number  # both empty values mean the port itself
    if isinstance(target, str):
        check_port_name(target, where.at("targetPort"))
    else:
        check_port_number(where.at("targetPort").typed(target, int), where.at("targetPort"))
    node_port: int = fields.take("nodePort", int, 0)
    if not 0 <= node_port <= LAST_PORT:
        where.at("nodePort").refuse(f"{node_port} is not a port (1 to {LAST_PORT}, or 0 for none)")
    return ServicePort(take_port_name(fields), kubernetes_protocol(fields), number, target, node_port)


def take_port_name(fields: Fields) -> str:
    """Field `name` of a port of a Service or EndpointSlice: a DNS label, or empty."""
    name: str = fields.take("name", str, "")
    if name and not DNS_LABEL.fullmatch(name):
        fields.where.at("name").refuse(f"{shown(name)} is not a port name (lower-case letters, digits and «-»)")
    return name


def _affinity(spec: Fields) -> int:
    """Seconds of session affinity, 0: none."""
    config = Fields(spec.take("sessionAffinityConfig", dict, {}), spec.where.at("sessionAffinityConfig"))
    client = Fields(config.take("clientIP", dict, {}), config.where.at("clientIP"))
    seconds: int = client.take("timeoutSeconds", int, AFFINITY_SECONDS)
    if not 1 <= seconds <= MAX_AFFINITY_SECONDS:
        client.where.at("timeoutSeconds").refuse(f"{seconds} is not from 1 to {MAX_AFFINITY_SECONDS} seconds")
    return seconds if _choice(spec, "sessionAffinity", "a session affinity", _AFFINITIES) else 0


def _choice(fields: Fields, key: str, noun: str, values: Mapping[str, bool]) -> bool:
    """What one of these words means; the first where there is none."""
    word: str = fields.take(key, str, "") or next(iter(values))
    if word not in values:
        fields.where.at(key).refuse(f"{shown(word)} is not {noun} ({', '.join(values)})")
    return values[word]
