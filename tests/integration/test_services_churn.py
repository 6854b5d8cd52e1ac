"""Endpoints come and go while pods dial their Service: nobody gets to one that has gone, and nobody gets nowhere.

`make services-churn` does it for a minute, with 50 changes and 2,000 connections a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from spliceway.agent.testbed.agentprocess import start_agent
from spliceway.agent.testbed.testbed import Testbed
from support.node import pod_manifest
from support.servicechurn import PORT, SERVER, Churn, services

SECONDS = float(os.environ.get("SPLICEWAY_SERVICES_CHURN_SECONDS", "5"))
CHANGES, CONNECTIONS = 50.0, 2000.0
ENDPOINTS, CLIENTS = 6, 2

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180 + 3 * SECONDS)]


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    clients = [pod_manifest(f"client{number}") for number in range(CLIENTS)]
    servers = [
        pod_manifest(f"server{number}", command=[sys.executable, "-c", SERVER, str(PORT), str(number)], ports=(PORT,))
        for number in range(ENDPOINTS)
    ]
    with Testbed.up([*clients, *servers]) as made:
        made.node.write_policy("services", services())
        yield made


def test_no_connection_goes_astray(testbed: Testbed) -> None:
    agent = start_agent(testbed.node, {"splice": {"mode": "off"}, "datapath": {"socketLb": "on"}})
    try:
        endpoints = [testbed.pod(f"server{number}") for number in range(ENDPOINTS)]
        clients = [testbed.pod(f"client{number}") for number in range(CLIENTS)]
        churn = Churn(testbed.node, agent, endpoints)
        result = churn.run(clients, SECONDS, changes=CHANGES, connections=CONNECTIONS)
    finally:
        agent.stop()
    print(result.told)
    assert result.wrong == ()
    # On a busy machine the rates are not reached; but what was seen must be worth something.
    assert result.connections > 20 * SECONDS, result.told
    assert min(result.acknowledged, result.removals) > SECONDS, result.told
