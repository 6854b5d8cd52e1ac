"""Both ends of connections between applications and their sidecars, in one test: as `SpliceBed`, inside of two pods.

`Leg.DOWNSTREAM` is what an application dials (in the pod `client`, its rules lead it to 15001); `Leg.UPSTREAM` is what
a sidecar dials to its application (in the pod `server`, from 127.0.0.6 or ::6). The sidecars are sockets of a process
that runs under the proxy's UID; the test holds them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec

from spliceway.agent.testbed.node import Pod
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import libbpf
from spliceway.bpf.install import pin_root
from spliceway.bpf.types import Leg
from support.istio import rules
from support.istio.mesh import mesh_manifest
from support.socketmaker import SocketMaker
from support.splicebed import FAMILIES, PATIENCE, Pair, SpliceBed, Veths, name_of

OWN = {4: "127.0.0.6", 6: "::6"}
ANY = {4: "0.0.0.0", 6: "::"}


class SidecarPair(Pair):
    """One leg: the application's end (`pod`) and the sidecar's (`proxy`)."""

    def __init__(self, bed: SpliceBed, leg: Leg, pod: socket.socket, proxy: socket.socket) -> None:
        super().__init__(bed, leg, pod, proxy)
        self._peer = name_of(proxy, socket.socket.getsockname)
        if leg is Leg.DOWNSTREAM:  # as the sidecar sees it: netfilter may have given it another port
            self._ends = name_of(proxy, socket.socket.getpeername)


class SidecarBed(SpliceBed):
    """Two pods with sidecars, and a datapath that knows of them."""

    def __init__(self, testbed: Testbed, kind: rules.Rules = "iptables", **settings: Any) -> None:
        self.kind = kind
        self._uid = 0 if kind == "tproxy" else rules.PROXY_UID
        super().__init__(testbed, sidecars=True, **settings)

    def _begin(self) -> None:
        for name in ("client", "server"):
            rules.write(self.testbed.pod(name), self.kind)
        self.node.apply("")
        self.accelerate(True)
        self.splice(clients=True, servers=True)
        self._asks()
        client, server = self.testbed.pod("client"), self.testbed.pod("server")
        self.makers = {
            "client": SocketMaker(client.spawn),
            "server": SocketMaker(server.spawn),
            "client-sidecar": self.sidecar_maker(client),
            "server-sidecar": self.sidecar_maker(server),
        }

    def _asks(self) -> None:
        """Let these sidecars ask for room, which no Envoy does: for the tests of what comes before the limits."""
        program = libbpf.open_pin(pin_root(self.node.settings) / "programs" / "splice_room")
        cgroup = os.open(self.node.settings.pods_cgroup, os.O_RDONLY)
        self._stack.callback(os.close, libbpf.create_link(program, cgroup, libbpf.BPF_CGROUP_GETSOCKOPT))
        os.close(program)
        os.close(cgroup)

    def sidecar_maker(self, pod: Pod) -> SocketMaker:
        """What makes sockets as the sidecar of a pod would."""

        def spawn(argv: list[str], **options: Any) -> subprocess.Popen[Any]:
            user = ["setpriv", "--reuid", str(self._uid), "--regid", str(rules.PROXY_UID), "--clear-groups"]
            return pod.spawn([*user, *argv], **options)

        return SocketMaker(spawn)

    def accelerate(self, on: bool) -> None:
        """Whether the datapath knows of the sidecars."""
        wanted = [msgspec.structs.replace(one, sidecar=self._uid if on else None) for one in self.node.endpoints]
        self.node.run(self.node.datapath.set_endpoints(wanted))

    def set_veths(self, veths: Veths) -> None:
        """With receive packet steering on the pods' loopbacks: one connection in two is another CPU's."""
        for pod in self.testbed.node.pods.values():
            pod.set_rps(0b11 * (veths == "rps"), loopback=True)

    def make(self, place: str, version: int) -> socket.socket:
        """As there; `proxy` is the sidecar that accepts, of the pod `client`."""
        made = self.makers["client-sidecar" if place == "proxy" else place].make(FAMILIES[version])
        self._handed_out.append(made)
        made.settimeout(PATIENCE)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def opener(self, leg: Leg, version: int, port: int = 0) -> socket.socket:
        """The socket that will open a leg."""
        if leg is Leg.DOWNSTREAM:
            return super().opener(leg, version, port)
        made = self.make("server-sidecar", version)
        made.bind((OWN[version], port))
        return made

    def pair_of(self, leg: Leg, opened: socket.socket, accepted: socket.socket) -> Pair:
        """The pair of these two ends."""
        pod, proxy = (opened, accepted) if leg is Leg.DOWNSTREAM else (accepted, opened)
        return SidecarPair(self, leg, pod, proxy)

    def _proxy_listener(self, version: int) -> socket.socket:
        made = self.make("proxy", version)
        if version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((ANY[version], rules.OUTBOUND))
        made.listen(4096)
        return made

    def set_listeners(self) -> None:
        """There is no proxy of the node here."""


@contextlib.contextmanager
def sidecar_bed(kind: rules.Rules = "iptables", **settings: Any) -> Iterator[SidecarBed]:
    """Build it, with a testbed of its own."""
    manifests = [mesh_manifest("client"), mesh_manifest("server")]
    with Testbed.up(manifests) as testbed, SidecarBed(testbed, kind, **settings) as bed:
        yield bed
