"""IP packets from a raw socket of the calling thread's namespace, whatever their source says."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

from spliceway.agent.testbed import netns

_IPV6_HDRINCL = 36


def send_raw(packet: bytes) -> None:
    """Send one packet, IPv4 or IPv6, by the namespace's routes."""
    version, size, at = (4, 4, 16) if packet[0] >> 4 == 4 else (6, 16, 24)
    with _open(version) as raw:
        raw.sendto(packet, (str(ip_address(packet[at : at + size])), 0))


def raw_socket(place: Path, version: int) -> socket.socket:
    """A socket in that namespace that takes whole IP packets, for as long as the caller keeps it."""
    return netns.call(place, lambda: _open(version))


def _open(version: int) -> socket.socket:
    raw = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    if version == 6:
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
    return raw
