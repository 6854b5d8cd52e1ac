"""Between nodes: tunnels whose packets have no Ethernet header. Pods of other nodes are routed through them.

`ipip`: as Calico's, one device without a fixed remote, and ip6tnl for IPv6. `gre`: one for each other node.
`wireguard`: as Calico's and Cilium's. `gpe`: VXLAN with a generic protocol extension, whose remote is in the route.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from pyroute2 import WireGuard

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import add_device, command
from spliceway.agent.testbed.plan import NodePlan

#: Name of the device of each family, beside the number of the other node where each has its own.
DEVICES = {"ipip": ("tunl9", "ip6tnl"), "gre": ("gre", "gre"), "wireguard": ("wg0", "wg0"), "gpe": ("gpe0", "gpe0")}
#: What fits into the fabric's 1500 bytes with each of them.
_MTU = 1400
_PORT, _GPE_PORT, _GPE_ID = 51820, 4790, 7


def create(path: Path, kind: str, plan: NodePlan, others: list[NodePlan]) -> None:
    """Make a node's ends of the tunnels to `others`, and its routes to their pods. Raises TestbedError."""
    makers = {"ipip": _ipip, "gre": _gre, "wireguard": _wireguard, "gpe": _gpe}
    netns.call(path, lambda: makers[kind](plan, others))


def _ipip(plan: NodePlan, others: list[NodePlan]) -> None:
    device = DEVICES["ipip"][0]
    add_device(device, "ipip", "local", str(plan.addresses[0]), "ttl", "64")
    _up(device)
    for other in others:
        _route(other, 0, device, "via", str(other.addresses[0]), "onlink")
        six = f"{DEVICES['ipip'][1]}{other.number}"
        ends = ("local", str(plan.addresses[1]), "remote", str(other.addresses[1]))
        add_device(six, "ip6tnl", "mode", "ip6ip6", *ends, "encaplimit", "none")
        _up(six)
        _route(other, 1, six)


def _gre(plan: NodePlan, others: list[NodePlan]) -> None:
    for other in others:
        device = f"gre{other.number}"
        ends = ("local", str(plan.addresses[0]), "remote", str(other.addresses[0]))
        add_device(device, "gre", *ends, "ttl", "64")
        _up(device)
        for family in (0, 1):
            _route(other, family, device)


def _gpe(plan: NodePlan, others: list[NodePlan]) -> None:
    device = DEVICES["gpe"][0]
    add_device(device, "vxlan", "external", "gpe", "dstport", str(_GPE_PORT))
    _up(device)
    for other in others:
        encap = ("encap", "ip", "id", str(_GPE_ID), "src", str(plan.addresses[0]), "dst", str(other.addresses[0]))
        for family in (0, 1):
            command("ip", "route", "replace", str(other.prefixes[family]), *encap, "dev", device)


def _wireguard(plan: NodePlan, others: list[NodePlan]) -> None:
    device = DEVICES["wireguard"][0]
    add_device(device, "wireguard")
    with WireGuard() as guard:
        guard.set(device, private_key=_text(_private(plan.name)), listen_port=_PORT)
        for other in others:
            peer = {
                "public_key": _text(public_key(_private(other.name))),
                "endpoint_addr": str(other.addresses[0]),
                "endpoint_port": _PORT,
                "allowed_ips": [str(prefix) for prefix in other.prefixes],
            }
            guard.set(device, peer=peer)
    _up(device)
    for other in others:
        for family in (0, 1):
            _route(other, family, device)


def _up(device: str) -> None:
    command("ip", "link", "set", device, "mtu", str(_MTU), "up")


def _route(other: NodePlan, family: int, device: str, *how: str) -> None:
    command("ip", "route", "replace", str(other.prefixes[family]), *how, "dev", device)


def _private(name: str) -> bytes:
    """A node's key: from its name, for nothing is secret here."""
    return hashlib.blake2s(f"wireguard {name}".encode()).digest()


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def public_key(private: bytes) -> bytes:
    """X25519 of a private key and the base point (RFC 7748, section 5). Not for secrets: its time depends on them."""
    prime, bits = 2**255 - 19, bytearray(private)
    bits[0] &= 248
    bits[31] = bits[31] & 127 | 64
    scalar, u = int.from_bytes(bits, "little"), 9
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for at in range(254, -1, -1):
        bit = scalar >> at & 1
        if swap ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % prime, u * (da - cb) ** 2 % prime
        x2, z2 = aa * bb % prime, e * (aa + 121665 * e) % prime
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, prime - 2, prime) % prime).to_bytes(32, "little")
