"""Numbers, names and protocols of ports, shared by all kinds.

Sources: RFC 6335, section 5.1 (service names); Kubernetes, apimachinery/pkg/util/validation (IsValidPortName).
"""

from __future__ import annotations

import re

from spliceway.policy.fields import Fields, Where, shown
from spliceway.policy.model import PortRange
from spliceway.policy.verdict import Protocol

LAST_PORT = 65535
#: Longest name of a port.
MAX_PORT_NAME = 15

#: Protocols of Kubernetes' ports. TCP where none is given.
KUBERNETES_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}

_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def is_port_name(text: str) -> bool:
    """Whether it is a service name in lower case: letters, digits and single «-» inside, with a letter."""
    return len(text) <= MAX_PORT_NAME and _NAME.fullmatch(text) is not None


def check_port_name(text: str, where: Where) -> str:
    """The name, if it is one. Raises PolicyError otherwise."""
    if not is_port_name(text):
        rule = f"at most {MAX_PORT_NAME} lower-case letters, digits and «-», one letter at least"
        where.refuse(f"{shown(text)} is not a port name ({rule})")
    return text


def parse_port_number(text: str) -> int | None:
    """The number, 0 to 65535, if the text is one in decimal, as Go's ParseUint has it: zeros in front are none."""
    digits = text.lstrip("0") or text[-1:]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 5 or int(digits) > LAST_PORT:
        return None
    return int(digits)


def check_port_number(value: int, where: Where) -> int:
    """The number, if it is a port. Raises PolicyError otherwise."""
    if not 1 <= value <= LAST_PORT:
        where.refuse(f"{value} is not a port (1 to {LAST_PORT})")
    return value


def kubernetes_protocol(fields: Fields) -> Protocol:
    """Field `protocol`: TCP (the default), UDP or SCTP, in upper case as Kubernetes has them."""
    name = fields.take("protocol", str, "TCP")
    if name not in KUBERNETES_PROTOCOLS:
        fields.where.at("protocol").refuse(f"{shown(name)} is not a protocol ({', '.join(KUBERNETES_PROTOCOLS)})")
    return KUBERNETES_PROTOCOLS[name]


def named_port(protocol: Protocol, name: str) -> PortRange:
    """Whatever numbers the server pod's containers give this name."""
    return PortRange(protocol, 0, 0, name)
