"""The interfaces of a network namespace, as rtnetlink lists them: what kind they are, and what they belong to.

In the calling thread's namespace. It takes some ten microseconds for an interface; a node has hundreds, and looks at
each change. Source: `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`, `linux/if_arp.h`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from spliceway.bpf.filters import attributes, messages, text
from spliceway.bpf.types import IPAddress

#: ARPHRD_…: what stands in front of a packet's IP header.
ETHERNET, LOOPBACK = 1, 772
_GETLINK, _NEWLINK, _GETADDR, _NEWADDR, _GETROUTE, _NEWROUTE = 18, 16, 22, 20, 26, 24
_GETNSID, _NEWNSID, _NETNSA_NSID, _NETNSA_FD = 90, 88, 1, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_ERROR, _DONE, _REQUEST, _DUMP = 2, 3, 0x1, 0x301  # NLM_F_REQUEST, with NLM_F_DUMP
_HEADER = struct.Struct("=IHHII")
_IFINFO, _IFADDR, _RTMSG = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI")
_ATTRIBUTE, _NUMBER, _SIGNED = struct.Struct("=HH"), struct.Struct("=I"), struct.Struct("=i")
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 3, 5, 10, 18, 29, 37
_INFO_KIND, _INFO_SLAVE_KIND = 1, 4
_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_IFF_UP = 1
_SCOPE_UNIVERSE, _TYPE_UNICAST = 0, 1
_RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 4, 5, 18
_STRICT = 12  # NETLINK_GET_STRICT_CHK
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_TRIES = 3
_LENGTH = {socket.AF_INET: 32, socket.AF_INET6: 128}


class Device(NamedTuple):
    """An interface. `kind`: as `ip -d link` says it (vxlan), empty for hardware; `hardware`: a number ARPHRD_… of it.

    `master`: index of the bond or bridge that it is a member of, 0: none; `role`: kind of that membership. `peer`:
    index of the other end of a veth, or of the device below; `foreign`: that one is in another network namespace, and
    `peer_netns` is this namespace's number for it (see `number_of`), -1: none.
    `subnet`: whether it has an address of a network that others are in, too, and no link-local one.
    """

    ifindex: int
    name: str
    kind: str = ""
    hardware: int = ETHERNET
    master: int = 0
    role: str = ""
    up: bool = True
    peer: int = 0
    foreign: bool = False
    subnet: bool = False
    peer_netns: int = -1

    @property
    def ethernet(self) -> bool:
        """Whether packets come with an Ethernet header."""
        return self.hardware == ETHERNET


def devices() -> list[Device]:
    """All interfaces. Raises OSError."""
    mask = _ATTRIBUTE.pack(8, _IFLA_EXT_MASK) + _NUMBER.pack(_SKIP_STATS)
    links = [parse_link(body) for body in _dump(_GETLINK, _NEWLINK, _IFINFO.pack(0, 0, 0, 0, 0) + mask)]
    subnets = {index for body in _dump(_GETADDR, _NEWADDR, _IFADDR.pack(0, 0, 0, 0, 0)) for index in parse_subnet(body)}
    return [one._replace(subnet=one.ifindex in subnets) for one in links]


def own_addresses() -> list[tuple[int, IPAddress]]:
    """All addresses, each with the index of the interface that has it. Raises OSError."""
    found = []
    for body in _dump(_GETADDR, _NEWADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        index, told = _IFADDR.unpack_from(body)[4], dict(attributes(body[_IFADDR.size :]))
        if data := told.get(_IFA_LOCAL) or told.get(_IFA_ADDRESS):
            found.append((index, ip_address(data)))
    return found


def number_of(netns: Path) -> int:
    """This namespace's number for another one, as links name it; -1: it has none. Raises OSError."""
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            body = bytes(4) + _ATTRIBUTE.pack(8, _NETNSA_FD) + _NUMBER.pack(descriptor)
            netlink.send(_HEADER.pack(_HEADER.size + len(body), _GETNSID, _REQUEST, 1, 0) + body)
            for kind, content in messages(netlink.recv(1 << 16)):
                if kind == _NEWNSID:
                    told = dict(attributes(content[4:])).get(_NETNSA_NSID)
                    return int(_SIGNED.unpack_from(told)[0]) if told else -1
                if kind == _ERROR:
                    number = -int(_SIGNED.unpack_from(content)[0])
                    raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
    return -1


def leads_out(ifindex: int) -> bool:
    """Whether a route with a next hop, of any table, goes out by that interface. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + _ATTRIBUTE.pack(8, _RTA_OIF) + _NUMBER.pack(ifindex)
        if any(parse_gateway(body, ifindex) for body in _dump(_GETROUTE, _NEWROUTE, asked, strict=True)):
            return True
    return False


def parse_link(body: bytes) -> Device:
    """The interface of one RTM_NEWLINK. Pure."""
    _, hardware, index, flags, _ = _IFINFO.unpack_from(body)
    found = dict(attributes(body[_IFINFO.size :]))
    info = dict(attributes(found.get(_IFLA_LINKINFO, b"")))
    return Device(
        index,
        text(found.get(_IFLA_IFNAME, b"")),
        text(info.get(_INFO_KIND, b"")),
        hardware,
        _number(found.get(_IFLA_MASTER)),
        text(info.get(_INFO_SLAVE_KIND, b"")),
        bool(flags & _IFF_UP),
        _number(found.get(_IFLA_LINK)),
        _IFLA_LINK_NETNSID in found,
        peer_netns=int(_SIGNED.unpack_from(found[_IFLA_LINK_NETNSID])[0]) if _IFLA_LINK_NETNSID in found else -1,
    )


def parse_subnet(body: bytes) -> list[int]:
    """Of one RTM_NEWADDR: the interface, if that address is one of a network. Pure."""
    family, length, _, scope, index = _IFADDR.unpack_from(body)
    return [index] if scope == _SCOPE_UNIVERSE and length < _LENGTH.get(family, 0) else []


def parse_gateway(body: bytes, ifindex: int) -> bool:
    """Whether one RTM_NEWROUTE has a next hop that is reached by this interface alone. Pure."""
    kind = _RTMSG.unpack_from(body)[7]
    found = dict(attributes(body[_RTMSG.size :]))
    if kind != _TYPE_UNICAST or _number(found.get(_RTA_OIF)) != ifindex:  # kernels before 4.20 give all
        return False
    return _RTA_GATEWAY in found or _RTA_VIA in found


def _number(data: bytes | None) -> int:
    return int(_NUMBER.unpack_from(data)[0]) if data else 0


def _dump(ask: int, answer: int, body: bytes, *, strict: bool = False) -> list[bytes]:
    """All answers. A dump that changes interrupted is asked for again, since something could be missing."""
    for _ in range(_TRIES):
        told = set[int]()
        found = list(_dump_once(ask, answer, body, told, strict=strict))
        if not any(flags & _INTERRUPTED for flags in told):
            break
    return found


def _dump_once(ask: int, answer: int, body: bytes, told: set[int], *, strict: bool) -> Iterator[bytes]:
    """`told` gets the flags of all messages."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        if strict:
            netlink.setsockopt(270, _STRICT, 1)  # SOL_NETLINK
        netlink.send(_HEADER.pack(_HEADER.size + len(body), ask, _DUMP, 1, 0) + body)
        while True:
            data = netlink.recv(1 << 18)
            told.update(_flags(data))
            for kind, content in messages(data):
                if kind == answer:
                    yield content
                elif kind == _DONE:
                    return
                elif kind == _ERROR:
                    number = -int(struct.unpack_from("=i", content)[0])
                    if number in (errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                        return  # the interface went meanwhile, or there is no IPv6
                    raise OSError(number, os.strerror(number))


def _flags(data: bytes) -> Iterator[int]:
    """Flags of each netlink message."""
    while len(data) >= _HEADER.size:
        length, _, flags, *_ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield flags
        data = data[(length + 3) & ~3 :]
