"""One kind of object, followed: a first look, then a watch that is taken up again wherever it ended.

The first look is a watch that begins with all there is (WatchList: one object at a time in memory), or a list in pages
where the server has no such watch. Both are consistent: an older state than the one that was seen never comes back.
Where the server has forgotten what we have seen last (410) all is looked at again, and what is the same is passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
import structlog

from spliceway.agent.sources.events import FileEvent, FileRefused, FileRemoved
from spliceway.agent.sources.kubernetes.connection import BEGIN_SECONDS, ApiFailure, Connection
from spliceway.agent.sources.kubernetes.discovery import Discovery
from spliceway.agent.sources.kubernetes.figures import Figures, State, Timing
from spliceway.agent.sources.kubernetes.lines import Lines
from spliceway.agent.sources.kubernetes.objects import Listed, Read, Reader, Status, WatchEvent, bookmarked, is_told
from spliceway.agent.sources.kubernetes.pauses import Pauses
from spliceway.agent.sources.kubernetes.resources import Resource
from spliceway.agent.sources.kubernetes.setback import is_older

#: Takes events; waits while there are too many already.
Sink = Callable[[Sequence[FileEvent]], Awaitable[None]]

#: So many objects of a first look are handed on together.
CHUNK = 500
#: Seconds after which a server that does not know WatchList is asked for it again: it may be a newer one by then.
_WATCH_LIST_AGAIN = 600.0
#: In place of a hashed resourceVersion.
_NOT_HANDED_ON = 0
#: Refusals of a watch after which all is looked at again; seconds between two expiries that are each other's business;
#: watches that end without a word, in a row, after which one that has just begun is no sign that all is well.
_PATIENCE, _EXPIRED_PEACE, _MOST_EMPTY = 3, 60.0, 2

_EVENT, _LIST = msgspec.json.Decoder(WatchEvent), msgspec.json.Decoder(Listed)
_STATUS = msgspec.json.Decoder(Status)
_BAD = (msgspec.MsgspecError, RecursionError)

log = structlog.get_logger(__name__)


class Reflector:
    """Follows one kind until it is cancelled."""

    def __init__(
        self,
        resource: Resource,
        connection: Connection,
        discovery: Discovery,
        sink: Sink,
        *,
        node: str,
        wired: bool,
        timing: Timing,
        whole: Callable[[], bool],
        on_state: Callable[[Reflector], None],
    ) -> None:
        """`node`, `wired`: see `Reader`; `whole`: whether a look must be handed on in one piece.

        `on_state`: called when its state is another one.
        """
        self.resource, self.error = resource, ""
        self.state: State = "waiting"
        self.failing_since: float | None = None
        self._connection, self._discovery, self._sink = connection, discovery, sink
        self._node, self._wired, self._timing = node, wired, timing
        self._whole, self._on_state = whole, on_state
        self._known: dict[str, int] = {}  # name → its resourceVersion, hashed
        self._seen: set[str] | None = None  # while all is looked at
        self._held: list[FileEvent] = []
        self._revision = self._newest = ""
        self._version = resource.versions[0]
        self._reader = self._new_reader()
        self._no_watch_list_until = self._heard = 0.0
        self._away_since: float | None = None
        self._had_objects = self._unreachable = False  # objects of an earlier agent, in force
        self._was_silent = self._asks_revision = False
        self._pauses = Pauses(timing)
        self._task: asyncio.Task[None] | None = None
        self._refusals = self._empty = self._lists = self._watches = self._failures = 0
        self._expired, self._expired_at = 0, float("-inf")  # how often in a row, and when the last time

    def __repr__(self) -> str:
        return f"Reflector({self.resource.kind}, {self.state}, objects={len(self._known)}, error={self.error!r})"

    def expect(self) -> None:
        """There were objects when an agent ran here last: that they are gone is believed as late as if it ran on."""
        self._had_objects = True

    @property
    def figures(self) -> Figures:
        """As it is now."""
        of, counts = self.resource, (len(self._known), self._lists, self._watches, self._failures)
        return Figures(of.kind, self.state, *counts, self._heard, self.error, of.essential)

    def lacks(self, file: str, revision: str) -> bool:
        """Whether what had this resourceVersion has gone: what was seen is as new, and has nothing of that name."""
        return file not in self._known and is_told(revision, self._revision)

    @property
    def is_resolved(self) -> bool:
        """Whether nobody needs to wait for it: it was seen, is not served, or may not be read and others can do so."""
        return self.state in ("listed", "absent") or (not self.resource.essential and self.state == "refused")

    @property
    def is_dispensable(self) -> bool:
        """Whether others can do without it for now, should it fail for longer."""
        return self.is_resolved or (not self.resource.essential and bool(self.error))

    async def run(self) -> None:
        """Look and follow, until cancelled."""
        self._task = asyncio.current_task()
        while True:
            asked = 0.0
            try:
                pause = await self._once()
            except ApiFailure as failure:
                # All that were told the same must not come together.
                pause, asked = self._failed(failure), failure.wait * random.uniform(1.0, 1.25)
            await self._pauses.wait(max(pause, asked), asked)

    def wake(self) -> None:
        """The server answers again, somebody else says: if it did not, try soon."""
        if self.failing_since is not None:
            self._pauses.wake()
            self._connection.hurry(self._task)

    async def _once(self) -> float:
        """Look if need be, and follow one watch to its end. Returns seconds to wait. Raises ApiFailure."""
        version = await self._discovery.version(self.resource)
        if version is None:
            return await self._not_served()
        self._away_since = None
        if version != self._version:
            self._version, self._revision = version, ""
            self._reader = self._new_reader()
        if self._was_silent and self._revision:
            self._was_silent, self._asks_revision = False, True  # who can't be asked may have a watch all the same
            revision = (await self._page({"limit": "1"})).metadata.resource_version
            if is_older(revision, self._revision):
                self._newest, self._revision = self._revision, ""
        begun, watches = self._now(), self._watches
        if not self._revision and self._now() < self._no_watch_list_until:
            await self._list()
        await self._watch()
        if self._watches == watches or self._now() - begun >= 1.0:
            return 0.0
        # A server that ends every watch at once must not be asked without end.
        if self._empty > _MOST_EMPTY:
            raise ApiFailure(0, "", f"{self.resource.plural}: watches end as soon as they begin")
        return self._pauses.next()

    def _new_reader(self) -> Reader:
        api_version = self.resource.api_version(self._version)
        return Reader(self.resource.kind, api_version, self._node, wired=self._wired)

    async def _not_served(self) -> float:
        now = self._now()
        self._away_since = self._away_since or now
        if self.state == "absent":
            self._well("absent")
            return self._timing.again * random.uniform(0.8, 1.2)
        # Objects go only when it is certain: a server that has just begun, or lost its CRDs for a moment, is not.
        if not await self._discovery.settled():
            raise ApiFailure(503, "", f"{self.resource.plural} are not served yet: the API server is not ready")
        if (self._known or self._had_objects) and now - self._away_since < self._timing.gone:
            return min(1.0, self._timing.gone)
        # What was asked before the server was ready says nothing.
        if await self._discovery.version(self.resource, fresh=True) is not None:
            return 0.0
        if self._known or self._had_objects:
            log.warning("a kind is not served any more: its objects are gone", kind=self.resource.kind)
        removed = [FileRemoved(file) for file in self._known]
        self._known, self._revision = {}, ""
        await self._sink(removed)
        self._well("absent")
        return self._timing.again * random.uniform(0.8, 1.2)

    def _failed(self, failure: ApiFailure) -> float:
        """Take in a failure; seconds to wait."""
        looking, self._seen = self._seen is not None, None
        self._newest = self._revision or self._newest
        self._was_silent |= failure.reason == "Idle" and not (looking or self._asks_revision)
        self._away_since = None  # nobody has said meanwhile that it is not served
        # What was not handed on is not known yet; it may have been, in an older version.
        self._known.update((event.file, _NOT_HANDED_ON) for event in self._held)
        self._held = []
        if failure.is_expired:
            self._revision = ""
            self._refusals = 0
            # Again and again, each time after a good look: as much as all objects, and without end.
            soon = self._now() - self._expired_at < _EXPIRED_PEACE
            self._expired, self._expired_at = self._expired + 1 if soon else 0, self._now()
            if not self._expired or not self._pauses.tries:
                # Once is no failure, whatever was one before; where it does not end, that must be told.
                self._pauses.tries, self._unreachable = 1, False
                return self._timing.pause(self._expired) if self._expired else 0.0
        by_watch = looking and self._now() >= self._no_watch_list_until
        if by_watch and (failure.code in (400, 422) or failure.reason == "Idle"):
            # It says so, or it has taken no notice of what it does not know and waits for changes.
            self._no_watch_list_until = self._now() + _WATCH_LIST_AGAIN
            return 0.0
        if failure.code not in (0, 401, 403, 404, 429, 503):
            self._refusals += 1
            if self._refusals >= _PATIENCE:
                self._revision, self._refusals = "", 0
        self._failures += 1
        if self._unreachable and failure.code:  # it answers again
            self._pauses.ease()
        self._unreachable = failure.code == 0
        text = f"{self.resource.plural}: {failure}"
        if failure.code in (401, 403) and text != self.error:
            log.warning("the API server can't be read", resource=self.resource.plural, error=str(failure))
        self.error = text
        if self.failing_since is None:
            self.failing_since = self._now()
        if failure.code == 403 and self.state == "waiting":
            self.state = "refused"
        self._on_state(self)
        return self._pauses.next()

    def _well(self, state: State) -> None:
        """The server has said what it should."""
        self._pauses.well()
        self._refusals = self._empty = 0
        self._answered(state)

    def _answered(self, state: State) -> None:
        """The server answers; what, is still to come."""
        if self.failing_since is not None and self._now() - self.failing_since > self._timing.lost:
            log.info("the API server can be read again", resource=self.resource.plural)
        changed = self.state != state or bool(self.error)
        self._had_objects = False
        self.state, self.error, self.failing_since = state, "", None
        self._heard = time.time()
        if changed:
            self._on_state(self)

    async def _list(self) -> None:
        """Look at all, in pages of one revision. Raises ApiFailure."""
        self._begin()
        query = {"limit": str(self._timing.page)}
        while True:
            page = await self._page(query)
            for raw in page.items or ():
                self._take(raw)
            await self._hand_on()
            if not page.metadata.rest:
                break
            query = {"limit": str(self._timing.page), "continue": page.metadata.rest}
        await self._end(page.metadata.resource_version)

    async def _page(self, query: dict[str, str]) -> Listed:
        try:
            return _LIST.decode(await self._connection.get(self.resource.path(self._version), query))
        except _BAD as error:
            raise ApiFailure(0, "", f"{self.resource.plural}: not what an API server answers: {error}") from error

    async def _watch(self) -> None:
        """One watch, to its end. Without a revision it begins with all there is. Raises ApiFailure."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(random.uniform(*self._timing.watch))),
            "resourceVersion": self._revision,
        }
        if not self._revision:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            self._begin()
        self._watches, self._asks_revision = self._watches + 1, False
        lines = self._lines(query)
        async with contextlib.aclosing(lines):
            async for line in lines:
                try:
                    event = _EVENT.decode(line)
                    await self._on_event(event)
                except _BAD as error:
                    why = f"{self.resource.plural}: a line of the watch is no event: {error}"
                    raise ApiFailure(0, "", why) from error
        if self._seen is not None:
            raise ApiFailure(0, "", f"{self.resource.plural}: the first look ended before its end")

    async def _on_event(self, event: WatchEvent) -> None:
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            raise ApiFailure(status.code, status.reason, status.message)
        if event.type == "BOOKMARK":
            revision, ends = bookmarked(event.object)
            if ends and self._seen is not None:
                await self._end(revision)
            elif self._seen is None:
                self._revision = revision
                self._well("listed")
            return
        revision = self._take(event.object, gone=event.type == "DELETED")
        if self._seen is not None:
            if len(self._held) >= CHUNK:
                await self._hand_on()
            return
        held, self._held = self._held, []
        await self._sink(held)
        # Only now: what was not handed on is asked for again.
        self._revision = revision or self._revision
        self._well("listed")

    async def _lines(self, query: dict[str, str]) -> AsyncGenerator[bytes | bytearray, None]:
        begin = BEGIN_SECONDS * random.uniform(0.4, 1.0)  # where all hang, the first to try again tells the others
        pieces = self._connection.stream(self.resource.path(self._version), query, self._patience, begin)
        found = Lines(self.resource.plural)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(contextlib.aclosing(pieces))
            async for piece in pieces:
                self._heard = time.time()
                if not piece and self._seen is None:
                    # There may be nothing to say for a long time, but for those that end at once again and again.
                    self._empty += 1
                    if self._empty <= _MOST_EMPTY:
                        self._answered("listed")
                    lasting = asyncio.get_running_loop().call_later(self._timing.lost, self._lasts)
                    stack.callback(lasting.cancel)
                for line in found.of(piece):
                    yield line
        found.end()

    def _lasts(self) -> None:
        self._empty = 0
        self._answered("listed")

    def _patience(self) -> float:
        """Seconds without a byte that a watch may have: in its first look there is always something to say."""
        return self._timing.idle if self._seen is None else self._timing.first_idle

    def _take(self, raw: msgspec.Raw, *, gone: bool = False) -> str:
        """Take in one object; the revision. What is as it was known is passed over."""
        try:
            if gone:
                file, version = self._reader.name(raw)
                read: Read | None = None
            else:
                read = self._reader.read(raw)
                file, version = read.file, read.version
            event: FileEvent | None = read.event if read else None
        except _BAD as error:
            # The last good version stays. Without a name nobody can say whose.
            try:
                file, version = self._reader.name(raw)
            except _BAD:
                log.warning("an object can't be read", kind=self.resource.kind, error=str(error))
                return ""
            event, gone = FileRefused(file, f"{self.resource.kind} can't be read: {error}"), False
        if gone:
            if self._known.pop(file, None) is not None:
                self._held.append(FileRemoved(file))
            return version
        if self._seen is not None:
            self._seen.add(file)
        mark = hash(version) or 1
        if self._known.get(file) != mark and event is not None:
            self._known[file] = mark
            self._held.append(event)
        return version

    def _begin(self) -> None:
        self._seen, self._held = set(), []
        self._lists += 1

    async def _hand_on(self) -> None:
        """Hand on what a look has found so far, where it need not be one change."""
        self._heard = time.time()
        if not self._whole() and self._held:
            held, self._held = self._held, []
            await self._sink(held)

    async def _end(self, revision: str) -> None:
        """All was seen: what was not is gone. Raises ApiFailure."""
        assert self._seen is not None
        if not revision:  # every list and every bookmark has one: this is something else, and tells of nothing
            raise ApiFailure(0, "", f"{self.resource.plural}: not what an API server answers: no resourceVersion")
        if is_older(revision, self._newest):
            self._newest, self._known = "", dict.fromkeys(self._known, _NOT_HANDED_ON)
            raise ApiFailure(410, "Expired", f"{self.resource.plural}: the API server was set back to {revision}")
        seen, self._seen = self._seen, None
        removed = [file for file in self._known if file not in seen]
        for file in removed:
            del self._known[file]
        held, self._held = self._held, []
        await self._sink([*map(FileRemoved, removed), *held])
        self._revision = revision
        self._well("listed")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
