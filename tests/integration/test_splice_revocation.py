"""Thousands of proxied connections whose policy is withdrawn, or whose rule set moves to another listener.

Once the change is acknowledged nothing passes any more, whether they talk or not, and all of them are reset at once.
`SPLICEWAY_REVOKED_CONNECTIONS` sets the number (default 1,500; `make revoke` takes 10,000 and prints how long it took).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.testbed import Testbed
from spliceway.bpf.types import Leg, SpliceClasses, SpliceState
from spliceway.policy.verdict import Reason
from support.kernel import KernelNode
from support.node import pod_manifest, server_manifest
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
#: Keep-alive connections to the address, the first of which ask all the time; then how all of them ended.
HELD = """
import http.client, json, select, sys, time
from collections import Counter
address, count, talkers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def ask(connection):
    connection.request("GET", "/x")
    answer = connection.getresponse()
    answer.read()
    return answer.status
held = [http.client.HTTPConnection(address, 80, timeout=10) for _ in range(count)]
for one in held:
    assert ask(one) == 200
    one.auto_open = 0
how, newest, asked = Counter(), 0, 0
sockets = {one.sock: one for one in held}
told = False
def over(one, name):
    how[name] += 1
    del sockets[one]
while sockets:
    for one in [each for each in list(sockets)[:talkers] if sockets[each] in held[:talkers]]:
        began = time.monotonic_ns()
        try:
            if ask(sockets[one]) == 200:
                newest, asked = max(newest, began), asked + 1
        except (OSError, http.client.HTTPException) as error:
            over(one, "reset")
    if not told:
        told = True
        print(json.dumps({"up": count}), flush=True)
    ready = select.select([each for each in sockets if sockets[each] not in held[:talkers]], [], [], 0.01)[0]
    for one in ready:
        try:
            over(one, "reset" if one.recv(1) else "end")
        except OSError:
            over(one, "reset")
print(json.dumps({"how": how, "newest": newest, "asked": asked, "last": time.monotonic_ns()}), flush=True)
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


@pytest.mark.row(25)
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
        seen, revoked = node.flows_seen(), node.datapath.splice_counters().revoked

        began = time.monotonic_ns()
        change(node)
        acknowledged = time.monotonic_ns()
        assert client.line() == {"ended": connections}
        report = load.reports()

    node.flow_after(seen)
    node.run(node.datapath.swept(10))
    counted = node.datapath.splice_counters().revoked - revoked
    assert connections <= counted <= 2 * connections
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


def test_under_an_agent_whose_policy_file_is_edited() -> None:
    count = int(os.environ.get("SPLICEWAY_REVOKED_HTTP", "300"))
    with Testbed.up([pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]) as bed:
        file = bed.node.info.policies / "http.yaml"
        file.write_text(POLICY)
        agent = start_agent(bed.node)
        try:
            agent.wait_in_force()
            arguments = ["-c", HELD, str(bed.pod("server").address(4)), str(count), "8"]
            held = bed.spawn("client", ["python", *arguments], stdout=subprocess.PIPE, text=True)
            assert json.loads(held.stdout.readline()) == {"up": count}
            before = agent.client.get("status")["policy"]["revision"]
            file.write_text(WITHDRAWN)
            while agent.client.get("status")["policy"]["revision"] == before:
                pass
            acknowledged = time.monotonic_ns()
            out, _ = held.communicate(timeout=60)
        finally:
            agent.stop()
    report = json.loads(out)
    assert sum(report["how"].values()) == count, report
    assert report["asked"] > 0
    assert report["newest"] <= acknowledged
    print(f"agent: the last of {count} ended {(report['last'] - acknowledged) / 1e6:.0f} ms after «in force»")
