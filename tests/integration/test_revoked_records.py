"""What an edit cuts is told: a record for each connection that was there, with its own ends, and one number for all."""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest
from typer.testing import CliRunner

from spliceway.agent.cli.root import app
from spliceway.agent.testbed.agentprocess import AgentProcess, start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest, server_manifest
from support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

COUNT = 6
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
#: As many connections that have ended, then some that stay, by both families: their ports; then how these ended.
HELD = """
import http.client, json, sys
def ask(address):
    one = http.client.HTTPConnection(address, 80, timeout=20)
    one.request("GET", "/x")
    answer = one.getresponse()
    answer.read()
    assert answer.status == 200
    return one
addresses, count = sys.argv[2:], int(sys.argv[1])
for number in range(count):
    ask(addresses[number % 2]).close()
held = [ask(addresses[number % 2]) for number in range(count)]
print(json.dumps([one.sock.getsockname()[1] for one in held]), flush=True)
def end(one):
    try:
        return one.sock.recv(1).decode()
    except ConnectionResetError:
        return "reset"
print(json.dumps([end(one) for one in held]), flush=True)
"""


def revoked(agent: AgentProcess) -> int:
    """As `sock summary` says it, which has to be the metric's value."""
    said = CliRunner().invoke(app, ["sock", "summary", "-o", "json", "--socket", str(agent.socket)])
    assert said.exit_code == 0, said.output
    total = int(next(row["total"] for row in json.loads(said.output) if row["state"] == "revoked"))
    assert f'spliceway_splice_connections_total{{reason="",result="revoked"}} {float(total)}' in metrics(agent)
    return total


def metrics(agent: AgentProcess) -> list[str]:
    from spliceway.agent.cli.client import _UnixConnection

    with contextlib.closing(_UnixConnection(agent.socket, 10.0)) as connection:
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        return connection.getresponse().read().decode().splitlines()


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_each_connection_that_an_edit_cuts_has_one_record(mode: str) -> None:
    with Testbed.up([pod_manifest("client", {"role": "client"}), server_manifest("server", {"role": "server"})]) as bed:
        file = bed.node.info.policies / "http.yaml"
        file.write_text(POLICY)
        agent = start_agent(bed.node, {"splice": {"mode": mode}})
        try:
            agent.wait_in_force()
            addresses = [str(bed.pod("server").address(version)) for version in (4, 6)]
            held = bed.spawn(
                "client", ["python", "-c", HELD, str(COUNT), *addresses], stdout=subprocess.PIPE, text=True
            )
            ports = sorted(json.loads(held.stdout.readline()))
            assert revoked(agent) == 0

            file.write_text(WITHDRAWN)
            assert json.loads(held.stdout.readline()) == ["reset"] * COUNT
            assert held.communicate(timeout=20) == ("", None)
            assert held.returncode == 0
            (cut,) = until(lambda: [line for line in agent.log.read_text().splitlines() if "ended connections" in line])
            denied = list(agent.client.lines("flows", last="1000", verdict="deny"))
            clients = [one for one in denied if one["leg"] == "downstream"]
            assert sorted(one["source"]["port"] for one in clients) == ports
            assert {(one["reason"], one["source"]["pod"]) for one in clients} == {("default-deny", "default/client")}
            assert revoked(agent) == len(denied)
            assert json.loads(cut)["clients"] == COUNT
            assert json.loads(cut)["clients"] + json.loads(cut)["servers"] == len(denied)

            revision = agent.client.get("status")["policy"]["revision"]
            file.write_text(POLICY)
            until(lambda: agent.client.get("status")["policy"]["revision"] > revision)
            agent.wait_in_force()
            assert list(agent.client.lines("flows", last="1000", verdict="deny")) == denied
            assert revoked(agent) == len(denied)
        finally:
            agent.stop()
