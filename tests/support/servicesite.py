"""A node whose agent gives pods' sockets Services and splices what is proxied, beside kube-proxy's rules for the same.

Clients are `client` and `shopper`, who has HTTP rules for what it asks. Services are `guarded`, whose servers have HTTP
rules for who asks them, `plain` and `far`, whose have none (`far` is on another node), and `names`, by UDP.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import yaml

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.services import Service
from spliceway.agent.testbed.testbed import Testbed
from support import lbpod
from support.node import pod_manifest, server_manifest
from support.profiled import curl, status
from support.talk import Talk
from support.waiting import until

Json = dict[str, Any]

#: Service → last byte of its addresses.
NUMBERS = {"guarded": 50, "plain": 51, "far": 52, "names": 53}
#: Which end has HTTP rules → client, Service, and the legs that this node splices.
MODES = {
    "ingress": ("client", "guarded", {"downstream", "upstream"}),
    "egress": ("shopper", "plain", {"downstream", "upstream"}),
    "both": ("shopper", "guarded", {"downstream", "upstream"}),
    "far": ("shopper", "far", {"downstream"}),
}
#: Endpoints at the start.
PODS = {"guarded": ("guarded1", "guarded2"), "plain": ("plain1",), "far": ("far1",), "names": ("one", "two")}
NODE_PORTS = {name: 30000 + number for name, number in NUMBERS.items()}

_RULES = 'rules: {http: [{method: GET, path: "/open/.*"}, {method: POST, path: /echo}]}'
POLICIES = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: in, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{role: guarded}}}}
  ingress:
  - fromEntities: [all]
    toPorts: [{{ports: [{{port: "80", protocol: TCP}}], {_RULES}}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: out, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{role: shopper}}}}
  egress:
  - toEndpoints: [{{}}]
    toPorts: [{{ports: [{{port: "80", protocol: TCP}}], {_RULES}}}]
  - toEntities: [world]
  - toEndpoints: [{{matchLabels: {{role: server}}}}]
    toPorts: [{{ports: [{{port: "7000", protocol: UDP}}]}}]
"""


def cluster_ip(service: str, version: int) -> str:
    """A Service's address."""
    return f"10.96.0.{NUMBERS[service]}" if version == 4 else f"fd00:96::{NUMBERS[service]}"


def guarded(name: str) -> Json:
    """One more server with HTTP rules."""
    made = server_manifest(name, {"role": "guarded"})
    made["spec"]["nodeName"] = "node1"
    return made


class ServiceSite:
    """The testbed and the agent of its first node."""

    def __init__(self, bed: Testbed, agent: AgentProcess) -> None:
        self.bed, self.agent = bed, agent
        self._pods = {name: list(pods) for name, pods in PODS.items()}

    # ---- Services ----

    def set_endpoints(self, service: str, pods: Sequence[str]) -> None:
        """Give a Service other endpoints, for the agent and for kube-proxy, and wait until the kernel has them."""
        self._pods[service] = list(pods)
        self.write(service)
        self.in_force(service)
        self.translate()

    def write(self, service: str) -> None:
        """Its documents."""
        self.bed.node.write_policy(service, _documents(self.bed, service, self._pods[service]))

    def in_force(self, service: str) -> None:
        """Wait until the kernel has its endpoints and no others."""
        port = lbpod.PORT if service == "names" else 80
        pods = [self.bed.pod(name) for name in self._pods[service]]
        wanted = {
            cluster_ip(service, version): {f"{pod.address(version)} {port}" for pod in pods} for version in (4, 6)
        }

        def held() -> dict[str, set[str]]:
            return {
                each["address"]: {f"{one['address']} {one['port']}" for one in each["backends"]}
                for each in self.agent.client.get("bpf/lb")
                if each["address"] in wanted
            }

        until(lambda: held() == wanted)

    def translate(self) -> None:
        """Have kube-proxy's rules for what is by TCP, where the profile has such."""
        if self.bed.profile.kube_proxy == "none":
            return
        self.bed.set_services(
            Service(
                f"default/{name}",
                tuple(ip_address(cluster_ip(name, version)) for version in (4, 6)),
                80,
                80,
                tuple(f"default/{pod}" for pod in pods),
                NODE_PORTS[name],
            )
            for name, pods in self._pods.items()
            if name != "names"
        )

    # ---- connections ----

    def socks(self) -> dict[tuple[Any, ...], Json]:
        """The kernel's entries of connections between pods and the proxy, by their ends."""
        names = ("endpoint", "endpointPort", "peer", "peerPort", "leg")
        return {tuple(one[name] for name in names): one for one in self.agent.client.get("socks")}

    def talk(self, client: str, address: str, port: int = 80) -> Talk:
        """A connection by a socket of the pod's."""
        return Talk(self.bed, client, address, port=port)

    def status(self, client: str, address: str, port: int, path: str) -> int:
        """Of a GET by a socket of the pod's; 0: no answer."""
        return status(self.bed.pod(client), address, port, path)

    def past(self, client: str, address: str, port: int, path: str) -> int:
        """Of a GET by a socket that is in the pod's network namespace and not in its cgroup; 0: no answer."""

        def ask() -> str:
            what = curl(address, port, path)
            return subprocess.run(what, capture_output=True, text=True, check=False, timeout=60).stdout

        return int(netns.call(self.bed.pod(client).netns, ask) or 0)

    def flows(self, path: str) -> list[Json]:
        """Of a request, once there is one."""

        def found() -> list[Json]:
            known = self.agent.client.lines("flows", last="8192")
            return [one for one in known if one["http"] and one["http"]["path"] == path]

        return until(found)

    def counters(self) -> dict[str, int]:
        """Of splicing, since the programs were loaded."""
        found: dict[str, int] = self.agent.client.get("status")["splice"]["counters"]
        return found


def _documents(bed: Testbed, name: str, pods: Sequence[str]) -> str:
    protocol, target = ("UDP", lbpod.PORT) if name == "names" else ("TCP", 80)
    addresses = [cluster_ip(name, version) for version in (4, 6)]
    port = {"name": "main", "port": 80, "protocol": protocol}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [port | {"targetPort": target}],
        },
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{version}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": f"IPv{version}",
            "endpoints": [{"addresses": [str(bed.pod(pod).address(version))]} for pod in pods],
            "ports": [port | {"port": target}],
        }
        for version in (4, 6)
    ]
    return "---\n".join(map(yaml.safe_dump, (service, *slices)))


@contextmanager
def service_site(profile: Profile, proxy: ProxyKind) -> Iterator[ServiceSite]:
    """Build it."""
    near = [pod_manifest(name, {"role": name}) for name in ("client", "shopper")]
    near += [guarded("guarded1"), guarded("guarded2"), server_manifest("plain1", {"role": "plain"})]
    near += [lbpod.server(name) for name in PODS["names"]]
    far = server_manifest("far1", {"role": "plain"})
    for one in near:
        one["spec"]["nodeName"] = "node1"
    far["spec"]["nodeName"] = "node2"
    outside = pod_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"))
    with Testbed.up([*near, far, outside], profile=profile) as bed:
        bed.node.write_policy("policies", POLICIES)
        for name in NUMBERS:
            bed.node.write_policy(name, _documents(bed, name, PODS[name]))
        agent = start_agent(bed.node, {"proxy": {"kind": proxy}, "datapath": {"socketLb": "on"}})
        try:
            made = ServiceSite(bed, agent)
            for name in NUMBERS:
                made.in_force(name)
            made.translate()
            yield made
        finally:
            if agent.process.poll() is None:
                agent.kill()
