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
#: The error of TCP_ULP on a connection, and the answer to a request on it after that.
CLIENT = """
import errno, json, socket, sys
with socket.create_connection((sys.argv[1], 80), 10) as sock:
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    first = sock.recv(65536)[:12]
    try:
        sock.setsockopt(socket.IPPROTO_TCP, 31, sys.argv[2].encode())
        name = ""
    except OSError as error:
        name = errno.errorcode[error.errno]
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
    print(json.dumps([name, first.decode(), sock.recv(65536)[:12].decode()]))
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
            # Not a member: the kernel looks for such a module, and finds none.
            assert found[True] == ["EPERM", "HTTP/1.1 200", "HTTP/1.1 200"]
            assert found[False] == ["ENOENT", "HTTP/1.1 200", "HTTP/1.1 200"]
