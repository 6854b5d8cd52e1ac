"""Frames that look for a way past the proxy. Each way is a function from a `Scene` to frames, and how it has to end."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from spliceway.agent.testbed.linkparts import mac_address
from spliceway.policy.verdict import Reason
from support.attack import LISTENER_PORT
from support.bypass import Hunt, Token, cluster_ip
from support.packets import ACK, ICMP, ICMPV6, SYN, TCP, UDP, icmp, icmp6, ipv4, ipv6, tcp, udp

_MORE = 0x2000
_HOP, _IPIP, _IPV6, _ROUTING, _FRAGMENT, _GRE, _DESTINATION, _SCTP = 0, 4, 41, 43, 44, 47, 60, 132
_VXLAN, _VXLAN_LINUX, _GENEVE = 4789, 8472, 6081
_PADDING = bytes([1, 4, 0, 0, 0, 0])
BROADCAST = b"\xff" * 6
#: Instead of a reason: somebody else refuses it, and we only see to it that nothing arrives.
KERNEL = "kernel"
#: It went to the proxy.
STEERED = "steered"


class Scene(NamedTuple):
    """One attempt: who sends, in which IP version, with which token."""

    hunt: Hunt
    sender: str
    version: int
    token: Token
    port: int

    @property
    def source(self) -> str:
        return self.hunt.address(self.sender, self.version)

    @property
    def target(self) -> str:
        return self.hunt.address("server", self.version)

    @property
    def node(self) -> str:
        return self.hunt.node_address(self.version)

    @property
    def other_node(self) -> str:
        return self.hunt.node_address(self.version, 1)

    def segments(self, source: str = "", target: str = "", port: int = 80) -> list[bytes]:
        """A SYN, one with data, and data in the middle of a connection."""
        ends = source or self.source, target or self.target, self.port, port
        request = b"GET /closed/" + self.token.raw + b" HTTP/1.1\r\nHost: hunt\r\n\r\n"
        return [
            tcp(*ends, SYN, seq=self.token.seq),
            tcp(*ends, SYN, request, seq=self.token.seq),
            tcp(*ends, ACK, request, seq=self.token.seq, ack=1),
        ]

    def packets(self, source: str = "", target: str = "", port: int = 80, **options: bytes) -> list[bytes]:
        """The same as IP packets."""
        source, target = source or self.source, target or self.target
        return [self.ip(TCP, one, source, target, **options) for one in self.segments(source, target, port)]

    def ip(self, protocol: int, payload: bytes, source: str = "", target: str = "", **options: bytes) -> bytes:
        """One IP packet."""
        make = ipv6 if self.version == 6 else ipv4
        return make(source or self.source, target or self.target, protocol, payload, **options)  # type: ignore[arg-type]

    def frame(self, packet: bytes, *, to: bytes = b"", ethertype: int = 0, tags: bytes = b"") -> bytes:
        """A frame to the node, or to another station."""
        kind = (ethertype or (0x0800 if packet[0] >> 4 == 4 else 0x86DD)).to_bytes(2, "big")
        return (to or self.hunt.gateway(self.sender)) + self.hunt.station(self.sender) + tags + kind + packet


class Way(NamedTuple):
    """`ends`: reasons (or KERNEL, STEERED) of which one at least must be seen. `versions` of IP that it exists in."""

    make: Callable[[Scene], Iterator[bytes]]
    ends: frozenset[Reason | str]
    versions: tuple[int, ...] = (4, 6)
    sender: str = "client"
    #: Profiles where it exists: with a bridge between pods, with kube-proxy.
    bridged: bool = False
    services: bool = False


WAYS: dict[str, Way] = {}


def way(
    *ends: Reason | str, versions: tuple[int, ...] = (4, 6), bridged: bool = False, services: bool = False,
    sender: str = "client",
) -> Callable[[Callable[[Scene], Iterator[bytes]]], Callable[[Scene], Iterator[bytes]]]:  # fmt: skip
    """Name a way by its function."""

    def named(make: Callable[[Scene], Iterator[bytes]]) -> Callable[[Scene], Iterator[bytes]]:
        WAYS[make.__name__] = Way(make, frozenset(ends), versions, sender, bridged, services)
        return make

    return named


def cut6(scene: Scene, segment: bytes, cut: int, ident: int, upper: int = TCP) -> list[bytes]:
    """A segment in two IPv6 fragments."""
    head = [struct.pack("!BBHI", upper, 0, offset << 3 | more, ident) for offset, more in ((0, 1), (cut // 8, 0))]
    parts = segment[:cut], segment[cut:]
    return [scene.ip(_FRAGMENT, part, extensions=extension) for extension, part in zip(head, parts, strict=True)]


def cut4(scene: Scene, segment: bytes, cut: int, ident: int) -> list[bytes]:
    """A segment in two IPv4 fragments."""
    return [
        ipv4(scene.source, scene.target, TCP, segment[:cut], fragment=_MORE, ident=ident),
        ipv4(scene.source, scene.target, TCP, segment[cut:], fragment=cut // 8, ident=ident),
    ]


def _cut(scene: Scene, segment: bytes, cut: int, ident: int) -> list[bytes]:
    if scene.version == 4:
        return cut4(scene, segment, cut, ident & 0xFFFF)
    return cut6(scene, segment, cut, ident)


# ---- what must be steered, or is for nobody ----


@way(STEERED)
def segments_by_hand(scene: Scene) -> Iterator[bytes]:
    """A SYN that no socket knows of, Fast Open, and data out of any window."""
    yield from map(scene.frame, scene.packets())


@way(STEERED)
def simultaneous_opens(scene: Scene) -> Iterator[bytes]:
    """As if the server had dialled, too."""
    ends = scene.source, scene.target, scene.port, 80
    for flags in (SYN, SYN | ACK, ACK):
        yield scene.frame(scene.ip(TCP, tcp(*ends, flags, scene.token.raw, seq=scene.token.seq, ack=1)))


@way(STEERED, services=True)
def a_service_by_hand(scene: Scene) -> Iterator[bytes]:
    """Past socket load balancing, which sees sockets only."""
    yield from map(scene.frame, scene.packets(target=str(cluster_ip(80, scene.version))))


@way(Reason.NOT_STEERED, Reason.DEFAULT_DENY)
def other_protocols(scene: Scene) -> Iterator[bytes]:
    yield scene.frame(scene.ip(UDP, udp(scene.source, scene.target, scene.port, 80, scene.token.raw)))
    yield scene.frame(scene.ip(_SCTP, udp(scene.source, scene.target, scene.port, 80, scene.token.raw)))


@way(Reason.NOT_FOR_LISTENERS, Reason.NO_ENDPOINT, Reason.SPOOFED_SOURCE)
def the_listener_itself(scene: Scene) -> Iterator[bytes]:
    loopback = "127.0.0.1" if scene.version == 4 else "::1"
    for target in (scene.node, loopback, scene.source):
        yield from map(scene.frame, scene.packets(target=target, port=LISTENER_PORT))


# ---- fragments ----


@way(Reason.FRAGMENT, Reason.MALFORMED)
def fragments(scene: Scene) -> Iterator[bytes]:
    """Tiny first ones, overlapping ones, in the wrong order, one whose header is hidden in the second."""
    for number, segment in enumerate(scene.segments()):
        for cut in (8, 16, 24):
            ident = scene.port * 16 + number * 4 + cut // 8
            parts = _cut(scene, segment, cut, ident)
            yield from map(scene.frame, (*parts, *reversed(parts)))
            # A second first fragment names another port (RFC 1858, RFC 3128).
            other = segment[:2] + struct.pack("!H", 81) + segment[4:]
            again = _cut(scene, other, 24, ident)
            yield from map(scene.frame, (again[0], *parts))
            yield from map(scene.frame, (parts[0], *again))


@way(Reason.FRAGMENT, Reason.MALFORMED, versions=(6,))
def a_hidden_header(scene: Scene) -> Iterator[bytes]:
    """The transport header is in the second fragment (RFC 7112)."""
    for number, segment in enumerate(scene.segments()):
        chain = bytes([TCP, 0]) + _PADDING
        yield from map(scene.frame, cut6(scene, chain + segment, 8, scene.port * 8 + number, _DESTINATION))


@way(STEERED, Reason.FRAGMENT, versions=(6,))
def atomic_fragments(scene: Scene) -> Iterator[bytes]:
    """Whole packets with a fragment header (RFC 6946)."""
    for number, segment in enumerate(scene.segments()):
        head = struct.pack("!BBHI", TCP, 0, 0, scene.port * 8 + number)
        yield scene.frame(scene.ip(_FRAGMENT, segment, extensions=head))


@way(Reason.FRAGMENT, Reason.NOT_STEERED, versions=(6,), services=True)
def fragments_to_a_node_port(scene: Scene) -> Iterator[bytes]:
    """Put together for translation, masqueraded, and cut anew: the pieces have the node's address and no device."""
    for number, segment in enumerate(scene.segments(target=scene.node, port=30080)[1:]):
        head = [struct.pack("!BBHI", TCP, 0, o << 3 | m, scene.port * 8 + number) for o, m in ((0, 1), (4, 0))]
        for extension, part in zip(head, (segment[:32], segment[32:]), strict=True):
            yield scene.frame(scene.ip(_FRAGMENT, part, target=scene.node, extensions=extension))


@way(Reason.FRAGMENT, Reason.NOT_STEERED, KERNEL, versions=(6,), services=True, sender="outside")
def fragments_to_a_node_port_from_outside(scene: Scene) -> Iterator[bytes]:
    yield from fragments_to_a_node_port(scene)


# ---- headers ----


@way(STEERED, Reason.MALFORMED, versions=(6,))
def extension_headers(scene: Scene) -> Iterator[bytes]:
    """Few, many, and more than anybody reads."""
    for segment in scene.segments():
        for count in (1, 3, 12):
            chain = b"".join(bytes([_DESTINATION, 0]) + _PADDING for _ in range(count - 1)) + bytes([TCP, 0]) + _PADDING
            yield scene.frame(scene.ip(_DESTINATION, segment, extensions=chain))
            yield scene.frame(scene.ip(_HOP, segment, extensions=bytes([_DESTINATION, 0]) + _PADDING + chain))


@way(Reason.SOURCE_ROUTE, versions=(6,))
def routing_headers(scene: Scene) -> Iterator[bytes]:
    """Type 0, 2, 4 (SRv6): to an address that may be dialled, and on to the server."""
    via = scene.hunt.address("loner", 6)
    for kind in (0, 2, 4):
        for segment in scene.segments():
            last = bytes([0, 0, 0, 0]) if kind == 4 else bytes(4)
            head = bytes([TCP, 2, kind, 1]) + last + scene.hunt.pod("server").address(6).packed
            yield scene.frame(scene.ip(_ROUTING, segment, target=via, extensions=head))


@way(Reason.SOURCE_ROUTE, versions=(4,))
def source_routes(scene: Scene) -> Iterator[bytes]:
    """Loose and strict, behind other options."""
    server = scene.hunt.pod("server").address(4).packed
    for kind in (131, 137):
        for before in (b"", b"\1\1\1\1", bytes([7, 7, 4]) + bytes(4) + b"\1"):
            option = before + bytes([kind, 7, 4]) + server + b"\0"
            yield from map(scene.frame, scene.packets(target=scene.hunt.address("loner", 4), options=option))


@way(STEERED, versions=(4,))
def other_options(scene: Scene) -> Iterator[bytes]:
    """Record route, timestamps, router alert: judged like any packet."""
    for option in (bytes([7, 7, 4]) + bytes(4) + b"\0", bytes([68, 8, 5, 0]) + bytes(4), bytes([148, 4, 0, 0])):
        yield from map(scene.frame, scene.packets(options=option))


# ---- sources ----


@way(Reason.SPOOFED_SOURCE)
def spoofed_sources(scene: Scene) -> Iterator[bytes]:
    """Other pods', nodes', the proxy pair's, link-local, loopback, none."""
    others = [scene.hunt.address(name, scene.version) for name in ("loner", "server", "far", "outside")]
    others += [scene.node, scene.other_node]
    others += ["127.83.87.1", "127.0.0.1", "169.254.1.1", "0.0.0.0"] if scene.version == 4 else ["fe80::1", "::1", "::"]
    for source in others:
        yield from map(scene.frame, scene.packets(source=source))


@way(Reason.MALFORMED, versions=(6,))
def mapped_sources(scene: Scene) -> Iterator[bytes]:
    """IPv4 as IPv6 on the wire."""
    for name in (scene.sender, "loner"):
        yield from map(scene.frame, scene.packets(source=f"::ffff:{scene.hunt.address(name, 4)}"))
    yield from map(scene.frame, scene.packets(target=f"::ffff:{scene.hunt.address('server', 4)}"))


@way(Reason.SPOOFED_SOURCE, sender="outside")
def sources_from_outside(scene: Scene) -> Iterator[bytes]:
    """A host outside that is a pod of the node, or the node."""
    for source in (scene.hunt.address("client", scene.version), scene.node):
        yield from map(scene.frame, scene.packets(source=source))


@way(STEERED, KERNEL, sender="outside")
def segments_from_outside(scene: Scene) -> Iterator[bytes]:
    yield from map(scene.frame, scene.packets())


# ---- tunnels ----


def _vxlan(inner: bytes, *, geneve: bool = False) -> bytes:
    ethernet = bytes(6) + bytes.fromhex("020000000001") + (b"\x08\0" if inner[0] >> 4 == 4 else b"\x86\xdd")
    head = bytes([0, 0, 0x65, 0x58, 0, 0, 1, 0]) if geneve else bytes([8, 0, 0, 0, 0, 0, 1, 0])
    return head + ethernet + inner


def _vtep(scene: Scene, inner: bytes) -> bytes:
    """To the station that flannel's device is, so that its packets are the node's own."""
    station = bytes.fromhex(mac_address(f"vtep node1 {scene.version}").replace(":", ""))
    return bytes([8, 0, 0, 0, 0, 0, 1, 0]) + station + _vxlan(inner)[14:]


@way(Reason.TUNNEL)
def tunnels(scene: Scene) -> Iterator[bytes]:
    """To the own node by any address, and to another's tunnel: inside somebody of another node sends to the server."""
    link = ("224.0.0.1", "255.255.255.255", "169.254.7.7") if scene.version == 4 else ("ff02::1", "fe80::1")
    insides = scene.packets(source=scene.hunt.address("stranger", scene.version))
    for node in (scene.node, scene.other_node, *link):
        for inside in insides:
            for port, body in (
                (_VXLAN, _vxlan(inside)),
                (_VXLAN_LINUX, _vxlan(inside)),
                (_VXLAN_LINUX, _vtep(scene, inside)),
                (_GENEVE, _vxlan(inside, geneve=True)),
            ):
                yield scene.frame(scene.ip(UDP, udp(scene.source, node, scene.port, port, body), target=node))
            kind = 0x0800 if scene.version == 4 else 0x86DD
            yield scene.frame(scene.ip(_GRE, struct.pack("!HH", 0, kind) + inside, target=node))
            yield scene.frame(scene.ip(_IPIP if scene.version == 4 else _IPV6, inside, target=node))


# ---- frames ----


@way(STEERED, KERNEL)
def tags(scene: Scene) -> Iterator[bytes]:
    """VLAN, QinQ, a tag for nobody (VLAN 0)."""
    for tag in (b"\x81\0\0\5", b"\x81\0\0\0", b"\x88\xa8\0\5\x81\0\0\5"):
        for packet in scene.packets():
            yield scene.frame(packet, tags=tag)
            yield scene.frame(packet, tags=tag, to=scene.hunt.station("server"))


@way(Reason.UNSUPPORTED_PROTOCOL)
def other_ethertypes(scene: Scene) -> Iterator[bytes]:
    """LLC/SNAP, MPLS, three tags, an experimental type, and IP that says it is the other one."""
    for packet in scene.packets():
        kind = b"\x08\0" if scene.version == 4 else b"\x86\xdd"
        snap = b"\xaa\xaa\3\0\0\0" + kind + packet
        for to in (b"", scene.hunt.station("server"), BROADCAST):
            yield scene.frame(snap, ethertype=len(snap), to=to)
            yield scene.frame(b"\0\1\1\xff" + packet, ethertype=0x8847, to=to)
            yield scene.frame(packet, tags=b"\x81\0\0\5" * 3, to=to)
            yield scene.frame(packet, ethertype=0x88B5, to=to)


@way(Reason.MALFORMED)
def ethertypes_that_lie(scene: Scene) -> Iterator[bytes]:
    for packet in scene.packets():
        yield scene.frame(packet, ethertype=0x86DD if scene.version == 4 else 0x0800)


@way(STEERED)
def other_stations(scene: Scene) -> Iterator[bytes]:
    """Straight to the server's station, to all, to nobody."""
    for to in (scene.hunt.station("server"), BROADCAST, bytes.fromhex("020000000666")):
        for packet in scene.packets():
            yield scene.frame(packet, to=to)


@way(Reason.NO_ENDPOINT, bridged=True)
def another_address_for_the_station(scene: Scene) -> Iterator[bytes]:
    """The server's station with an address that may be dialled."""
    for name in ("loner", "outside"):
        for packet in scene.packets(target=scene.hunt.address(name, scene.version)):
            yield scene.frame(packet, to=scene.hunt.station("server"))


@way(Reason.NO_ENDPOINT, KERNEL)
def multicast(scene: Scene) -> Iterator[bytes]:
    """TCP to everybody."""
    if scene.version == 4:
        ends = {"224.0.0.1": "01005e000001", "255.255.255.255": "ffffffffffff", "10.240.1.255": "ffffffffffff"}
    else:
        ends = {"ff02::1": "333300000001", "ff0e::1": "333300000001"}
    for target, station in ends.items():
        for packet in scene.packets(target=target):
            yield scene.frame(packet, to=bytes.fromhex(station))


# ---- ICMP ----


@way(Reason.SPOOFED_SOURCE, Reason.UNTRACKED)
def errors_and_redirects(scene: Scene) -> Iterator[bytes]:
    """Errors about others' connections and forged ones, redirects, advertisements for the server's address."""
    for source, target in ((scene.source, scene.target), (scene.target, scene.source)):
        quoted = scene.packets(source=source, target=target)[1]
        if scene.version == 4:
            for kind, code in ((3, 4), (3, 3), (5, 1), (11, 0)):
                yield scene.frame(scene.ip(ICMP, icmp(kind, code, bytes(4), quoted)))
        else:
            for kind in (1, 2, 3):
                yield scene.frame(scene.ip(ICMPV6, icmp6(scene.source, scene.target, kind, 0, bytes(4), quoted)))
    if scene.version == 6:
        own = scene.hunt.pod(scene.sender).address(6).packed
        for kind, body in ((137, scene.hunt.pod("server").address(6).packed + own), (134, bytes(12))):
            message = icmp6(scene.source, scene.target, kind, 0, bytes(4), body + scene.token.raw)
            yield scene.frame(ipv6(scene.source, scene.target, ICMPV6, message, hop_limit=255))
