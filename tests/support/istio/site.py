"""A mesh of two pods with Envoy as sidecars, and a datapath that may know of these."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import diag
from spliceway.bpf.types import Leg, SockEntry, SpliceClasses
from support.istio import rules
from support.istio.mesh import mesh
from support.kernel import KernelNode
from support.socketmaker import SocketMaker

PORT = 80
_ESTABLISHED = 1 << 1


class Site:
    """See the module. `client` makes sockets as an application in the client's pod does."""

    def __init__(self, testbed: Testbed, node: KernelNode, kind: rules.Rules) -> None:
        self.testbed, self.node = testbed, node
        self._uid = 0 if kind == "tproxy" else rules.PROXY_UID
        self.client = SocketMaker(testbed.pod("client").spawn)
        node.apply("")
        node.run(node.datapath.set_splice(SpliceClasses()))
        self.accelerate(True)

    def accelerate(self, on: bool, *, splice: bool = True) -> None:
        """Whether the datapath knows of the sidecars, and whether the pods want it."""
        known = {"sidecar": self._uid if on else None, "splice": splice}
        wanted = [msgspec.structs.replace(one, **known) for one in self.node.endpoints]
        self.node.run(self.node.datapath.set_endpoints(wanted))

    def drop_pools(self) -> None:
        """End what the server's sidecar keeps open to its application: a connection stays what it was decided to be."""
        pod = self.testbed.pod("server")

        def end() -> None:
            there = diag.tcp_sockets(_ESTABLISHED)
            own = {(one.local, one.local_port) for one in there}
            for one in there:
                if one.local_port == PORT and (one.remote, one.remote_port) in own:
                    diag.destroy_this(one)

        netns.call(pod.netns, end)

    def connect(self, version: int = 4) -> http.client.HTTPConnection:
        """A connection of the application to the server's address."""
        made = self.client.make(socket.AF_INET if version == 4 else socket.AF_INET6)
        made.settimeout(10)
        address = str(self.testbed.pod("server").address(version))
        made.connect((address, PORT))
        connection = http.client.HTTPConnection(address, PORT)
        connection.sock = made
        return connection

    def legs(self) -> dict[str, SockEntry]:
        """The latest entry inside of each pod, by the pod's name."""
        found: dict[str, SockEntry] = {}
        pods = {name: set(self.testbed.pod(name).addresses) for name in ("client", "server")}
        for one in sorted(self.node.datapath.socks(), key=lambda each: -each.age_seconds):
            for name, addresses in pods.items():
                if one.leg is Leg.SIDECAR and one.endpoint in addresses:
                    found[name] = one
        return found

    def between_pods(self) -> set[bytes]:
        """Cookies of both ends of all connections between the two pods: the TLS legs.

        An application's socket that names the other pod has its other end in its own pod: netfilter has seen to that.
        """
        client, server = (self.testbed.pod(name) for name in ("client", "server"))
        from_client, at_server = (
            {
                getattr(one, field): one.cookie
                for one in netns.call(pod.netns, lambda: diag.tcp_sockets(_ESTABLISHED))
                if one.local in pod.addresses and one.remote in other.addresses
            }
            for pod, other, field in ((client, server, "local_port"), (server, client, "remote_port"))
        )
        return {end[port] for port in from_client.keys() & at_server.keys() for end in (from_client, at_server)}

    def members(self) -> set[bytes]:
        """Cookies of all sockets in the sockhash."""
        return {raw for _, raw in self.node.datapath._maps.socks.items()}

    def close(self) -> None:
        self.client.close()


@contextlib.contextmanager
def site(directory: Path, kind: rules.Rules = "iptables", *, http: bool = True) -> Iterator[Site]:
    """Build it. The directory must be open to all users."""
    settings: dict[str, Any] = {"max_connections": 8192, "sidecars": True}
    with mesh(directory, kind, http=http) as testbed, KernelNode(testbed.node, **settings) as node:
        made = Site(testbed, node, kind)
        try:
            yield made
        finally:
            made.close()
