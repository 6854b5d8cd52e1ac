"""`spliceway proxy` ends under load: whoever was connected has an answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from support.proxynode import ProxyNode, ask, proxy_node, rules

pytestmark = pytest.mark.kernel

ROUNDS, CLIENTS, REQUESTS = 2, 16, 200


class Load:
    """Clients with a connection for each request, until there is nobody to connect to."""

    def __init__(self, node: ProxyNode) -> None:
        self.statuses: list[int] = []
        self._node = node
        self._threads = [threading.Thread(target=self._work) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            try:
                connection = self._node.connect()
            except ConnectionError:
                return
            with connection:
                try:
                    self.statuses.append(ask(connection).status)
                except OSError:
                    self.statuses.append(0)


async def end_under_load(node: ProxyNode) -> None:
    running = await node.start()
    await node.apply(rules(1))
    load = Load(node)
    await node.until(lambda: len(load.statuses) >= REQUESTS, lambda: running.log)
    running.process.terminate()
    assert await running.ended() == 0
    await asyncio.to_thread(load.join)
    assert set(load.statuses) == {200}


def test_nobody_who_is_connected_is_reset(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(200), proxy_node(tmp_path, workers=2, limits={"drain": 5}) as node:
            for _ in range(ROUNDS):
                await end_under_load(node)

    asyncio.run(main())
