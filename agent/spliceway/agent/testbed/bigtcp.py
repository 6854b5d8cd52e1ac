"""BIG TCP: devices that carry TCP packets beyond 64 KiB (IPv6: Linux 5.19; IPv4: 6.3).

Source: `linux/if_link.h`; Documentation/networking, «gso_max_size», «gso_ipv4_max_size».
"""

from __future__ import annotations

import socket
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import command
from spliceway.bpf.bigtcp import set_sizes

SIZE = 196_608
#: What a pod's peers may send in one segment of IPv6: the jumbo header (8 bytes, RFC 2675) that stands in a packet of
#: many segments counts for the kernel when it forwards it, and full segments would be too big (ip6_pkt_too_big).
_SEGMENT = 1432


def allow(path: Path, name: str) -> None:
    """Let a device of that namespace send and gather up to SIZE bytes at once. Raises TestbedError."""

    def setup() -> None:
        try:
            set_sizes(socket.if_nametoindex(name), SIZE)
        except OSError as error:
            raise TestbedError(f"{name}: gso_max_size can't be {SIZE}: {error.strerror}") from error

    netns.call(path, setup)


def leave_room(path: Path, gateway: str) -> None:
    """Let a pod's peers send segments that can be forwarded with a jumbo header. Raises TestbedError."""
    route = ("default", "via", gateway, "dev", "eth0", "advmss", str(_SEGMENT))
    netns.call(path, lambda: command("ip", "-6", "route", "change", *route))
