"""Kernel TLS on a spliced socket is refused: with it, kernels free what is still in use (sockmap.md, row 17)."""

from __future__ import annotations

import json

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import SpliceClasses
from support.node import pod_manifest, python_in, server_manifest
from support.proxied import ProxiedNode

pytestmark = pytest.mark.kernel

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: get, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
"""
#: The errors of TCP_ULP before a connection and on it, and the answers to requests before and after the latter.
CLIENT = """
import errno, json, socket, sys
def ulp(sock):
    try:
        sock.setsockopt(socket.IPPROTO_TCP, 31, sys.argv[2].encode())
    except OSError as error:
        return errno.errorcode[error.errno]
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as sock:
    sock.settimeout(10)
    early = ulp(sock)
    sock.connect((sys.argv[1], 80))
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    first = sock.recv(65536)[:12]
    late = ulp(sock)
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
    print(json.dumps([early, late, first.decode(), sock.recv(65536)[:12].decode()]))
"""


def test_row_17_no_ulp_on_a_member() -> None:
    manifests = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    with Testbed.up(manifests) as testbed, ProxiedNode(testbed.node, POLICY) as node:
        for version in (4, 6):
            found = {}
            for spliced in (True, False):
                node.run(node.datapath.set_splice(SpliceClasses(wanted=spliced)))
                before = node.datapath.splice_counters().spliced
                done = python_in(
                    testbed.pod("client"), CLIENT, str(testbed.pod("server").address(version)), "no-such-ulp"
                )
                assert done.returncode == 0, done.stderr
                found[spliced] = json.loads(done.stdout)
                assert (node.datapath.splice_counters().spliced - before) == (2 if spliced else 0)
            # What is not connected yet may become a member. Not a member: the kernel looks for such a module.
            assert found[True] == ["EPERM", "EPERM", "HTTP/1.1 200", "HTTP/1.1 200"]
            assert found[False] == ["EPERM", "ENOENT", "HTTP/1.1 200", "HTTP/1.1 200"]
