"""Ports of the administrators' policies, in the form of each version.

Sources: network-policy-api, apis/v1alpha2/clusternetworkpolicy_types.go (ClusterNetworkPolicyProtocol) and
apis/v1alpha1/shared_types.go (AdminNetworkPolicyPort).
"""

from __future__ import annotations

from typing import Any

from spliceway.policy.fields import Fields, Where
from spliceway.policy.model import PortRange
from spliceway.policy.parse_port import (
    KUBERNETES_PROTOCOLS,
    check_port_name,
    check_port_number,
    kubernetes_protocol,
    named_port,
)
from spliceway.policy.verdict import Protocol

_PROTOCOLS = {name.lower(): protocol for name, protocol in KUBERNETES_PROTOCOLS.items()}


def parse_protocols(value: Any, where: Where) -> PortRange:
    """An entry of `protocols` (v1alpha2): tcp, udp or sctp with a port, or the name of a port."""
    fields = Fields(value, where)
    given = fields.one_of(*_PROTOCOLS, "destinationNamedPort")
    place = where.at(given)
    if given == "destinationNamedPort":
        found = _named(fields, given)
    else:
        inner = Fields(fields.need(given, dict), place)
        port = Fields(inner.need("destinationPort", dict), place.at("destinationPort"))
        inner.done()
        if port.one_of("number", "range") == "number":
            number = check_port_number(port.need("number", int), port.where.at("number"))
            found = PortRange(_PROTOCOLS[given], number, number)
        else:
            found = _range(Fields(port.need("range", dict), port.where.at("range")), _PROTOCOLS[given])
        port.done()
    fields.done()
    return found


def parse_ports(value: Any, where: Where) -> PortRange:
    """An entry of `ports` (v1alpha1): a number, a range, or a name."""
    fields = Fields(value, where)
    given = fields.one_of("portNumber", "portRange", "namedPort")
    if given == "namedPort":
        found = _named(fields, given)
    else:
        inner = Fields(fields.need(given, dict), where.at(given))
        protocol = kubernetes_protocol(inner)
        if given == "portNumber":
            number = check_port_number(inner.need("port", int), inner.where.at("port"))
            inner.done()
            found = PortRange(protocol, number, number)
        else:
            found = _range(inner, protocol)
    fields.done()
    return found


def _range(fields: Fields, protocol: Protocol) -> PortRange:
    first, last = (check_port_number(fields.need(key, int), fields.where.at(key)) for key in ("start", "end"))
    fields.done()
    if first >= last:
        fields.where.at("end").refuse(f"{last} is not more than start ({first})")
    return PortRange(protocol, first, last)


def _named(fields: Fields, key: str) -> PortRange:
    """A named port has no protocol here: whichever the containers give it."""
    return named_port(Protocol.ANY, check_port_name(fields.need(key, str), fields.where.at(key)))
