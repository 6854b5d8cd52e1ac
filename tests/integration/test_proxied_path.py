"""The proxied path on odd but legitimate ground: SYN cookies, long connections, a policy that changes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Leg, SockEntry, SpliceClasses, SpliceLimits, SpliceState
from spliceway.policy.verdict import Reason
from support import kinds
from support.node import http_status, pod_manifest, server_manifest
from support.proxied import ProxiedNode
from support.talk import Talk

pytestmark = pytest.mark.kernel

HTTP = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}, {method: POST}]}}]
"""
#: A body that comes back while it is sent. Nothing of it is read until the sender is stopped and a line comes by stdin.
STOPPED_READER = """
import hashlib, http.client, random, select, socket, sys, threading
address, size = sys.argv[1], int(sys.argv[2])
body = random.Random(1).randbytes(size)
connection = socket.create_connection((address, 80), 30)
connection.sendall(b"POST /echo HTTP/1.1\\r\\nHost: echo\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
poll = select.poll()
poll.register(connection, select.POLLOUT)
sent = 0
while sent < size and poll.poll(700):
    sent += connection.send(body[sent : sent + 65536])
print(sent, flush=True)
sys.stdin.readline()
sender = threading.Thread(target=lambda: connection.sendall(body[sent:]))
sender.start()
answer = http.client.HTTPResponse(connection, method="POST")
answer.begin()
print(answer.status, hashlib.sha256(answer.read()).digest() == hashlib.sha256(body).digest(), flush=True)
sender.join()
"""
#: Reads an answer, but not the end of the connection behind it, until a line comes by stdin.
READS_NO_END = """
import http.client, socket, sys
connection = socket.create_connection((sys.argv[1], 80), 30)
connection.sendall(b"GET /x HTTP/1.1\\r\\nHost: server\\r\\nConnection: close\\r\\n\\r\\n")
answer = http.client.HTTPResponse(connection)
answer.begin()
answer.read()
print(answer.status, flush=True)
sys.stdin.readline()
"""
LIMIT = 256 << 10


@pytest.fixture(scope="module", params=kinds.BOTH)
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Testbed, ProxiedNode]]:
    manifests = [pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]
    limits = SpliceLimits(connection=LIMIT)
    with (
        Testbed.up(manifests) as testbed,
        ProxiedNode(testbed.node, HTTP, proxy=request.param, splice_limits=limits) as node,
    ):
        yield testbed, node


@pytest.mark.parametrize("version", [4, 6])
def test_syn_cookies(proxied: tuple[Testbed, ProxiedNode], version: int) -> None:
    """A SYN-ACK with a cookie belongs to no socket, and still is the proxy's."""
    testbed, node = proxied
    setting = "/proc/sys/net/ipv4/tcp_syncookies"
    node.node.run_on_node(["sh", "-c", f"echo 2 > {setting}"])
    try:
        assert http_status(testbed, "client", "server", "/a", version=version) == 200
    finally:
        node.node.run_on_node(["sh", "-c", f"echo 1 > {setting}"])


def test_both_legs_are_spliced_and_counted(proxied: tuple[Testbed, ProxiedNode]) -> None:
    testbed, node = proxied
    with Talk(testbed, "client", "server") as talk:
        for _ in range(3):
            assert talk.ask() == "200"
        socks = {s.leg: s for s in node.datapath.socks() if s.to_proxy_messages >= 3}
        assert set(socks) == {Leg.DOWNSTREAM, Leg.UPSTREAM}
        assert {s.state for s in socks.values()} == {SpliceState.SPLICED}


@pytest.mark.parametrize("version", [4, 6])
def test_row_05_a_client_that_stops_reading(proxied: tuple[Testbed, ProxiedNode], version: int) -> None:
    """Its own upload stops, little waits in the kernel, others are as fast as ever; then all of it comes back."""
    testbed, node = proxied
    size = 32 << 20
    address = str(testbed.pod("server").address(version))
    pipe = subprocess.PIPE
    with testbed.spawn(
        "client", ["python", "-c", STOPPED_READER, address, str(size)], stdin=pipe, stdout=pipe, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert int(client.stdout.readline()) < size // 2
        assert node.run(node.datapath.measure()) <= 4 * LIMIT
        with Talk(testbed, "client", "server", version=version) as other:
            assert [other.ask() for _ in range(20)] == ["200"] * 20
        client.stdin.write("go\n")
        client.stdin.flush()
        assert client.stdout.readline().split() == ["200", "True"]


@pytest.mark.row(25)
def test_a_tightened_policy_reaches_a_spliced_connection(proxied: tuple[Testbed, ProxiedNode]) -> None:
    testbed, node = proxied
    assert node.table is not None
    with Talk(testbed, "client", "server") as talk:
        assert talk.ask() == "200"
        assert any(s.state is SpliceState.SPLICED for s in node.datapath.socks())
        seen = node.flows_seen()
        node.apply(HTTP.replace("role: client}", "role: nobody}"))
        began = time.monotonic()
        assert talk.ask() in {"ConnectionResetError", "PermissionError", "BrokenPipeError", "RemoteDisconnected"}
        assert time.monotonic() - began < 15, "the pod had to wait for a time-out"
        flow = node.flow_after(seen)
        assert flow.reason is Reason.DEFAULT_DENY
        assert http_status(testbed, "client", "server", "/a", timeout=1) == 0
    node.apply(HTTP)
    assert http_status(testbed, "client", "server", "/a") == 200


@pytest.mark.parametrize("splice", [True, False])
def test_closed_connections_leave_no_state(proxied: tuple[Testbed, ProxiedNode], splice: bool) -> None:
    testbed, node = proxied
    node.run(node.datapath.set_splice(SpliceClasses(wanted=splice)))
    for _ in range(5):
        assert http_status(testbed, "client", "server", "/a") == 200
    deadline = time.monotonic() + 10
    while any(s.leg is Leg.DOWNSTREAM for s in node.datapath.socks()):
        assert time.monotonic() < deadline, node.datapath.socks()
        time.sleep(0.05)
    node.run(node.datapath.set_splice(SpliceClasses()))


def test_a_removed_endpoint_takes_its_connections_along(proxied: tuple[Testbed, ProxiedNode]) -> None:
    testbed, node = proxied
    with Talk(testbed, "client", "server") as talk:
        assert talk.ask() == "200"
        without = [one for one in node.endpoints if one.name != "default/client"]
        node.run(node.datapath.set_endpoints(without))
        own = set(testbed.pod("client").addresses)
        assert not [e for e in node.datapath.conntrack() if {e.endpoint, e.peer} & own]
        deadline = time.monotonic() + 10  # the pods' ends follow when they have got their resets
        while [s for s in node.datapath.socks() if {s.endpoint, s.peer} & own]:
            assert time.monotonic() < deadline, node.datapath.socks()
            time.sleep(0.05)
    node.run(node.datapath.set_endpoints(node.endpoints))
    assert http_status(testbed, "client", "server", "/a") == 200


def test_a_reset_behind_a_fin_that_nobody_reads_leaves_no_state(proxied: tuple[Testbed, ProxiedNode]) -> None:
    """The FIN waits in the pod's receive memory as bytes would, and no close() of the pod's ends the entry."""
    testbed, node = proxied
    if node.kind == "envoy":
        pytest.skip("Envoy has closed its socket by then, so nobody resets the pod's")
    own = set(testbed.pod("client").addresses)
    before = {(s.endpoint_port, s.peer_port) for s in node.datapath.socks()}

    def left() -> list[SockEntry]:
        return [s for s in node.datapath.socks() if own & {s.endpoint} and (s.endpoint_port, s.peer_port) not in before]

    argv = ["python", "-c", READS_NO_END, str(testbed.pod("server").address(4))]
    pipe = subprocess.PIPE
    pod: subprocess.Popen[str] = testbed.spawn("client", argv, stdin=pipe, stdout=pipe, text=True)
    try:
        assert pod.stdout is not None
        assert pod.stdout.readline().strip() == "200"
        assert [s for s in left() if s.state is SpliceState.SPLICED]
        node.run(node.datapath.set_endpoints([one for one in node.endpoints if one.name != "default/client"]))
        deadline = time.monotonic() + 10
        while left():
            assert time.monotonic() < deadline, left()
            time.sleep(0.05)
    finally:
        pod.communicate(timeout=10)
    node.run(node.datapath.set_endpoints(node.endpoints))


def test_a_listener_dialled_directly_refuses(proxied: tuple[Testbed, ProxiedNode]) -> None:
    """A listener's port takes steered connections only."""
    _, node = proxied
    port = node.settings.listener_ports[0]
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
    done = node.node.run_on_node(["python3", "-c", code])
    assert "ConnectionRefusedError" in done.stderr
