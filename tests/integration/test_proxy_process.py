"""`spliceway proxy` as a whole, with a real agent's xDS server, real workers and steered connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from support.proxynode import ProxyNode, proxy_node, rules

pytestmark = pytest.mark.kernel


def run(directory: Path, work: Callable[[ProxyNode], Awaitable[None]], **settings: Any) -> None:
    """Run `work` with a node."""

    async def main() -> None:
        async with asyncio.timeout(150), proxy_node(directory, **settings) as node:
            await work(node)

    asyncio.run(main())


def test_start_edit_and_remove(tmp_path: Path) -> None:
    async def work(node: ProxyNode) -> None:
        running = await node.start()
        assert await node.listening() == set()
        await node.apply(rules(1, "/one"))
        assert [await node.status("/one", version=version) for version in (4, 6)] == [200, 200]
        assert await node.status("/two") == 403
        await node.apply(rules(1, "/two"), rules(2))
        assert (await node.status("/one"), await node.status("/two"), await node.status("/x", 2)) == (403, 200, 200)
        await node.apply(gone=(1,))
        with pytest.raises(ConnectionRefusedError):
            await node.status("/two")
        assert await node.status("/x", 2) == 200
        running.process.terminate()
        assert await running.ended() == 0
        assert [line for line in running.logged if line["level"] not in ("info", "debug")] == []

    run(tmp_path, work, workers=2)
