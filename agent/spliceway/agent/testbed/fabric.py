"""What a network between nodes may do to their packets: check sources, as clouds do, and have a narrow place.

Sources: docs.aws.amazon.com, «EC2 instance source/destination checks»; OpenStack Neutron's anti-spoofing rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command, family_of, netlink, uplink_of
from spliceway.agent.testbed.plan import UNDERLAY_PREFIXES, IPAddress, NodePlan
from spliceway.agent.testbed.wiring import BRIDGE

#: The fabric as a router, where it is one.
ROUTER: tuple[IPAddress, IPAddress] = (ip_address("10.10.255.1"), ip_address("fd00:10::ffff"))
_TABLE = "sources"


def check_sources(fabric: Path, ports: Mapping[str, Iterable[IPAddress]]) -> None:
    """Drop what comes by a port of the fabric with a source address that is not registered for it.

    Ports that are not named stay as they are; link-local sources pass. An empty mapping ends it. Raises TestbedError.
    """
    lines = [f"add table bridge {_TABLE}", f"delete table bridge {_TABLE}"]
    if ports:
        lines.append(f"add table bridge {_TABLE}")
        lines.append(f"add chain bridge {_TABLE} c {{ type filter hook prerouting priority 0; }}")
    for port, addresses in ports.items():
        own = list(addresses)
        for version, word, link_local in ((4, "ip", "169.254.0.0/16"), (6, "ip6", "fe80::/10")):
            registered = ", ".join([link_local, *(str(one) for one in own if one.version == version)])
            lines.append(
                f'add rule bridge {_TABLE} c iifname "{port}" {word} saddr != {{ {registered}, {_NONE[version]} }} drop'
            )
    netns.call(fabric, lambda: command("nft", "-f", "-", stdin="\n".join(lines) + "\n"))


#: Neighbours are asked for before there is an address.
_NONE = {4: "0.0.0.0", 6: "::"}


def narrow(fabric: Path, nodes: Sequence[tuple[NodePlan, Path]], mtu: int) -> None:
    """Have the pods' packets between nodes (with their namespaces) routed by the fabric, whose links take `mtu` bytes.

    What is larger and must not be cut gets an ICMP error of its. Raises TestbedError.
    """

    def router() -> None:
        netns.sysctl("ipv4/ip_forward", 1)
        netns.sysctl("ipv6/conf/all/forwarding", 1)
        for scope in ("all", BRIDGE):
            netns.sysctl(f"ipv4/conf/{scope}/send_redirects", 0)
        for address, prefix in zip(ROUTER, UNDERLAY_PREFIXES, strict=True):
            own = (f"{address}/{prefix.prefixlen}", "dev", BRIDGE, *(["nodad"] if address.version == 6 else []))
            command("ip", "addr", "replace", *own)
        for plan, _ in nodes:
            for prefix, gateway in zip(plan.prefixes, plan.addresses, strict=True):
                to = ("via", str(gateway), "dev", BRIDGE, "mtu", str(mtu))
                command("ip", f"-{prefix.version}", "route", "replace", str(prefix), *to)

    netns.call(fabric, router)
    for plan, path in nodes:
        others = [other for other, _ in nodes if other is not plan]
        netns.call(path, lambda others=others: _by_router(others))  # type: ignore[misc]


def _by_router(others: Sequence[NodePlan]) -> None:
    with netlink("routes by the fabric") as ip:
        index = uplink_of(ip)
        for other in others:
            for prefix, gateway in zip(other.prefixes, ROUTER, strict=True):
                ip.route("replace", dst=str(prefix), gateway=str(gateway), oif=index, family=family_of(prefix))
