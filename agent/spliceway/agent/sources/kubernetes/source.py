"""The cluster as a source: all kinds that policy reads, followed side by side, as batches of events.

Nothing is said to be whole before every essential kind was seen once. With the server gone nothing changes: what is in
force stays, and `SourceLost` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from spliceway.agent.errors import SourceError
from spliceway.agent.sources.events import Batch, FileEvent, MoreToCome, SourceEvent, SourceLost
from spliceway.agent.sources.kubernetes.connection import Connection
from spliceway.agent.sources.kubernetes.discovery import Discovery
from spliceway.agent.sources.kubernetes.figures import Figures, Timing
from spliceway.agent.sources.kubernetes.kinds import Kinds
from spliceway.agent.sources.kubernetes.reflector import Reflector
from spliceway.agent.sources.kubernetes.resources import RESOURCES

#: Quiet time after an event before a batch is made, and the longest that a stream of events can put it off, in seconds.
SETTLE_SECONDS, SETTLE_LIMIT_SECONDS = 0.003, 0.030
#: So many events may wait; then watches wait, too.
MOST_EVENTS = 2000
#: How often it is looked whether the server was lost, and after how long all connections are made anew, in seconds.
LOOK_SECONDS, RENEW_SECONDS = 1.0, 60.0

log = structlog.get_logger(__name__)


class SourceStatus(msgspec.Struct, frozen=True, rename="camel"):
    """How the source does. `lost`: why it can't be read at the moment; `whole`: all that is essential was seen."""

    server: str
    whole: bool
    lost: str
    resources: tuple[Figures, ...]


class KubernetesSource:
    """Follows an API server. Use as a context manager, then iterate `batches`."""

    def __init__(
        self,
        node: str,
        *,
        kubeconfig: Path | None = None,
        context: str = "",
        kinds: Collection[str] | None = None,
        wired: bool = False,
        timing: Timing | None = None,
        state_dir: Path | None = None,
    ) -> None:
        """`node`: whose pods are read in full; `kubeconfig` None: the pod's service account; `kinds` None: all.

        `wired`: others say how this node's pods are wired, and annotations do not count. `state_dir`: where is written
        down which kinds have objects, for the next agent.
        """
        self._node = node
        self._kubeconfig = kubeconfig
        self._context = context
        self._kinds = kinds
        self._wired = wired
        self._timing = timing or Timing()
        self._state_dir = state_dir
        self._had: Kinds | None = None
        self._reflectors: tuple[Reflector, ...] = ()
        self._connection: Connection | None = None
        self._pending: dict[str, FileEvent] = {}
        self._room = asyncio.Event()
        self._changed = asyncio.Event()
        self._begun = False
        self._waiting_since: float | None = None  # for nothing but kinds that fail, and that others can do without
        self._lost = ""
        self._failing_since: float | None = None
        self._main: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"KubernetesSource({self._connection!r}, begun={self._begun}, lost={self._lost!r})"

    def __enter__(self) -> Self:
        """Read the configuration; nothing is asked yet. Raises SourceError."""
        self._connection = connection = Connection(self._kubeconfig, self._context)
        discovery = Discovery(connection)
        self._reflectors = tuple(
            Reflector(
                resource,
                connection,
                discovery,
                self._take_in,
                node=self._node,
                wired=self._wired,
                timing=self._timing,
                whole=lambda: self._begun,
                on_state=self._on_state,
            )
            for resource in RESOURCES
            if self._kinds is None or resource.kind in self._kinds
        )
        if self._state_dir is not None:
            self._had = Kinds(self._state_dir, {one.resource.kind for one in self._reflectors})
            had = self._had.load()
            for one in self._reflectors:
                if one.resource.kind in had:
                    one.expect()
        self._room.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main is not None:
            self._main.cancel()

    async def ended(self) -> None:
        """Wait until all connections are closed, after it was left."""
        if self._main is not None:
            await asyncio.wait((self._main,))

    async def batches(self) -> AsyncIterator[Batch]:
        """Every change; parts of the first look come with `MoreToCome`. Ends never."""
        self._main = asyncio.create_task(self._follow(), name="kubernetes")
        self._main.add_done_callback(lambda _task: self._changed.set())
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            if self._main.done():
                self._main.result()  # raises what ended it
                return
            await self._settle()
            begun = self._begun
            if (batch := self._take()) or self._begun is not begun:
                await self._note()
                yield batch

    async def _note(self) -> None:
        """Write down which kinds have objects, when they are others than before."""
        if self._had is None or not self._begun:
            return
        kinds = frozenset(
            one.resource.kind for one in self._reflectors if one.figures.objects and not one.resource.built_in
        )
        if self._had.differ(kinds):
            await asyncio.to_thread(self._had.save, kinds)

    def status(self) -> SourceStatus:
        """As it is now."""
        server = self._connection.server if self._connection else ""
        return SourceStatus(server, self._begun, self._lost, tuple(one.figures for one in self._reflectors))

    def warnings(self) -> tuple[str, ...]:
        """Kinds that others can do without, and that can't be read."""
        return tuple(
            f"source: {one.error}; what refers to {one.resource.plural} matches nothing"
            for one in self._reflectors
            if one.error and not one.resource.essential and one.state != "listed"
        )

    async def _follow(self) -> None:
        assert self._connection is not None, "use the source as a context manager"
        try:
            async with asyncio.TaskGroup() as group:
                for one in self._reflectors:
                    group.create_task(one.run(), name=f"kubernetes {one.resource.plural}")
                group.create_task(self._renew(), name="kubernetes connections")
        finally:
            await self._connection.close()

    async def _renew(self) -> None:
        """Make all connections anew when nothing has worked for long: certificates may have been replaced."""
        assert self._connection is not None
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if all(one.failing_since is not None for one in self._reflectors):
                try:
                    await self._connection.renew()
                except SourceError as error:
                    log.warning("the connection to the API server can't be made anew", error=str(error))

    def _on_state(self, reflector: Reflector) -> None:
        self._changed.set()
        if not reflector.error:
            for one in self._reflectors:
                one.wake()

    async def _take_in(self, events: Sequence[FileEvent]) -> None:
        """Put events where the next batch takes them, when there is room. The last word on an object counts."""
        await self._room.wait()
        for event in events:
            self._pending.pop(event.file, None)
            self._pending[event.file] = event
        if len(self._pending) >= MOST_EVENTS:
            self._room.clear()
        self._changed.set()

    async def _settle(self) -> None:
        """Wait until the server seems done: what one `kubectl apply` changes comes close together."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_LIMIT_SECONDS
        while self._changed.is_set() and loop.time() < deadline and len(self._pending) < MOST_EVENTS:
            self._changed.clear()
            await asyncio.sleep(SETTLE_SECONDS)

    def _take(self) -> Batch:
        self._changed.clear()
        found: list[SourceEvent] = []
        lost, self._lost = self._lost, self._why_lost()
        if lost != self._lost:
            found.append(SourceLost(self._lost))
            if self._lost:
                log.warning("the source is lost: what is in force stays", reason=self._lost)
            else:
                log.info("the source is there again")
        begins = not self._begun and self._is_whole()
        found += self._pending.values()
        self._pending = {}
        self._room.set()
        if begins:
            self._begun = True
            counted = {one.resource.plural: one.figures.objects for one in self._reflectors}
            log.info("the cluster was seen whole", **counted)
        elif not self._begun and found:
            found.append(MoreToCome())
        return tuple(found)

    def _is_whole(self) -> bool:
        """Whether all that is to be waited for was seen.

        A moment's failure must not make a cluster without Services: what the kernel has of them would go.
        """
        if all(one.is_resolved for one in self._reflectors):
            return True
        if not all(one.is_dispensable for one in self._reflectors):
            self._waiting_since = None
            return False
        now = asyncio.get_running_loop().time()
        if self._waiting_since is None:
            self._waiting_since = now
        return now - self._waiting_since > self._timing.without

    def _why_lost(self) -> str:
        """Why the source can't be read: an essential kind that fails for longer than a moment."""
        now = asyncio.get_running_loop().time()
        failing = [
            one
            for one in self._reflectors
            if one.resource.essential and one.failing_since is not None and now - one.failing_since > self._timing.lost
        ]
        if not failing:
            return ""
        if self._lost and any(f": {one.error}" in self._lost for one in failing):
            return self._lost  # its text does not change with each try
        more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
        return f"source.kubernetes: {failing[0].error}{more}"


def silence(figures: Figures) -> float:
    """Seconds since the server said anything of a kind; 0 for what is not followed."""
    return max(0.0, time.time() - figures.heard) if figures.heard and figures.state == "listed" else 0.0
