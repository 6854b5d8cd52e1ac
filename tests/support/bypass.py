"""The hunt for ways past the proxy: a node with Services, and the servers' own view of everything that reaches them.

Every attempt has a token. It is in the path of a request, or in a frame's payload with its first bytes as the sequence
number. A token that reaches a server's namespace must be one that the proxy's access log has let through.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import mac_address
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.plan import IPAddress
from spliceway.agent.testbed.podlinks import CALICO_MAC, CNI_BRIDGE
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import KernelFlow
from spliceway.policy.verdict import Reason, Verdict
from support.node import pod_manifest, server_manifest
from support.profiled import PROFILES
from support.proxied import ProxiedNode

#: `client` has HTTP rules at its servers only, others have egress policies: `walker` and `tourist` may reach no pod.
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEntities: [all]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: "/open/[0-9a-f]+"}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: walker, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: walker}}
  egress:
  - toEntities: [host, remote-node, world]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: tourist, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: tourist}}
  egress:
  - toEntities: [world]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: buyer, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: buyer}}
  egress:
  - toEntities: [host, remote-node, world]
  - toEndpoints: [{}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: "/open/[0-9a-f]+"}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: shopper, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shopper}}
  egress:
  - toEntities: [host, world]
    toPorts:
    - ports: [{port: "80", protocol: TCP}, {port: "30080", protocol: TCP}, {port: "30082", protocol: TCP}]
      rules: {http: [{method: GET, path: "/.*"}]}
  - toEndpoints: [{}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: "/open/[0-9a-f]+"}]}}]
"""
#: Names of Services, by their number: the last byte of their addresses, and of their NodePorts.
WEB, LOCAL, FAR, FAR_LOCAL, SELF = 80, 81, 82, 83, 84
_BACKENDS = {WEB: "server", LOCAL: "server", FAR: "far", FAR_LOCAL: "far", SELF: "loner"}
_EVERY = os.environ.get("SPLICEWAY_BYPASS") == "all"
_SOME: dict[ProxyKind, set[str]] = {
    "embedded": {"l3-nftables", "bridge", "vxlan", "calico-like", "aws-like"},
    "envoy": {"bridge", "vxlan"},
}
if "SPLICEWAY_SAMPLE" in os.environ:
    _SOME = {"embedded": {"calico-like"}, "envoy": {"bridge"}}
#: Profile and proxy: one of each kind of node, and some with Envoy; or all.
CHOSEN = [(name, proxy) for proxy, some in _SOME.items() for name in PROFILES if _EVERY or name in some]
#: The same where the agent knows the Services, so that their own addresses are judged by nobody.
KNOWN: list[tuple[str, ProxyKind]] = [
    (f"{name}+known", "embedded")
    for name in PROFILES
    if _EVERY or name == "l3-nftables" or (name in ("bridge", "vxlan") and "SPLICEWAY_SAMPLE" not in os.environ)
]
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33


def cluster_ip(number: int, version: int) -> IPAddress:
    """Of a Service."""
    return ip_address(f"10.96.0.{number}" if version == 4 else f"fd00:96::{number}")


def external_ip(number: int, version: int) -> IPAddress:
    """Of a Service: an external IP, and nobody's own."""
    return ip_address(f"10.10.9.{number}" if version == 4 else f"fd00:10:0:9::{number}")


def _services() -> list[Service]:
    return [
        Service(
            f"default/s{number}",
            (cluster_ip(number, 4), cluster_ip(number, 6)),
            80,
            80,
            (f"default/{backend}",),
            30000 + number,
            number in (LOCAL, FAR_LOCAL),
            (external_ip(number, 4), external_ip(number, 6)),
        )
        for number, backend in _BACKENDS.items()
    ]


class Watch:
    """Every frame that reaches a namespace, from the beginning."""

    def __init__(self, place: Path) -> None:
        self.frames: list[bytes] = []
        self._sock = netns.call(place, _listen)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frame, address = self._sock.recvfrom(65536)
            except TimeoutError:
                continue
            if address[2] != socket.PACKET_OUTGOING and address[0] != "lo":
                self.frames.append(frame)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        self._sock.close()


def _listen() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    sock.settimeout(0.05)
    return sock


class Token:
    """The mark of one attempt. `text` is for paths and payloads, `seq` for sequence numbers."""

    def __init__(self) -> None:
        self.text = secrets.token_hex(12)
        self.raw = self.text.encode()
        self.seq = int.from_bytes(secrets.token_bytes(4), "big") | 0x8000_0000

    def within(self, frame: bytes) -> bool:
        """Whether a frame carries it."""
        return self.raw in frame or self.seq.to_bytes(4, "big") in frame


class Hunt:
    """A testbed of two nodes; the first one has the datapath and the proxy."""

    def __init__(self, bed: Testbed, node: ProxiedNode | None, known: bool = False) -> None:
        self.bed, self.profile, self._node, self.known = bed, bed.profile, node, known
        self.victims = {name: Watch(bed.pod(name).netns) for name in ("server", "far")}
        self._wires: dict[str, socket.socket] = {}

    @property
    def node(self) -> ProxiedNode:
        """The first node's datapath and proxy, which must be there."""
        assert self._node is not None
        return self._node

    def pod(self, name: str) -> Pod:
        """Of any node, or the host outside."""
        return self.bed.pod(name)

    def address(self, name: str, version: int) -> str:
        """Of a pod."""
        return str(self.pod(name).address(version))

    def node_address(self, version: int, number: int = 0) -> str:
        """Of a node's uplink."""
        return str(next(one for one in self.bed.nodes[number].info.addresses if one.version == version))

    def gateway(self, name: str) -> bytes:
        """The station that a pod, or the host outside, sends to."""
        pod = self.pod(name)
        if not pod.node:
            return _mac(mac_address(f"node {self.bed.nodes[0].name}"))
        if self.profile.bridged:
            return _mac(mac_address(f"{CNI_BRIDGE} {pod.node}"))
        return _mac(CALICO_MAC if self.profile.name == "calico-like" else mac_address(f"lxc {pod.key}"))

    def station(self, name: str) -> bytes:
        """A pod's own."""
        return _mac(mac_address(f"pod {self.pod(name).key}"))

    def send(self, name: str, frame: bytes) -> None:
        """Put a whole frame on a pod's wire, past its own network stack."""
        if name not in self._wires:
            self._wires[name] = netns.call(self.pod(name).netns, _open_wire)
        self._wires[name].send(frame)

    def denied(self) -> dict[Reason, int]:
        """Packets denied so far, by reason."""
        found: dict[Reason, int] = {}
        for one in self.node.datapath.reasons():
            if one.verdict is Verdict.DENY:
                found[one.reason] = found.get(one.reason, 0) + one.packets
        return found

    def steered(self) -> int:
        """Packets handed to the proxy so far."""
        return sum(one.packets for one in self.node.datapath.reasons() if one.verdict is Verdict.REDIRECT)

    def flows(self, since: int) -> list[KernelFlow]:
        """Records of the kernel behind the first `since`."""
        self.node.flows_seen()
        return self.node.flows[since:]

    def arrived(self, token: Token) -> list[bytes]:
        """Frames at the victims that carry a token."""
        return [frame for watch in self.victims.values() for frame in watch.frames if token.within(frame)]

    def logged(self, token: Token, status: int, wait: float = 3.0) -> bool:
        """Whether the proxy's access log has answered that request so. Entries come a moment later."""
        deadline = time.monotonic() + wait
        while True:
            if any(one.path.endswith(token.text) and one.status == status for one in self.node.requests):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)

    def close(self) -> None:
        for sock in self._wires.values():
            sock.close()
        for watch in self.victims.values():
            watch.close()


def _open_wire() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind(("eth0", 0))
    return sock


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@contextmanager
def hunt(
    profile: Profile, proxy: ProxyKind = "embedded", *, programs: bool = True, known: bool = False
) -> Iterator[Hunt]:
    """Build all of it. `programs=False`: no policy at all, to show that a way leads somewhere; `known`: see KNOWN."""
    near = [pod_manifest(name, {"role": name}) for name in ("client", "walker", "tourist", "buyer", "shopper")]
    near += [server_manifest("server", {"role": "server"}), server_manifest("loner", {"role": "loner"})]
    far = server_manifest("far", {"role": "far"})
    stranger = pod_manifest("stranger", {"role": "stranger"})
    for one in near:
        one["spec"]["nodeName"] = "node1"
    for one in (far, stranger):
        one["spec"]["nodeName"] = "node2"
    outside = server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))
    with Testbed.up([*near, far, stranger, outside], profile=profile) as bed, ExitStack() as stack:
        node = ProxiedNode(bed.node, POLICIES, proxy=proxy) if programs else None
        if node:
            stack.callback(node.close)
        if profile.kube_proxy != "none":
            bed.set_services(_services())
        if node and known:
            addresses = [one for service in _services() for one in (*service.cluster_ips, *service.external_ips)]
            node.run(node.datapath.set_service_addresses(dict.fromkeys(addresses, True)))
        made = Hunt(bed, node, known)
        try:
            yield made
        finally:
            made.close()
