"""No pod sends with another's source address: not in a header, not in what an ICMP error quotes, not in ARP or ND."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from support.attack import MARKER, SEQ, Site, Wire, Witness, attacked_site, error_about, pairs, seconds, set_rps
from support.packets import ACK, ICMP, ICMPV6, RST, SYN, TCP, UDP, icmp, icmp6, ip, ipv6, tcp, udp
from support.sysctl import set_sysctls
from support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with attacked_site() as built:
        yield built


def spoofed(site: Site, ports: list[int]) -> list[bytes]:
    """Packets of `intruder` that claim to be `frontend`, to both servers, on live tuples and on new ones."""
    packets = []
    for target in (site.api, site.backend):
        for source, destination in pairs(site.frontend, target):
            for port in (*ports[:4], 40000):
                for flags, data in ((SYN, b""), (SYN, MARKER), (ACK, MARKER), (RST, b""), (RST | ACK, b"")):
                    segment = tcp(source, destination, port, 80, flags, data, seq=SEQ, ack=1)
                    packets.append(ip(source, destination, TCP, segment))
            packets.append(ip(source, destination, UDP, udp(source, destination, 40000, 53, MARKER)))
            if ":" in source:
                packets.append(ip(source, destination, ICMPV6, icmp6(source, destination, 128, 0, bytes(4), MARKER)))
            else:
                packets.append(ip(source, destination, ICMP, icmp(8, 0, bytes(4), MARKER)))
    return packets


def foreign_errors(site: Site, ports: list[int]) -> list[bytes]:
    """ICMP errors of `intruder` about connections of others: from its own address, and from that of the end."""
    packets = []
    own = {4: str(site.intruder.address(4)), 6: str(site.intruder.address(6))}
    for client, server in pairs(site.frontend, site.api):
        version = 6 if ":" in client else 4
        for port in (*ports[:4], 40000):
            there = ip(client, server, TCP, tcp(client, server, port, 80, ACK, seq=SEQ))
            back = ip(server, client, TCP, tcp(server, client, 80, port, ACK, seq=SEQ))
            for too_big in (False, True):
                for source in (own[version], client, server):
                    packets.append(error_about(source, client, there, too_big=too_big))
                    packets.append(error_about(source, server, back, too_big=too_big))
    return packets


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rps", [False, True], ids=["plain", "rps"])
def test_spoofed_sources_reach_nobody(site: Site, rps: bool) -> None:
    set_rps(site.node, rps)
    before = site.counted("spoofed-source")
    with (
        site.load(requests=4000) as load,
        Wire(site.intruder) as wire,
        Witness(*(pod.netns for pod in (site.frontend, site.api, site.backend, site.outside))) as witness,
    ):
        ports = until(site.live_ports)
        sent = wire.flood([*spoofed(site, ports), *foreign_errors(site, ports)], seconds())
        load.flawless()
        witness.assert_nothing()
    assert site.counted("spoofed-source") - before >= sent * 0.9


@pytest.mark.timeout(600)
def test_the_nodes_neighbours_stay_who_they_are(site: Site) -> None:
    """ARP and neighbour advertisements for the victims' addresses: answered by nobody, learnt by nobody."""
    before = _neighbours(site)
    mac = bytes.fromhex("020000000666")
    with site.load() as load, Wire(site.intruder) as wire:
        for _ in range(200):
            for victim in (site.frontend, site.api):
                address, v6 = victim.address(4).packed, victim.address(6)
                for operation in (1, 2):
                    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + address + mac + address
                    wire.send(body, 0x0806)
                for source in (str(v6), str(site.intruder.address(6)), "fe80::1"):
                    rest, option = (0x60000000).to_bytes(4, "big"), b"\2\1" + mac
                    message = icmp6(source, "ff02::1", 136, 0, rest, v6.packed + option)
                    wire.send(ipv6(source, "ff02::1", ICMPV6, message, hop_limit=255))
                    # A router advertisement and a redirect: only routers send these.
                    for kind, payload in ((134, bytes(12) + b"\3\4\x40\xc0" + bytes(28)), (137, bytes(32))):
                        message = icmp6(source, "ff02::1", kind, 0, bytes(4), payload)
                        wire.send(ipv6(source, "ff02::1", ICMPV6, message, hop_limit=255))
        load.flawless()
    after = _neighbours(site)
    assert {line for line in after - before if "02:00:00:00:06:66" in line} == set()
    assert before <= after


@pytest.mark.timeout(600)
def test_neighbour_discovery_is_no_way_out(site: Site) -> None:
    """Neighbour discovery stays on its link: `backend` may not reach `outside`, with whatever type of message."""
    source, outside = str(site.backend.address(6)), str(site.outside.address(6))
    with Wire(site.backend) as wire, Witness(site.outside.netns, site.api.netns) as witness:
        for kind in (130, 131, 132, 133, 134, 135, 136, 137, 143):
            for target in (outside, str(site.api.address(6))):
                for hop_limit in (255, 64, 2, 1):
                    message = icmp6(source, target, kind, 0, bytes(4), bytes(16) + MARKER)
                    wire.send(ipv6(source, target, ICMPV6, message, hop_limit=hop_limit))
        witness.assert_nothing()


def test_without_the_agent_the_same_frames_arrive() -> None:
    """The witnesses can see: on a node without policy the spoofed packets reach them."""
    with (
        attacked_site(agent=False) as site,
        Wire(site.intruder) as wire,
        Witness(site.api.netns) as witness,
    ):
        for pod in (site.intruder, site.frontend):  # a strict node would drop some of them for another reason
            for scope in ("all", pod.interface):
                set_sysctls(site.node.info.netns, **{f"ipv4__conf__{scope}__rp_filter": 0})
        for packet in spoofed(site, []):
            wire.send(packet)
        witness.close()
        assert any(frame[12:14] == b"\x08\x00" for frame in witness.seen)
        assert any(frame[12:14] == b"\x86\xdd" for frame in witness.seen)


def _neighbours(site: Site) -> set[str]:
    done = site.node.run_on_node(["ip", "neigh", "show"])
    assert done.returncode == 0, done.stderr
    return {line for line in done.stdout.splitlines() if "PERMANENT" in line or "02:00:00:00:06:66" in line}
