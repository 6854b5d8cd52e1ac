"""What testbed nodes are built like: the CNI plugin's ways, kube-proxy, and policies of the node's own chains. Pure.

Each profile has the parts of its model that other programs on the node meet: devices, routes, rules, marks, TC filters.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import digest
from spliceway.agent.testbed.plan import PodPlan

ProfileName = Literal["l3", "bridge", "vxlan", "calico-like", "aws-like"]
KubeProxy = Literal["none", "iptables", "nftables"]
Chain = Literal["INPUT", "FORWARD", "OUTPUT"]
IptablesKind = Literal["nft", "legacy"]
Uplink = Literal["plain", "bond", "bridge"]
Tunnel = Literal["none", "ipip", "gre", "wireguard", "gpe"]
PodLink = Literal["veth", "netkit", "netkit-l3"]

#: Prefix of the names of pods' veths on the node, and how many hex digits follow.
_NAMES: dict[ProfileName, tuple[str, int]] = {
    "l3": ("lxc", 8),
    "bridge": ("veth", 8),
    "vxlan": ("veth", 8),
    "calico-like": ("cali", 11),
    "aws-like": ("eni", 11),
}


class Profile(msgspec.Struct, frozen=True):
    """How the nodes of a testbed are built.

    `name`: l3 (routed, nothing else on the node), bridge (the bridge CNI plugin with flannel's rules), vxlan (bridge,
    and flannel's VXLAN between nodes), calico-like, aws-like. `kube_proxy`: whose rules there are for Services.
    `drop`: built-in chains of the filter table whose policy is DROP; what a node needs in order to be one is accepted.
    `br_netfilter`: whether a bridge hands its frames to iptables; counts for bridge and vxlan. `iptables`: which
    variant has the rules.

    Of `l3` alone: `uplink`: what has the node's addresses, eth0, a bond of two interfaces, or a bridge that eth0 is a
    port of; `tunnel`: how packets get to pods of other nodes; `pod_link`: how pods are joined to their node; `big_tcp`:
    whether pods' devices carry TCP packets beyond 64 KiB.
    """

    name: ProfileName = "l3"
    kube_proxy: KubeProxy = "none"
    drop: tuple[Chain, ...] = ()
    br_netfilter: bool = True
    iptables: IptablesKind = "nft"
    uplink: Uplink = "plain"
    tunnel: Tunnel = "none"
    pod_link: PodLink = "veth"
    big_tcp: bool = False

    @property
    def bridged(self) -> bool:
        """Whether pods' veths are ports of a bridge."""
        return self.name in ("bridge", "vxlan")

    def interface_name(self, pod: PodPlan) -> str:
        """Name of the node's end of a pod's veth."""
        prefix, digits = _NAMES[self.name]
        return prefix + digest(pod.key)[:digits]


def check(profile: Profile) -> None:
    """Raises TestbedError for a value that no field may have."""
    kinds = {"name": ProfileName, "kube_proxy": KubeProxy, "iptables": IptablesKind}
    of_l3 = {"uplink": Uplink, "tunnel": Tunnel, "pod_link": PodLink}
    for field, kind in (kinds | of_l3).items():
        if getattr(profile, field) not in get_args(kind):
            given, known = getattr(profile, field), ", ".join(get_args(kind))
            raise TestbedError(f"profile: {field}: {given!r} is none of {known}")
    for field in (*of_l3, "big_tcp"):
        if profile.name != "l3" and getattr(profile, field) != getattr(Profile(), field):
            raise TestbedError(f"profile: {field}: is for the profile l3, and this is {profile.name}")
    for chain in profile.drop:
        if chain not in get_args(Chain):
            raise TestbedError(f"profile: drop: {chain!r} is none of {', '.join(get_args(Chain))}")
