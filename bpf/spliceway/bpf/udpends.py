"""Connected UDP sockets of pods whose backend has gone: they are ended, since no program ever sees them send again.

What a socket has dialled is in its storage, and sock_diag(7) hands that out with the socket. The socket is destroyed:
its owner gets ECONNABORTED at the next call, and connects anew. Cilium does the same. A socket that dialled the pod
itself has no such entry, and stays. TCP connections end with their server.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from spliceway.bpf import diag, netns
from spliceway.bpf.errors import DatapathError
from spliceway.bpf.lbabi import LbPeer

#: `has(set, number, struct lb_backend)`: whether this is a backend still.
Has = Callable[[int, int, bytes], bool]

_CONNECTED = 1 << 1  # TCP_ESTABLISHED
_INET_DIAG_MSG, _ENDS, _COOKIE = 72, slice(4, 40), slice(44, 52)
# linux/inet_diag.h, linux/sock_diag.h
_REQ_STORAGES, _REQ_MAP_FD = 2, 1
_STORAGES, _STORAGE, _MAP_VALUE = 20, 1, 3
_ATTRIBUTE = struct.Struct("=HH")
_KIND = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER


def end_lost(namespaces: Iterable[Path], peers: int, has: Has) -> int:
    """End such sockets in these network namespaces; returns how many. Namespaces that have gone are passed over.

    `peers`: descriptor of the map `lb_peers`. Raises DatapathError when one can't be entered, or UDP sockets can't be
    listed or ended there; all others are done by then.
    """
    ended, failed = 0, None
    for path in namespaces:
        try:
            ended += netns.call_in(path, lambda: _end_here(peers, has))
        except DatapathError as error:
            failed = error if path.exists() else failed
    if failed is not None:
        raise failed
    return ended


def _end_here(peers: int, has: Has) -> int:
    lost = []
    for family, body in diag.dump(_CONNECTED, protocol=socket.IPPROTO_UDP, extra=_asking(peers)):
        value = _peer_of(body[_INET_DIAG_MSG:])
        if value is None:
            continue
        peer = LbPeer.from_buffer_copy(value)
        if peer.number and _is_there(body, peer) and not has(peer.set, peer.number, bytes(peer.backend)):
            lost.append((family, body[_ENDS], body[_COOKIE]))
    return diag.destroy_many(lost, protocol=socket.IPPROTO_UDP) if lost else 0


def _is_there(body: bytes, peer: LbPeer) -> bool:
    """Whether the socket is connected to that backend, and not to somebody else since (connect() with AF_UNSPEC)."""
    address = bytes(peer.backend.addr)
    remote = body[24:40] if body[0] == socket.AF_INET6 else bytes(10) + b"\xff\xff" + body[24:28]
    return (body[6:8], remote) == (peer.backend.port.to_bytes(2, "little"), address)


def _asking(peers: int) -> bytes:
    inner = _ATTRIBUTE.pack(8, _REQ_MAP_FD) + struct.pack("=I", peers)
    return _ATTRIBUTE.pack(4 + len(inner), _REQ_STORAGES) + inner


def _peer_of(attributes: bytes) -> bytes | None:
    """The value of `lb_peers` in the attributes of one socket."""
    for kind, storages in _attributes(attributes):
        if kind != _STORAGES:
            continue
        for inner, storage in _attributes(storages):
            for name, value in _attributes(storage) if inner == _STORAGE else ():
                if name == _MAP_VALUE:
                    if len(value) < ctypes.sizeof(LbPeer):
                        raise DatapathError("the kernel gives a shorter lb_peers than this agent knows")
                    return value
    return None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _KIND, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
