"""Connections that nobody has seen begin: who speaks first on them opens no way that a policy closes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.policy.verdict import Reason
from support.kernel import KernelNode
from support.node import pod_manifest
from support.socketmaker import SocketMaker

pytestmark = pytest.mark.kernel

#: What there are rules for: HTTP, nothing, and the kernel's own; and a port that a client could have as well.
HTTP_PORT, DENIED_PORT, ALLOWED_PORT, HIGH_PORT = 80, 81, 82, 50_051
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: server, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET}]}
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "82", protocol: TCP}]}]
"""
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Pair(NamedTuple):
    """Both ends of a connection between two pods."""

    client: socket.socket
    server: socket.socket


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[tuple[int, int], tuple[KernelNode, Pair]]]:
    """By port and IP version: opened before there were programs and a policy."""
    pods = [pod_manifest("client", {"role": "client"}), pod_manifest("server", {"role": "server"})]
    with Testbed.up(pods) as testbed, ExitStack() as stack:
        makers = {}
        for name in ("client", "server"):
            makers[name] = SocketMaker(testbed.pod(name).spawn)
            stack.callback(makers[name].close)
        opened: dict[tuple[int, int], Pair] = {}
        for version, family in FAMILIES.items():
            for port in (HTTP_PORT, DENIED_PORT, ALLOWED_PORT, HIGH_PORT):
                listening = stack.enter_context(makers["server"].make(family))
                listening.bind((str(testbed.pod("server").address(version)), port))
                listening.listen()
                client = stack.enter_context(makers["client"].make(family))
                client.settimeout(10)
                client.bind((str(testbed.pod("client").address(version)), 40_000 + port % 1000))
                client.connect(listening.getsockname())
                opened[port, version] = Pair(client, stack.enter_context(listening.accept()[0]))
        node = KernelNode(testbed.node)
        stack.callback(node.close)
        node.apply(POLICY)
        yield {key: (node, pair) for key, pair in opened.items()}


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize(
    ("port", "reason"),
    [(HTTP_PORT, Reason.NOT_STEERED), (DENIED_PORT, Reason.DEFAULT_DENY), (HIGH_PORT, Reason.DEFAULT_DENY)],
)
def test_a_server_that_speaks_first_opens_no_way(
    pairs: dict[tuple[int, int], tuple[KernelNode, Pair]], port: int, reason: Reason, version: int
) -> None:
    node, pair = pairs[port, version]
    seen = node.flows_seen()
    pair.server.sendall(b"server")
    assert node.flow_after(seen, port=port).reason is reason  # what was refused before comes again and again
    seen = node.flows_seen()
    pair.client.sendall(b"client")
    assert node.flow_after(seen, port=pair.client.getsockname()[1]).verdict.label == "deny"
    for end in pair:
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            end.recv(1)


@pytest.mark.parametrize("version", FAMILIES)
def test_what_is_allowed_goes_on(pairs: dict[tuple[int, int], tuple[KernelNode, Pair]], version: int) -> None:
    """Whoever speaks first."""
    _, pair = pairs[ALLOWED_PORT, version]
    for end in pair:
        end.settimeout(10)
    first, second = pair if version == 4 else reversed(pair)
    for _ in range(3):
        first.sendall(b"first")
        assert second.recv(100) == b"first"
        second.sendall(b"second")
        assert first.recv(100) == b"second"
