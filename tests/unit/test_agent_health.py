"""What probes ask: whether the agent turns, and whether a policy is in force; and which node it is for."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry

from spliceway.agent.admin import health_app, health_routes, metrics_app
from spliceway.agent.config import NODE_NAME, listen_address, parse_config
from spliceway.agent.webports import web_listeners


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


@pytest.mark.parametrize(
    ("listen", "health", "opened"),
    [
        ("", "", set()),
        ("127.0.0.1:{}", "127.0.0.1:{}", {"metrics"}),
        ("0.0.0.0:{}", "127.0.0.1:{}", {"metrics"}),
        ("[::]:{}", "127.0.0.1:{}", {"metrics", "health"}),
        ("[::1]:{}", "127.0.0.1:{}", {"metrics", "health"}),
        ("[::]:{}", "[::1]:{}", {"metrics"}),
        ("127.0.0.2:{}", "127.0.0.1:{}", {"metrics", "health"}),
        ("", "127.0.0.1:{}", {"health"}),
    ],
)
def test_probes_are_answered_where_they_come_wherever_metrics_are(listen: str, health: str, opened: set[str]) -> None:
    """The kubelet asks at the loopback device, and metrics may be at one address of the node."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fields = f"{{listen: '{listen.format(port)}', health: '{health.format(port)}'}}"
    config = parse_config(f"source: {{directory: /x}}\nmetrics: {fields}\n", "agent.yaml")

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            assert set(web_listeners(stack, config)) == opened
            if health:
                host, number = listen_address(health.format(port), "")
                socket.create_connection((host, number), timeout=5).close()

    asyncio.run(body())


def test_where_probes_come_nothing_else_is_told() -> None:
    app = health_app(*health_routes(lambda: ""))

    async def ask(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://node") as client:
            return (await client.get(path)).status_code

    assert [asyncio.run(ask(path)) for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 404]
