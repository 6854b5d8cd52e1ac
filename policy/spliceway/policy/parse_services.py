"""Services, EndpointSlices, CIDR groups and Secrets: what policies refer to besides pods.

Sources: Kubernetes API reference (Service v1, EndpointSlice discovery.k8s.io/v1, Secret v1); Cilium's CRD
ciliumcidrgroups.yaml and pkg/k8s/endpoints.go (ParseEndpointSliceV1).
"""

from __future__ import annotations

import base64
import binascii

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import CidrGroup, EndpointSlice, IPAddress, Secret, Service
from spliceway.policy.parse_address import parse_address, parse_network
from spliceway.policy.parse_metadata import Metadata, parse_labels

#: Label of an EndpointSlice that names its Service.
SERVICE_NAME = "kubernetes.io/service-name"

_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_FAMILIES = {"IPv4": 4, "IPv6": 6, "FQDN": 0}


def parse_service(fields: Fields, where: Where) -> Service:
    """A Service: labels and spec.selector.

    Without a selector, or with an empty one, its endpoints come from elsewhere; ExternalName has none, only a name.
    """
    meta = Metadata(fields, where, "Service")
    where = meta.where
    spec = Fields(fields.take("spec", dict, {}), where.at("spec"))
    kind = spec.take("type", str, "ClusterIP")
    if kind not in _TYPES:
        spec.where.at("type").refuse(f"{shown(kind)} is not a type ({', '.join(_TYPES)})")
    selector = parse_labels(spec.take("selector", dict, {}), spec.where.at("selector"))
    return Service(
        meta.namespace,
        meta.name,
        selector if selector and kind != "ExternalName" else None,
        meta.labels,
        where.file,
    )


def parse_endpoint_slice(fields: Fields, where: Where) -> EndpointSlice:
    """An EndpointSlice: the Service it belongs to, and the addresses of endpoints that get traffic.

    As in Cilium these are the ready ones (unknown counts as ready), and those that still serve while they terminate.
    """
    meta = Metadata(fields, where, "EndpointSlice")
    where = meta.where
    family = fields.need("addressType", str)
    if family not in _FAMILIES:
        where.at("addressType").refuse(f"{shown(family)} is not an address type ({', '.join(_FAMILIES)})")
    found: list[IPAddress] = []
    for place, item in where.at("endpoints").items(fields.take("endpoints", list, []), dict):
        endpoint = Fields(item, place)
        addresses = list(place.at("addresses").items(endpoint.need("addresses", list), str))
        if not _FAMILIES[family]:
            continue  # names, and a policy is about addresses
        parsed = [parse_address(text, at) for at, text in addresses]
        for (at, text), address in zip(addresses, parsed, strict=True):
            if address.version != _FAMILIES[family]:
                at.refuse(f"{shown(text)} is not an {family} address")
        if _gets_traffic(Fields(endpoint.take("conditions", dict, {}), place.at("conditions"))):
            found += parsed
    service = meta.labels.get(SERVICE_NAME, "")
    return EndpointSlice(meta.namespace, meta.name, service, tuple(dict.fromkeys(found)), where.file)


def parse_cidr_group(fields: Fields, where: Where) -> CidrGroup:
    """A CiliumCIDRGroup: labels and spec.externalCIDRs."""
    meta = Metadata(fields, where, "CiliumCIDRGroup", namespaced=False)
    where = meta.where
    spec = Fields(fields.need("spec", dict), where.at("spec"))
    listed = spec.where.at("externalCIDRs").items(spec.need("externalCIDRs", list), str)
    cidrs = tuple(parse_network(text, place) for place, text in listed)
    spec.done()
    fields.ignore("status")
    fields.done()
    return CidrGroup(meta.name, tuple(dict.fromkeys(cidrs)), meta.labels, where.file)


def parse_secret(fields: Fields, where: Where) -> Secret:
    """A Secret: data (base64) and stringData, which comes first. No error ever repeats a value."""
    meta = Metadata(fields, where, "Secret")
    where = meta.where
    found: dict[str, bytes] = {}
    for key, value in _mapping(fields, "data", where).items():
        place = where.at("data").at(shown(key))
        try:
            found[key] = base64.b64decode("".join(_text(value, place).split()), validate=True)
        except (binascii.Error, ValueError):
            place.refuse("is not base64")
    for key, value in _mapping(fields, "stringData", where).items():
        place = where.at("stringData").at(shown(key))
        try:
            found[key] = _text(value, place).encode()
        except UnicodeEncodeError:
            place.refuse("is not text")
    return Secret(meta.namespace, meta.name, found, where.file)


def _mapping(fields: Fields, key: str, where: Where) -> dict[str, object]:
    """A mapping whose text an error must not show."""
    value = fields.raw(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        where.at(key).refuse("must be a mapping")
    return value


def _text(value: object, where: Where) -> str:
    """A string that an error must not show. Null is the empty value, as the API server reads it."""
    if value is None:
        return ""
    if not isinstance(value, str):
        where.refuse("must be a string")
    return value


def _gets_traffic(conditions: Fields) -> bool:
    ready = conditions.take("ready", bool)
    serving = conditions.take("serving", bool)
    terminating = conditions.take("terminating", bool)
    return ready is not False or (serving is not False and terminating is True)
