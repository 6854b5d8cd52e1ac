"""Nodes whose pods have rules for egress and dial Services, which kube-proxy's rules translate."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Reason, Verdict
from support.kernel import KernelNode
from support.node import pod_manifest, server_manifest
from support.nodedevices import DNS
from support.profiled import status
from support.proxied import ProxiedNode

#: `client` may reach `plain` at any port and `web` by HTTP rules, and nobody may reach it; `lonely` may reach its own
#: Service, `shut` nothing at all.
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: client, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  ingress: [{fromEndpoints: [{matchLabels: {role: nobody}}]}]
  egress:
  - toEndpoints: [{matchLabels: {role: plain}}]
  - toEndpoints: [{matchLabels: {role: web}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: lonely, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: lonely}}
  egress: [{toEndpoints: [{matchLabels: {role: lonely}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: shut, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shut}}
  egress: [{}]
---
"""
MORE = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: more, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: client}}
  egress: [{toCIDR: [172.17.0.0/24, "fd00:17::/64"]}, {toEntities: [host]}]
"""
#: The backends of Services, by the last byte of their addresses.
BACKENDS = {
    80: "plain", 81: "farplain", 82: "web", 83: "farweb", 84: "other", 85: "farother", 86: "lonely", 87: "shut",
}  # fmt: skip
UNSERVED = 99
ALLOWED, PROXIED, DENIED = (200, 200), (200, 403), (0, 0)


def cluster_ip(number: int, version: int) -> str:
    return f"10.96.0.{number}" if version == 4 else f"fd00:96::{number}"


def external_ip(number: int, version: int) -> str:
    return f"10.10.9.{number}" if version == 4 else f"fd00:10:0:9::{number}"


def marks(are: bool = True) -> dict[object, bool]:
    numbers = (*BACKENDS, UNSERVED)
    return {
        ip_address(make(one, version)): are
        for one in numbers
        for version in (4, 6)
        for make in (cluster_ip, external_ip)
    }


class Site:
    """A testbed of two nodes; the first has the datapath, the proxy, and knows what is a Service's address."""

    def __init__(self, bed: Testbed, node: KernelNode) -> None:
        self.bed, self.node = bed, node

    def mark(self, are: bool = True) -> None:
        self.node.run(self.node.datapath.set_service_addresses(marks(are)))  # type: ignore[arg-type]

    def asks(self, client: str, address: str, port: int = 80) -> tuple[int, int]:
        pod = self.bed.pod(client)
        return status(pod, address, port, "/open", timeout=1.5), status(pod, address, port, "/closed", timeout=1.5)

    def connected(self, client: str, address: str, port: int = 80) -> socket.socket:
        def made() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            sock.settimeout(3)
            try:
                sock.connect((address, port))
            except OSError:
                sock.close()
                raise
            return sock

        return netns.call(self.bed.pod(client).netns, made)

    def verdicts(self, since: int, port: int) -> set[tuple[Hook, Verdict, Reason]]:
        """What was recorded about connections to a server's port."""
        self.node.flows_seen()
        return {(one.hook, one.verdict, one.reason) for one in self.node.flows[since:] if one.destination_port == port}


@contextlib.contextmanager
def egress_site(profile: Profile, **settings: Any) -> Iterator[Site]:
    """Two nodes, the first with datapath and proxy (`settings`: see `DatapathSettings`), all Services known to it."""
    near = [pod_manifest("client", {"role": "client"})]
    near += [server_manifest(name, {"role": name}) for name in ("plain", "web", "other", "lonely", "shut")]
    near.append(dns("dns", "plain", 1))
    near.append(dns("nodns", "other", 2))
    far = [server_manifest(f"far{role}", {"role": role}) for role in ("plain", "web", "other")]
    far.append(dns("fardns", "plain", 3))
    far.append(dns("farnodns", "other", 4))
    for where, some in (("node1", near), ("node2", far)):
        for one in some:
            one["spec"]["nodeName"] = where
    outside = server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))
    with (
        Testbed.up([*near, *far, outside], profile=profile) as bed,
        ProxiedNode(bed.node, POLICIES, **settings) as node,
    ):
        bed.set_services(
            [
                Service(
                    f"default/s{number}",
                    tuple(ip_address(cluster_ip(number, version)) for version in (4, 6)),
                    80,
                    80,
                    (f"default/{backend}",),
                    external_ips=tuple(ip_address(external_ip(number, version)) for version in (4, 6)),
                )
                for number, backend in BACKENDS.items()
            ]
        )
        made = Site(bed, node)
        made.mark()
        yield made


def dns(name: str, role: str, code: int) -> dict[str, object]:
    return pod_manifest(name, {"role": role}, command=[sys.executable, "-c", DNS, str(code), "::"], ports=(53,))


@contextlib.contextmanager
def translated(site: Site, version: int, *rules: str) -> Iterator[None]:
    """Rules before kube-proxy's: «10.96.0.99 udp dport 53 dnat to 10.244.1.3:53»."""
    family = "ip" if version == 4 else "ip6"
    lines = "\n".join(f"{family} daddr {one}" for one in rules)
    chain = f"chain before {{ type nat hook prerouting priority dstnat - 1; {lines}\n }}"
    table = f"table {family} led {{ {chain}\n }}"
    place = site.bed.node.info.netns
    netns.call(place, lambda: command("nft", "-f", "-", stdin=table))
    try:
        yield
    finally:
        netns.call(place, lambda: command("nft", "delete", "table", family, "led"))


@contextlib.contextmanager
def container(site: Site, *, bridge: bool) -> Iterator[dict[int, str]]:
    """A container of the node that is no pod, at a bridge like docker0 or by a route to its device; its addresses."""
    place = site.bed.node.info.netns
    inside = place.parent / f"{place.name}-container"
    addresses = {4: "172.17.0.2", 6: "fd00:17::2"}
    netns.create(inside, lambda: None)

    def outer() -> None:
        holder = "docker0" if bridge else "vethc"
        if bridge:
            command("ip", "link", "add", "docker0", "type", "bridge")
        command("ip", "link", "add", "vethc", "type", "veth", "peer", "name", "ethc")
        if bridge:
            command("ip", "link", "set", "vethc", "master", "docker0")
            command("ip", "link", "set", "docker0", "up")
        command("ip", "link", "set", "vethc", "up")
        command("ip", "addr", "add", "172.17.0.1/24", "dev", holder)
        command("ip", "addr", "add", "fd00:17::1/64", "dev", holder, "nodad")
        command("nsenter", "--net=/proc/self/ns/net", "ip", "link", "set", "ethc", "netns", str(inside))

    def inner() -> None:
        command("ip", "link", "set", "lo", "up")
        command("ip", "addr", "add", "172.17.0.2/24", "dev", "ethc")
        command("ip", "addr", "add", "fd00:17::2/64", "dev", "ethc", "nodad")
        command("ip", "link", "set", "ethc", "up")
        command("ip", "route", "add", "default", "via", "172.17.0.1")
        command("ip", "-6", "route", "add", "default", "via", "fd00:17::1")

    try:
        netns.call(place, outer)
        netns.call(inside, inner)
        yield addresses
    finally:
        netns.call(place, lambda: command("ip", "link", "del", "vethc"))
        if bridge:
            netns.call(place, lambda: command("ip", "link", "del", "docker0"))
        netns.delete(inside)


def listening(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.listen(16)
    return made


def answered(sock: socket.socket, path: str = "/open", seconds: float = 0.7) -> bool:
    sock.settimeout(seconds)
    try:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: s\r\n\r\n".encode())
        return sock.recv(65536).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


@contextlib.contextmanager
def somebodys_filter(node: KernelNode, pod: str = "default/client") -> Iterator[None]:
    """A clsact filter behind ours at a pod's device that accepts: the kernel forgets then whose a packet is."""
    device = next(one.interface for one in node.endpoints_now() if one.name == pod)
    place = node.node.info.netns
    match = ("protocol", "all", "u32", "match", "u32", "0", "0", "classid", "1:0")

    def others() -> None:
        with contextlib.suppress(TestbedError):  # where ours are filters it is there
            command("tc", "qdisc", "add", "dev", device, "clsact")
        command("tc", "filter", "add", "dev", device, "ingress", "prio", "50", *match)

    netns.call(place, others)
    try:
        yield
    finally:
        netns.call(place, lambda: command("tc", "filter", "del", "dev", device, "ingress", "prio", "50"))
