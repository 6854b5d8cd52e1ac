"""What `from_pod` and `to_pod` make of packets, right and wrong, by BPF_PROG_TEST_RUN on a node without policies."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support import packets as p
from support.kernel import KernelNode

pytestmark = pytest.mark.kernel

PASS, DROP = -1, 2
A4, B4 = "10.240.1.10", "10.240.1.11"
A6, B6 = "fd00:240:1::10", "fd00:240:1::11"
ME = "default/frontend"


@pytest.fixture(scope="module")
def node(demo_testbed: Testbed) -> Iterator[KernelNode]:
    with KernelNode(demo_testbed.node) as kernel:
        kernel.apply()
        yield kernel


def denied(node: KernelNode, hook: Hook) -> dict[Reason, int]:
    return {r.reason: r.packets for r in node.datapath.reasons() if r.hook is hook and r.verdict is Verdict.DENY}


def why(node: KernelNode, packet: bytes, hook: Hook = Hook.FROM_POD, **options: int) -> Reason | None:
    """The reason that was counted for the drop, or None when the packet passed."""
    before = denied(node, hook)
    result = node.judge(hook.name.lower(), packet, endpoint=ME, **options)
    after = denied(node, hook)
    changed = [reason for reason in after if after[reason] != before.get(reason, 0)]
    assert (result == DROP) == bool(changed)
    assert result in (PASS, DROP)
    return changed[0] if changed else None


def hop(kind: int, following: int, length: int = 8, data: int = 0) -> bytes:
    """One IPv6 extension header; `data` is its fourth byte (segments left of a routing header)."""
    return bytes([following, length // 8 - 1, 0, data]) + bytes(length - 4)


def fragment6(following: int, offset: int, more: int, ident: int = 9) -> bytes:
    return struct.pack("!BBHI", following, 0, offset << 3 | more, ident)


def options(some: bytes) -> bytes:
    """A frame with these IPv4 options."""
    return p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, options=some))


SEGMENT4 = p.tcp(A4, B4, 1000, 80)
SEGMENT6 = p.tcp(A6, B6, 1000, 80)
QUOTE4 = p.ipv4(B4, A4, p.TCP, p.tcp(B4, A4, 81, 1001))
QUOTE_OTHER4 = p.ipv4(B4, "10.240.1.12", p.TCP, p.tcp(B4, "10.240.1.12", 80, 1000))
QUOTE6 = p.ipv6(B6, A6, p.TCP, p.tcp(B6, A6, 81, 1001))

GOOD = {
    "tcp": p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4)),
    "tcp-v6": p.frame(p.ipv6(A6, B6, p.TCP, SEGMENT6)),
    "udp": p.frame(p.ipv4(A4, B4, p.UDP, p.udp(A4, B4, 5000, 53))),
    "ipv4-options": p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, options=b"\x01" * 8)),
    "router-alert": options(bytes([148, 4, 0, 0])),
    "record-route": options(bytes([7, 7, 4, 0, 0, 0, 0, 0])),
    "vxlan-to-a-pod": p.frame(p.ipv4(A4, B4, p.UDP, p.udp(A4, B4, 5, 8472, bytes(60)))),
    "vxlan-to-the-world": p.frame(p.ipv4(A4, "192.0.2.1", p.UDP, p.udp(A4, "192.0.2.1", 5, 4789, bytes(60)))),
    "padded-frame": p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4)) + bytes(10),
    "vlan": p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4), tags=(0x8100,)),
    "qinq": p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4), tags=(0x88A8, 0x8100)),
    "hop-by-hop": p.frame(p.ipv6(A6, B6, 0, SEGMENT6, extensions=hop(0, p.TCP))),
    "three-extensions": p.frame(p.ipv6(A6, B6, 0, SEGMENT6, extensions=hop(0, 60) + hop(60, 43, 16) + hop(43, p.TCP))),
    "atomic-fragment": p.frame(p.ipv6(A6, B6, 44, SEGMENT6, extensions=fragment6(p.TCP, 0, 0))),
    "ping": p.frame(p.ipv4(A4, B4, p.ICMP, p.icmp(8, 0, b"\0\1\0\1"))),
    "ping-v6": p.frame(p.ipv6(A6, B6, p.ICMPV6, p.icmp6(A6, B6, 128, 0, b"\0\1\0\1"))),
    "arp": p.arp(A4, B4),
    "solicitation": p.frame(
        p.ipv6(
            A6, "ff02::1:ff00:11", p.ICMPV6, p.icmp6(A6, "ff02::1:ff00:11", 135, 0, bytes(4), bytes(16)), hop_limit=255
        )
    ),
    "sctp": p.frame(p.ipv4(A4, B4, 132, struct.pack("!HHII", 1, 2, 0, 0))),
}


@pytest.mark.parametrize("name", GOOD)
def test_passes(node: KernelNode, name: str) -> None:
    assert why(node, GOOD[name]) is None


BAD: dict[str, tuple[bytes, Reason]] = {
    "spoofed-v4": (p.tcp_frame("10.240.1.12", B4, 1, 80), Reason.SPOOFED_SOURCE),
    "spoofed-v6": (p.tcp_frame("fd00:240:1::12", B6, 1, 80), Reason.SPOOFED_SOURCE),
    "spoofed-outside": (p.tcp_frame("8.8.8.8", B4, 1, 80), Reason.SPOOFED_SOURCE),
    "unspecified": (p.tcp_frame("0.0.0.0", B4, 1, 80), Reason.SPOOFED_SOURCE),
    "unspecified-v6": (p.tcp_frame("::", B6, 1, 80), Reason.SPOOFED_SOURCE),
    "link-local-flow": (p.tcp_frame("fe80::1", B6, 1, 80), Reason.SPOOFED_SOURCE),
    "spoofed-arp": (p.arp("10.240.1.12", B4), Reason.SPOOFED_SOURCE),
    "mapped-on-the-wire": (p.tcp_frame(f"::ffff:{A4}", B6, 1, 80), Reason.MALFORMED),
    "mapped-destination": (p.tcp_frame(A6, f"::ffff:{B4}", 1, 80), Reason.MALFORMED),
    "router-advertisement": (
        p.frame(p.ipv6(A6, "ff02::1", p.ICMPV6, p.icmp6(A6, "ff02::1", 134, 0, bytes(4), bytes(8)), hop_limit=255)),
        Reason.SPOOFED_SOURCE,
    ),
    "redirect-v6": (
        p.frame(p.ipv6(A6, B6, p.ICMPV6, p.icmp6(A6, B6, 137, 0, bytes(4), bytes(32)), hop_limit=255)),
        Reason.SPOOFED_SOURCE,
    ),
    "solicitation-from-afar": (
        p.frame(p.ipv6(A6, B6, p.ICMPV6, p.icmp6(A6, B6, 135, 0, bytes(4), bytes(16)), hop_limit=64)),
        Reason.MALFORMED,
    ),
    "cut-ip": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4))[:36], Reason.MALFORMED),
    "cut-tcp": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4[:12])), Reason.MALFORMED),
    "cut-udp": (p.frame(p.ipv4(A4, B4, p.UDP, b"\0\1\0\2")), Reason.MALFORMED),
    "total-too-long": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, total=400)), Reason.MALFORMED),
    "total-too-short": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, total=21)), Reason.MALFORMED),
    "total-zero": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, total=0)), Reason.MALFORMED),
    "short-header": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, version_ihl=0x44)), Reason.MALFORMED),
    "version-5": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4, version_ihl=0x55), 0x0800), Reason.MALFORMED),
    "version-6-in-v4": (p.frame(p.ipv6(A6, B6, p.TCP, SEGMENT6), 0x0800), Reason.MALFORMED),
    "tcp-offset-4": (p.frame(p.ipv4(A4, B4, p.TCP, p.tcp(A4, B4, 1, 80, offset=4))), Reason.MALFORMED),
    "tcp-offset-beyond": (
        p.frame(p.ipv4(A4, B4, p.TCP, p.tcp(A4, B4, 1, 80)[:12] + b"\xf0" + bytes(7))),
        Reason.MALFORMED,
    ),
    "length-too-long-v6": (p.frame(p.ipv6(A6, B6, p.TCP, SEGMENT6, length=900)), Reason.MALFORMED),
    "length-zero-v6": (p.frame(p.ipv6(A6, B6, p.TCP, SEGMENT6, length=0)), Reason.MALFORMED),
    "endless-extensions": (
        p.frame(p.ipv6(A6, B6, 0, SEGMENT6, extensions=hop(0, 60) * 1 + hop(60, 60) * 7)),
        Reason.MALFORMED,
    ),
    "extension-beyond": (p.frame(p.ipv6(A6, B6, 0, b"", extensions=b"\x06\xff" + bytes(6))), Reason.MALFORMED),
    "routing-header": (p.frame(p.ipv6(A6, B6, 43, SEGMENT6, extensions=hop(43, p.TCP, 8, 1))), Reason.SOURCE_ROUTE),
    "loose-route": (options(bytes([131, 7, 4, 1, 2, 3, 4, 0])), Reason.SOURCE_ROUTE),
    "strict-route-behind-others": (
        options(bytes([1, 7, 7, 4, 0, 0, 0, 0, 137, 7, 4, 1, 2, 3, 4, 0])),
        Reason.SOURCE_ROUTE,
    ),
    "option-without-length": (options(b"\1\1\1\x07"), Reason.MALFORMED),
    "option-of-length-0": (options(b"\x07\0\1\1"), Reason.MALFORMED),
    "more-options-than-are-read": (options(b"\1" * 16), Reason.MALFORMED),
    "vxlan-to-the-node": (
        p.frame(p.ipv4(A4, "10.10.0.2", p.UDP, p.udp(A4, "10.10.0.2", 5, 8472, bytes(60)))),
        Reason.TUNNEL,
    ),
    "gre-to-the-node": (p.frame(p.ipv4(A4, "10.10.0.2", 47, bytes(40))), Reason.TUNNEL),
    "ipv6-in-ipv6-to-the-node": (p.frame(p.ipv6(A6, "fd00:10::2", 41, bytes(60))), Reason.TUNNEL),
    "two-fragment-headers": (
        p.frame(p.ipv6(A6, B6, 44, SEGMENT6, extensions=fragment6(44, 0, 1) + fragment6(p.TCP, 0, 1))),
        Reason.MALFORMED,
    ),
    "later-fragment": (p.frame(p.ipv4(A4, B4, p.UDP, bytes(64), fragment=64, ident=99)), Reason.FRAGMENT),
    "later-fragment-v6": (
        p.frame(p.ipv6(A6, B6, 44, bytes(64), extensions=fragment6(p.UDP, 64, 0, 98))),
        Reason.FRAGMENT,
    ),
    "ethertype": (p.frame(bytes(60), 0x88CC), Reason.UNSUPPORTED_PROTOCOL),
    "three-tags": (p.frame(p.ipv4(A4, B4, p.TCP, SEGMENT4), tags=(0x8100,) * 3), Reason.UNSUPPORTED_PROTOCOL),
    "pong-unasked": (p.frame(p.ipv4(A4, B4, p.ICMP, p.icmp(0, 0, b"\0\x55\0\1"))), Reason.UNTRACKED),
    "error-unknown": (p.frame(p.ipv4(A4, B4, p.ICMP, p.icmp(3, 3, bytes(4), QUOTE4))), Reason.UNTRACKED),
    "error-unknown-v6": (p.frame(p.ipv6(A6, B6, p.ICMPV6, p.icmp6(A6, B6, 2, 0, bytes(4), QUOTE6))), Reason.UNTRACKED),
    "error-about-others": (
        p.frame(p.ipv4(A4, B4, p.ICMP, p.icmp(3, 3, bytes(4), QUOTE_OTHER4))),
        Reason.SPOOFED_SOURCE,
    ),
    "error-to-another": (
        p.frame(p.ipv4(A4, "10.240.1.13", p.ICMP, p.icmp(3, 3, bytes(4), QUOTE4))),
        Reason.SPOOFED_SOURCE,
    ),
    "error-cut": (p.frame(p.ipv4(A4, B4, p.ICMP, p.icmp(3, 3, bytes(4), QUOTE4[:16]))), Reason.MALFORMED),
    "icmp-cut": (p.frame(p.ipv4(A4, B4, p.ICMP, b"\x08\0")), Reason.MALFORMED),
}


@pytest.mark.parametrize("name", BAD)
def test_is_dropped(node: KernelNode, name: str) -> None:
    packet, reason = BAD[name]
    assert why(node, packet) is reason


JUMBO = hop(0, p.TCP)[:2] + b"\xc2\x04\0\x01\x86\xa0"  # the option of RFC 2675: 100,000 bytes


def lengthless(version: int, protocol: int, *, jumbo: bool = False) -> bytes:
    """A packet whose IP header says a length of 0, as BIG TCP's do inside of the kernel."""
    if version == 4:
        segment = SEGMENT4 if protocol == p.TCP else p.udp(A4, B4, 5000, 53)
        return p.frame(p.ipv4(A4, B4, protocol, segment + bytes(3000), total=0))
    segment = SEGMENT6 if protocol == p.TCP else p.udp(A6, B6, 5000, 53)
    if jumbo:
        return p.frame(p.ipv6(A6, B6, 0, segment + bytes(3000), extensions=JUMBO, length=0))
    return p.frame(p.ipv6(A6, B6, protocol, segment + bytes(3000), length=0))


@pytest.mark.parametrize(("version", "jumbo"), [(4, False), (6, False), (6, True)])
def test_a_length_of_zero_is_for_what_the_kernel_cuts(node: KernelNode, version: int, jumbo: bool) -> None:
    big = lengthless(version, p.TCP, jumbo=jumbo)
    assert why(node, big, gso_size=1000) is None
    assert why(node, big) is Reason.MALFORMED
    for length in range(54 if version == 4 else 74, 120):  # from inside of the TCP header on, it is cut
        short = big[:length]
        whole = length >= (54 if version == 4 else 82 if jumbo else 74)
        assert (why(node, short, gso_size=1000) is None) is whole, length
    if version == 4:  # of IPv6, the kernel cuts off what is behind a length of 0 unless an option tells it
        assert why(node, lengthless(4, p.UDP), gso_size=1000) is Reason.MALFORMED


def test_fragments_follow_their_first(node: KernelNode) -> None:
    first = p.frame(p.ipv4(A4, B4, p.UDP, p.udp(A4, B4, 4000, 53, bytes(64)), fragment=0x2000, ident=1234))
    later = p.frame(p.ipv4(A4, B4, p.UDP, bytes(32), fragment=9, ident=1234))
    assert why(node, first) is None
    assert why(node, later) is None


def test_error_about_a_known_connection_passes(node: KernelNode) -> None:
    assert why(node, p.tcp_frame(A4, "10.240.1.13", 2222, 81)) is None
    quote = p.ipv4("10.240.1.13", A4, p.TCP, p.tcp("10.240.1.13", A4, 81, 2222))
    assert why(node, p.frame(p.ipv4(A4, "10.240.1.13", p.ICMP, p.icmp(3, 3, bytes(4), quote)))) is None


def test_nothing_from_the_node_passes_for_a_pod(node: KernelNode) -> None:
    """A process of the node that uses a pod's address, and any address that isn't the node's."""
    for source in (B4, "10.10.1.5"):
        assert why(node, p.tcp_frame(source, A4, 5, 80), Hook.TO_POD) is Reason.FOREIGN_SOURCE


def test_to_pod_drops_what_is_for_others(node: KernelNode) -> None:
    assert why(node, p.tcp_frame(B4, "10.240.1.13", 5, 80), Hook.TO_POD, ingress_ifindex=1) is Reason.NO_ENDPOINT


@pytest.mark.parametrize("name", ["tcp", "tcp-v6", "three-extensions", "ping-v6"])
def test_cut_anywhere_is_dropped(node: KernelNode, name: str) -> None:
    """From the end of the IP header on: a test run takes nothing shorter."""
    whole = GOOD[name]
    for length in range(34 if whole[12:14] == b"\x08\x00" else 54, len(whole)):
        assert node.judge("from_pod", whole[:length], endpoint=ME) == DROP
