"""The one agent that writes: from the reports of all nodes to a status for each policy, and to Events.

Every write names the revision that it replaces: an agent that still believes to be elected can put nothing in place of
what its successor has written. What is written is worked out when it is written, so that what waits is never old.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime

import msgspec
import structlog

from spliceway.agent.manifests import Key
from spliceway.agent.policystatus import statuses
from spliceway.agent.policystatus.asked import is_newest
from spliceway.agent.policystatus.conditions import Condition, Status, status_of
from spliceway.agent.policystatus.election import Election
from spliceway.agent.policystatus.events import Told, event, news, translation_news
from spliceway.agent.policystatus.fenced import FencedWrites, is_general
from spliceway.agent.policystatus.ledger import Ledger, Written
from spliceway.agent.policystatus.naming import path_of, status_name
from spliceway.agent.policystatus.pacing import Bucket, Pacing
from spliceway.agent.policystatus.report import Report, of_object
from spliceway.agent.policystatus.resources import CLUSTERWIDE, NAMESPACED, REPORTS
from spliceway.agent.policystatus.statuses import Held
from spliceway.agent.policystatus.tally import Tally
from spliceway.agent.sources.events import FileEvent, ObjectChanged
from spliceway.agent.sources.kubernetes.beside import reflectors
from spliceway.agent.sources.kubernetes.connection import ApiFailure, Connection
from spliceway.agent.sources.kubernetes.figures import Timing
from spliceway.agent.sources.kubernetes.setback import is_older

#: What is said of a policy's translation: by what was said before.
Translated = Callable[[Key, Condition | None], Condition | None]
#: So many policies are worked out before others of the agent's tasks have their turn.
_TURN = 50

log = structlog.get_logger(__name__)


class Figures:
    """What was written, by kind, since the agent started."""

    def __init__(self) -> None:
        self.statuses = self.events = self.dropped = self.conflicts = self.failures = 0
        self.policies = self.nodes = 0
        self.error = ""


class Writer:
    """Writes for one term of office: `run`, until cancelled."""

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        election: Election,
        node: str,
        *,
        kinds: Collection[str],
        own: Callable[[], Report | None],
        whole: Callable[[], bool],
        pacing: Pacing,
        timing: Timing,
        rates: tuple[Bucket, Bucket],
        figures: Figures,
        translated: Translated = lambda _key, _before: None,
    ) -> None:
        """`kinds`: of policies that the ledger has; `own`: this node's report; `whole`: whether it has all of them.

        `rates`: of writes, of Events; `translated`: what is to be said of a policy's translation, given what was said
        before; call `again` when it is another one.
        """
        self._connection = connection
        self._bucket = rates[0]
        self._writes = FencedWrites(connection, election, rates[0])
        self._ledger = ledger
        self._node = node
        self._kinds = {kind.lower() for kind in kinds}
        self._own = own
        self._whole = whole
        self._pacing = pacing
        self._events = rates[1]
        self._figures = figures
        self._translated = translated
        self._tally = Tally()
        self._reports: dict[str, tuple[str, Report]] = {}
        self._held: dict[tuple[str, str, str], Held] = {}
        self._ours: dict[tuple[str, str, str], tuple[str, Status]] = {}  # what was written, of the object with that uid
        self._gone: set[tuple[str, str, str]] = set()  # while one was written
        self._ahead: dict[tuple[str, str, str], str] = {}  # revisions of what was made, and the watch has not told yet
        self._stale: dict[tuple[str, str, str], float] = {}
        self._written: dict[Key, Written] = {}  # as it was when a policy's status was last looked at
        self._dirty: set[str] | None = None  # uids; None: all
        self._moved: set[tuple[str, str, str]] = set()
        self._nodes: dict[str, str] = {}
        self._paused: dict[Key, tuple[float, int]] = {}
        self._is_counted = False
        self._woken = asyncio.Event()
        self._reflectors = reflectors(
            (REPORTS, NAMESPACED, CLUSTERWIDE), connection, self._take, node=node, timing=timing, woken=self._woken
        )

    def __repr__(self) -> str:
        return f"Writer({self._tally!r}, statuses={len(self._held)})"

    @property
    def in_audit(self) -> bool | None:
        """Whether every node says that nothing is denied there; None: not all were heard yet."""
        return self._tally.in_audit if self._is_counted else None

    def wake(self) -> None:
        """Something may be different."""
        self._woken.set()

    def again(self, keys: Iterable[Key] | None) -> None:
        """Of these policies (None: of all) something is different that no node reports."""
        for key in list(self._written) if keys is None else keys:
            self._written.pop(key, None)
        self._woken.set()

    async def run(self) -> None:
        """Write, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in self._reflectors:
                group.create_task(one.run(), name=f"kubernetes {one.resource.plural}")
            group.create_task(self._write(), name="statuses")

    async def _write(self) -> None:
        tries = 0
        while True:
            await self._wait()
            self._figures.error = self._why_not()
            if not all(one.state == "listed" for one in self._reflectors) or not self._whole():
                continue
            try:
                await self._round()
            except ApiFailure as failure:
                self._figures.failures += 1
                self._figures.error = str(failure)
                first, most = self._pacing.pause
                pause = min(most, first * 2.0 ** min(tries, 16)) * random.uniform(0.5, 1.0)
                tries += 1
                await asyncio.sleep(max(pause, failure.wait))
            else:
                tries = 0

    async def _wait(self) -> None:
        """Until something is different, or is to be tried again; others may change meanwhile, and are one round."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, self._pacing.gather)):
                await self._woken.wait()
        await asyncio.sleep(self._pacing.gather)
        self._woken.clear()

    def _why_not(self) -> str:
        for one in self._reflectors:
            if one.state == "absent":
                return f"{one.resource.plural} are not served: their definition is not installed (crds.install)"
            if one.state != "listed" and one.error:
                return one.error
        return ""

    async def _take(self, events: Sequence[FileEvent]) -> None:
        for one in events:
            kind, _, name = one.file.removeprefix("kubernetes:").partition("/")
            try:
                self._took(kind, name, one.content if isinstance(one, ObjectChanged) else None)
            except (msgspec.ValidationError, ValueError, KeyError) as error:
                log.warning("an object of ours can't be read", object=one.file, error=str(error))
        self._woken.set()

    def _took(self, kind: str, name: str, content: object) -> None:
        """`content` None: it went, or can't be read."""
        document = content if isinstance(content, dict) else None
        if kind == REPORTS.kind:
            if document is None:
                self._reports.pop(name, None)
            else:
                self._reports[name] = of_object(document)
            self._count(name)
            return
        namespace, _, short = name.rpartition("/")
        at = (kind, namespace, short)
        self._ahead.pop(at, None)
        if document is None:
            self._held.pop(at, None)
            self._ours.pop(at, None)
            self._gone.add(at)
        else:
            *_place, held = statuses.read(document)
            before = self._held.get(at)
            if before is not None and before.uid == held.uid and is_older(held.revision, before.revision):
                return  # our own write, answered already, is newer
            self._held[at] = held
        self._moved.add(at)

    def _settle(self) -> None:
        """Take out what was deleted before the watch could tell of it: who looks at all anew finds nothing to miss."""
        for (kind, namespace, short), revision in [*self._ahead.items()]:
            reflector = next(one for one in self._reflectors if one.resource.kind == kind)
            name = f"{namespace}/{short}" if namespace else short
            if reflector.lacks(f"kubernetes:{kind}/{name}", revision):
                self._took(kind, name, None)

    def _count(self, node: str) -> None:
        """Take in what a node says, if it is one."""
        uid, told = self._reports.get(node, ("", None))
        if node == self._node and (own := self._own()) is not None:
            uid, told = self._ledger.nodes.get(node, ""), own
        if told is not None and (not uid or self._ledger.nodes.get(node) != uid):
            told = None
        touched = self._tally.put(node, told)
        if touched is None:
            self._dirty = None
        elif self._dirty is not None:
            self._dirty |= touched

    async def _round(self) -> None:
        """Bring everything that may be different to where it should be. Raises ApiFailure; the rest is for later."""
        self._settle()
        self._writes.begin()
        nodes = dict(self._ledger.nodes)
        if nodes != self._nodes:
            for node in self._reports.keys() | {self._node}:
                if nodes.get(node) != self._nodes.get(node):
                    self._count(node)
            self._nodes = nodes
        self._count(self._node)
        self._is_counted = True
        policies = dict(self._ledger.written)
        dirty, self._dirty = self._dirty, set()
        moved, self._moved = self._moved, set()
        self._figures.policies, self._figures.nodes = len(policies), len(tuple(self._tally.nodes))
        now = asyncio.get_running_loop().time()
        todo: list[Key] = []
        for key, policy in policies.items():
            paused = self._paused.get(key)
            if paused is not None and now < paused[0]:
                continue
            resource, namespace, name = status_name(key)
            if (
                dirty is None
                or policy.version.uid in dirty
                or paused is not None
                or self._written.get(key) is not policy
                or (resource.kind, namespace, name) in moved
            ):
                todo.append(key)
        for key in self._written.keys() - policies.keys():
            del self._written[key]
            self._paused.pop(key, None)
        await self._bring_all(sorted(todo, key=self._turn_of))
        await self._sweep(policies, now)

    def _turn_of(self, key: Key) -> tuple[bool, bool]:
        """What has failed before comes last, and what is refused first."""
        policy = self._ledger.written.get(key)
        return self._paused.get(key, (0.0, 0))[1] > 0, policy is None or not self._tally.has_trouble(policy)

    async def _bring_all(self, todo: Sequence[Key]) -> None:
        for number, key in enumerate(todo):
            try:
                await self._bring(key)
            except ApiFailure as failure:
                self._failed(key, failure, todo[number:])
            else:
                self._paused.pop(key, None)
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)

    def _failed(self, key: Key, failure: ApiFailure, left: Iterable[Key]) -> None:
        """One object's failure is its own. Raises it when it is the server's."""
        now = asyncio.get_running_loop().time()
        tries = self._paused.get(key, (0.0, 0))[1]
        first, most = self._pacing.pause
        if failure.code == 409:
            # Somebody else has written it: what there is now comes by the watch.
            self._figures.conflicts += 1
            self._paused[key] = (now + self._pacing.gather, tries)
            return
        if is_general(failure):
            for one in left:
                self._paused[one] = (0.0, self._paused.get(one, (0.0, 0))[1])
            raise failure
        # A namespace that is being deleted takes no new objects, and its policies go in a moment.
        going = failure.code == 404 or "being terminated" in failure.message
        self._figures.failures += not going
        if not tries and not going:
            log.warning("the status of a policy can't be written", policy=" ".join(key), error=str(failure))
        self._paused[key] = (now + max(failure.wait, min(most, first * 2.0 ** min(tries, 16))), tries + 1)

    async def _bring(self, key: Key) -> None:
        """The status object of one policy. Raises ApiFailure."""
        policy = self._ledger.written.get(key)
        if policy is None:
            return
        resource, namespace, name = status_name(key)
        at = (resource.kind, namespace, name)
        self._gone.clear()
        held, made = self._held.get(at), statuses.new_object(key, policy)
        if held is not None and held.owner != policy.version.uid:
            await self._delete(at, held)  # of a policy of that name that is no more
            held = None
        if held is None:
            answer = await self._writes.send("POST", path_of(resource, namespace), made)
            held = self._keep(at, answer)
        # What this one wrote last is what counts, but for times, whatever others have made of it since then.
        uid, ours = self._ours.get(at, ("", None))
        before = ours if uid == held.uid else held.status
        status = self._status(key, policy, before, held.status)
        if held.status is not None and held.status.observed_generation > status.observed_generation:
            await self._bucket.wait()
            if not await is_newest(self._connection, key, policy):
                return  # who has written this knows more: it comes to us, too
        if status != held.status:
            for told in (news(before, status), translation_news(before, status)):
                if told is not None:
                    await self._tell(told, key, policy)
            content = statuses.with_status(made, held, status)
            answer = await self._writes.send("PUT", f"{path_of(resource, namespace, name)}/status", content)
            held = self._keep(at, answer)
            self._figures.statuses += 1
        self._ours[at] = (held.uid, held.status or status)
        self._written[key] = policy

    def _status(self, key: Key, policy: Written, before: Status | None, there: Status | None) -> Status:
        if before is not None and before.revision == policy.version.digest and before.resource_version.isdecimal():
            # What others have written into it since then has made no new version of it.
            since = min(policy.since, int(before.resource_version))
            policy = msgspec.structs.replace(policy, since=since)
        known = before.condition("Translated") if before is not None else None
        translated = self._translated(key, known)
        return status_of(policy, self._tally.count(key[0], policy), there, datetime.now(UTC), translated)

    async def _tell(self, told: Told, key: Key, policy: Written) -> None:
        """An Event, if there is room for it. That there is one already is fine, and so is that there may be none."""
        if not self._events.take():
            self._figures.dropped += 1
            return
        namespace, content = event(told, key, policy, self._node, datetime.now(UTC))
        try:
            await self._writes.send("POST", f"/api/v1/namespaces/{namespace}/events", content)
        except ApiFailure as failure:
            if is_general(failure):
                raise
            if failure.code != 409:
                self._figures.failures += 1
                log.warning("an Event can't be written", policy=" ".join(key), error=str(failure))
            return
        self._figures.events += 1

    async def _sweep(self, policies: dict[Key, Written], now: float) -> None:
        """Delete what no policy has had for a while: mostly it was collected with its policy.

        Nobody knows of policies of kinds that are not read here: their statuses stay as long as any node reads such.
        """
        left = self._held.keys() - {(one[0].kind, *one[1:]) for one in map(status_name, policies)}
        kinds = {at[2].partition(".")[0] for at in left} - self._kinds
        others = {kind for kind in kinds if self._tally.is_read(kind)}
        self._stale = {at: self._stale.get(at, now) for at in left if at[2].partition(".")[0] not in others}
        for at, since in self._stale.items():
            if now - since >= self._pacing.stale and (held := self._held.get(at)) is not None:
                try:
                    await self._delete(at, held)
                except ApiFailure as failure:
                    if is_general(failure):
                        raise
                    self._stale[at] = now  # the object's own: tried again when as much time has gone by
                    self._figures.failures += failure.code != 409
                    log.warning("a status without a policy can't be deleted", status=" ".join(at), error=str(failure))

    async def _delete(self, at: tuple[str, str, str], held: Held) -> None:
        kind, namespace, name = at
        resource = NAMESPACED if kind == NAMESPACED.kind else CLUSTERWIDE
        await self._writes.delete(path_of(resource, namespace, name), held.uid, held.revision)
        if self._held.get(at) is held:
            del self._held[at]
            self._ours.pop(at, None)

    def _keep(self, at: tuple[str, str, str], answer: bytes) -> Held:
        """What was answered, unless the watch has told already what became of it since then."""
        try:
            *_place, held = statuses.read(msgspec.json.decode(answer, type=dict))
        except msgspec.MsgspecError as error:
            raise ApiFailure(0, "", f"{at[0]}: not what an API server answers: {error}") from error
        there = self._held.get(at)
        is_news = there is None or there.uid != held.uid or not is_older(held.revision, there.revision)
        if at not in self._gone and is_news:
            self._held[at] = held
            if there is None:
                self._ahead[at] = held.revision
        return held
