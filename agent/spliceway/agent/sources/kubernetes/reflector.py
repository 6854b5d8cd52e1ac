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

from spliceway.agent.sources.events import FileEvent
from spliceway.agent.sources.kubernetes.connection import ANSWER_SECONDS, BEGIN_SECONDS, HANGS, ApiFailure, Connection
from spliceway.agent.sources.kubernetes.discovery import Discovery
from spliceway.agent.sources.kubernetes.figures import Figures, State, Timing
from spliceway.agent.sources.kubernetes.known import Known
from spliceway.agent.sources.kubernetes.lines import Lines
from spliceway.agent.sources.kubernetes.objects import Listed, Reader, Status, WatchEvent, bookmarked, is_told
from spliceway.agent.sources.kubernetes.pauses import Pauses
from spliceway.agent.sources.kubernetes.resources import Resource
from spliceway.agent.sources.kubernetes.setback import SET_BACK, Past, is_older, set_back

#: Takes events; waits while there are too many already.
Sink = Callable[[Sequence[FileEvent]], Awaitable[None]]

#: So many objects of a first look are handed on together.
CHUNK = 500
#: Seconds after which a server that does not know WatchList is asked for it again: it may be a newer one by then.
_WATCH_LIST_AGAIN = 600.0
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
        self._known, self._past = Known(resource.kind), Past()
        self._revision = self._newest = ""
        self._version = resource.versions[0]
        self._reader = self._new_reader()
        self._no_watch_list_until = self._heard = 0.0
        self._away_since: float | None = None
        self._had_objects = self._unreachable = False  # objects of an earlier agent, in force
        self._pauses = Pauses(timing)
        self._task: asyncio.Task[None] | None = None
        self._refusals = self._empty = self._lists = self._watches = self._failures = 0
        self._hurried = 0  # requests that were given up for others, since one was answered
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
            # What takes long to begin must come to it once, however often others are answered.
            self._hurried += self._connection.hurry(self._task, HANGS * 2.0**self._hurried)

    async def _once(self) -> float:
        """Look if need be, and follow one watch to its end. Returns seconds to wait. Raises ApiFailure."""
        version = await self._discovery.version(self.resource)
        if version is None:
            return await self._not_served()
        self._away_since = None
        if version != self._version:
            self._version, self._revision = version, ""
            self._reader = self._new_reader()
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
        self._revision = ""
        await self._sink(self._known.clear())
        self._well("absent")
        return self._timing.again * random.uniform(0.8, 1.2)

    def _failed(self, failure: ApiFailure) -> float:
        """Take in a failure; seconds to wait."""
        looking = self._known.looking
        self._newest = self._revision or self._newest
        self._away_since = None  # nobody has said meanwhile that it is not served
        self._known.give_up()
        if failure.code == 0 or failure.code >= 500:
            self._past.doubt(silent=failure.reason == "Idle")
        if failure.is_expired:
            if failure.reason == SET_BACK:
                self._newest = ""
                log.warning("all is looked at again", resource=self.resource.plural, reason=failure.message)
            self._known.doubt(None if failure.reason == SET_BACK else self._past.doubted)
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
        self._had_objects, self._hurried = False, 0
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
                self._known.take(self._reader, raw)
            await self._hand_on()
            if not page.metadata.rest:
                break
            query = {"limit": str(self._timing.page), "continue": page.metadata.rest}
        await self._end(page.metadata.resource_version)

    async def _page(self, query: dict[str, str], namespace: str = "", seconds: float = ANSWER_SECONDS) -> Listed:
        path = self.resource.path(self._version, namespace)
        try:
            return _LIST.decode(await self._connection.get(path, query, seconds))
        except _BAD as error:
            raise ApiFailure(0, "", f"{self.resource.plural}: not what an API server answers: {error}") from error

    async def _watch(self) -> None:
        """One watch, to its end. Without a revision it begins with all there is. Raises ApiFailure."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(random.uniform(*self._timing.watch))),
            "resourceVersion": self._past.rewind(self._revision),
        }
        if not self._revision:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            self._begin()
        self._watches += 1
        lines = self._lines(query)
        async with contextlib.aclosing(lines):
            async for line in lines:
                try:
                    event = _EVENT.decode(line)
                    await self._on_event(event)
                except _BAD as error:
                    why = f"{self.resource.plural}: a line of the watch is no event: {error}"
                    raise ApiFailure(0, "", why) from error
        if self._known.looking:
            raise ApiFailure(0, "", f"{self.resource.plural}: the first look ended before its end")

    async def _on_event(self, event: WatchEvent) -> None:
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            raise ApiFailure(status.code, status.reason, status.message)
        if event.type == "BOOKMARK":
            revision, ends = bookmarked(event.object)
            if self._known.looking:
                if ends:
                    await self._end(revision)
            elif not self._past.repeats(revision):
                self._past.tell(revision)
                self._revision = revision
                self._well("listed")
            return
        if self._past.is_asked and self._past.repeats(*self._named(event.object)):
            return
        file, revision = self._known.take(self._reader, event.object, gone=event.type == "DELETED")
        if self._known.looking:
            if len(self._known.held) >= CHUNK:
                await self._hand_on()
            return
        await self._sink(self._known.hand_on())
        # Only now: what was not handed on is asked for again.
        self._revision = revision or self._revision
        self._past.tell(revision, file)
        self._well("listed")

    def _named(self, raw: msgspec.Raw) -> tuple[str, str]:
        """Revision and name of an object, as `Past` has them."""
        try:
            file, revision = self._reader.name(raw)
        except _BAD:
            return "", "?"
        return revision, file

    async def _ask(self) -> None:
        """Whether a server that is there again is as far as we are, and has the newest object that we know of.

        Who can't be asked is followed all the same. Raises ApiFailure: it was set back.
        """
        newest, namespace, query = self._known.newest, "", {"limit": "1"}
        if newest is not None:  # of many objects one by its name is found sooner
            namespace, name = self._reader.place(newest.file)
            query = {"fieldSelector": f"metadata.name={name}"}
        try:
            page = await self._page(query, namespace, BEGIN_SECONDS)
        except ApiFailure:
            return
        there = [self._named(raw) for raw in page.items or ()]
        self._past.asked()
        if is_older(page.metadata.resource_version, self._revision):
            raise set_back(page.metadata.resource_version)
        # Another version may be a newer one, of which the watch will tell.
        if newest is not None and not any(
            one == (newest.version, newest.file) or is_older(self._revision, one[0]) for one in there
        ):
            raise set_back(newest.version)

    async def _lines(self, query: dict[str, str]) -> AsyncGenerator[bytes | bytearray, None]:
        begin = BEGIN_SECONDS * random.uniform(0.4, 1.0)  # where all hang, the first to try again tells the others
        pieces = self._connection.stream(self.resource.path(self._version), query, self._patience, begin)
        found = Lines(self.resource.plural)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(contextlib.aclosing(pieces))
            async for piece in pieces:
                self._heard = time.time()
                if not piece and not self._known.looking:
                    # There may be nothing to say for a long time, but for those that end at once again and again.
                    self._empty += 1
                    if self._empty <= _MOST_EMPTY:
                        self._answered("listed")
                    lasting = asyncio.get_running_loop().call_later(self._timing.lost, self._lasts)
                    stack.callback(lasting.cancel)
                    if self._past.must_be_asked:
                        await self._ask()
                for line in found.of(piece):
                    yield line
        found.end()

    def _lasts(self) -> None:
        self._empty = 0
        self._answered("listed")

    def _patience(self) -> float:
        """Seconds without a byte that a watch may have: in its first look there is always something to say."""
        return self._timing.first_idle if self._known.looking else self._timing.idle

    def _begin(self) -> None:
        self._known.begin()
        self._lists += 1

    async def _hand_on(self) -> None:
        """Hand on what a look has found so far, where it need not be one change."""
        self._heard = time.time()
        if not self._whole() and self._known.held:
            await self._sink(self._known.hand_on())

    async def _end(self, revision: str) -> None:
        """All was seen: what was not is gone. Raises ApiFailure."""
        if not revision:  # every list and every bookmark has one: this is something else, and tells of nothing
            raise ApiFailure(0, "", f"{self.resource.plural}: not what an API server answers: no resourceVersion")
        if is_older(revision, self._newest):
            raise set_back(revision)
        await self._sink(self._known.end())
        self._revision = revision
        self._past.begin(revision)
        self._well("listed")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
