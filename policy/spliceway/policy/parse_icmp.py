"""icmps: types of ICMP messages.

Source: Cilium pkg/policy/api/icmp.go. The names and numbers are IANA's («ICMP Parameters», «ICMPv6 Parameters»).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import PortRange, PortRule
from spliceway.policy.verdict import Protocol

#: Most types in one entry of icmps, as in Cilium.
MAX_TYPES = 40

_FAMILIES = MappingProxyType({"IPv4": Protocol.ICMP, "IPv6": Protocol.ICMPV6})
_NAMES = MappingProxyType(
    {
        Protocol.ICMP: {
            "EchoReply": 0,
            "DestinationUnreachable": 3,
            "Redirect": 5,
            "Echo": 8,
            "EchoRequest": 8,
            "RouterAdvertisement": 9,
            "RouterSelection": 10,
            "TimeExceeded": 11,
            "ParameterProblem": 12,
            "Timestamp": 13,
            "TimestampReply": 14,
            "Photuris": 40,
            "ExtendedEchoRequest": 42,
            "ExtendedEchoReply": 43,
        },
        Protocol.ICMPV6: {
            "DestinationUnreachable": 1,
            "PacketTooBig": 2,
            "TimeExceeded": 3,
            "ParameterProblem": 4,
            "EchoRequest": 128,
            "EchoReply": 129,
            "MulticastListenerQuery": 130,
            "MulticastListenerReport": 131,
            "MulticastListenerDone": 132,
            "RouterSolicitation": 133,
            "RouterAdvertisement": 134,
            "NeighborSolicitation": 135,
            "NeighborAdvertisement": 136,
            "RedirectMessage": 137,
            "RouterRenumbering": 138,
            "ICMPNodeInformationQuery": 139,
            "ICMPNodeInformationResponse": 140,
            "InverseNeighborDiscoverySolicitation": 141,
            "InverseNeighborDiscoveryAdvertisement": 142,
            "HomeAgentAddressDiscoveryRequest": 144,
            "HomeAgentAddressDiscoveryReply": 145,
            "MobilePrefixSolicitation": 146,
            "MobilePrefixAdvertisement": 147,
            "DuplicateAddressRequestCodeSuffix": 157,
            "DuplicateAddressConfirmationCodeSuffix": 158,
            "ExtendedEchoRequest": 160,
            "ExtendedEchoReply": 161,
        },
    }
)


def parse_icmp_rules(fields: Fields, path: str) -> tuple[PortRule, ...]:
    """The entries of icmps, empty when there are none."""
    entries = fields.where.at("icmps").items(fields.take("icmps", list, []), dict)
    return tuple(_icmp_rule(Fields(item, place), f"{path}.icmps[{i}]") for i, (place, item) in enumerate(entries))


def _icmp_rule(fields: Fields, path: str) -> PortRule:
    where = fields.where.at("fields")
    listed = fields.take("fields", list, [])
    if not listed:
        # Cilium lets such an entry pass and matches nothing with it.
        where.refuse("needs at least one type (for every message, leave icmps out)")
    if len(listed) > MAX_TYPES:
        where.refuse(f"{len(listed)} types are more than {MAX_TYPES}")
    found = tuple(_message_type(Fields(item, place)) for place, item in where.items(listed, dict))
    fields.done()
    return PortRule(path, found)


def _message_type(fields: Fields) -> PortRange:
    family = fields.take("family", str, "IPv4")
    if family not in _FAMILIES:
        fields.where.at("family").refuse(f"{shown(family)} is not a family ({', '.join(_FAMILIES)})")
    protocol = _FAMILIES[family]
    number = _number(fields.raw("type"), family, fields.where.at("type"))
    fields.done()
    return PortRange(protocol, number << 8, number << 8 | 255)


def _number(value: Any, family: str, where: Where) -> int:
    if value is None:
        where.refuse("is missing")
    names = _NAMES[_FAMILIES[family]]
    if type(value) is not int:
        text: str = where.typed(value, str)
        if text in names:
            return names[text]
        if not (text.isascii() and text.isdigit()) or len(text) > 3 or (len(text) > 1 and text[0] == "0"):
            where.refuse(f"{shown(text)} is not a type of ICMP over {family} (0 to 255, or a name like EchoRequest)")
        value = int(text)
    if not 0 <= value <= 255:
        where.refuse(f"{value} is not a type of ICMP (0 to 255)")
    return int(value)
