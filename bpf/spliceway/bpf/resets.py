"""Telling a pod that nobody sends it any more what was held back: a TCP reset in the name of its peer.

A proxy's kernel that gives up a connection (`tcp_retries2`, `tcp_orphan_retries`) says so to nobody. Without a splice
the pod asks by itself, when its window opens; with one it never knew that something waits. `to_pod` gives the reset
the sequence number that the pod waits for.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from spliceway.bpf import abi
from spliceway.bpf.addresses import unpack_address

_RST, _HEADER_WORDS = 0x04, 5 << 4
_TTL = 64
_NOTHING = bytes(4)


def send(connections: Iterable[bytes]) -> None:
    """A reset to each pod of these (`struct splice_key`). Needs CAP_NET_RAW; in the node's network namespace."""
    with contextlib.ExitStack() as stack:
        made: dict[int, socket.socket] = {}
        for raw in connections:
            key = abi.SpliceKey.from_buffer_copy(raw)
            pod, peer = unpack_address(bytes(key.pod.w)), unpack_address(bytes(key.peer.w))
            # Ports in a key are in network order already.
            ports = struct.pack("=HH", key.peer_port, key.pod_port)
            packet = _packet(peer.packed, pod.packed, ports)
            with contextlib.suppress(OSError):  # the pod has gone, or the right is missing: `preflight` says so
                if pod.version not in made:
                    family = socket.AF_INET if pod.version == 4 else socket.AF_INET6
                    made[pod.version] = stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
                made[pod.version].sendto(packet, (str(pod), 0))


def _packet(source: bytes, target: bytes, ports: bytes) -> bytes:
    size = struct.calcsize("!HHIIBBHHH")
    tcp = ports + _NOTHING + _NOTHING + struct.pack("!BBHHH", _HEADER_WORDS, _RST, 0, 0, 0)
    total = _sum(source + target + struct.pack("!II", size, socket.IPPROTO_TCP) + tcp)
    tcp = tcp[:16] + struct.pack("!H", ~total & 0xFFFF) + tcp[18:]
    if len(source) == 4:  # length and checksum: the kernel's (raw(7))
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, _TTL, socket.IPPROTO_TCP, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, size, socket.IPPROTO_TCP, _TTL)
    return header + source + target + tcp


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
