"""Packets as bytes, right or wrong on purpose, for test runs of the TC programs and for raw sockets in pods."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

ETH = bytes.fromhex("020000000001") + bytes.fromhex("020000000002")
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16

Address = str | IPv4Address | IPv6Address


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: Address, destination: Address, protocol: int, segment: bytes) -> bytes:
    head = ip_address(source).packed + ip_address(destination).packed
    return head + struct.pack(
        "!II" if len(head) > 8 else "!HH", *((len(segment), protocol) if len(head) > 8 else (protocol, len(segment)))
    )


def tcp(
    source: Address,
    destination: Address,
    sport: int,
    dport: int,
    flags: int = SYN,
    payload: bytes = b"",
    *,
    seq: int = 1,
    ack: int = 0,
    offset: int = 5,
) -> bytes:
    """A TCP segment with a right checksum; `offset` is the header's length in units of 4 bytes, true or not."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset << 4, flags, 65535, 0, 0)
    options = bytes(max(0, offset - 5) * 4)
    segment = head + options + payload
    value = checksum(_pseudo(source, destination, TCP, segment) + segment)
    return segment[:16] + struct.pack("!H", value) + segment[18:]


def udp(source: Address, destination: Address, sport: int, dport: int, payload: bytes = b"x") -> bytes:
    """A UDP datagram with a right checksum."""
    datagram = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    value = checksum(_pseudo(source, destination, UDP, datagram) + datagram) or 0xFFFF
    return datagram[:6] + struct.pack("!H", value) + datagram[8:]


def icmp(kind: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    """An ICMP message (IPv4); `rest` are the four bytes behind the checksum."""
    message = struct.pack("!BBH", kind, code, 0) + rest + payload
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def icmp6(source: Address, destination: Address, kind: int, code: int, rest: bytes, payload: bytes = b"") -> bytes:
    """An ICMPv6 message."""
    message = struct.pack("!BBH", kind, code, 0) + rest + payload
    value = checksum(_pseudo(source, destination, ICMPV6, message) + message)
    return message[:2] + struct.pack("!H", value) + message[4:]


def ipv4(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    ident: int = 7,
    total: int | None = None,
    version_ihl: int | None = None,
) -> bytes:
    """An IPv4 packet. `fragment`: flags and offset as on the wire; `total`, `version_ihl`: to lie about the lengths."""
    ihl = 5 + len(options) // 4
    head = struct.pack(
        "!BBHHHBBH4s4s",
        (4 << 4 | ihl) if version_ihl is None else version_ihl,
        0,
        ihl * 4 + len(payload) if total is None else total,
        ident,
        fragment,
        64,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    extensions: bytes = b"",
    hop_limit: int = 64,
    length: int | None = None,
) -> bytes:
    """An IPv6 packet. With `extensions` (ready bytes), `protocol` is the type of the first of them."""
    body = extensions + payload
    head = struct.pack("!IHBB", 6 << 28, len(body) if length is None else length, protocol, hop_limit)
    return head + ip_address(source).packed + ip_address(destination).packed + body


def ip(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """An IP packet of the addresses' family."""
    make = ipv4 if ip_address(source).version == 4 else ipv6
    return make(source, destination, protocol, payload)


def frame(packet: bytes, ethertype: int | None = None, *, tags: tuple[int, ...] = ()) -> bytes:
    """An Ethernet frame; `tags`: ethertypes of VLAN tags, outermost first."""
    if ethertype is None:
        ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    out = ETH
    for tag in tags:
        out += struct.pack("!HH", tag, 5)
    return out + struct.pack("!H", ethertype) + packet


def tcp_frame(
    source: Address, destination: Address, sport: int, dport: int, flags: int = SYN, **options: object
) -> bytes:
    """A frame with one TCP segment."""
    return frame(ip(source, destination, TCP, tcp(source, destination, sport, dport, flags, **options)))  # type: ignore[arg-type]


def arp(sender: str, target: str) -> bytes:
    """A frame with an ARP request."""
    body = (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        + ETH[6:]
        + socket.inet_aton(sender)
        + bytes(6)
        + socket.inet_aton(target)
    )
    return frame(body, 0x0806)
