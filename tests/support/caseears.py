"""What arrives at the ends of the table's connections, and the packets that are known again there.

Each packet has a number in a place that no translation touches: TCP's sequence number, SCTP's initiate tag, the payload
of the others. What TCP and ping answer has it, too. In pods and outside an AF_PACKET socket hears what the wire brings;
on a node raw sockets hear what has passed its INPUT chains, too.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.plan import IPAddress
from spliceway.bpf.steering import RECEIVING
from support import packets as p
from support.cases import Case
from support.waiting import LIMIT

SCTP = 132
#: Protocols that the table has, by IP version.
PROTOCOLS = {4: (p.ICMP, p.TCP, p.UDP, SCTP), 6: (p.ICMPV6, p.TCP, p.UDP, SCTP)}
_ECHO_REPLY = {p.ICMP: 0, p.ICMPV6: 129}
_MARK = 0x5CA5_0000
_TOKEN = b"case"
_ETH_P_ALL, _SO_RCVBUFFORCE = 3, 33
_IPV6_RECVPKTINFO, _IPV6_PKTINFO, _IP_PKTINFO = 49, 50, 8
_BUFFER = 8 << 20


class Arrival(NamedTuple):
    """A packet of the table that got to where its destination lives, or the answer to one."""

    destination: IPAddress
    protocol: int
    number: int
    answer: bool = False


def first_packet(case: Case, number: int) -> bytes:
    """The first packet of a connection, whole and valid. `number` (16 bits) is its source port, too, if it has one."""
    source, destination = case.source, case.destination
    token = _TOKEN + number.to_bytes(4, "big")
    if case.protocol == p.TCP:
        body = p.tcp(source, destination, number, case.port, seq=_MARK | number)
    elif case.protocol == p.UDP:
        body = p.udp(source, destination, number, case.port, token)
    elif case.protocol == p.ICMP:
        body = p.icmp(case.port >> 8, case.port & 255, number.to_bytes(2, "big") + b"\0\1", token)
    elif case.protocol == p.ICMPV6:
        body = p.icmp6(source, destination, case.port >> 8, case.port & 255, number.to_bytes(2, "big") + b"\0\1", token)
    else:
        assert case.protocol == SCTP, f"{case.id}: a protocol that has no packet here"
        body = _sctp_init(number, case.port, _MARK | number)
    return p.ip(source, destination, case.protocol, body)


def number_of(protocol: int, body: bytes) -> tuple[int, bool] | None:
    """The number of a packet of ours, by what is behind its IP header, and whether it is an answer."""
    if protocol == p.TCP:
        sequence, acknowledged = struct.unpack_from("!II", body.ljust(20, b"\0"), 4)
        return _marked(sequence, False) or _marked(acknowledged - 1, True)
    if protocol == SCTP:
        return _marked(struct.unpack_from("!I", body.ljust(20, b"\0"), 16)[0], False)
    if body[8:12] != _TOKEN:
        return None
    return int.from_bytes(body[12:16], "big"), protocol in _ECHO_REPLY and body[0] == _ECHO_REPLY[protocol]


def _marked(value: int, answer: bool) -> tuple[int, bool] | None:
    return (value & 0xFFFF, answer) if value & 0xFFFF_0000 == _MARK else None


class Ears:
    """Sockets that hear; `arrived` is all that was heard so far."""

    def __init__(self, places: Mapping[Path, tuple[bool, frozenset[IPAddress]]]) -> None:
        """`places`: namespace → whether it is a node's, and the addresses that live there."""
        self.arrived: set[Arrival] = set()
        self._selector = selectors.DefaultSelector()
        for place, (is_node, own) in places.items():
            if is_node:
                for version, protocols in PROTOCOLS.items():
                    for protocol in protocols:
                        ear: _Ear = _NodeEar(place, own, version, protocol)
                        self._selector.register(ear.sock, selectors.EVENT_READ, ear)
            else:
                ear = _WireEar(place, own)
                self._selector.register(ear.sock, selectors.EVENT_READ, ear)

    def listen(self) -> None:
        """Take in what is there."""
        while ready := self._selector.select(0):
            self._take(key.data for key, _ in ready)

    def wait(self, wanted: Iterable[Arrival], patience: float = LIMIT) -> None:
        """Return when all of these have arrived, or after `patience` seconds."""
        deadline = time.monotonic() + patience
        wanted = set(wanted)
        while wanted - self.arrived and (left := deadline - time.monotonic()) > 0:
            self._take(key.data for key, _ in self._selector.select(left))

    def close(self) -> None:
        """Close them."""
        for key in list(self._selector.get_map().values()):
            key.data.sock.close()
        self._selector.close()

    def _take(self, ears: Iterable[_Ear]) -> None:
        for ear in ears:
            if (found := ear.hear()) and found.destination in ear.own:
                self.arrived.add(found)


class _Ear:
    """A socket, and the addresses that live where it is."""

    def __init__(self, sock: socket.socket, own: frozenset[IPAddress]) -> None:
        self.sock, self.own = sock, own
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.setblocking(False)

    def hear(self) -> Arrival | None:
        """One packet; None if it is none of ours."""
        raise NotImplementedError


class _WireEar(_Ear):
    """What the wire brings to a pod, or to the world."""

    def __init__(self, place: Path, own: frozenset[IPAddress]) -> None:
        make = netns.call(place, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)))
        super().__init__(make, own)

    def hear(self) -> Arrival | None:
        packet, address = self.sock.recvfrom(65536)
        if address[2] != socket.PACKET_HOST or len(packet) < 20:
            return None
        if packet[0] >> 4 == 4:
            head, protocol, destination = (packet[0] & 15) * 4, packet[9], ip_address(packet[16:20])
        else:
            head, protocol, destination = 40, packet[6], ip_address(packet[24:40])
        found = number_of(protocol, packet[head:])
        return None if found is None else Arrival(destination, protocol, *found)


class _NodeEar(_Ear):
    """What a node's own processes get of a protocol. What was steered to the proxy is none of it."""

    def __init__(self, place: Path, own: frozenset[IPAddress], version: int, protocol: int) -> None:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_RAW, protocol)
            if version == 4:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            return sock

        super().__init__(netns.call(place, make), own)
        self._place, self._version, self._protocol = place, version, protocol

    def hear(self) -> Arrival | None:
        packet, (info, *_), _, _ = self.sock.recvmsg(65536, 256)
        if self._version == 4:
            index, destination = struct.unpack_from("=i", info[2])[0], ip_address(info[2][8:12])
            packet = packet[(packet[0] & 15) * 4 :]
        else:
            index, destination = struct.unpack_from("=i", info[2], 16)[0], ip_address(info[2][:16])
        found = number_of(self._protocol, packet)
        if found is None or netns.call(self._place, lambda: socket.if_indextoname(index)) == RECEIVING:
            return None
        return Arrival(destination, self._protocol, *found)


def _sctp_init(source_port: int, port: int, tag: int) -> bytes:
    """RFC 9260, 3.3.2; netfilter calls one with a wrong checksum invalid."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, tag, 65535, 1, 1, 1)
    ports = struct.pack("!HHI", source_port, port, 0)
    return ports + struct.pack("<I", crc32c(ports + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    value = 0xFFFF_FFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
    return value ^ 0xFFFF_FFFF
