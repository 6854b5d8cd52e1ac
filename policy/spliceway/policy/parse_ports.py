"""toPorts: ports, protocols and HTTP rules.

Sources: Cilium pkg/policy/api/l4.go, http.go and rule_validation.go.
"""

from __future__ import annotations

import re
from typing import Any

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import HttpMatch, PortRange, PortRule
from spliceway.policy.regex import RegexError, compile_regex
from spliceway.policy.verdict import Direction, Protocol

#: Most ports in one entry of toPorts, as in Cilium.
MAX_PORTS = 40

_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "ANY": Protocol.ANY}
_ICMP = ("ICMP", "ICMPv6", "ICMPV6")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")
#: IANA service names: what a port name looks like (RFC 6335, section 5.1).
_PORT_NAME = re.compile(r"([a-zA-Z0-9]-?)*[a-zA-Z](-?[a-zA-Z0-9])*")
_LAST = 65535


def parse_port_rules(fields: Fields, path: str, direction: Direction, *, deny: bool) -> tuple[PortRule, ...]:
    """The entries of toPorts, empty when there are none: then every protocol and port is meant."""
    where = fields.where.at("toPorts")
    entries = where.items(fields.take("toPorts", list, []), dict)
    return tuple(
        _port_rule(Fields(item, place), f"{path}.toPorts[{index}]", direction, deny=deny)
        for index, (place, item) in enumerate(entries)
    )


def _port_rule(fields: Fields, path: str, direction: Direction, *, deny: bool) -> PortRule:
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
        http = _http(Fields(rules, where.at("rules")), path, direction)
        for index, port in enumerate(ports):
            place = where.at("ports").item(index)
            if port.protocol is not Protocol.TCP:
                place.at("protocol").refuse(f"HTTP rules need protocol TCP, not {port.protocol.name}")
            if port.first == 0:
                place.at("port").refuse("HTTP rules need a port, not 0")
    fields.done()
    return PortRule(path, ports, http)


def _port(fields: Fields) -> PortRange:
    where = fields.where
    name = fields.take("protocol", str, "ANY")
    if name in _ICMP:
        where.at("protocol").refuse(f"{name} has no ports (icmps is not supported yet)")
    if name.upper() not in _PROTOCOLS:
        where.at("protocol").refuse(f"{shown(name)} is not a protocol ({', '.join(_PROTOCOLS)})")
    protocol = _PROTOCOLS[name.upper()]
    first = _number(fields.raw("port"), where.at("port"))
    last = fields.take("endPort", int, first)
    fields.done()
    if first == 0:
        if last:
            where.at("endPort").refuse("port 0 means every port and has no range")
        return PortRange(protocol, 0, _LAST)
    if last == 0:  # the zero value of the API: no range
        last = first
    if not first <= last <= _LAST:
        where.at("endPort").refuse(f"{last} is not a port from {first} to {_LAST}")
    return PortRange(protocol, first, last)


def _number(value: Any, where: Where) -> int:
    """A port as a decimal string; integers are taken too. 0 means every port, as in Cilium."""
    if value is None:
        where.refuse("is missing")
    if type(value) is not int:
        text: str = where.typed(value, str)
        if not _NUMBER.fullmatch(text):
            if _PORT_NAME.fullmatch(text):
                where.refuse(f"named ports ({shown(text)}) are not supported yet")
            where.refuse(f"{shown(text)} is not a port (1 to {_LAST})")
        value = int(text) if len(text) < 20 else _LAST + 1
        if value > _LAST:
            where.refuse(f"{shown(text)} is not a port (1 to {_LAST})")
    if not 0 <= value <= _LAST:
        where.refuse(f"{value} is not a port (1 to {_LAST})")
    return int(value)


def _http(fields: Fields, path: str, direction: Direction) -> tuple[HttpMatch, ...]:
    where = fields.where
    fields.unsupported(("dns", "kafka", "l7", "l7proto"))
    listed = fields.take("http", list, [])
    fields.done()
    if not listed:
        # In Cilium this allows every request; whoever writes it may well mean the opposite.
        where.at("http").refuse("needs at least one rule (to allow every request, leave rules out)")
    if direction is Direction.EGRESS:
        where.at("http").refuse("HTTP rules in egress are not supported yet")
    return tuple(
        _http_rule(Fields(item, place), f"{path}.rules.http[{index}]")
        for index, (place, item) in enumerate(where.at("http").items(listed, dict))
    )


def _http_rule(fields: Fields, path: str) -> HttpMatch:
    fields.unsupported(("host", "headers", "headerMatches"))
    found = HttpMatch(path, _regex(fields, "method"), _regex(fields, "path"))
    fields.done()
    return found


def _regex(fields: Fields, key: str) -> str:
    pattern: str = fields.take(key, str, "")
    try:
        compile_regex(pattern)
    except RegexError as error:
        fields.where.at(key).refuse(f"{shown(pattern)}: {error}")
    return pattern
