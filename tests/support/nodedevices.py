"""Devices and addresses of a virtual node that come and go, and servers on the node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from spliceway.agent.testbed import netns
from spliceway.agent.testbed.linkparts import command
from spliceway.agent.testbed.node import Node

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

#: Asks once by UDP or TCP (argv: address, port, kind, seconds); the response code, or what was raised.
ASK = """
import socket, struct, sys
address, port, kind, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
query = struct.pack("!6H", 4711, 0x100, 1, 0, 0, 0) + b"\\x03www\\x07example\\x00" + struct.pack("!2H", 1, 1)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
made = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
made.settimeout(seconds)
try:
    made.connect((address, port))
    made.sendall(query if kind == "udp" else len(query).to_bytes(2, "big") + query)
    answer = made.recv(4096)
    answer = answer if kind == "udp" else answer[2:]
    print(answer[3] if answer[:2] == query[:2] and answer[2] == 0x84 else repr(answer))
except OSError as error:
    print(type(error).__name__)
"""


def add_device(node: Node, name: str, addresses: Sequence[str] = (), kind: str = "dummy") -> None:
    """Make a device of the node, up, with these addresses (with prefix length)."""

    def make() -> None:
        command("ip", "link", "add", name, "type", kind)
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
        process.wait(10)


def asked(node: Node, pod: str, address: str, kind: str, *, port: int = 53, seconds: float = 3.0) -> str:
    """What a pod's one DNS query by «udp» or «tcp» came to."""
    done = node.run(pod, [sys.executable, "-c", ASK, address, str(port), kind, str(seconds)], timeout=seconds + 20)
    return str(done.stdout.strip() or done.stderr)
