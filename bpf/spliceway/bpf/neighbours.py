"""What the node knows of its neighbours' stations, by rtnetlink in the calling thread's network namespace.

Source: `linux/rtnetlink.h`, `linux/neighbour.h`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable

from spliceway.bpf.filters import attributes, messages
from spliceway.bpf.types import IPAddress

_NEWROUTE, _GETROUTE, _NEWNEIGH, _DELNEIGH, _GETNEIGH = 24, 26, 28, 29, 30
_ERROR, _REQUEST, _ACK = 2, 0x1, 0x4
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_RTMSG, _NDMSG = struct.Struct("=BBBBBBBBI"), struct.Struct("=BxHiHBB")
_NUMBER, _SIGNED = struct.Struct("=I"), struct.Struct("=i")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA, _NDA_DST = 1, 4, 5, 18, 1
#: NUD_NOARP, NUD_PERMANENT: somebody has said so, nothing was learned.
_SAID = 0x40 | 0x80
#: There is no route, no such entry, or no IPv6.
_NOTHING = (
    errno.ENOENT,
    errno.ENODEV,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EINVAL,
    errno.ESRCH,
    errno.EAFNOSUPPORT,
    errno.EOPNOTSUPP,
)


def forget(addresses: Iterable[IPAddress]) -> None:
    """Have the node ask anew who has these addresses, where it has a route to them without a next hop.

    What was set and not learned stays. Raises OSError.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        for address in addresses:
            ifindex = _device(netlink, address)
            if ifindex and _is_learned(netlink, address, ifindex):
                _ask(netlink, _DELNEIGH, _neighbour(address, ifindex), _ACK)


def _device(netlink: socket.socket, address: IPAddress) -> int:
    """By which interface the address is reached directly, 0: by none."""
    family, bits = _family(address), address.max_prefixlen
    answer = _ask(netlink, _GETROUTE, _RTMSG.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + _packed(_RTA_DST, address))
    if answer is None or answer[0] != _NEWROUTE:
        return 0
    found = dict(attributes(answer[1][_RTMSG.size :]))
    if _RTA_OIF not in found or _RTA_GATEWAY in found or _RTA_VIA in found:
        return 0
    return int(_NUMBER.unpack_from(found[_RTA_OIF])[0])


def _is_learned(netlink: socket.socket, address: IPAddress, ifindex: int) -> bool:
    answer = _ask(netlink, _GETNEIGH, _neighbour(address, ifindex))
    return answer is not None and answer[0] == _NEWNEIGH and not _NDMSG.unpack_from(answer[1])[3] & _SAID


def _neighbour(address: IPAddress, ifindex: int) -> bytes:
    return _NDMSG.pack(_family(address), 0, ifindex, 0, 0, 0) + _packed(_NDA_DST, address)


def _family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _packed(kind: int, address: IPAddress) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), kind) + address.packed


def _ask(netlink: socket.socket, kind: int, body: bytes, flags: int = 0) -> tuple[int, bytes] | None:
    """The first message of the answer; None where there is nothing of what was asked for."""
    netlink.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
    for answer, content in messages(netlink.recv(1 << 16)):
        number = -int(_SIGNED.unpack_from(content)[0]) if answer == _ERROR else 0
        if number in _NOTHING:
            return None
        if number:
            raise OSError(number, os.strerror(number))
        return answer, content
    return None
