"""IP packets from a raw socket of the calling thread's namespace, whatever their source says."""

from __future__ import annotations

import socket
from ipaddress import ip_address


def send_raw(packet: bytes) -> None:
    """Send one packet, IPv4 or IPv6, by the namespace's routes."""
    family, size, at = (socket.AF_INET, 4, 16) if packet[0] >> 4 == 4 else (socket.AF_INET6, 16, 24)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
        raw.sendto(packet, (str(ip_address(packet[at : at + size])), 0))
