"""What the load says of itself: no silence is left out."""

from __future__ import annotations

import asyncio
import time

from support.load import Options, _Client


def test_a_silence_counts_also_if_nothing_was_right_after_it() -> None:
    async def main() -> float:
        client = _Client(Options(("127.0.0.1",), "api", 1), 1)
        client._note("ok", "")
        client._last = time.monotonic() - 60
        client._note("refused", "")
        stop = asyncio.Event()
        stop.set()
        await client.run(stop)
        return client.gap

    assert 60 <= asyncio.run(main()) < 90
