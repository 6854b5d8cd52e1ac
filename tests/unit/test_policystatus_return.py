"""Who writes after the API server was away: an election and reports that take up again when it answers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import msgspec

from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.policystatus.report import Report
from spliceway.agent.policystatus.reporter import Reporter
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from support.agent import run, until
from support.fleet import FAST, LEASE


class _Server:
    """In place of a connection to a server with one Lease. `failure`: what it answers; `hangs`: so many writes."""

    def __init__(self) -> None:
        self.failure: ApiFailure | None = None
        self.hangs = 0
        self.stored: dict[str, Any] | None = None
        self.revision = 0
        self.asked: list[str] = []

    async def get(self, path: str) -> bytes:
        self._ask("GET", path)
        if self.stored is None:
            raise ApiFailure(404, "NotFound", path)
        return msgspec.json.encode(self.stored)

    async def send(self, method: str, path: str, content: Any, *, kind: str = "", seconds: float = 0.0) -> bytes:
        self._ask(method, f"{path}{kind and ' merged'}")
        if self.hangs:
            self.hangs -= 1
            await asyncio.sleep(3600 + seconds)
        self.revision += 1
        self.stored = content | {"metadata": content["metadata"] | {"resourceVersion": str(self.revision)}}
        return msgspec.json.encode(self.stored)

    def _ask(self, method: str, path: str) -> None:
        self.asked.append(f"{method} {path}")
        if self.failure is not None:
            raise self.failure


def stands(server: _Server, pacing: Pacing, backs: list[str]) -> Election:
    connection = cast(Connection, server)
    return Election(connection, LEASE, "n1_x", pacing, lambda: 3, on_back=lambda: backs.append("back"))


def test_who_is_refused_for_a_moment_looks_soon_and_for_long_rarely() -> None:
    """A server that has just begun refuses everybody: it has not read who may what."""

    async def main() -> None:
        server, backs, pacing = _Server(), list[str](), Pacing()
        election = stands(server, pacing, backs)
        for code in (401, 403):
            server.failure = ApiFailure(code, "", "not you")
            pauses = [await election._turn() for _ in range(10)]
            assert pauses[0] < 2 * pacing.retry
            assert pauses[-1] >= 0.8 * pacing.again
            assert max(pauses) <= 1.2 * pacing.again
            assert not backs
            server.failure = None
            await election._turn()
            assert election.leads
            assert backs.pop() == "back"
            election._until = 0.0
        await election._turn()
        assert not backs, "nothing had failed"

    run(main)


def test_one_write_that_hangs_does_not_cost_the_term() -> None:
    """On a connection whose other end has gone, say: there is time for another one."""

    async def main() -> None:
        server, began, ended = _Server(), 0, 0

        async def lead() -> None:
            nonlocal began, ended
            began += 1
            try:
                await asyncio.sleep(3600)
            finally:
                ended += 1

        election = stands(server, msgspec.structs.replace(FAST, deadline=3.0, lease=4.0), [])
        task = asyncio.create_task(election.run(lead))
        await until(lambda: began == 1)
        server.hangs = 1
        await until(lambda: not server.hangs)
        renewed = server.revision
        await until(lambda: server.revision > renewed + 1)
        assert (began, ended) == (1, 0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(main)


def reports(server: _Server) -> Reporter:
    pacing = msgspec.structs.replace(FAST, pause=(3600.0, 3600.0), again=3600.0)
    return Reporter(
        cast(Connection, server), "n1", pacing, current=Report, uid=lambda: "u", nodes=lambda: 3, heard=lambda: {}
    )


def test_a_report_that_failed_is_tried_when_the_server_answers_others() -> None:
    async def main() -> None:
        server = _Server()
        reporter = reports(server)
        task = asyncio.create_task(reporter.run())
        for number, code in enumerate((0, 401, 403, 500, 503), 1):
            server.failure = ApiFailure(code, "", "away")
            reporter._sent = None
            reporter.wake()
            await until(lambda number=number: reporter.failures == number)  # type: ignore[misc]
            server.failure = None
            writes = reporter.writes
            reporter.again()
            await until(lambda writes=writes: reporter.writes == writes + 1)  # type: ignore[misc]
            assert not reporter.error
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main)


def test_a_report_waits_as_long_as_the_server_has_asked_for() -> None:
    async def main() -> None:
        server = _Server()
        reporter = reports(server)
        server.failure = ApiFailure(429, "TooManyRequests", "not now", 3600.0)
        task = asyncio.create_task(reporter.run())
        await until(lambda: reporter.failures)
        server.failure = None
        asked = len(server.asked)
        reporter.again()
        for _ in range(10):
            await asyncio.sleep(0.02)
        assert len(server.asked) == asked
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main)
