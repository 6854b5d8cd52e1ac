"""toPorts of Cilium's policies: ports, protocols and HTTP rules.

Sources: Cilium pkg/policy/api/l4.go and rule_validation.go.
"""

from __future__ import annotations

import re
from typing import Any

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import PortRange, PortRule
from spliceway.policy.parse_http import parse_http_rules
from spliceway.policy.parse_port import LAST_PORT, is_port_name, named_port
from spliceway.policy.verdict import Protocol

#: Most ports in one entry of toPorts, as in Cilium.
MAX_PORTS = 40

_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "ANY": Protocol.ANY}
_ICMP = ("ICMP", "ICMPv6", "ICMPV6")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


def parse_port_rules(fields: Fields, path: str, namespace: str, *, deny: bool) -> tuple[PortRule, ...]:
    """The entries of toPorts, empty when there are none: then every protocol and port is meant.

    `namespace` is the policy's, empty when it is clusterwide.
    """
    where = fields.where.at("toPorts")
    entries = where.items(fields.take("toPorts", list, []), dict)
    return tuple(
        _port_rule(Fields(item, place), f"{path}.toPorts[{index}]", namespace, deny=deny)
        for index, (place, item) in enumerate(entries)
    )


def _port_rule(fields: Fields, path: str, namespace: str, *, deny: bool) -> PortRule:
    where = fields.where
    fields.unsupported(("terminatingTLS", "originatingTLS", "serverNames", "listener"))
    listed = fields.take("ports", list, [])
    if not listed:
        # Cilium lets such an entry pass and matches nothing with it.
        where.at("ports").refuse("needs at least one port (for every port, leave toPorts out)")
    if len(listed) > MAX_PORTS:
        where.at("ports").refuse(f"{len(listed)} ports are more than {MAX_PORTS}")
    ports = tuple(_port(Fields(item, place)) for place, item in where.at("ports").items(listed, dict))
    rules = fields.take("rules", dict)
    http = None
    if rules is not None:
        if deny:
            where.at("rules").refuse("not allowed in deny rules")
        http = parse_http_rules(Fields(rules, where.at("rules")), path, namespace)
        for index, port in enumerate(ports):
            place = where.at("ports").item(index)
            if port.protocol is not Protocol.TCP:
                place.at("protocol").refuse(f"HTTP rules need protocol TCP, not {port.protocol.name}")
            if port.first == 0 and not port.name:
                place.at("port").refuse("HTTP rules need a port, not 0")
    fields.done()
    return PortRule(path, ports, http)


def _port(fields: Fields) -> PortRange:
    where = fields.where
    given = fields.take("protocol", str, "ANY")
    if given in _ICMP:
        where.at("protocol").refuse(f"{given} has no ports (use icmps)")
    if given.upper() not in _PROTOCOLS:
        where.at("protocol").refuse(f"{shown(given)} is not a protocol ({', '.join(_PROTOCOLS)})")
    protocol = _PROTOCOLS[given.upper()]
    port = _number_or_name(fields.raw("port"), where.at("port"))
    last = fields.take("endPort", int, 0)  # 0 is the zero value of the API: no range
    fields.done()
    if isinstance(port, str):
        if last:
            where.at("endPort").refuse("a named port has no range")
        return named_port(protocol, port)
    if port == 0:
        if last:
            where.at("endPort").refuse("port 0 means every port and has no range")
        return PortRange(protocol, 0, LAST_PORT)
    if last and not port <= last <= LAST_PORT:
        where.at("endPort").refuse(f"{last} is not a port from {port} to {LAST_PORT}")
    return PortRange(protocol, port, last or port)


def _number_or_name(value: Any, where: Where) -> int | str:
    """A port as a decimal string, or its name in any case. Integers are taken too; 0 means every port, as in Cilium."""
    if value is None:
        where.refuse("is missing")
    if type(value) is not int:
        text: str = where.typed(value, str)
        if not _NUMBER.fullmatch(text):
            if is_port_name(text.lower()):
                return text.lower()
            where.refuse(f"{shown(text)} is not a port (1 to {LAST_PORT}, or a name)")
        value = int(text)
    if not 0 <= value <= LAST_PORT:
        where.refuse(f"{shown(str(value))} is not a port (1 to {LAST_PORT})")
    return int(value)
