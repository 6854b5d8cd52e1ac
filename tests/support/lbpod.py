"""Both ends of Services: pods that tell their name by TCP and UDP, and a process in a pod that dials as it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Any

from spliceway.agent.testbed.node import Pod
from spliceway.policy.lbmodel import Backend, Frontend, FrontendState
from spliceway.policy.verdict import Protocol
from support.node import pod_manifest

PORT = 7000

_SERVER = """
import os, socket, threading
name = os.environ["POD_NAME"].encode()
def ready(kind):
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", 7000))
    return made
def talk(connection):
    with connection:
        connection.sendall(name + b"\\n")
        while data := connection.recv(4096):
            connection.sendall(name + b" " + data)
def datagrams(sock):
    while True:
        data, sender = sock.recvfrom(4096)
        sock.sendto(name + b" " + data, sender)
threading.Thread(target=datagrams, args=(ready(socket.SOCK_DGRAM),), daemon=True).start()
listener = ready(socket.SOCK_STREAM)
listener.listen(1024)
while True:
    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
"""

_CLIENT = """
import contextlib, errno, json, os, random, socket, struct, sys, threading, time
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
def new(family, kind, timeout=5):
    made = socket.socket({4: socket.AF_INET, 6: socket.AF_INET6}[family], kind)
    made.settimeout(timeout)
    return made
def dial(family, host, port=80):
    made = new(family, STREAM)
    made.connect((host, port))
    return made, made.recv(100).decode().strip()
def name_of(family, host, port=80):
    made, name = dial(family, host, port)
    made.close()
    return name
def many(count, family, host):
    return [name_of(family, host) for _ in range(count)]
def ask(sock, text="x"):
    sock.send(text.encode())
    return sock.recv(100).decode().split()[0]
def ask_to(sock, host, port=80, text="x"):
    sock.sendto(text.encode(), (host, port))
    data, sender = sock.recvfrom(100)
    return data.decode().split()[0], list(sender[:2])
def error_of(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return ""
for line in sys.stdin:
    code, mode = json.loads(line)
    try:
        print(json.dumps({"is": (eval if mode == "eval" else exec)(code, globals())}), flush=True)
    except BaseException as error:
        print(json.dumps({"raised": f"{type(error).__name__}: {error}"}), flush=True)
"""


class Remote:
    """A Python process in a pod: `ask` evaluates an expression there, `do` runs statements."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def of(cls, pod: Pod) -> Remote:
        """In this pod."""
        pipe = subprocess.PIPE
        return cls(pod.spawn([sys.executable, "-c", _CLIENT], stdin=pipe, stdout=pipe, text=True))

    def ask(self, expression: str) -> Any:
        """The value. Raises AssertionError with what was raised there."""
        return self._send(expression, "eval")

    def do(self, statements: str) -> None:
        """Run them."""
        self._send(statements, "exec")

    def error(self, expression: str) -> str:
        """Name of the errno that the expression raises, empty: none."""
        return str(self.ask(f"error_of(lambda: {expression})"))

    def _send(self, code: str, mode: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, mode]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "raised" not in answer, f"{code}: {answer['raised']}"
        return answer["is"]

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=10)


def server(name: str) -> dict[str, Any]:
    """A pod that tells its name on TCP and UDP 7000, both families."""
    return pod_manifest(name, {"role": "server"}, command=("python", "-c", _SERVER), ports=(PORT,))


def frontend(address: str, protocol: Protocol, port: int = 80) -> Frontend:
    """Of a Service's address."""
    return Frontend(ip_address(address), port, protocol)


def state(
    pods: Sequence[Pod], version: int, *, affinity: int = 0, port: int = PORT, service: str = "default/web"
) -> FrontendState:
    """Of a Service whose endpoints are these pods."""
    backends = tuple(sorted((Backend(pod.address(version), port) for pod in pods), key=lambda one: int(one.address)))
    return FrontendState(service, "web", "ClusterIP", backends, affinity)


def services(
    addresses: Mapping[int, str], pods: Sequence[Pod], *, affinity: int = 0
) -> dict[Frontend, FrontendState | None]:
    """Both families (IP version → address), TCP and UDP."""
    return {
        frontend(address, protocol): state(pods, version, affinity=affinity)
        for version, address in addresses.items()
        for protocol in (Protocol.TCP, Protocol.UDP)
    }
