"""What a CNI plugin and a careful administrator have put into a node's netfilter, as iptables-restore reads it.

Sources: flannel `pkg/trafficmngr/iptables`; Calico `felix/rules` (iptables mode, defaultEndpointToHostAction Accept,
marks 0xffff0000); amazon-vpc-cni-k8s `pkg/networkutils/network.go`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.overlay import AWS_MARK, VXLAN_PORT
from spliceway.agent.testbed.plan import CLUSTER_PREFIXES, UNDERLAY_PREFIXES, NodePlan
from spliceway.agent.testbed.profiles import IptablesKind, Profile

#: Calico's marks: accepted, of a workload's interface, to be masqueraded (felix, markMask 0xffff0000).
_ACCEPTED, _FROM_WORKLOAD = 0x10000, 0x40000


def apply(path: Path, text: str, version: int, kind: IptablesKind) -> None:
    """Add rules to a node's tables: iptables-restore. Raises TestbedError."""
    program = f"{'ip' if version == 4 else 'ip6'}tables-{kind}-restore"
    netns.call(path, lambda: command(program, "--noflush", stdin=text))


def apply_nft(path: Path, text: str) -> None:
    """The same for text that nft reads."""
    netns.call(path, lambda: command("nft", "-f", "-", stdin=text))


def node_rules(profile: Profile, node: NodePlan, version: int) -> str:
    """Everything of a node but kube-proxy's and what comes and goes with pods."""
    tables: dict[str, list[str]] = {"raw": [], "mangle": [], "nat": [], "filter": []}
    if profile.bridged:
        _flannel(tables, node, version)
    elif profile.name == "calico-like":
        _calico(tables, version)
    elif profile.name == "aws-like":
        _aws(tables, node, version)
    if profile.drop:
        _careful(tables["filter"], profile.drop, version)
        if profile.name in ("l3", "aws-like"):  # the others bring it along
            cluster = _cluster(version)
            tables["filter"] += [f"-A FORWARD -s {cluster} -j ACCEPT", f"-A FORWARD -d {cluster} -j ACCEPT"]
    return "".join(f"*{name}\n" + "\n".join(lines) + "\nCOMMIT\n" for name, lines in tables.items() if lines)


def calico_endpoints(interfaces: Sequence[str], fresh: Iterable[str] = ()) -> str:
    """Calico's dispatch chains for these workloads; `fresh` are those of them whose own chains are made with it."""
    lines = [":cali-from-wl-dispatch - [0:0]", ":cali-to-wl-dispatch - [0:0]"]
    for name in fresh:
        lines += [f":cali-fw-{name} - [0:0]", f":cali-tw-{name} - [0:0]"]
    for name in fresh:
        for way in ("fw", "tw"):
            lines += [
                f"-A cali-{way}-{name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                f"-A cali-{way}-{name} -m conntrack --ctstate INVALID -j DROP",
                f"-A cali-{way}-{name} -j MARK --set-xmark 0x0/{_ACCEPTED:#x}",
                f"-A cali-{way}-{name} -j MARK --set-xmark {_ACCEPTED:#x}/{_ACCEPTED:#x}",
                f"-A cali-{way}-{name} -m mark --mark {_ACCEPTED:#x}/{_ACCEPTED:#x} -j RETURN",
            ]
    for name in interfaces:
        lines += [
            f"-A cali-from-wl-dispatch -i {name} -g cali-fw-{name}",
            f"-A cali-to-wl-dispatch -o {name} -g cali-tw-{name}",
        ]
    unknown = '-m comment --comment "Unknown interface" -j DROP'
    lines += [f"-A cali-from-wl-dispatch {unknown}", f"-A cali-to-wl-dispatch {unknown}"]
    return "*filter\n" + "\n".join(lines) + "\nCOMMIT\n"


def _flannel(tables: dict[str, list[str]], node: NodePlan, version: int) -> None:
    cluster, own = _cluster(version), _own(node, version)
    multicast = "224.0.0.0/4" if version == 4 else "ff00::/8"
    tables["filter"] += [
        ":FLANNEL-FWD - [0:0]",
        '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
        f"-A FLANNEL-FWD -s {cluster} -j ACCEPT",
        f"-A FLANNEL-FWD -d {cluster} -j ACCEPT",
    ]
    tables["nat"] += [
        ":FLANNEL-POSTRTG - [0:0]",
        '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
        f"-A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN",
        f"-A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN",
        f"-A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully",
        f"-A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully",
    ]


def _calico(tables: dict[str, list[str]], version: int) -> None:
    accepted, workload = f"{_ACCEPTED:#x}/{_ACCEPTED:#x}", f"{_FROM_WORKLOAD:#x}/{_FROM_WORKLOAD:#x}"
    tables["raw"] += [
        ":cali-PREROUTING - [0:0]",
        ":cali-rpf-skip - [0:0]",
        ":cali-OUTPUT - [0:0]",
        "-A PREROUTING -j cali-PREROUTING",
        "-A OUTPUT -j cali-OUTPUT",
        "-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000",
        f"-A cali-PREROUTING -i cali+ -j MARK --set-xmark {workload}",
        f"-A cali-PREROUTING -m mark --mark {workload} -j cali-rpf-skip",
        f"-A cali-PREROUTING -m mark --mark {workload} -m rpfilter --validmark --invert -j DROP",
        "-A cali-OUTPUT -j MARK --set-xmark 0x0/0xf0000",
    ]
    tables["filter"] += [
        *(f":cali-{name} - [0:0]" for name in ("INPUT", "OUTPUT", "FORWARD", "wl-to-host")),
        ":cali-from-wl-dispatch - [0:0]",
        ":cali-to-wl-dispatch - [0:0]",
        *(f"-A {name} -j cali-{name}" for name in ("INPUT", "OUTPUT", "FORWARD")),
        "-A cali-INPUT -i cali+ -g cali-wl-to-host",
        f"-A cali-INPUT -m mark --mark {accepted} -j ACCEPT",
        # A node that answers neighbour discovery and pings of its workloads, whatever their policy.
        *(["-A cali-wl-to-host -p ipv6-icmp -j ACCEPT"] if version == 6 else []),
        "-A cali-wl-to-host -j cali-from-wl-dispatch",
        '-A cali-wl-to-host -m comment --comment "Configured DefaultEndpointToHostAction" -j ACCEPT',
        f"-A cali-OUTPUT -m mark --mark {accepted} -j ACCEPT",
        "-A cali-OUTPUT -o cali+ -j RETURN",
        "-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000",
        "-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch",
        "-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch",
        f'-A FORWARD -m comment --comment "Policy explicitly accepted packet." -m mark --mark {accepted} -j ACCEPT',
    ]
    tables["nat"] += [
        ":cali-POSTROUTING - [0:0]",
        ":cali-nat-outgoing - [0:0]",
        "-A POSTROUTING -j cali-POSTROUTING",
        "-A cali-POSTROUTING -j cali-nat-outgoing",
        f"-A cali-nat-outgoing -s {_cluster(version)} ! -d {_cluster(version)} ! -o cali+ -j MASQUERADE --random-fully",
    ]


def _aws(tables: dict[str, list[str]], node: NodePlan, version: int) -> None:
    if version == 6:
        return
    mark = f"{AWS_MARK:#x}/{AWS_MARK:#x}"
    restore = f"-j CONNMARK --restore-mark --nfmask {AWS_MARK:#x} --ctmask {AWS_MARK:#x}"
    address = next(one for one in node.addresses if one.version == version)
    vpc = [_cluster(version), str(UNDERLAY_PREFIXES[0])]
    tables["mangle"] += [
        "-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in "
        f'-m comment --comment "AWS, primary ENI" -j CONNMARK --set-xmark {mark}',
        f'-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" {restore}',
    ]
    tables["nat"] += [
        ":AWS-SNAT-CHAIN-0 - [0:0]",
        ":AWS-CONNMARK-CHAIN-0 - [0:0]",
        "-A PREROUTING -i eni+ -m conntrack --ctstate NEW -j AWS-CONNMARK-CHAIN-0",
        f'-A PREROUTING -m comment --comment "AWS, CONNMARK" {restore}',
        '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
        *(f"-A AWS-{name}-CHAIN-0 -d {prefix} -j RETURN" for name in ("SNAT", "CONNMARK") for prefix in vpc),
        f"-A AWS-CONNMARK-CHAIN-0 -j CONNMARK --set-xmark {mark}",
        f"-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source {address} --random-fully",
    ]


def _careful(lines: list[str], chains: Sequence[str], version: int) -> None:
    """DROP for these, and what a node needs all the same: loopback, answers, ICMP, the overlay, SSH and the kubelet."""
    icmp = "icmp" if version == 4 else "ipv6-icmp"
    for name in chains:
        lines.insert(0, f":{name} DROP [0:0]")
        lines.append(f"-A {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
        if name == "FORWARD":
            continue
        lines.append(f"-A {name} {'-i' if name == 'INPUT' else '-o'} lo -j ACCEPT")
        lines.append(f"-A {name} -p {icmp} -j ACCEPT")
        lines.append(f"-A {name} -p udp --dport {VXLAN_PORT} -j ACCEPT")
    if "INPUT" in chains:
        lines += [f"-A INPUT -p tcp -m tcp --dport {port} -j ACCEPT" for port in (22, 10250)]


def _cluster(version: int) -> str:
    return str(CLUSTER_PREFIXES[0 if version == 4 else 1])


def _own(node: NodePlan, version: int) -> str:
    return str(next(prefix for prefix in node.prefixes if prefix.version == version))
