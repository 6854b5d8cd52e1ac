"""What is looked at again and again while an agent runs."""

from __future__ import annotations

import asyncio

from spliceway.bpf.repeated import Repeated
from support.agent import run, until


def test_it_goes_on_after_a_failure_and_ends_when_it_is_told() -> None:
    async def body() -> None:
        calls = []

        async def work() -> None:
            calls.append(len(calls))
            if len(calls) == 1:
                raise RuntimeError("a bug")

        repeated = Repeated("test", work, 0.001)
        await repeated.stop()  # it has not begun: nothing
        repeated.start()
        await until(lambda: len(calls) >= 3)
        await repeated.stop()
        count = len(calls)
        await asyncio.sleep(0.02)
        assert len(calls) == count

    run(body)


def test_what_has_begun_is_finished_before_it_ends() -> None:
    async def body() -> None:
        began, go, done = asyncio.Event(), asyncio.Event(), []

        async def work() -> None:
            began.set()
            await go.wait()
            done.append(True)

        repeated = Repeated("test", work, 0.001)
        repeated.start()
        await began.wait()
        stopping = asyncio.create_task(repeated.stop())
        await asyncio.sleep(0.01)
        assert not stopping.done()
        go.set()
        await stopping
        assert done == [True]

    run(body)
