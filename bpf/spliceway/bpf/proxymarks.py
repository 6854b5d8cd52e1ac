"""Which listening sockets the kernel's programs know as the proxy's.

They are marked when they begin to listen, by the program at the proxy's cgroup (`sockops_proxy`), and never later: one
that was made before that program was there, or outside of the cgroup, is nobody's, and packets are not steered to it.
Source: `linux/inet_diag.h`, `linux/sock_diag.h` (UAPI); INET_DIAG_REQ_SK_BPF_STORAGES is there since Linux 5.8.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from spliceway.bpf import diag, libbpf

_REQ_SK_BPF_STORAGES, _REQ_MAP_FD = 2, 1
_SK_BPF_STORAGES = 20
_LISTEN = 10
#: `struct inet_diag_msg`: four bytes, the socket's id, five numbers.
_MESSAGE = 4 + 48 + 20
_NESTED = 0x8000
_ATTRIBUTE = struct.Struct("=HH")


class Listener(NamedTuple):
    """A TCP socket that listens in this network namespace; `known`: marked as the proxy's in that map.

    `cookie`: the kernel's own name of it, which no other socket ever has; `inode`: as /proc/PID/fd names it.
    """

    address: diag.IPAddress
    port: int
    cookie: bytes
    inode: int
    known: bool


def listeners(proxy_map: int) -> list[Listener]:
    """All of them, and whether they are marked in the map with this id. Raises KernelRefusedError: no right to look."""
    descriptor = libbpf.open_map(proxy_map)
    try:
        asked = _attribute(_REQ_MAP_FD, struct.pack("=I", descriptor))
        question = _attribute(_REQ_SK_BPF_STORAGES | _NESTED, asked)
        found = list(diag.dump(1 << _LISTEN, attributes=question))
    finally:
        os.close(descriptor)
    return [_listener(family, body) for family, body in found]


def _listener(family: int, body: bytes) -> Listener:
    packed = body[8:12] if family == socket.AF_INET else body[8:24]
    port = int.from_bytes(body[4:6], "big")
    known = any(kind == _SK_BPF_STORAGES and value for kind, value in _attributes(body[_MESSAGE:]))
    inode = int.from_bytes(body[_MESSAGE - 4 : _MESSAGE], sys.byteorder)
    return Listener(diag.address(family, packed), port, body[44:52], inode, known)


def _attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & ~_NESTED, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
