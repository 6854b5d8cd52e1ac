"""Filters at the clsact hooks of an interface, in the order in which packets meet them.

By rtnetlink, in the calling thread's network namespace; it takes microseconds. A dump goes by chain and priority, and
within a priority as the classifier does (`cls_bpf_walk`): there the filter that was added last is in front, whatever
its handle. Source: `linux/rtnetlink.h`, `linux/pkt_cls.h`.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from spliceway.bpf.errors import KernelRefusedError

_GET, _NEW = 46, 44  # RTM_GETTFILTER, RTM_NEWTFILTER
_ERROR, _DONE = 2, 3
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER, _TCMSG, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII"), struct.Struct("=HH")
_KIND, _OPTIONS, _CHAIN = 1, 2, 11  # TCA_…
_BPF_NAME, _BPF_ID = 7, 11  # TCA_BPF_…
_TYPE_MASK = 0x3FFF
#: Netlink's ways to say that an interface, or its clsact, is not there (any more).
GONE = (errno.ENOENT, errno.ENODEV, errno.EINVAL, errno.ESRCH)


class Filter(NamedTuple):
    """One filter. `program`: id of its BPF program, `name` as it was attached; 0 and empty for other kinds.

    Packets begin in chain 0.
    """

    kind: str
    priority: int
    handle: int
    name: str = ""
    program: int = 0
    chain: int = 0


def filters(ifindex: int, parent: int) -> list[Filter]:
    """Those of one hook; none where the interface or its clsact is gone. Raises KernelRefusedError."""
    request = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(request), _GET, _DUMP, 1, 0) + request)
        found: list[Filter] = []
        while True:
            for kind, body in messages(netlink.recv(1 << 18)):
                if kind == _NEW:
                    found += parse(body)
                elif kind == _DONE:
                    return found
                elif kind == _ERROR:
                    number = -int(struct.unpack_from("=i", body)[0])
                    if number in GONE:
                        return []
                    raise KernelRefusedError(f"list the filters of interface {ifindex}", number)


def parse(body: bytes) -> list[Filter]:
    """The filter of one RTM_NEWTFILTER, or none: each priority begins with a message that is no filter. Pure."""
    _, _, handle, _, info = _TCMSG.unpack_from(body)
    found = dict(attributes(body[_TCMSG.size :]))
    if not handle:
        return []
    options = dict(attributes(found.get(_OPTIONS, b"")))
    kind, name, program = text(found.get(_KIND, b"")), "", 0
    if kind == "bpf":
        name = text(options.get(_BPF_NAME, b""))
        program = int.from_bytes(options.get(_BPF_ID, b""), "little")
    chain = int.from_bytes(found.get(_CHAIN, b""), "little")
    return [Filter(kind, info >> 16, handle, name, program, chain)]


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each netlink message."""
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each netlink attribute."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def text(data: bytes) -> str:
    """The string in an attribute."""
    return data.split(b"\0")[0].decode(errors="replace")
