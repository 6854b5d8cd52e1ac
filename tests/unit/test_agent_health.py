"""What probes ask: whether the agent turns, and whether a policy is in force; and which node it is for."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry

from spliceway.agent.admin import health_routes, metrics_app
from spliceway.agent.config import NODE_NAME, parse_config


def test_alive_from_the_start_and_ready_when_nothing_stands_in_the_way() -> None:
    why = ["no policy is in force yet"]
    app = metrics_app(CollectorRegistry(), *health_routes(lambda: why[0]))

    async def ask(path: str) -> tuple[int, str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://node") as client:
            answer = await client.get(path)
            return answer.status_code, answer.text

    assert asyncio.run(ask("/healthz")) == (200, "ok\n")
    assert asyncio.run(ask("/readyz")) == (503, "no policy is in force yet\n")
    assert asyncio.run(ask("/metrics"))[0] == 200
    why[0] = ""
    assert asyncio.run(ask("/readyz")) == (200, "ok\n")


def test_the_environment_names_the_node_where_the_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "source: {directory: /x}\n"
    monkeypatch.delenv(NODE_NAME, raising=False)
    assert parse_config(text, "agent.yaml").node_name == socket.gethostname().lower()
    monkeypatch.setenv(NODE_NAME, "node-7.example")
    assert parse_config(text, "agent.yaml").node_name == "node-7.example"
    assert parse_config(text + "node: {name: other}\n", "agent.yaml").node_name == "other"
