"""Packets that are cut, doubled, padded or lie about their lengths carry nothing to a port with HTTP rules."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from support.attack import MARKER, SEQ, Site, Wire, Witness, attack, attacked_site, seconds, set_rps
from support.packets import ACK, FIN, SYN, TCP, UDP, ipv4, ipv6, tcp, udp

pytestmark = pytest.mark.kernel

_MORE = 0x2000
_REQUEST = b"GET /private HTTP/1.1\r\nHost: " + MARKER + b"\r\n\r\n"
_FRAGMENT, _HOP, _DESTINATION, _ROUTING = 44, 0, 60, 43
_PADDING = bytes([1, 4, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with attacked_site() as built:
        yield built


def cut_v4(source: str, target: str, segment: bytes, ident: int) -> Iterator[bytes]:
    """A segment in IPv4 fragments: in halves, tiny, overlapping, doubled, in the wrong order, only its end."""
    for cut in (8, 16, 24, 32):
        first = ipv4(source, target, TCP, segment[:cut], fragment=_MORE, ident=ident + cut)
        rest = ipv4(source, target, TCP, segment[cut:], fragment=cut // 8, ident=ident + cut)
        yield from (first, rest, rest, first)
    # The port is overwritten by a second first fragment, and by one that overlaps (RFC 1858, RFC 3128).
    other = segment[:2] + struct.pack("!H", 9) + segment[4:]
    yield ipv4(source, target, TCP, other[:24], fragment=_MORE, ident=ident)
    yield ipv4(source, target, TCP, segment[:24], fragment=_MORE, ident=ident)
    yield ipv4(source, target, TCP, segment[8:], fragment=1, ident=ident)
    yield ipv4(source, target, TCP, segment[:8], fragment=_MORE, ident=ident + 1)
    yield ipv4(source, target, TCP, segment[8:], fragment=1, ident=ident + 1)
    yield ipv4(source, target, TCP, segment, fragment=0x1FFF, ident=ident + 2)


def cut_v6(source: str, target: str, segment: bytes, ident: int) -> Iterator[bytes]:
    """The same in IPv6: fragments (also «atomic» ones, RFC 6946), with headers before and behind."""

    def fragment(offset: int, more: int, upper: int = TCP, number: int = ident) -> bytes:
        return struct.pack("!BBHI", upper, 0, offset << 3 | more, number)

    for cut in (8, 16, 24, 32):
        yield ipv6(source, target, _FRAGMENT, segment[:cut], extensions=fragment(0, 1, TCP, ident + cut))
        yield ipv6(source, target, _FRAGMENT, segment[cut:], extensions=fragment(cut // 8, 0, TCP, ident + cut))
    yield ipv6(source, target, _FRAGMENT, segment[8:], extensions=fragment(1, 0))
    yield ipv6(source, target, _FRAGMENT, segment, extensions=fragment(0, 1, UDP))
    # A chain that hides the transport header in the second fragment (RFC 7112).
    chain = bytes([TCP, 0]) + _PADDING
    yield ipv6(source, target, _FRAGMENT, chain, extensions=fragment(0, 1, _DESTINATION, ident + 1))
    yield ipv6(source, target, _FRAGMENT, segment, extensions=fragment(1, 0, _DESTINATION, ident + 1))
    # Two fragment headers, headers without end, a routing header that is not used up.
    yield ipv6(source, target, _FRAGMENT, segment, extensions=fragment(0, 0, _FRAGMENT) + fragment(0, 0))
    long = b"".join(bytes([_DESTINATION, 0]) + _PADDING for _ in range(12)) + bytes([TCP, 0]) + _PADDING
    yield ipv6(source, target, _DESTINATION, segment, extensions=long)
    yield ipv6(source, target, _ROUTING, segment, extensions=bytes([TCP, 2, 0, 1]) + bytes(20))


def lying(source: str, target: str, port: int) -> Iterator[bytes]:
    """Lengths and offsets that are not true, flags that make no sense."""
    v6 = ":" in source

    def packet(segment: bytes, **options: int) -> bytes:
        return ipv6(source, target, TCP, segment, **options) if v6 else ipv4(source, target, TCP, segment, **options)

    for offset in (0, 1, 4, 15):
        segment = tcp(source, target, port, 80, SYN, b"", seq=SEQ, offset=5)
        yield packet(segment[:12] + bytes([offset << 4]) + segment[13:] + MARKER)
    segment = tcp(source, target, port, 80, SYN, _REQUEST, seq=SEQ)
    if v6:
        yield packet(segment, length=8)
        yield packet(segment, length=1400)
    else:
        yield packet(segment, total=28)
        yield packet(segment, total=1400)
        yield packet(segment, version_ihl=0x44)
        yield packet(segment, version_ihl=0x4F)
        # Loose source routing through the server.
        yield ipv4(source, target, TCP, segment, options=bytes([131, 7, 4]) + bytes([10, 240, 1, 12]) + b"\0")
    for flags in (0, SYN | FIN, SYN | ACK, FIN, ACK, SYN | ACK | FIN, 0xFF):
        yield packet(tcp(source, target, port, 80, flags, _REQUEST, seq=SEQ))


def packets(site: Site, attacker: str, port: int) -> list[bytes]:
    """All of them, from an attacker's own addresses to api."""
    found: list[bytes] = []
    for version in (4, 6):
        source = str(site.testbed.pod(attacker).address(version))
        target = str(site.api.address(version))
        cut = cut_v6 if version == 6 else cut_v4
        for at, flags in enumerate((SYN, ACK)):
            segment = tcp(source, target, port + at, 80, flags, _REQUEST, seq=SEQ)
            found += cut(source, target, segment, 1000 * (at + 1))
        found += lying(source, target, port + 2)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rps", [False, True], ids=["plain", "rps"])
@pytest.mark.parametrize("attacker", ["intruder", "frontend"])
def test_odd_packets_reach_nothing(site: Site, attacker: str, rps: bool) -> None:
    """From `intruder`, who has no rights, and from `frontend`, whose connections are proxied."""
    set_rps(site.node, rps)
    with (
        site.load() as load,
        Wire(site.testbed.pod(attacker)) as wire,
        Witness(site.api.netns, site.backend.netns) as witness,
    ):
        sent = wire.flood(packets(site, attacker, 50000), seconds())
        assert sent > 100
        load.flawless()
        witness.assert_nothing()


@pytest.mark.timeout(600)
def test_fragments_cannot_move_to_another_port(site: Site) -> None:
    """`backend` allows TCP 80 from `frontend` in the kernel. Nothing that is put together there has another port."""
    marked = Witness(site.backend.netns)
    with marked, Wire(site.frontend) as wire:
        for version in (4, 6):
            source, target = str(site.frontend.address(version)), str(site.backend.address(version))
            for ident, flags in ((77, SYN), (78, ACK)):
                good = tcp(source, target, 50100, 80, flags, bytes(64), seq=1)
                bad = tcp(source, target, 50100, 22, flags, MARKER * 16, seq=SEQ)
                orders = ((good, bad), (bad, good))
                for first, second in orders:
                    for part in _halves(version, source, target, first, ident)[:1]:
                        wire.send(part)
                    for part in _halves(version, source, target, second, ident)[:1]:
                        wire.send(part)
        time.sleep(0.05)
    assert [frame for frame in marked.seen if struct.pack("!HH", 50100, 22) in frame] == []


def test_a_syn_with_data_counts_for_nothing(site: Site) -> None:
    """Fast Open: a denied request in the SYN is denied, an allowed one answered, whoever takes the data."""
    for version in (4, 6):
        report = attack(site.frontend, "fast_open", address=str(site.api.address(version)), port=80)
        assert report["private"].startswith("HTTP/1.1 403"), report
        assert report["articles"].startswith("HTTP/1.1 200"), report


@pytest.mark.timeout(600)
def test_a_flood_of_syns_leaves_the_others_alone(site: Site) -> None:
    """SYNs from one client to the listener that all share: with cookies, the others are served on."""
    frames = []
    for version in (4, 6):
        source, target = str(site.backend.address(version)), str(site.api.address(version))
        make = ipv6 if version == 6 else ipv4
        frames += [make(source, target, TCP, tcp(source, target, port, 80, SYN)) for port in range(1024, 9216)]
    # `backend` becomes a second frontend that never answers.
    site.testbed.set_labels("backend", {"role": "frontend"})
    site.control.wait_in_force()
    for address in site.backend.ips:
        site.backend.run(["ip", "address", "del", address, "dev", "eth0"])
    try:
        with site.load(fresh=True) as load, Wire(site.backend) as wire:
            wire.flood(frames, seconds(), pause=0)
            load.flawless()
    finally:
        for address in site.backend.ips:
            site.backend.run(["ip", "address", "add", address, "dev", "eth0"])
        site.testbed.set_labels("backend", {"role": "backend"})
        site.control.wait_in_force()


def test_without_the_agent_the_same_packets_arrive() -> None:
    with attacked_site(agent=False) as site, Wire(site.intruder) as wire, Witness(site.api.netns) as witness:
        for packet in packets(site, "intruder", 50000):
            wire.send(packet)
        witness.close()
        assert len(witness.seen) > 20


def _halves(version: int, source: str, target: str, segment: bytes, ident: int) -> list[bytes]:
    if version == 4:
        return [
            ipv4(source, target, TCP, segment[:32], fragment=_MORE, ident=ident),
            ipv4(source, target, TCP, segment[32:], fragment=4, ident=ident),
        ]
    return [
        ipv6(source, target, _FRAGMENT, segment[:32], extensions=struct.pack("!BBHI", TCP, 0, 1, ident)),
        ipv6(source, target, _FRAGMENT, segment[32:], extensions=struct.pack("!BBHI", TCP, 0, 4 << 3, ident)),
    ]


def test_datagrams_to_a_port_with_http_rules(site: Site) -> None:
    with Wire(site.frontend) as wire, Witness(site.api.netns) as witness:
        for version in (4, 6):
            source, target = str(site.frontend.address(version)), str(site.api.address(version))
            make = ipv6 if version == 6 else ipv4
            wire.send(make(source, target, UDP, udp(source, target, 50200, 80, MARKER)))
            wire.send(make(source, target, 132, udp(source, target, 50200, 80, MARKER)))
        witness.assert_nothing()
