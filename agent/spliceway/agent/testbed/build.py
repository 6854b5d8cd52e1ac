"""A node, its pods and the ways between nodes, each as the testbed's profile wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spliceway.agent.testbed import (
    bigtcp,
    kubeproxy,
    netfilter,
    netkit,
    netns,
    overlay,
    podlinks,
    tunnels,
    uplinks,
    wiring,
)
from spliceway.agent.testbed.kubeproxy import ServicePort
from spliceway.agent.testbed.linkparts import link_scope, netlink, uplink_of
from spliceway.agent.testbed.plan import IPAddress, NodePlan, PodPlan
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import SERVICE_PREFIXES


def create_node(profile: Profile, path: Path, plan: NodePlan, fabric: Path) -> None:
    """Make a node's namespace with everything that is there before its first pod. Raises TestbedError."""
    wiring.create_node(path, plan, fabric)
    if profile.uplink == "bond":
        uplinks.create_bond(path, plan, fabric)
    if profile.uplink == "bridge":
        uplinks.create_bridge(path, plan)
    if profile.bridged:
        podlinks.create_bridge(path, plan, br_netfilter=profile.br_netfilter)
    if profile.name == "vxlan":
        overlay.create_vxlan(path, plan)
    if profile.name == "calico-like":
        podlinks.answer_for_gateway(path)
    if profile.name == "aws-like":
        overlay.create_second_uplink(path, plan, fabric)
    if profile.kube_proxy != "none":
        _route_services(path)
    if profile.kube_proxy == "iptables" and profile.name != "calico-like":
        _kube_proxy_iptables(profile, path, [], first=True)  # its rules go before those of others, but Calico's
    for version in (4, 6):
        if text := netfilter.node_rules(profile, plan, version):
            netfilter.apply(path, text, version, profile.iptables)
    if profile.kube_proxy == "iptables" and profile.name == "calico-like":
        _kube_proxy_iptables(profile, path, [], first=True)


def join_nodes(profile: Profile, path: Path, plan: NodePlan, others: list[NodePlan]) -> None:
    """Give a node its routes to the pods of `others`."""
    if profile.tunnel != "none":
        tunnels.create(path, profile.tunnel, plan, others)
    elif profile.name == "vxlan":
        overlay.route_over_vxlan(path, others)
    else:
        wiring.route_to_nodes(path, others)
    if profile.name == "aws-like":
        overlay.route_second_uplink(path, others)


def fabric_ports(profile: Profile, plan: NodePlan, pods: Sequence[PodPlan]) -> dict[str, list[IPAddress]]:
    """A node's ports of the fabric, and which addresses its packets have there: its own, and those of `pods`."""
    ports = {f"n{plan.number}": list(plan.addresses)}
    if profile.name == "aws-like":
        ports[f"e{plan.number}"] = [overlay.second_address(plan)]
    for pod in pods:
        for address in pod.addresses:
            second = profile.name == "aws-like" and address.version == 4 and _is_second(pod)
            ports[f"{'e' if second else 'n'}{plan.number}"].append(address)
    return ports


def create_pod(
    profile: Profile, path: Path, plan: PodPlan, home: NodePlan, node: Path, interface: str, others: Sequence[str]
) -> None:
    """Make a pod's namespace and join it to its node, where `others` are the interfaces of the pods before it."""
    if profile.bridged:
        podlinks.create_bridged_pod(path, plan, home, node, interface)
    elif profile.name == "calico-like":
        podlinks.create_calico_pod(path, plan, node, interface)
        for version in (4, 6):
            text = netfilter.calico_endpoints([*others, interface], [interface])
            netfilter.apply(node, text, version, profile.iptables)
    elif profile.pod_link != "veth":
        netkit.create_pod(path, plan, node, interface, profile.pod_link)
    else:
        wiring.create_pod(path, plan, node, interface)
    if profile.big_tcp:
        for place, name in ((path, "eth0"), (node, interface)):
            bigtcp.allow(place, name)
        bigtcp.leave_room(path, str(wiring.GATEWAYS[6]))
    if profile.name == "aws-like":
        overlay.add_pod_rules(node, plan, second=_is_second(plan))


def forget_pod(profile: Profile, plan: PodPlan, node: Path, others: Sequence[str]) -> None:
    """Take out what a node has of a pod besides its veth."""
    if profile.name == "calico-like":
        for version in (4, 6):
            netfilter.apply(node, netfilter.calico_endpoints(others), version, profile.iptables)
    if profile.name == "aws-like":
        overlay.remove_pod_rules(node, plan, second=_is_second(plan))


def translate(profile: Profile, path: Path, ports: Sequence[ServicePort]) -> None:
    """Have a node's kube-proxy rules translate these, and no others. Raises TestbedError."""
    if profile.kube_proxy == "iptables":
        _kube_proxy_iptables(profile, path, ports, first=False)
    elif profile.kube_proxy == "nftables":
        for version in (4, 6):
            netfilter.apply_nft(path, kubeproxy.nftables_rules(ports, version))


def _kube_proxy_iptables(profile: Profile, path: Path, ports: Sequence[ServicePort], *, first: bool) -> None:
    for version in (4, 6):
        text = kubeproxy.iptables_rules(ports, version, first=first)
        netfilter.apply(path, text, version, profile.iptables)


def _is_second(plan: PodPlan) -> bool:
    """Every other pod of an AWS node has an address of the second interface."""
    return bool(int(plan.addresses[0]) & 1)


def _route_services(path: Path) -> None:
    """What dials a ClusterIP on the node itself is routed before it is translated: real nodes have a default route."""

    def setup() -> None:
        with netlink(path.name) as ip:
            index = uplink_of(ip)
            for prefix, version in zip(SERVICE_PREFIXES, (4, 6), strict=True):
                scope = link_scope(wiring.GATEWAYS[version])
                ip.route("add", dst=prefix, oif=index, family=2 if version == 4 else 10, **scope)

    netns.call(path, setup)
