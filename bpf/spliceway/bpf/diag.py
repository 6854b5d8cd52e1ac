"""sock_diag: which listeners are there, and ending a connection (SOCK_DESTROY) in the node's network namespace.

Source: `linux/inet_diag.h`, `linux/sock_diag.h` (UAPI). A destroyed socket's peer gets RST, its owner ECONNABORTED.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from spliceway.bpf.errors import KernelRefusedError

_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_NLM_REQUEST, _NLM_ACK, _NLM_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ENDS = (_NLMSG_ERROR, _NLMSG_DONE)
_TIME_WAIT, _LISTEN = 6, 10
_HEADER = struct.Struct("=IHHII")
_SOCKID = struct.Struct("!HH16s16s")
_COOKIE_ANY = b"\xff" * 8
_ALL_STATES = 0xFFFFFFFF
#: Requests in one message to the kernel. Each may be answered by an error, and those wait in our socket's buffer.
_BATCH = 128
_BUFFER = 1 << 20
_MAPPED = b"\0" * 10 + b"\xff\xff"

IPAddress = IPv4Address | IPv6Address


def _request(
    kind: int,
    flags: int,
    family: int,
    states: int,
    sockid: bytes,
    *,
    sequence: int = 1,
    protocol: int = socket.IPPROTO_TCP,
    attributes: bytes = b"",
) -> bytes:
    body = struct.pack("=BBBBI", family, protocol, 0, 0, states) + sockid + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _NLM_REQUEST, sequence, 0) + body


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)  # NETLINK_SOCK_DIAG


def address(family: int, packed: bytes) -> IPAddress:
    """One of `struct inet_diag_sockid`, which has room for the longer kind."""
    return ip_address(packed[:4] if family == socket.AF_INET else packed)


def _mapped(address: IPAddress) -> bytes:
    return address.packed if address.version == 6 else _MAPPED + address.packed


class TcpSocket(NamedTuple):
    """A TCP socket of this network namespace, as its owner sees it; `cookie` is the kernel's own name of it."""

    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    state: int
    cookie: bytes


def _parse(family: int, body: bytes) -> TcpSocket:
    """One `struct inet_diag_msg`."""
    sport, dport, src, dst = _SOCKID.unpack_from(body, 4)
    cookie = body[4 + _SOCKID.size + 4 : 4 + _SOCKID.size + 12]
    return TcpSocket(address(family, src), sport, address(family, dst), dport, body[1], cookie)


def dump(
    states: int = _ALL_STATES, *, protocol: int = socket.IPPROTO_TCP, attributes: bytes = b""
) -> Iterator[tuple[int, bytes]]:
    """Sockets in the given states (bits by state number): family and `struct inet_diag_msg` of each.

    `attributes`: netlink attributes of the question; those of the answer follow each message.
    """
    with _open() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _request(
                _SOCK_DIAG_BY_FAMILY, _NLM_DUMP, family, states, bytes(48), protocol=protocol, attributes=attributes
            )
            netlink.send(request)
            done = False
            while not done:
                data = netlink.recv(1 << 18)
                while len(data) >= _HEADER.size:
                    length, kind, *_ = _HEADER.unpack_from(data)
                    number = -struct.unpack_from("=i", data, _HEADER.size)[0] if kind in _ENDS else 0
                    if number:  # also at the end: so the kernel says that it has no such module
                        raise KernelRefusedError("list sockets", number, "does the kernel have tcp_diag and udp_diag?")
                    if kind in _ENDS:
                        done = True
                        break
                    yield family, data[_HEADER.size : length]
                    data = data[(length + 3) & ~3 :]


def tcp_sockets(states: int = _ALL_STATES) -> list[TcpSocket]:
    """TCP sockets in the given states (bits by state number)."""
    return [_parse(family, body) for family, body in dump(states)]


def connections() -> list[tuple[int, bytes, bytes]]:
    """Connections of this network namespace as `destroy_many` takes them; no listeners, none in TIME_WAIT."""
    found = []
    for one in tcp_sockets(_ALL_STATES & ~(1 << _LISTEN | 1 << _TIME_WAIT)):
        ports = one.local_port.to_bytes(2, "big"), one.remote_port.to_bytes(2, "big")
        found.append((*packed_ends(_mapped(one.local), ports[0], _mapped(one.remote), ports[1]), one.cookie))
    return found


def listeners() -> set[tuple[IPAddress, int]]:
    """Addresses and ports that TCP sockets of this network namespace listen on."""
    return {(one.local, one.local_port) for one in tcp_sockets(1 << _LISTEN)}


def find(local: IPAddress, local_port: int, remote: IPAddress, remote_port: int) -> TcpSocket | None:
    """The connection with these ends as its owner sees them.

    Never a listener: where there is no connection, the kernel's lookup falls back to one on that port.
    """
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    sockid = _SOCKID.pack(local_port, remote_port, local.packed.ljust(16, b"\0"), remote.packed.ljust(16, b"\0"))
    with _open() as netlink:
        netlink.send(_request(_SOCK_DIAG_BY_FAMILY, 0, family, _ALL_STATES, sockid + bytes(4) + _COOKIE_ANY))
        reply = netlink.recv(1 << 16)
    if _HEADER.unpack_from(reply)[1] == _NLMSG_ERROR:
        return None
    found = _parse(family, reply[_HEADER.size :])
    wanted = (local, local_port, remote, remote_port)
    return found if found[:4] == wanted and found.state != _LISTEN else None


def destroy_this(one: TcpSocket) -> bool:
    """End this very connection, and no other that may have its ports by now. False when it is gone."""
    if one.state == _LISTEN:
        return False
    family = socket.AF_INET if one.local.version == 4 else socket.AF_INET6
    ends = one.local.packed.ljust(16, b"\0"), one.remote.packed.ljust(16, b"\0")
    sockid = _SOCKID.pack(one.local_port, one.remote_port, *ends) + bytes(4) + one.cookie
    with _open() as netlink:
        netlink.send(_request(_SOCK_DESTROY, _NLM_ACK, family, _ALL_STATES, sockid))
        reply = netlink.recv(4096)
    number = -int(struct.unpack_from("=i", reply, _HEADER.size)[0])
    if number in (errno.ENOENT, errno.ESTALE):
        return False
    if number:
        raise KernelRefusedError(f"end {one.local}:{one.local_port} - {one.remote}:{one.remote_port}", number)
    return True


def packed_ends(local: bytes, local_port: bytes, remote: bytes, remote_port: bytes) -> tuple[int, bytes]:
    """Family and `struct inet_diag_sockid` (without device and cookie) of a connection's ends, as its owner sees them.

    Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; ports are 2 bytes in network order.
    """
    if local.startswith(_MAPPED):
        return socket.AF_INET, local_port + remote_port + local[12:] + bytes(12) + remote[12:] + bytes(12)
    return socket.AF_INET6, local_port + remote_port + local + remote


def destroy_many(connections: Sequence[tuple[int, bytes, bytes]], *, protocol: int = socket.IPPROTO_TCP) -> list[int]:
    """End connections: family and ends (`packed_ends`) and the cookie, 8 bytes, of each. Returns which it ended.

    What has ended meanwhile is passed over, whatever has its ports by now. Many go in one message, and only the last of
    each is acknowledged, so that 10,000 take well under a second. Raises KernelRefusedError where it is not supported.
    """
    ended: list[int] = []
    with _open() as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        for first in range(0, len(connections), _BATCH):
            batch = connections[first : first + _BATCH]
            requests = [
                _request(
                    _SOCK_DESTROY,
                    _NLM_ACK if number == len(batch) - 1 else 0,
                    family,
                    _ALL_STATES,
                    ends + bytes(4) + cookie,
                    sequence=number,
                    protocol=protocol,
                )
                for number, (family, ends, cookie) in enumerate(batch)
            ]
            netlink.send(b"".join(requests))
            gone = _gone(netlink, len(batch) - 1)
            ended += (first + number for number in range(len(batch)) if number not in gone)
    return ended


def _gone(netlink: socket.socket, last: int) -> set[int]:
    """Read answers up to the one to request `last`; which of them were for connections that are not there any more."""
    gone = set()
    while True:
        data = netlink.recv(1 << 18)
        while len(data) >= _HEADER.size:
            length, _, _, sequence, _ = _HEADER.unpack_from(data)
            number = -int(struct.unpack_from("=i", data, _HEADER.size)[0])
            if number in (errno.ENOENT, errno.ESTALE):
                gone.add(sequence)
            elif number:
                raise KernelRefusedError("end connections", number, "does the kernel have INET_DIAG_DESTROY?")
            if sequence == last:
                return gone
            data = data[(length + 3) & ~3 :]


def destroy(local: IPAddress, local_port: int, remote: IPAddress, remote_port: int) -> bool:
    """End the TCP connection with these ends as its owner sees them. False when there is none (any more)."""
    found = find(local, local_port, remote, remote_port)
    return found is not None and destroy_this(found)
