"""Devices and addresses of a virtual node that come and go, and servers on the node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.errors import TestbedError
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.node import Node, Pod

#: The cluster's DNS at 10.96.0.10 and fd00:96::10, and its slice of one pod and IP version.
_DNS_SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {k8s-app: kube-dns}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ipFamilies: [IPv4, IPv6]
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
"""
_DNS_SLICE = """---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns-{version}, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv{version}
endpoints: [{{addresses: ["{address}"]}}]
ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
"""
#: Answers each query of DNS, by UDP and TCP at every address that is given, with a response code (argv: code,
#: addresses); says «ready» when it listens.
DNS = """
import socket, sys, threading
def answer(query):
    return query[:2] + bytes((0x84, int(sys.argv[1]))) + query[4:]
def listen(address, kind):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, 53))
    return made
def udp(made):
    while True:
        query, client = made.recvfrom(4096)
        made.sendto(answer(query), client)
def tcp(made):
    while True:
        with made.accept()[0] as connection:
            connection.settimeout(5)
            size = int.from_bytes(connection.recv(2), "big")
            query = connection.recv(size)
            connection.sendall(len(query).to_bytes(2, "big") + answer(query))
for address in sys.argv[2:]:
    threading.Thread(target=udp, args=(listen(address, socket.SOCK_DGRAM),)).start()
    listener = listen(address, socket.SOCK_STREAM)
    listener.listen(64)
    threading.Thread(target=tcp, args=(listener,)).start()
print("ready", flush=True)
"""

#: Asks all at once (argv: seconds, questions: [address, port, «udp» or «tcp»] …): of each the response code, or what
#: was raised.
ASK = """
import concurrent.futures, json, socket, struct, sys
query = struct.pack("!6H", 4711, 0x100, 1, 0, 0, 0) + b"\\x03www\\x07example\\x00" + struct.pack("!2H", 1, 1)
def ask(question):
    address, port, kind = question
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as made:
        made.settimeout(float(sys.argv[1]))
        try:
            made.connect((address, port))
            made.sendall(query if kind == "udp" else len(query).to_bytes(2, "big") + query)
            answer = made.recv(4096)
        except OSError as error:
            return type(error).__name__
    answer = answer if kind == "udp" else answer[2:]
    return answer[3] if answer[:2] == query[:2] and answer[2] == 0x84 else repr(answer)
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(ask, json.loads(sys.argv[2])))))
"""


def add_device(node: Node, name: str, addresses: Sequence[str] = ()) -> None:
    """Make a device of the node, up, with these addresses (with prefix length).

    A dummy, or where the kernel has none a bridge without ports: all that counts is that it can have addresses.
    """

    def make() -> None:
        try:
            command("ip", "link", "add", name, "type", "dummy")
        except TestbedError:
            command("ip", "link", "add", name, "type", "bridge")
        for address in addresses:
            _add(name, address)
        command("ip", "link", "set", name, "up")

    netns.call(node.info.netns, make)


def add_address(node: Node, name: str, address: str) -> None:
    """Give a device one more address."""
    netns.call(node.info.netns, lambda: _add(name, address))


def remove_address(node: Node, name: str, address: str) -> None:
    """Take one away."""
    netns.call(node.info.netns, lambda: command("ip", "addr", "del", address, "dev", name))


def remove_device(node: Node, name: str) -> None:
    """Remove a device."""
    netns.call(node.info.netns, lambda: command("ip", "link", "del", name))


def _add(name: str, address: str) -> None:
    more = ("nodad",) if ":" in address else ()  # it can be used at once
    command("ip", "addr", "add", address, "dev", name, *more)


@contextmanager
def dns_server(node: Node, code: int, addresses: Sequence[str]) -> Iterator[None]:
    """A DNS server in the node's network, at these addresses, which answers with this response code."""
    argv = [sys.executable, "-c", DNS, str(code), *addresses]
    process = node.spawn_on_node(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate(timeout=10)


def asked(
    node: Node, pod: str, addresses: Sequence[str], kinds: Sequence[str] = ("udp", "tcp"), *,
    port: int = 53, seconds: float = 3.0,
) -> list[int | str]:  # fmt: skip
    """What a pod's DNS queries came to, to each address by each kind."""
    questions = [[address, port, kind] for address in addresses for kind in kinds]
    done = node.run(pod, [sys.executable, "-c", ASK, str(seconds), json.dumps(questions)], timeout=seconds + 30)
    found: list[int | str] = json.loads(done.stdout)
    return found


def dns_service(pod: Pod) -> str:
    """The documents of the cluster's DNS, which this pod answers."""
    slices = (_DNS_SLICE.format(version=version, address=pod.address(version)) for version in (4, 6))
    return _DNS_SERVICE + "".join(slices)
