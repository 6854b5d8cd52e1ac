"""Testbeds whose nodes are built like real ones, with a Service, and questions that go all the ways there are."""

from __future__ import annotations

import os
from ipaddress import ip_address

from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from support.node import ANSWER_SECONDS, pod_manifest, server_manifest

CLUSTER_IPS = tuple(map(ip_address, ("10.96.0.80", "fd00:96::80")))
NODE_PORT = 30080
LOCAL_NODE_PORT = 30081

#: Every profile as it is usually met, and the variants that differ where it matters.
PROFILES: dict[str, Profile] = {
    "l3": Profile("l3"),
    "l3-iptables": Profile("l3", "iptables"),
    "l3-nftables": Profile("l3", "nftables"),
    "l3-legacy": Profile("l3", "iptables", iptables="legacy"),
    "l3-drop": Profile("l3", "iptables", ("INPUT", "FORWARD", "OUTPUT")),
    "l3-drop-legacy": Profile("l3", "iptables", ("INPUT", "FORWARD"), iptables="legacy"),
    "bridge": Profile("bridge", "iptables"),
    "bridge-plain": Profile("bridge", "iptables", br_netfilter=False),
    "bridge-drop": Profile("bridge", "iptables", ("INPUT", "FORWARD")),
    "bridge-nftables": Profile("bridge", "nftables"),
    "vxlan": Profile("vxlan", "iptables", ("FORWARD",)),
    "calico-like": Profile("calico-like", "iptables"),
    "calico-like-drop": Profile("calico-like", "iptables", ("INPUT", "FORWARD")),
    "aws-like": Profile("aws-like", "iptables"),
}
#: Nodes of the profile l3 with other devices: a kernel may not have what they need.
DEVICES: dict[str, Profile] = {
    "l3-uplink-bridge": Profile(uplink="bridge"),
    "l3-gpe": Profile(tunnel="gpe"),
}


#: Those of a sample (`SPLICEWAY_SAMPLE`), else all: each takes seconds to be there.
TRIED = [
    name
    for name in PROFILES
    if "SPLICEWAY_SAMPLE" not in os.environ
    or name in ("l3-legacy", "l3-nftables", "bridge-drop", "vxlan", "calico-like-drop", "aws-like")
]


def manifests() -> list[dict[str, object]]:
    """A client and two servers on the first node, a server on the second, and a host outside with a server."""
    far = server_manifest("far", {"role": "server"})
    far["spec"]["nodeName"] = "node2"
    near = [
        pod_manifest("client", {"role": "client"}),
        server_manifest("server", {"role": "server"}),
        server_manifest("other", {"role": "other"}),
    ]
    for one in near:
        one["spec"]["nodeName"] = "node1"
    return [*near, far, server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))]


def services(*pods: str) -> list[Service]:
    """A Service of these pods of the default namespace, and one with externalTrafficPolicy Local."""
    keys = tuple(f"default/{name}" for name in pods)
    other = tuple(address + 1 for address in CLUSTER_IPS)
    return [
        Service("default/web", CLUSTER_IPS, 80, 80, keys, NODE_PORT),
        Service("default/local", other, 80, 80, keys, LOCAL_NODE_PORT, local=True),
    ]


def status(client: Pod, address: object, port: int = 80, path: str = "/", *, timeout: float = 3.0) -> int:
    """Status of one GET over a fresh connection; 0 when there was none in time, see `http_status`."""
    return int(client.run(curl(address, port, path, timeout), timeout=timeout + 2 * ANSWER_SECONDS).stdout or 0)


def curl(address: object, port: int, path: str, timeout: float = 3.0) -> list[str]:
    """The command that asks so, and prints the status."""
    host = f"[{address}]" if ":" in str(address) else str(address)
    limits = ["--connect-timeout", str(timeout), "-m", str(timeout + ANSWER_SECONDS)]
    return ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *limits, f"http://{host}:{port}{path}"]


def node_address(testbed: Testbed, version: int) -> str:
    """The first node's own address."""
    return str(next(one for one in testbed.node.info.addresses if one.version == version))
