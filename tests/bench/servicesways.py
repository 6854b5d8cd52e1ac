"""The two ways to a Service of the services benchmark, each on a node of its own: socket LB, and kube-proxy's iptables.

Both nodes have our programs at their pods' interfaces; node1's pods have the socket load balancer, and no rules; node2
has kube-proxy's rules, and no socket load balancer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from spliceway.agent.testbed import kubeproxy, netns
from spliceway.agent.testbed.kubeproxy import ServicePort
from spliceway.agent.testbed.node import Node, Pod
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.verdict import Protocol
from support.kernel import KernelNode

PORT = 7000
PROGRAM = str(Path(__file__).with_name("servicedialler.py"))
_FIRST: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("10.96.0.1"), 6: IPv6Address("fd00:96::1")}


def cluster_ips(count: int, version: int) -> list[IPv4Address | IPv6Address]:
    """So many ClusterIPs."""
    first = _FIRST[version]
    return [first + number for number in range(count)]


class Dialler:
    """A process in a pod that measures connect()."""

    def __init__(self, pod: Pod) -> None:
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[str] = pod.spawn(
            [sys.executable, PROGRAM, "dial"], stdin=pipe, stdout=pipe, text=True
        )

    def took(self, targets: Sequence[object], count: int, seed: int) -> list[int]:
        """Nanoseconds of each connect()."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"targets": [[str(one), 80] for one in targets], "count": count, "seed": seed}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a connection failed, see above")
        found: list[int] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


class SocketLbWay:
    """Services in the maps of the socket load balancer."""

    name = "socket LB"

    def __init__(self, node: KernelNode, client: Pod, servers: Sequence[Pod], version: int) -> None:
        self._node, self._version = node, version
        self._addresses = [server.address(version) for server in servers]
        self._there = 0
        self.dialler = Dialler(client)

    def load(self, count: int) -> float:
        """Have so many Services; returns seconds."""
        addresses = cluster_ips(max(count, self._there), self._version)
        changes = {self._frontend(one): self._state(1) for one in addresses[self._there : count]}
        gone = dict.fromkeys(map(self._frontend, addresses[count : self._there]))
        begin = time.perf_counter()
        self._node.run(self._node.datapath.set_services({**changes, **gone}))
        self._there = count
        return time.perf_counter() - begin

    def update(self, number: int, *, more: bool) -> float:
        """Give a Service one endpoint more, or take it away; returns seconds."""
        frontend = self._frontend(cluster_ips(number + 1, self._version)[number])
        begin = time.perf_counter()
        self._node.run(self._node.datapath.set_services({frontend: self._state(2 if more else 1)}))
        return time.perf_counter() - begin

    def _frontend(self, address: IPv4Address | IPv6Address) -> Frontend:
        return Frontend(address, 80, Protocol.TCP)

    def _state(self, endpoints: int) -> FrontendState:
        backends = sorted((Backend(one, PORT) for one in self._addresses[:endpoints]), key=lambda one: int(one.address))
        return FrontendState("bench/service", "", "ClusterIP", tuple(backends))


class IptablesWay:
    """Services in kube-proxy's chains."""

    def __init__(self, node: Node, client: Pod, servers: Sequence[Pod], version: int, variant: str) -> None:
        self._node, self._version, self.name = node, version, f"iptables-{variant}"
        tool = "iptables" if version == 4 else "ip6tables"
        self._command = [f"{tool}-{variant}-restore", "-w", "5"]
        self._addresses = [server.address(version) for server in servers]
        self._ports: list[ServicePort] = []
        self.dialler = Dialler(client)

    def load(self, count: int) -> float:
        """Have so many Services, and nothing else in the tables; returns seconds."""
        self._ports = [
            self._port(number, address, 1) for number, address in enumerate(cluster_ips(count, self._version))
        ]
        return self._restore(self._command, kubeproxy.iptables_rules(self._ports, self._version))

    def update(self, number: int, *, more: bool) -> float:
        """Give a Service one endpoint more, or take it away, as kube-proxy writes a change; returns seconds."""
        before = self._ports[number]
        after = self._port(number, before.cluster_ip, 2 if more else 1)
        self._ports[number] = after
        text = kubeproxy.iptables_rules(self._ports, self._version, first=False)
        return self._restore([*self._command, "--noflush"], partial(text, after if more else before))

    def _port(self, number: int, address: IPv4Address | IPv6Address, endpoints: int) -> ServicePort:
        backends = tuple(kubeproxy.Backend(one, PORT) for one in self._addresses[:endpoints])
        return ServicePort(f"bench/service-{number}:80", address, 80, backends)

    def _restore(self, command: list[str], text: str) -> float:
        def run() -> float:
            begin = time.perf_counter()
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr[:500]}")
            return time.perf_counter() - begin

        return netns.call(self._node.info.netns, run)


def partial(text: str, changed: ServicePort) -> str:
    """What kube-proxy writes of these rules when one Service has changed: its chains, and those that all share.

    Source: kubernetes, pkg/proxy/iptables/proxier.go (partial syncs, since 1.27).
    """
    own = {kubeproxy.chain("KUBE-SVC-", changed.name)}
    own.update(kubeproxy.chain("KUBE-SEP-", changed.name, _text(one)) for one in changed.backends)
    kept = []
    for line in filter(None, text.splitlines()):
        words = line.removeprefix(":").removeprefix("-A ").split()
        if not words[0].startswith(("KUBE-SVC-", "KUBE-SEP-")) or words[0] in own:
            kept.append(line)
    return "\n".join([*kept, ""])


def _text(one: kubeproxy.Backend) -> str:
    """A backend as kube-proxy's names have it."""
    return f"[{one.address}]:{one.port}" if one.address.version == 6 else f"{one.address}:{one.port}"
