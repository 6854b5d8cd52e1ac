"""Cost of a TC verdict against the size of the ipcache: `python tests/bench/tc_cost.py [-o json]`, as root.

A virtual node holds 10, 1,000 and then 100,000 prefixes of mixed lengths, IPv4 and IPv6, each with an identity of
its own in the policy's classes. `from_pod` judges packets to random addresses, half of them inside a prefix, by
BPF_PROG_TEST_RUN:

- `verdict`: the whole decision, as for a connection's first packet (an ICMP timestamp request, which is never
tracked, so that every run
  decides anew: parse, conntrack miss, two ipcache lookups, class, row);
- `verdict_cold`: the same, each address judged once, so that nothing of its path is in the CPU's caches;
- `established`: a packet of a known connection.

Sizes are measured alternating, several rounds; figures are medians of nanoseconds over addresses and rounds.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from spliceway.bpf.install import pin_root
from spliceway.policy.table import OTHER_PEERS, ClassKey, EndpointPolicy, PolicyTable, Row, RowKey, RuleRef
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support import packets as p
from support.kernel import KernelNode
from support.node import pod_manifest

Network = IPv4Network | IPv6Network
SIZES = (10, 1_000, 100_000)
ROUNDS = 5
ADDRESSES = 400
COLD = 3_000
REPEAT = 2_000
POLICY, CLASS, OTHER, CLIENT = 1, 1, 9, 300
FIRST = 1 << 24


def prefixes(count: int, rng: random.Random) -> list[Network]:
    """Distinct prefixes: half of them hosts, the others of all lengths from 8 (IPv6: 16) up; three in four are IPv4."""
    found: set[Network] = set()
    while len(found) < count:
        if rng.random() < 0.75:
            length = 32 if rng.random() < 0.5 else rng.randint(8, 31)
            found.add(ip_network((rng.getrandbits(32), length), strict=False))
        else:
            length = 128 if rng.random() < 0.5 else rng.randint(16, 127)
            found.add(ip_network((0xFD << 120 | rng.getrandbits(120), length), strict=False))
    return sorted(found, key=lambda n: (n.version, n))


def table(networks: list[Network], revision: int) -> PolicyTable:
    """One endpoint whose egress policy knows every prefix's identity."""
    identities = {FIRST + i: (f"cidr:{network}",) for i, network in enumerate(networks)}
    ipcache: dict[Network, int] = {network: FIRST + i for i, network in enumerate(networks)}
    for everywhere in ("0.0.0.0/0", "::/0"):
        ipcache.setdefault(ip_network(everywhere), OTHER)
    for own in ("10.240.1.10/32", "fd00:240:1::10/128"):
        ipcache[ip_network(own)] = CLIENT
    allow = Row(Verdict.ALLOW, Reason.POLICY_ALLOWED, 1)
    return PolicyTable(
        revision=revision,
        identities={**identities, OTHER: ("reserved:world",), CLIENT: ("k8s:app=client",)},
        ipcache=ipcache,
        endpoints={"default/client": EndpointPolicy(CLIENT, POLICY, ingress=False, egress=True)},
        classes={ClassKey(POLICY, Direction.EGRESS, identity): CLASS for identity in identities},
        # Misses are allowed too, or the cost of a deny's record would be measured where there are many.
        rows={RowKey(POLICY, Direction.EGRESS, known, Protocol.ANY, 0, 0): allow for known in (CLASS, OTHER_PEERS)},
        rule_sets={},
        rules={1: RuleRef("bench", "spec.egress[0]")},
    )


def targets(networks: list[Network], count: int, rng: random.Random) -> list[IPv4Address | IPv6Address]:
    """Random addresses, every other one inside a random prefix."""
    found: list[IPv4Address | IPv6Address] = []
    for i in range(count):
        if i % 2:
            network = rng.choice(networks)
            found.append(network[rng.randrange(min(network.num_addresses, 1 << 60))])
        elif rng.random() < 0.75:
            found.append(IPv4Address(rng.getrandbits(32)))
        else:
            found.append(IPv6Address(0xFD << 120 | rng.getrandbits(120)))
    return found


def first_packet(target: IPv4Address | IPv6Address) -> bytes:
    """An untracked packet to `target`: ICMP timestamp request, or an ICMPv6 type that no one uses."""
    if target.version == 4:
        return p.frame(p.ip("10.240.1.10", target, p.ICMP, p.icmp(13, 0, bytes(4), bytes(12))))
    source = "fd00:240:1::10"
    return p.frame(p.ip(source, target, p.ICMPV6, p.icmp6(source, target, 200, 0, bytes(4))))


def later_packet(target: IPv4Address | IPv6Address) -> bytes:
    """A TCP segment of a connection to `target`."""
    source = "10.240.1.10" if target.version == 4 else "fd00:240:1::10"
    return p.tcp_frame(source, target, 5000, 80, p.ACK)


def measure(node: KernelNode, networks: list[Network], rng: random.Random) -> dict[str, list[float]]:
    """Nanoseconds of single verdicts."""
    found: dict[str, list[float]] = {"verdict": [], "verdict_cold": [], "established": []}
    some = targets(networks, ADDRESSES, rng)
    once = [first_packet(target) for target in targets(networks, COLD, rng)]

    def work() -> None:
        program = libbpf.open_pin(pin_root(node.settings) / "programs" / "from_pod")
        index = node.ifindex("default/client")
        for target in some:
            for name, packet in (("verdict", first_packet(target)), ("established", later_packet(target))):
                libbpf.run_on_packet(program, packet, ifindex=index, repeat=10)
                found[name].append(libbpf.run_on_packet(program, packet, ifindex=index, repeat=REPEAT)[1])
        for packet in once:
            found["verdict_cold"].append(libbpf.run_on_packet(program, packet, ifindex=index)[1])

    node.loop.call(work)
    return found


def main() -> None:
    """Measure all sizes and print figures and ratios."""
    rng = random.Random(20)
    sets = {size: prefixes(size, rng) for size in SIZES}
    tables = {size: table(sets[size], revision) for revision, size in enumerate(SIZES, 1)}
    figures: dict[str, dict[int, list[float]]] = {}
    client = pod_manifest("client", addresses=("10.240.1.10", "fd00:240:1::10"))
    with Testbed.up([client]) as testbed, KernelNode(testbed.node) as node:
        for _ in range(ROUNDS):
            for size in SIZES:
                node.run(node.datapath.apply(tables[size]))
                for name, values in measure(node, sets[size], rng).items():
                    figures.setdefault(name, {}).setdefault(size, []).append(statistics.median(values))
    result: dict[str, dict[str, Any]] = {
        name: {
            "ns": {str(size): statistics.median(values) for size, values in by_size.items()},
            "spread": {str(size): [min(values), max(values)] for size, values in by_size.items()},
            "ratio": statistics.median(by_size[SIZES[-1]]) / statistics.median(by_size[SIZES[0]]),
        }
        for name, by_size in figures.items()
    }
    if "json" in sys.argv[1:]:
        print(json.dumps(result))
        return
    print(f"{'ns per packet':16}" + "".join(f"{size:>26,}" for size in SIZES) + "     100,000 : 10")
    for name, one in result.items():
        cells = "".join(
            f"{one['ns'][str(s)]:>10.0f} ({one['spread'][str(s)][0]:.0f}-{one['spread'][str(s)][1]:.0f})".rjust(26)
            for s in SIZES
        )
        print(f"{name:16}{cells}{one['ratio']:>12.2f} x")


if __name__ == "__main__":
    main()
