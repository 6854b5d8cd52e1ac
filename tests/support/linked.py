"""Testbeds with devices of a kind, where the kernel has it, and a datapath with the proxy on their first node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.profiles import Profile
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Hook
from spliceway.policy.verdict import Verdict
from support.kernel import KernelNode
from support.node import pod_manifest
from support.profiled import manifests, status
from support.proxied import ProxiedNode

#: HTTP rules for what comes to `server`, and for what `shopper` asks.
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: in, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEntities: [world, cluster]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}, {path: /echo}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: shopper}}
  egress:
  - toEntities: [world, all]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET, path: /open}, {path: /echo}]}}]
"""

#: What the allowed and the forbidden path get.
PROXIED = (200, 403)
#: How a kernel, or iproute2, says that it has no such device.
_UNKNOWN = ("the kernel needs CONFIG_", "Unknown device type", "Operation not supported", "not supported", "Unknown")

#: Modules make them in every network namespace.
FALLBACKS = frozenset({"tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip6_vti0", "ip_vti0"})

_ECHO = """
import os, socket, sys, threading
body, address = os.urandom(1 << 16), sys.argv[1]
pieces = int(sys.argv[2]) >> 16
host = f"[{address}]" if ":" in address else address
with socket.create_connection((address, 80), timeout=60) as connection:
    head = f"POST /echo HTTP/1.1\\r\\nHost: {host}\\r\\n"
    head += f"Content-Length: {pieces << 16}\\r\\nConnection: close\\r\\n\\r\\n"
    def send():
        connection.sendall(head.encode())
        for _ in range(pieces):
            connection.sendall(body)
    threading.Thread(target=send, daemon=True).start()
    stream = connection.makefile("rb")
    status = int(stream.readline().split()[1])
    while stream.readline().strip():
        pass
    good = all(stream.read(len(body)) == body for _ in range(pieces))
    print(status, good and not stream.read())
"""
_STAYING = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=30)
while True:
    connection.request("GET", "/open")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, connection.sock.getsockname()[1], flush=True)
    if not sys.stdin.readline():
        break
"""


class Site(NamedTuple):
    """A testbed whose first node has the datapath and the proxy."""

    bed: Testbed
    node: ProxiedNode

    def pod(self, name: str) -> Pod:
        """Of any node, or the host outside."""
        return self.bed.pod(name)

    def asks(self, client: str, server: str, version: int) -> tuple[int, int]:
        """What a client gets for a path that the policy allows, and for another one."""
        address = self.pod(server).address(version)
        one, other = (status(self.pod(client), address, 80, path, timeout=8) for path in ("/open", "/closed"))
        return one, other

    def echoes(self, client: str, server: str, version: int, size: int) -> str:
        """«200 True»: so many bytes went there and came back whole."""
        address = str(self.pod(server).address(version))
        done = self.pod(client).run([sys.executable, "-c", _ECHO, address, str(size)], timeout=120)
        return done.stdout.strip() or done.stderr[-500:]

    def stays(self, client: str, server: str, version: int) -> subprocess.Popen[str]:
        """A client that asks over one connection, once and for each line that it is sent; «200 PORT» is its answer."""
        argv = [sys.executable, "-c", _STAYING, str(self.pod(server).address(version))]
        return self.pod(client).spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def counted(self, hook: Hook, verdict: Verdict) -> int:
        """Packets so far."""
        return sum(one.packets for one in self.node.datapath.reasons() if one.hook is hook and one.verdict is verdict)

    def attached(self) -> dict[str, str]:
        """Interfaces that have a program for packets from outside → the program."""
        return attached(self.node)


def attached(node: KernelNode) -> dict[str, str]:
    """The same of a node without a proxy. Of devices that modules make by themselves it says nothing."""
    devices = node.datapath.status().devices
    return {one.name: one.program for one in devices if one.attached and one.name not in FALLBACKS}


def up_or_skip(manifests: Iterable[Mapping[str, Any]], profile: Profile) -> Testbed:
    """A testbed; skip the test where the kernel has no such devices."""
    try:
        return Testbed.up(manifests, profile=profile)
    except TestbedError as error:
        if any(word in str(error) for word in _UNKNOWN):
            pytest.skip(f"this kernel has no such devices: {error}")
        raise


@contextmanager
def site_of(profile: Profile, **settings: Any) -> Iterator[Site]:
    """Build it; skip the test where the kernel has no such devices."""
    shopper = pod_manifest("shopper", {"role": "shopper"})
    shopper["spec"]["nodeName"] = "node1"
    with up_or_skip([*manifests(), shopper], profile) as bed:
        node = ProxiedNode(bed.node, POLICIES, **settings)
        with node:
            yield Site(bed, node)
