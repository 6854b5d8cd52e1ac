"""Writes this node's report into the API: when it is another one, not too often, and once in a while anyway."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping

import structlog

from spliceway.agent.policystatus.naming import path_of
from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.policystatus.report import Report, as_object, having_seen
from spliceway.agent.policystatus.resources import REPORTS
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection

#: How often it is looked whether there is something to report, should nobody say so; seconds.
_LOOK = 5.0
_MERGE = "application/merge-patch+json"

log = structlog.get_logger(__name__)


class Reporter:
    """Reports until it is cancelled. `wake` it when something may be different."""

    def __init__(
        self,
        connection: Connection,
        node: str,
        pacing: Pacing,
        *,
        current: Callable[[], Report | None],
        uid: Callable[[], str],
        nodes: Callable[[], int],
        heard: Callable[[], Mapping[str, int]],
    ) -> None:
        """`current`: what is to be told, None as long as that is nothing; `uid`: the Node's, empty: there is none.

        `heard`: `Ledger.heard`, told with the next report, and no reason for one.
        """
        self._connection = connection
        self._node = node
        self._pacing = pacing
        self._current = current
        self._uid = uid
        self._nodes = nodes
        self._heard = heard
        self._sent: tuple[Report, str] | None = None
        self._at = self._refresh = 0.0
        self._tries = 0
        self._woken = asyncio.Event()
        self._back = asyncio.Event()
        self._is_told_when = False
        self.writes = self.failures = 0
        self.when = 0.0
        self.error = ""

    def __repr__(self) -> str:
        return f"Reporter({self._node}, writes={self.writes}, error={self.error!r})"

    def wake(self) -> None:
        """Look now whether there is something to report."""
        self._woken.set()

    def again(self) -> None:
        """The API server answers others again: try now what has failed, unless it has said when."""
        if not self._is_told_when:
            self._tries = 0
            self._back.set()

    async def run(self) -> None:
        """Report, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            now = loop.time()
            if not self._is_due(now):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._woken.wait()
                continue
            # All nodes hear of a policy at once, and must not all tell of it at once.
            every = self._pacing.report_every(self._nodes())
            await asyncio.sleep(max(random.uniform(0.05, 1.0) * every, self._at + every - now))
            told, uid = self._current(), self._uid()
            if told is not None and uid:
                self._back.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(await self._report(told, uid)):
                        await self._back.wait()

    def _is_due(self, now: float) -> bool:
        told, uid = self._current(), self._uid()
        return told is not None and bool(uid) and ((told, uid) != self._sent or now >= self._refresh)

    async def _report(self, told: Report, uid: str) -> float:
        """Write it; seconds to wait before anything else is tried."""
        self._at = now = asyncio.get_running_loop().time()
        try:
            await self._write(told, uid)
        except ApiFailure as failure:
            return self._failed(failure)
        if self.error:
            log.info("the node's report can be written", node=self._node)
        self._sent, self.error, self._tries = (told, uid), "", 0
        self._refresh = now + self._pacing.refresh * random.uniform(0.8, 1.2)
        self.writes += 1
        self.when = time.time()
        return 0.0

    async def _write(self, told: Report, uid: str) -> None:
        content = as_object(having_seen(told, self._heard()), self._node, uid)
        try:
            await self._connection.send("PATCH", path_of(REPORTS, "", self._node), content, kind=_MERGE)
        except ApiFailure as failure:
            if failure.code != 404:
                raise
            await self._connection.send("POST", path_of(REPORTS, ""), content)

    def _failed(self, failure: ApiFailure) -> float:
        self.failures += 1
        self._is_told_when = bool(failure.wait)
        if failure.code == 404:
            text = "NodePolicyReports are not served: their definition is not installed (crds.install)"
        else:
            text = f"{REPORTS.plural}: {failure}"
        # Once for each way to fail, not for each try.
        if not self.error:
            log.warning("what is in force here can't be reported; it is in force all the same", error=text)
        self.error = text
        if failure.code in (401, 403, 404):
            pause = max(self._pacing.again, self._pacing.report_every(self._nodes()))
        else:
            first, most = self._pacing.pause
            pause = min(most, first * 2.0 ** min(self._tries, 16))
            self._tries += 1
        return max(failure.wait, pause * random.uniform(0.75, 1.25))
