"""Envoy ends a spliced connection behind an answer, and the pod reads it slowly: nothing of it is cut.

When a pod's connection has left the splice, what comes by TCP waits until the pod has read all that was spliced. Envoy
gives a connection up that it wants to close and can't write to for a second (`delayed_close_timeout`); without a splice
it cuts such answers, too, since its kernel takes less.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf import abi
from spliceway.bpf.types import SpliceLimits
from support.node import pod_manifest, python_in
from support.proxied import ProxiedNode

pytestmark = [pytest.mark.kernel, pytest.mark.envoy]

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: slow, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{method: GET}]}}]
"""
SIZE = 1_500_000
SERVER = f"""
import socket, threading
listening = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
def answer(connection):
    with connection:
        while not connection.recv(65536).endswith(b"\\r\\n\\r\\n"):
            pass
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: {SIZE}\\r\\n\\r\\n")
        connection.sendall(bytes({SIZE}))
while True:
    threading.Thread(target=answer, args=(listening.accept()[0],)).start()
"""
#: It reads little at a time, and so is behind for longer than Envoy waits, without pausing so long itself. Whether
#: Envoy has all of the answer when it can't write any more is a race: so several connections.
CLIENT = """
import http.client, socket, sys, threading, time
found = []
def ask():
    connection = socket.create_connection((sys.argv[1], 8080), 20)
    connection.sendall(b"GET / HTTP/1.1\\r\\nHost: slow\\r\\nConnection: close\\r\\n\\r\\n")
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    got = 0
    for _ in range(10):
        got += len(answer.read(20_000))
        time.sleep(0.25)
    try:
        while data := answer.read(65536):
            got += len(data)
    except http.client.IncompleteRead as error:
        got += len(error.partial)
    found.append(got)
threads = [threading.Thread(target=ask) for _ in range(int(sys.argv[2]))]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(*found)
"""
CONNECTIONS = 8


class SlowNode(ProxiedNode):
    """With the pods on it."""

    def __init__(self, testbed: Testbed) -> None:
        super().__init__(testbed.node, POLICY, proxy="envoy", splice_limits=SpliceLimits(connection=1 << 20))
        self.testbed = testbed


@pytest.fixture(scope="module")
def node() -> Iterator[SlowNode]:
    server = pod_manifest("server", {"role": "server"}, command=["python", "-c", SERVER], ports=(8080,))
    with Testbed.up([pod_manifest("client", {"role": "client"}), server]) as testbed, SlowNode(testbed) as made:
        yield made


@pytest.mark.skipif(
    int(Path("/proc/sys/net/core/wmem_max").read_text()) < abi.HELD_BACK, reason="net.core.wmem_max is too small"
)
@pytest.mark.parametrize("version", [4, 6])
def test_slow_readers_get_all_of_answers_that_end_their_connections(node: SlowNode, version: int) -> None:
    before = node.datapath.splice_counters()
    address = str(node.testbed.pod("server").address(version))
    done = python_in(node.testbed.pod("client"), CLIENT, address, str(CONNECTIONS), timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(map(int, done.stdout.split())) == [SIZE] * CONNECTIONS
    after = node.datapath.splice_counters()
    assert after.spliced - before.spliced == 2 * CONNECTIONS
    assert after.by_why["unread-limit"] > before.by_why["unread-limit"]
