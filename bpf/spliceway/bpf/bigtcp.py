"""How large packets of TCP may be that a device takes or gathers: BIG TCP goes beyond the 64 KiB of IP's own field.

By rtnetlink, in the calling thread's network namespace. Kernels that don't know a size keep theirs. Source:
`linux/if_link.h` (IPv6: Linux 5.19, IPv4: 6.3).
"""

from __future__ import annotations

import os
import socket
import struct

#: The most that a veth takes (GSO_MAX_SIZE of linux/netdevice.h).
LARGEST = 524_280
_NEWLINK, _ACKNOWLEDGED = 16, 0x5  # NLM_F_REQUEST | NLM_F_ACK
#: IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE. Which of them a kernel knows is
#: a matter of its version; what it does not know it passes over.
_SIZES = (41, 58, 63, 64)


def set_sizes(ifindex: int, size: int) -> None:
    """Set all four sizes of a device, in bytes. Raises OSError."""
    body = struct.pack("=BxHiII", 0, 0, ifindex, 0, 0) + b"".join(struct.pack("=HHI", 8, kind, size) for kind in _SIZES)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as request:
        request.send(struct.pack("=IHHII", 16 + len(body), _NEWLINK, _ACKNOWLEDGED, 1, 0) + body)
        answer = request.recv(1 << 14)
    if number := -int(struct.unpack_from("=i", answer, 16)[0]):
        raise OSError(number, os.strerror(number))
