"""EndpointSlices: endpoints with their conditions, places and hints.

Sources: Kubernetes API reference (EndpointSlice discovery.k8s.io/v1) and its validation
(pkg/apis/discovery/validation); Cilium's pkg/k8s/endpoints.go (ParseEndpointSliceV1).
"""

from __future__ import annotations

from collections.abc import Mapping

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.parse_address import parse_address
from spliceway.policy.parse_metadata import Metadata
from spliceway.policy.parse_port import check_port_number, kubernetes_protocol
from spliceway.policy.parse_services import take_port_name
from spliceway.policy.servicemodel import HEADLESS, SERVICE_NAME, Endpoint, EndpointSlice, SlicePort

_FAMILIES: Mapping[str, int] = {"IPv4": 4, "IPv6": 6, "FQDN": 0}


def parse_endpoint_slice(fields: Fields, where: Where) -> EndpointSlice:
    """An EndpointSlice: the Service it belongs to, its ports and its endpoints.

    Of the type FQDN it has names, which nobody here reads: then there are no endpoints.
    """
    meta = Metadata(fields, where, "EndpointSlice")
    where = meta.where
    kind = fields.need("addressType", str)
    if kind not in _FAMILIES:
        where.at("addressType").refuse(f"{shown(kind)} is not an address type ({', '.join(_FAMILIES)})")
    family = _FAMILIES[kind]
    items = list(where.at("endpoints").items(fields.take("endpoints", list, []), dict))
    endpoints = tuple(_endpoint(Fields(item, place), kind) for place, item in items)
    return EndpointSlice(
        meta.namespace,
        meta.name,
        meta.labels.get(SERVICE_NAME, ""),
        endpoints if family else (),
        where.file,
        family,
        _ports(fields, where),
        HEADLESS in meta.labels,
    )


def _endpoint(fields: Fields, kind: str) -> Endpoint:
    where = fields.where
    addresses = []
    for place, text in where.at("addresses").items(fields.need("addresses", list), str):
        if kind == "FQDN":
            continue
        address = parse_address(text, place)
        if address.version != _FAMILIES[kind]:
            place.refuse(f"{shown(text)} is not an {kind} address")
        addresses.append(address)
    # What is not known counts as ready and serving, and as not terminating.
    conditions = Fields(fields.take("conditions", dict, {}), where.at("conditions"))
    hints = Fields(fields.take("hints", dict, {}), where.at("hints"))
    return Endpoint(
        tuple(dict.fromkeys(addresses)),
        ready=conditions.take("ready", bool, True),
        serving=conditions.take("serving", bool, True),
        terminating=conditions.take("terminating", bool, False),
        node=fields.take("nodeName", str, ""),
        zone=fields.take("zone", str, ""),
        zones=_names(hints, "forZones"),
        nodes=_names(hints, "forNodes"),
        target=_target(Fields(fields.take("targetRef", dict, {}), where.at("targetRef"))),
    )


def _names(hints: Fields, key: str) -> tuple[str, ...]:
    """Names of a list of hints, sorted. An empty one is refused: it would be a hint for whoever has no zone."""
    found = set()
    for place, item in hints.where.at(key).items(hints.take(key, list, []), dict):
        name = Fields(item, place).need("name", str)
        if not name:
            place.at("name").refuse("is empty")
        found.add(name)
    return tuple(sorted(found))


def _target(fields: Fields) -> str:
    """«Kind namespace/name», as far as it is said."""
    kind, namespace, name = (fields.take(key, str, "") for key in ("kind", "namespace", "name"))
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}".strip()


def _ports(fields: Fields, where: Where) -> tuple[SlicePort, ...]:
    """Ports of the endpoints. Without any, or with null for a number, all ports are meant."""
    found: list[SlicePort] = []
    for place, item in where.at("ports").items(fields.take("ports", list, []), dict):
        port = Fields(item, place)
        number = port.take("port", int)
        if number is not None:
            check_port_number(number, place.at("port"))
        one = SlicePort(take_port_name(port), kubernetes_protocol(port), number)
        if any(other.name == one.name for other in found):
            place.at("name").refuse(f"{shown(one.name)} appears twice")
        found.append(one)
    return tuple(found)
