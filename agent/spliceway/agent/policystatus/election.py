"""One agent of all: a Lease (coordination.k8s.io), by the rules of client-go's leader election.

Nobody's clock counts but one's own: a lease has ended when it was seen to stay the same for as long as it says. Who has
it renews it every few seconds, and stops before it ends for others. Who does not have it looks at it the more rarely
the more agents there are; one that looks ended by the clock is looked at again when it would have ended by one's own,
unless its holder's clock was seen to be wrong: it was renewed in between, and looks ended all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from spliceway.agent.policystatus.pacing import Pacing
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection

Json = dict[str, Any]
#: Seconds to tell others at the end that they need not wait.
_RELEASE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Lease(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


_LEASE = msgspec.json.Decoder(_Lease)


class Election:
    """Stands for election until it is cancelled."""

    def __init__(
        self,
        connection: Connection,
        lease: tuple[str, str],
        identity: str,
        pacing: Pacing,
        nodes: Callable[[], int],
        *,
        on_back: Callable[[], None] = lambda: None,
    ) -> None:
        """`lease`: namespace and name; `identity`: no other's, ever; `nodes`: how many there are about.

        `on_back`: called when the API server answers again.
        """
        self._connection = connection
        self._namespace, self._name = lease
        self._identity = identity
        self._pacing = pacing
        self._nodes = nodes
        self._found: _Lease | None = None
        self._observed = 0.0
        self._until = 0.0
        self._on_back = on_back
        self._forbidden = 0  # how often in a row
        self._suspected = ("", "")  # holder and revision that looked ended
        self._wrong = ""  # holder whose clock is wrong
        self.holder = ""
        self.error = ""
        self.terms = 0

    def __repr__(self) -> str:
        return f"Election({self._identity}, leads={self.leads}, holder={self.holder!r}, error={self.error!r})"

    @property
    def leads(self) -> bool:
        """Whether it may write at this moment."""
        return asyncio.get_running_loop().time() < self._until

    @property
    def left(self) -> float:
        """Seconds for which it may, should nothing be heard any more."""
        return max(0.0, self._until - asyncio.get_running_loop().time())

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stand for election; `lead` runs while this one is elected, and is cancelled when it is not any more."""
        task: asyncio.Task[None] | None = None
        try:
            while True:
                pause = await self._turn()
                if self.leads and task is None:
                    self.terms += 1
                    log.info("this agent writes the status of policies from now on", lease=self._name)
                    task = asyncio.create_task(lead(), name="status writer")
                await self._rest(pause, task)
                if task is not None and (task.done() or not self.leads):
                    failed = task.done()
                    await self._end(task)
                    task = None
                    # Each term begins with all reports of the cluster. Nor is the lease given back: the next one may
                    # fail by the same object, and must not be the next at once.
                    await asyncio.sleep(self._pacing.again if failed else self._pacing.retry)
        finally:
            if task is not None:
                await self._end(task)
            with contextlib.suppress(ApiFailure, TimeoutError):
                async with asyncio.timeout(_RELEASE_SECONDS):
                    await self._release()

    async def _rest(self, pause: float, task: asyncio.Task[None] | None) -> None:
        """Wait; not longer than the writer works and may."""
        if task is None:
            await asyncio.sleep(pause)
        else:
            await asyncio.wait({task}, timeout=min(pause, max(self.left, 0.001)))

    async def _end(self, task: asyncio.Task[None]) -> None:
        was_ended = task.done()
        if not task.cancelling():
            task.cancel()
        await asyncio.wait({task})  # the task's own cancellation is not ours, which must be heard here, too
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug. Policy does not depend on it; another agent, or a later try, may get further.
            log.error("the status of policies could not be written", exc_info=error)
        log.info("this agent does not write the status of policies any more", lease=self._name, failed=was_ended)

    async def _turn(self) -> float:
        """Get or keep the lease; seconds until the next turn."""
        try:
            # One connection that is dead must not cost the term: there is time for another.
            most = min(max(self.left, 0.001), self._pacing.deadline / 2) if self.leads else self._pacing.deadline
            async with asyncio.timeout(most):
                pause = await self._try()
        except ApiFailure as failure:
            self._failed(str(failure))
            return max(self._retry(), failure.wait, self._without_rights(failure.code))
        except TimeoutError:
            self._failed("the API server was silent for too long")
            return self._retry() * (0.1 if self.leads else 1.0)
        except msgspec.MsgspecError as error:
            self._failed(str(error))
            return self._retry()
        self._forbidden = 0
        if self.error:
            log.info("the lease can be had again", lease=self._name)
            self._on_back()
        self.error = ""
        return pause

    def _without_rights(self, code: int) -> float:
        """Seconds to wait by the code: a server that has just begun may refuse everybody, others go on for longer."""
        if code not in (401, 403) or self.leads:
            return 0.0
        pause = self._retry() * 2.0 ** min(self._forbidden, 16)
        self._forbidden += 1
        return min(pause, self._pacing.again * random.uniform(0.8, 1.2))

    def _failed(self, text: str) -> None:
        self._found = None if not self.leads else self._found
        if not self.error:
            log.warning("who writes the status of policies can't be agreed upon", lease=self._name, error=text)
        self.error = text

    def _retry(self) -> float:
        every = self._pacing.retry if self.leads else self._pacing.look_every(self._nodes())
        return every * random.uniform(0.8, 1.2)

    async def _try(self) -> float:
        if not (self.leads and self._found is not None):
            await self._look()
        found = self._found
        now = asyncio.get_running_loop().time()
        if found is None:
            await self._write("POST", None)
            return self._retry()
        spec = found.spec
        lasts = float(spec.lease_duration_seconds or 0)
        if spec.holder_identity == self._identity or not spec.holder_identity or now - self._observed > lasts:
            await self._write("PUT", found)
            return self._retry()
        if _age(spec.renew_time) > lasts and spec.holder_identity != self._wrong:
            before, self._suspected = self._suspected, (spec.holder_identity, found.metadata.resource_version)
            if before[0] == spec.holder_identity and before != self._suspected:
                self._wrong = before[0]
                return self._retry()
            return min(self._retry(), max(0.0, lasts - (now - self._observed)) + random.uniform(0.01, 0.1) * lasts)
        return self._retry()

    async def _look(self) -> None:
        path = f"{self._path}/{self._name}"
        now = asyncio.get_running_loop().time()
        try:
            found = _LEASE.decode(await self._connection.get(path))
        except ApiFailure as failure:
            if failure.code != 404:
                raise
            self._found, self.holder = None, ""
            return
        if self._found is None or found.metadata.resource_version != self._found.metadata.resource_version:
            self._observed = now
        self._found, self.holder = found, found.spec.holder_identity or ""
        if self.holder != self._identity:
            self._until = 0.0  # also where it was gone in between, and has been made by another one

    async def _write(self, method: str, found: _Lease | None) -> None:
        """Take it, or keep it. Raises ApiFailure; that somebody else was quicker is none."""
        asked = asyncio.get_running_loop().time()
        mine = found is not None and found.spec.holder_identity == self._identity
        now = _micro(datetime.now(UTC))
        spec: Json = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._pacing.lease)),
            "acquireTime": (found.spec.acquire_time if found is not None and mine else None) or now,
            "renewTime": now,
            "leaseTransitions": 0 if found is None else (found.spec.lease_transitions or 0) + (not mine),
        }
        revision = {"resourceVersion": found.metadata.resource_version} if found is not None else {}
        path = self._path if found is None else f"{self._path}/{self._name}"
        try:
            answer = await self._connection.send(method, path, self._object(spec, revision))
        except ApiFailure as failure:
            if failure.code == 404 and found is not None:
                self._found = None  # it is gone: made anew at the next turn
                return
            if failure.code != 409:
                raise
            # Somebody was quicker; maybe we, in a request of which nothing was heard any more.
            await self._look()
            if self._found is None:
                self._until = 0.0
            return
        self._found, self._observed = _LEASE.decode(answer), asked
        self.holder = self._identity
        self._until = asked + self._pacing.deadline

    async def _release(self) -> None:
        if not self.leads or self._found is None:
            return
        self._until = 0.0
        now = _micro(datetime.now(UTC))
        transitions = self._found.spec.lease_transitions or 0
        spec: Json = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
        revision = {"resourceVersion": self._found.metadata.resource_version}
        content = self._object({**spec, "leaseTransitions": transitions}, revision)
        await self._connection.send("PUT", f"{self._path}/{self._name}", content)

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def _object(self, spec: Json, revision: Json) -> Json:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace, **revision},
            "spec": spec,
        }


def _micro(now: datetime) -> str:
    """MicroTime."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _age(renewed: str | None) -> float:
    """Seconds by the clock; without a time it is old."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(renewed or "")).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
