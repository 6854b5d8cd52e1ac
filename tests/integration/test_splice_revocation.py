"""Thousands of proxied connections whose policy is withdrawn, or whose rule set moves to another listener.

Once the change is acknowledged nothing passes any more, whether they talk or not, and all of them are reset at once.
`SPLICEWAY_REVOKED_CONNECTIONS` sets the number (default 1,500; `make revoke` takes 10,000 and prints how long it took).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Leg, SpliceClasses, SpliceState
from spliceway.policy.verdict import Reason
from support.kernel import KernelNode
from support.node import pod_manifest
from support.stampedload import StampedLoad

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

CONNECTIONS = int(os.environ.get("SPLICEWAY_REVOKED_CONNECTIONS", "1500"))
TALKERS = 64
PORTS = (23000, 23001)
POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
  - fromEndpoints: [{matchLabels: {role: client}}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{method: GET}]}}]
"""
WITHDRAWN = POLICY.replace("role: client", "role: nobody")


@pytest.fixture(scope="module")
def node() -> Iterator[KernelNode]:
    manifests = [pod_manifest(name, {"role": name}) for name in ("client", "server")]
    with Testbed.up(manifests) as testbed, KernelNode(testbed.node) as made:
        made.testbed = testbed  # type: ignore[attr-defined]
        yield made


def withdraw(node: KernelNode) -> None:
    node.apply(WITHDRAWN)


def move(node: KernelNode) -> None:
    assert node.table is not None
    node.run(node.datapath.set_listeners(dict.fromkeys(node.table.rule_sets, PORTS[1])))


@pytest.mark.parametrize("change", [withdraw, move])
@pytest.mark.parametrize("spliced", [True, False], ids=["spliced", "by TCP"])
def test_nothing_passes_after_a_change_and_all_are_reset(node: KernelNode, change: Any, spliced: bool) -> None:
    connections = CONNECTIONS if spliced else CONNECTIONS // 5
    node.run(node.datapath.set_splice(SpliceClasses(wanted=spliced)))
    table = node.apply(POLICY)
    node.run(node.datapath.set_listeners(dict.fromkeys(table.rule_sets, PORTS[0])))
    with StampedLoad(node.testbed, connections, TALKERS, PORTS) as load:  # type: ignore[attr-defined]
        client = load.connect()
        states = [one.state for one in node.datapath.socks()]
        assert states.count(SpliceState.SPLICED if spliced else SpliceState.TCP_ONLY) >= 2 * connections
        seen = node.flows_seen()

        began = time.monotonic_ns()
        change(node)
        acknowledged = time.monotonic_ns()
        assert client.line() == {"ended": connections}
        report = load.reports()

    node.flow_after(seen)
    refused = {flow.reason for flow in node.flows[seen : node.flows_seen()] if flow.leg is Leg.DOWNSTREAM}
    assert refused == {Reason.DEFAULT_DENY if change is withdraw else Reason.RULE_SET_CHANGED}
    assert report["how"]["client ECONNRESET"] == connections, report
    assert min(report["messages"][leg] for leg in ("client", "server", "downstream", "upstream")) > connections
    # To the proxy the server may still talk when only the listener is another: it opened that connection itself.
    legs = ["client", "server", "downstream", *(["upstream"] if change is withdraw else [])]
    late = {leg: report["newest"][leg] - acknowledged for leg in legs if report["newest"][leg] > acknowledged}
    assert not late, "messages that were sent after the acknowledgement have arrived"
    took, last = (acknowledged - began) / 1e6, (report["last"] - acknowledged) / 1e6
    print(f"{change.__name__}: acknowledged in {took:.0f} ms, the last of {connections} was reset {last:.0f} ms later")
