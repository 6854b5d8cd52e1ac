"""What the sweeper says of tries that fail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from spliceway.bpf import sweep


def test_the_same_failure_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    class Failing:
        ended = sweep.Ended(0, 0)

        def __init__(self, *_: Any) -> None:
            pass

        def run(self) -> bool:
            tries.append(1)
            if len(tries) == 4:
                raise OSError("another")
            raise OSError("gone")

    async def work() -> list[Any]:
        sweeper = sweep.Sweeper(None, Path("judge"))  # type: ignore[arg-type]
        with capture_logs() as logs:
            sweeper.start()
            sweeper.ask()
            async with asyncio.timeout(10):
                while sweeper.totals.failed < 5:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await sweeper.stop()
        return logs

    monkeypatch.setattr(sweep, "Sweep", Failing)
    monkeypatch.setattr(sweep, "_RETRY_SECONDS", 0.0)
    logs = asyncio.run(work())
    assert [each["error"] for each in logs][:3] == ["OSError('gone')", "OSError('another')", "OSError('gone')"]
    assert len(logs) == 3
