"""What the attack tests share: the node under attack, frames sent by hand, and witnesses that see what arrives.

Every frame that an attacker makes carries MARKER, in its payload or as its TCP sequence number. A witness is a packet
socket inside a victim's namespace: it sees a marked frame that got through, even if no program would.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed import netns
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.linkparts import mac_address
from spliceway.agent.testbed.node import Node, Pod
from spliceway.agent.testbed.testbed import Testbed
from support import load
from support.node import pod_manifest, server_manifest
from support.packets import ICMP, ICMPV6, Address, icmp, icmp6, ip

MARKER = bytes.fromhex("a77ac421")
SEQ = int.from_bytes(MARKER, "big")
#: Ports that the listeners of rule sets get first (see docs/configuration.md).
LISTENER_PORT = 23000
#: Every mark that the datapath uses, and some that it does not.
MARKS = (0x1000, 0x1002, 0x0002, 0x1003, 0xFFFF_FFFF)

_PODS = (
    *(server_manifest(name, {"role": name}) for name in ("frontend", "backend", "api")),
    pod_manifest("intruder", {"role": "intruder"}),
    server_manifest("inside", outside=True, addresses=("10.10.1.5", "fd00:10:1::5")),
    server_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5")),
)
_DEMO_POLICIES = Path(__file__).resolve().parents[2] / "examples" / "demo" / "policies"
_TESTS = Path(__file__).resolve().parents[1]
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33


def seconds() -> float:
    """How long an attack lasts: SPLICEWAY_ATTACK_SECONDS, by default 3."""
    return float(os.environ.get("SPLICEWAY_ATTACK_SECONDS", "3"))


class Site:
    """A node with the demo's pods and the agent. `api` has HTTP rules, `backend` kernel rules, `intruder` no rights."""

    def __init__(self, testbed: Testbed, proxy: ProxyKind, agent: AgentProcess | None) -> None:
        self.testbed = testbed
        self.proxy = proxy
        self.agent = agent
        self.node: Node = testbed.node
        self.frontend, self.api, self.backend, self.intruder, self.outside = map(
            testbed.pod, ("frontend", "api", "backend", "intruder", "outside")
        )

    def start_agent(self) -> None:
        """Start an agent, the first or the next one."""
        self.agent = start_agent(self.node, {"proxy": {"kind": self.proxy}})

    @property
    def control(self) -> AgentProcess:
        """The agent, which must be there."""
        assert self.agent is not None
        return self.agent

    def load(self, **options: Any) -> load.Load:
        """Load from frontend to api."""
        return load.Load(self.frontend, self.api, **options)

    def live_ports(self) -> list[int]:
        """The client's ports of the connections frontend → api that are alive, of both legs."""
        return [
            entry["endpointPort"] if entry["leg"] == "downstream" else entry["peerPort"]
            for entry in self.control.client.get("socks")
        ]

    def counted(self, reason: str) -> int:
        """Packets that were denied for this reason so far, at all hooks."""
        entries = self.control.client.get("bpf/reasons")
        return sum(one["packets"] for one in entries if one["reason"] == reason and one["verdict"] == "deny")


#: Client ports that tests and attackers choose by hand: the pods' own connections never get one of them.
_CHOSEN_PORTS = "40000-44999,50000-50999"


def _reserve_ports() -> None:
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text(_CHOSEN_PORTS)


@contextmanager
def attacked_site(proxy: ProxyKind = "embedded", *, agent: bool = True) -> Iterator[Site]:
    """Build it. `agent=False`: no policy at all, to show that an attack would succeed."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "api.yaml").write_text(load.POLICY)
        policies = [Path(directory), *(p for p in sorted(_DEMO_POLICIES.iterdir()) if "backend" in p.name)]
        with Testbed.up(_PODS, policies=policies) as testbed:
            for place in (testbed.node.info.netns, *(pod.netns for pod in testbed.node.pods.values())):
                netns.call(place, _reserve_ports)
            site = Site(testbed, proxy, None)
            if agent:
                site.start_agent()
            try:
                yield site
            finally:
                if site.agent is not None and site.agent.process.poll() is None:
                    site.agent.kill()


def set_rps(node: Node, on: bool) -> None:
    """Receive packet steering over the first two CPUs, or none, on every interface of the node and its pods."""
    mask = 0b11 if on else 0
    node.set_rps(mask)
    for pod in node.pods.values():
        pod.set_rps(mask)


class Wire:
    """Sends frames from a pod's eth0 as they are, past the pod's own network stack."""

    def __init__(self, pod: Pod) -> None:
        def opened() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.bind(("eth0", 0))
            return sock

        self._sock = netns.call(pod.netns, opened)
        macs = (mac_address(f"lxc {pod.key}"), mac_address(f"pod {pod.key}"))
        self._head = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)

    def send(self, packet: bytes, ethertype: int | None = None) -> None:
        """Send an IP packet, or with `ethertype` anything, to the node."""
        if ethertype is None:
            ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        self._sock.send(self._head + ethertype.to_bytes(2, "big") + packet)

    def flood(self, packets: Sequence[bytes], duration: float, pause: float = 0.0005) -> int:
        """Send them again and again for `duration` seconds, with pauses for the load; how many were sent."""
        deadline = time.monotonic() + duration
        sent = 0
        while time.monotonic() < deadline:
            for packet in packets:
                self.send(packet)
                sent += 1
                time.sleep(pause)
        return sent

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Witness:
    """Frames with MARKER that arrive in (or leave) a namespace while the context lasts, on all its interfaces."""

    def __init__(self, *namespaces: Path, outgoing: bool = False, marker: bytes = MARKER) -> None:
        self.seen: list[bytes] = []
        self._marker = marker
        self._outgoing = outgoing
        self._socks = [netns.call(path, _listen) for path in namespaces]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(sock,), daemon=True) for sock in self._socks]

    def _watch(self, sock: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                frame, address = sock.recvfrom(65536)
            except TimeoutError:
                continue
            if self._marker in frame and (self._outgoing or address[2] != socket.PACKET_OUTGOING):
                self.seen.append(frame)

    def assert_nothing(self) -> None:
        """No marked frame has been seen, and none was lost unseen. Ends the watch."""
        self.close()
        assert not self.seen, f"{len(self.seen)} frames got through, the first: {self.seen[0].hex()}"

    def close(self) -> None:
        if self._stop.is_set():
            return
        time.sleep(0.05)
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        for sock in self._socks:
            sock.close()

    def __enter__(self) -> Witness:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listen() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    sock.settimeout(0.05)
    return sock


def start_attacker(pod: Pod, verb: str, **arguments: Any) -> subprocess.Popen[Any]:
    """Start a program of `support.attacker` in a pod, in the pod's cgroup, as any program of the pod would run."""
    argv = [sys.executable, "-m", "support.attacker", verb, msgspec.json.encode(arguments).decode()]
    pipe = subprocess.PIPE
    return pod.spawn(argv, env={"PYTHONPATH": str(_TESTS)}, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[Any], text: str | None = None, timeout: float = 60.0) -> Any:
    """Wait for a program of `start_attacker` and return its report."""
    out, err = process.communicate(text, timeout=timeout)
    assert process.returncode == 0, err
    return msgspec.json.decode(out)


def attack(pod: Pod, verb: str, **arguments: Any) -> Any:
    """Run a program of `support.attacker` to its end and return its report."""
    return finish(start_attacker(pod, verb, **arguments))


def error_about(source: Address, destination: Address, quoted: bytes, *, too_big: bool = False) -> bytes:
    """An ICMP error (port unreachable, or «too big» with a tiny MTU) that quotes a packet."""
    if ":" in str(source):
        kind, code, rest = (2, 0, (1280).to_bytes(4, "big")) if too_big else (1, 4, bytes(4))
        return ip(source, destination, ICMPV6, icmp6(source, destination, kind, code, rest, quoted))
    code, rest = (4, bytes(2) + (68).to_bytes(2, "big")) if too_big else (3, bytes(4))
    return ip(source, destination, ICMP, icmp(3, code, rest, quoted[:28]))


def pairs(first: Pod, second: Pod) -> Iterable[tuple[str, str]]:
    """Addresses of two pods, family by family."""
    return [(str(first.address(version)), str(second.address(version))) for version in (4, 6)]
