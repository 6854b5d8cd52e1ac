"""A client pod with HTTP rules in egress, and every kind of server that it can have.

They are a pod, a pod with rules of its own, a host outside, the node itself. The table is made by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

from spliceway.agent.configsections import ProxyKind
from spliceway.agent.testbed.node import Node
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import CtEntry, Leg
from spliceway.policy.table import (
    ClassKey,
    EndpointPolicy,
    HttpRule,
    IPNetwork,
    PolicyTable,
    Row,
    RowKey,
    RuleRef,
    RuleSet,
)
from spliceway.policy.verdict import Direction, Protocol, Reason, Verdict
from support.node import pod_manifest, python_in
from support.proxied import ProxiedNode

CLIENT, PLAIN, BOTH = "default/client", "default/plain", "default/both"
SERVERS = ("plain", "both", "outside", "node")
EGRESS, INGRESS, PAIR = 601, 602, 603
_POLICY = {CLIENT: 1, PLAIN: 2, BOTH: 3}
_IDENTITY = {CLIENT: 256, PLAIN: 257, BOTH: 258}

#: Answers with the client's address and the length and sum of the body, over IPv4 and IPv6.
SERVER = """
import hashlib, http.server, socket, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        address = self.client_address[0].removeprefix("::ffff:")
        out = f"{address} {self.client_address[1]} {len(body)} {hashlib.sha256(body).hexdigest()}\\n".encode()
        if self.path.endswith("/large"):
            out += bytes(1 << 21)
        self.send_response(200)
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)
    do_GET = do_POST = do_DELETE = answer
    def log_message(self, *_):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 256
Server(("::", 80), Handler).serve_forever()
"""
_CODE = """
import hashlib, http.client, json, sys
method, address, path, size, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
connection = http.client.HTTPConnection(address, 80, timeout=float(sys.argv[6]))
try:
    for _ in range(count):
        connection.request(method, path, body or None)
        answer = connection.getresponse()
        text = answer.read()
    print(json.dumps([answer.status, text[:200].decode("latin-1"), len(text), hashlib.sha256(body).hexdigest()]))
except OSError as error:
    print(json.dumps([0, type(error).__name__, 0, ""]))
"""


def table(
    node: Node, *, revision: int = 1, http: bool = True, egress: bool = True, pairs: bool = True, audit: bool = False
) -> PolicyTable:
    """`http` False: the client's policy allows port 80 without HTTP rules; `egress` False: it allows nothing.

    `pairs` False: there is no rule set for both ends. `audit`: a policy in audit mode would deny all that is allowed.
    """
    ipcache: dict[IPNetwork, int] = {ip_network("0.0.0.0/0"): 9, ip_network("::/0"): 10}
    ipcache |= {ip_network(address): 1 for address in node.info.addresses}
    for key, identity in _IDENTITY.items():
        ipcache |= {ip_network(address): identity for address in node.pods[key].addresses}
    reason = Reason.POLICY_DENIED if audit else Reason.REDIRECTED
    redirected, plain = (Verdict.REDIRECT, reason, 1, EGRESS), (Verdict.ALLOW, Reason.POLICY_ALLOWED, 1)
    rows = {RowKey(3, Direction.INGRESS, 0, Protocol.TCP, 80, 16): Row(Verdict.REDIRECT, reason, 2, INGRESS)}
    if egress:
        rows[RowKey(1, Direction.EGRESS, 0, Protocol.TCP, 80, 16)] = Row(*(redirected if http else plain))
    out = (HttpRule(3, "GET|POST", "/(both|open)/.*"),)
    into = RuleSet(INGRESS, "in", (HttpRule(4, "GET|POST|DELETE", "/(both|in)/.*"),))
    return PolicyTable(
        revision=revision,
        identities={},
        ipcache=ipcache,
        endpoints={
            key: EndpointPolicy(_IDENTITY[key], number, ingress=key == BOTH, egress=key == CLIENT)
            for key, number in _POLICY.items()
        },
        classes=dict[ClassKey, int](),
        rows=rows,
        rule_sets={EGRESS: RuleSet(EGRESS, "out", out), INGRESS: into, PAIR: RuleSet(PAIR, "pair", out, also=into)},
        rules={n: RuleRef("test", str(n)) for n in range(1, 5)},
        pairs={(EGRESS, INGRESS): PAIR} if pairs else {},
    )


class EgressNode(ProxiedNode):
    """A node with these pods and a proxy."""

    def apply(self, *_: str, **options: Any) -> PolicyTable:
        """Make a table of `table` live."""
        self._revision += 1
        self.table = table(self.node, revision=self._revision, **options)
        self.run(self.datapath.apply(self.table))
        return self.table


class Site:
    """The testbed, its node, and requests of the client."""

    def __init__(self, testbed: Testbed, node: EgressNode) -> None:
        self.testbed, self.node = testbed, node
        self.client = testbed.pod("client")

    def address(self, server: str, version: int) -> str:
        """A server's address; an address is its own."""
        if ":" in server or server[0].isdigit():
            return server
        if server == "node":
            return next(str(a) for a in self.testbed.node.info.addresses if a.version == version)
        return str(self.testbed.pod(server).address(version))

    def ask(
        self,
        server: str,
        path: str,
        *,
        client: str = "client",
        version: int = 4,
        method: str = "GET",
        size: int = 0,
        count: int = 1,
        wait: int = 8,
    ) -> tuple[int, str, int, str]:
        """Status, the answer's beginning and length, and the sum of what was sent, of the last of some requests."""
        numbers = (str(size), str(count), str(wait))
        done = python_in(
            self.testbed.pod(client), _CODE, method, self.address(server, version), path, *numbers, timeout=60
        )
        assert done.returncode == 0, done.stderr
        status, text, length, digest = json.loads(done.stdout)
        return status, text, length, digest

    def legs(self, server: str, version: int) -> dict[Leg, CtEntry]:
        """Conntrack entries between the client and a server, the last used of each leg."""
        ends = {ip_address(self.address(server, version)), self.client.address(version)}
        found = sorted(self.node.datapath.conntrack(), key=lambda entry: -entry.idle_seconds)
        return {entry.leg: entry for entry in found if {entry.endpoint, entry.peer} == ends}


@contextmanager
def egress_site(proxy: ProxyKind = "embedded", **settings: Any) -> Iterator[Site]:
    """Build it."""
    server: Mapping[str, Any] = {"command": ("python", "-c", SERVER), "ports": (80,)}
    pods = [
        pod_manifest("client"),
        pod_manifest("plain", **server),
        pod_manifest("both", **server),
        pod_manifest("outside", outside=True, addresses=("10.10.2.5", "fd00:10:2::5"), **server),
        pod_manifest("forger", outside=True, addresses=("10.10.1.5", "fd00:10:1::5")),
    ]
    with Testbed.up(pods) as testbed:
        here = testbed.node.spawn_on_node([sys.executable, "-c", SERVER])
        try:
            _wait_listening(testbed.node)
            node = EgressNode(testbed.node, proxy=proxy, **settings)
            try:
                yield Site(testbed, node)
            finally:
                node.close()
        finally:
            here.kill()
            here.wait()


def _wait_listening(node: Node) -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 80), 1)"
    deadline = time.monotonic() + 10
    while node.run_on_node([sys.executable, "-c", code]).returncode:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("the node's server", 10)
        time.sleep(0.05)
